"""What a run keeps on disk so that it can be killed at any moment: its checkpoint and its log."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import torch

from torchrl_vip.weights import CheckpointError


def save_state(path: Path, step: int, **parts) -> None:
    """Write a training checkpoint; a reader finds the old one or the new one, never a part."""
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        torch.save(
            {"step": step, **{name: part.state_dict() for name, part in parts.items()}}, file
        )
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_state(path: Path, device: torch.device, **parts) -> int:
    """Restore what :func:`save_state` wrote; returns its step, or 0 where there is no file.

    Raises:
        CheckpointError: the file is damaged, or of another network.
    """
    if not path.exists():
        return 0
    remedy = "Delete it, or pass resume=false, to start from step 0."
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        first, states = int(state["step"]), {name: state[name] for name in parts}
    except Exception as error:  # torch.load raises many types for a bad file
        raise CheckpointError(
            f"{path} is no readable training checkpoint (damaged?). {remedy}"
        ) from error
    try:
        for name, part in parts.items():
            part.load_state_dict(states[name])
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is of another network than encoder, dim and image_size say. {remedy}"
        ) from error
    return first


class MetricsLog:
    """metrics.csv in long form: step, metric, value. Rows after ``first`` are dropped."""

    def __init__(self, path: Path, first: int):
        rows = []
        if path.exists() and first:
            with open(path, newline="") as file:
                rows = [row for row in csv.reader(file) if len(row) == 3 and row[0].isdigit()]
        temporary = path.with_suffix(".tmp")  # a kill here must not cost the log
        with open(temporary, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["step", "metric", "value"])
            writer.writerows(row for row in rows if int(row[0]) <= first)
        os.replace(temporary, path)
        self.file = open(path, "a", newline="", buffering=1)
        self.writer = csv.writer(self.file)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self.writer.writerows([step, key, f"{value:.6g}"] for key, value in metrics.items())
