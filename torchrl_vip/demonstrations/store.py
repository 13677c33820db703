"""Files of demonstrations: one .npz a task, those of the package at SHIPPED/<suite>/<task>.npz.

Reading is in :mod:`torchrl_vip.envs.planned`, as the kitchen's goals are the ends of what is shipped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from torchrl_vip.envs.planned import (
    SEEDS,
    SHIPPED,
    Demonstration,
    PlannedSim,
    read_demonstrations,
    shipped,
)
from torchrl_vip.files import write_whole

__all__ = [
    "SEEDS",
    "SHIPPED",
    "Demonstration",
    "PlannedSim",
    "output_folder",
    "read_demonstrations",
    "shipped",
    "write_demonstrations",
]


def write_demonstrations(path: Path, demonstrations: list[Demonstration]) -> None:
    """Writes one task's episodes as .npz, whole or not at all; :func:`read_demonstrations` reads them."""

    def write(part: Path) -> None:
        with open(part, "wb") as file:  # by name it would append .npz
            np.savez_compressed(
                file,
                qpos=np.concatenate([d.qpos for d in demonstrations]).astype(np.float32),
                actions=np.concatenate([d.actions for d in demonstrations]).astype(np.float32),
                steps=np.array([len(d.actions) for d in demonstrations]),
                seed=np.array([d.seed for d in demonstrations]),
                success=np.array([d.success for d in demonstrations]),
                kind=np.array([d.kind for d in demonstrations]),
            )

    write_whole(path, write)


def output_folder(text: str) -> Path:
    """A command line's ``--out``: a folder, or one that can be made.

    Raises:
        argparse.ArgumentTypeError: it, or a folder on the path to it, is a file.
    """
    path = Path(text)
    for there in (path, *path.parents):
        if there.is_file():
            raise argparse.ArgumentTypeError(f"{there} is a file; wanted a folder")
    return path
