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
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    return dist.get_rank(), processes


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Mean over processes of every gradient, in one exchange."""
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = nn.utils.parameters_to_vector(gradients)
    dist.all_reduce(flat)
    nn.utils.vector_to_parameters(flat / dist.get_world_size(), gradients)


def wait() -> None:
    """Until every process is here."""
    if dist.is_initialized():
        dist.barrier()


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
