"""The numbers of an episode, from its embeddings and a goal: a row a frame, and a summary. Pure maths."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchrl_vip.evaluation.metrics import bumps, voc
from torchrl_vip.functional import goal_distance

AT_GOAL = 0.01
"""An episode whose first frame is nearer than this share of a usual first distance begins at its goal."""


@dataclass(frozen=True)
class Rows:
    """An episode, a row a frame; all float32 ``[T]``, NaN where a frame could not be read.

    Attributes:
        distance: to the goal, embedding units.
        progress: 1 - distance / first distance; 0 at the start, 1 at the goal, below 0 farther away.
        reward: of what follows the frame: of the step from frame t to t + 1. The last frame is taken to
            stay, as nothing is known of what its action did.
        z: embeddings ``[T, D]``, or None.
    """

    distance: np.ndarray
    progress: np.ndarray
    reward: np.ndarray
    z: np.ndarray | None = None

    @property
    def progress_clipped(self) -> np.ndarray:
        """Progress in [0, 1]."""
        return self.progress.clip(0, 1)


@dataclass
class Summary:
    """An episode in a row.

    Attributes:
        episode: its name in the dataset.
        frames, read: that the dataset announces, and that could be read.
        total: the return, the sum of its rewards.
        voc_own, voc_shared: rank correlation of time with minus the distance to its own last frame, and to
            its task's shared goal.
        bumps: share of steps that lead away from the goal.
        final_progress: progress of its last frame.
        end_distance: of its last frame to the goal images, or the median to other episodes' last frames.
        end_progress: 1 - end_distance / the first frame's: how far it came to where it should have come.
        suspected_failure: whether that is beyond the checkpoint's success_threshold; None where unknown.
        note, error: what was noticed; why the episode could not be used.
    """

    episode: str
    index: int
    task: str
    frames: int
    read: int = 0
    total: float = math.nan
    voc_own: float = math.nan
    voc_shared: float = math.nan
    bumps: float = math.nan
    first_distance: float = math.nan
    final_progress: float = math.nan
    end_distance: float = math.nan
    end_progress: float = math.nan
    suspected_failure: bool | None = None
    note: str = ""
    error: str = ""

    def row(self) -> dict[str, Any]:
        """For a table: the field names, with "return" for ``total``."""
        row = asdict(self)
        return {("return" if name == "total" else name): value for name, value in row.items()}


def progress(distance: np.ndarray, usual: float | None = None) -> np.ndarray:
    """1 - distance / first distance, float32 ``[T]``; NaN where the first distance is about 0.

    Args:
        distance: ``[T]``, T > 0.
        usual: a usual first distance, of which :data:`AT_GOAL` is about 0; None: only 0 itself.
    """
    if distance[0] <= AT_GOAL * (usual or 0) or distance[0] == 0:
        return np.full(len(distance), np.nan, np.float32)
    return (1 - distance / distance[0]).astype(np.float32)


def following(z: Tensor) -> Tensor:
    """The embedding after each frame ``[T, D]``; the last frame stays."""
    return torch.cat([z[1:], z[-1:]])


def padded(values: np.ndarray, frames: int) -> np.ndarray:
    """``values`` ``[T, ...]`` with rows of NaN up to ``frames``, where the last ones could not be read."""
    missing = frames - len(values)
    if missing <= 0:
        return values
    return np.concatenate([values, np.full((missing, *values.shape[1:]), np.nan, values.dtype)])


def curve(z: Tensor, goal: Tensor) -> np.ndarray:
    """Distances float32 ``[T]`` of ``[T, D]`` to a goal ``[D]``."""
    return goal_distance(z, goal).numpy().astype(np.float32)


def orders(distance: np.ndarray) -> dict[str, float]:
    """What a curve's shape says: ``voc`` and ``bumps``; NaN of fewer than two frames."""
    if len(distance) < 2:
        return {"voc": math.nan, "bumps": math.nan}
    return {"voc": voc(distance), "bumps": bumps(distance)}
