"""Value-implicit pre-training: the loop.

Every random draw is a function of (seed, step), so that a run that was killed and resumed ends with
the very weights of one that was not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import nn

from torchrl_vip.pretrain import processes
from torchrl_vip.pretrain.build import (
    Parts,
    build_device,
    build_parts,
    build_run,
    build_split,
)
from torchrl_vip.pretrain.clips import Split
from torchrl_vip.pretrain.config import check
from torchrl_vip.pretrain.run import Run
from torchrl_vip.pretrain.scene import tune


def pretrain(config: dict[str, Any]) -> Path:
    """Train an encoder.

    Args:
        config: the fields of config.yaml; it stays as it is.

    Returns:
        The folder of the final checkpoint, ``out_dir/final``.

    Raises:
        ValueError: a field that cannot be; no clip to train on; another run writes to ``out_dir``.
        FileNotFoundError: ``data.path`` is no folder.
        CheckpointError: the checkpoints in ``out_dir`` are damaged or of another network.
        OSError: the disk is full or not writable; the last checkpoint stays.
    """
    config = check(config)
    split = build_split(config)  # a wrong path is an error before anything is written
    if config["data"]["validation"] == "each":
        return tune(config, split, run_once)
    return run_once(config, split)


def run_once(config: dict[str, Any], split: Split) -> Path:
    """One run, in ``out_dir``; the configuration has been checked."""
    device = build_device(config)
    shard = processes.start(device)
    with build_run(config, split, shard) as run:
        parts = build_parts(config, split, device, shard)
        run.begin(parts)
        final = train(run, parts)
    processes.stop()
    return final


def train(run: Run, parts: Parts) -> Path:
    """Take a run's steps; returns the folder of the final encoder."""
    for step in run.steps():
        batch = parts.augment(run.timed(parts.buffer.sample), step)
        parts.set_training()  # validation left it in evaluation mode; frozen parts stay there
        losses = parts.objective(batch, step)
        norm = backward(losses, parts.optimizer, parts.grad_clip)
        run.log(losses, norm)  # stops at a number that is not finite
        parts.optimizer.step()
        parts.schedule.step()
        parts.average.update_parameters(parts.encoder)
        if run.due("validate"):
            run.validate(parts.average)
        if run.due("checkpoint"):
            run.save()
    if not run.total and run.due("checkpoint"):  # what was fitted before any step is all
        run.save()
    return run.finish(parts.average)


def backward(losses: TensorDict, optimizer: torch.optim.Optimizer, grad_clip: float) -> float:
    """Gradients of the total loss, averaged over processes and clipped; returns their norm before."""
    optimizer.zero_grad(set_to_none=True)
    losses["loss"].backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    processes.average_gradients(parameters)
    return nn.utils.clip_grad_norm_(parameters, grad_clip).item()
