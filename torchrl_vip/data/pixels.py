"""Pictures in arrays: which arrays hold them, and how a row becomes a frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from torchrl_vip.goals import MOST_PIXELS


class PixelArray(Protocol):
    """An array whose rows are pictures."""

    def __len__(self) -> int: ...

    def read(self, rows: np.ndarray) -> Iterator[Tensor]:
        """Frames uint8 ``[3, H, W]`` of these rows, a few of them in memory at a time."""
        ...


def is_picture(shape: Sequence[int]) -> bool:
    """Whether this is the shape of a picture in colour: ``[H, W, 3]`` or ``[3, H, W]``."""
    if len(shape) != 3 or 3 not in (shape[0], shape[-1]):
        return False
    return 0 < int(np.prod(shape, dtype=np.float64)) <= 3 * MOST_PIXELS


def to_frame(picture: np.ndarray) -> Tensor:
    """uint8 ``[H, W, 3]`` or ``[3, H, W]`` as ``[3, H, W]``; where both fit the colours come last."""
    frame = torch.from_numpy(picture)
    return frame.permute(2, 0, 1) if frame.shape[-1] == 3 else frame


def natural_number(name: str) -> int | None:
    """The number that a name ends with, or that it has alone: 3 of "demo_3"; None without one."""
    digits = name[len(name.rstrip("0123456789")) :]
    return int(digits) if digits and len(digits) < 19 else None
