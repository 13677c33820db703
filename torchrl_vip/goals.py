"""Goal images: reading them, telling them from embeddings, lining goals up with a batch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor


def read_image(goal: Any) -> Tensor:
    """An image as a tensor: files are decoded, arrays and PIL images converted.

    A tensor is returned as it is: it may be an embedding.

    Returns:
        uint8 ``[H, W, 3]`` of a file or PIL image; else what was given, as a tensor.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is no readable image.
        TypeError: something that is no image, path, array or tensor.
    """
    if isinstance(goal, Tensor):
        return goal
    if isinstance(goal, str | os.PathLike):
        path = Path(goal)
        if not path.is_file():
            raise FileNotFoundError(f"image {path} does not exist.")
        try:
            with Image.open(path) as image:
                goal = image.convert("RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(
                f"image {path} cannot be read; wanted a PNG, JPEG, GIF or WebP ({error})."
            ) from error
    if isinstance(goal, Image.Image):
        goal = np.array(goal.convert("RGB"))
    if isinstance(goal, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(goal))
    raise TypeError(
        f"a goal of type {type(goal).__name__}; wanted an image (tensor, array or PIL), a path, an "
        "embedding, or a list of these."
    )


def is_image(tensor: Tensor, dim: int | None) -> bool:
    """Whether a goal tensor holds images; else it holds embeddings ``[..., D]``.

    uint8 is always an image; floating point is an embedding when its last dimension is D or it has
    fewer than three dimensions.
    """
    if not tensor.is_floating_point():
        return True
    if tensor.ndim < 3:
        return False
    return tensor.shape[-1] != dim


def align(goal: Tensor, z: Tensor, batch: torch.Size, nearest: bool) -> Tensor:
    """Goals ``[*B, D]`` (``[*B, G, D]`` with ``nearest``) made to broadcast against z ``[*B, *N, D]``."""
    extra = z.ndim - len(batch) - 1
    return goal.reshape(*goal.shape[: len(batch)], *([1] * extra), *goal.shape[len(batch) :])
