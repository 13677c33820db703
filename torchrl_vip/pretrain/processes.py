"""Several processes on one batch: ``torchrun --nproc-per-node 2 -m torchrl_vip.pretrain ...``.

Each process draws the whole batch's random numbers and keeps its part, embeds it, and computes the
loss over everyone's embeddings (``losses.all_batches``). With gradients averaged here, N processes
with B / N clips each take the very step of one process with B.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

TIMEOUT = timedelta(minutes=30)  # of one exchange: longer than a validation or a decoding by rank 0


def start(device: torch.device) -> tuple[int, int]:
    """Join the group that torchrun's environment describes; returns (rank, number of processes)."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if processes == 1:
        return 0, 1
    if not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    return dist.get_rank(), processes


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Mean over processes of every gradient, in one exchange."""
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def wait() -> None:
    """Until every process is here."""
    if dist.is_initialized():
        dist.barrier()


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def lost(error: RuntimeError) -> bool:
    """Whether an exchange failed because another process has ended."""
    signs = ("Connection closed", "Connection reset", "Broken pipe", "Timed out", "timeout", "NCCL")
    return dist.is_initialized() and any(sign in str(error) for sign in signs)
