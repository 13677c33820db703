"""What the distance looks at: parts of a frame are hidden one after another, and the distance is taken again.

A hidden part is blurred, with a soft edge, so that hiding itself draws no new edges: Greydanus et al.,
"Visualizing and Understanding Atari Agents", ICML 2018, arXiv 1711.00138.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur, resize

from torchrl_vip.encoders import FrozenEncoder
from torchrl_vip.functional import goal_distance, resize_size, to_chw

CELLS = 12
"""Places along the shorter side."""
PATCH = 0.08
"""Standard deviation of the hidden part's soft edge, in parts of the shorter side."""
CHUNK = 16
"""Hidden versions of a frame that are in memory at a time."""


def saliency(
    frame: np.ndarray | Tensor,
    goal: np.ndarray | Tensor,
    encoder: FrozenEncoder,
    *,
    cells: int = CELLS,
    patch: float = PATCH,
    progress: Callable[[Iterable], Iterable] = iter,
) -> np.ndarray:
    """How much the distance to the goal grows when a part of a frame is hidden.

    Args:
        frame: uint8 ``[H, W, 3]`` or ``[3, H, W]``.
        goal: embedding ``[D]``.
        encoder: of :func:`torchrl_vip.curves.open_encoder`.
        cells: places along the shorter side; as dense along the longer one.
        patch: standard deviation of the Gaussian that is hidden, in parts of the shorter side.
        progress: wraps the chunks of places, such as ``tqdm``.

    Returns:
        float32 ``[rows, columns]``, embedding units, one number for each cell of the frame. Above 0: what
        is there brings the frame nearer to the goal; below 0: it keeps it away. 0 where the encoder does
        not look, which sees the centre square only.

    Raises:
        ValueError: a goal of another size than the encoder's embedding.
    """
    image = to_chw(torch.as_tensor(frame))
    # At the size that the encoder makes of it: the same result, in less memory.
    image = resize(image, [resize_size(encoder.image_size)], antialias=True)
    height, width = image.shape[1:]
    short = min(height, width)
    deviation = patch * short
    hidden = _blurred(image, deviation)
    rows, columns = (max(1, round(cells * side / short)) for side in (height, width))
    y, x = _bumps(rows, height, deviation), _bumps(columns, width, deviation)
    masks = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    z_goal = torch.as_tensor(goal)
    distances = []
    for places in progress(masks.split(CHUNK)):
        share = (y[places[:, 0], :, None] * x[places[:, 1], None, :])[:, None]  # [N, 1, H, W]
        mixed = (image * (1 - share) + hidden * share).round().to(torch.uint8)
        distances.append(goal_distance(encoder(mixed).cpu(), z_goal))
    whole = goal_distance(encoder(image).cpu(), z_goal)
    return (torch.cat(distances) - whole).reshape(rows, columns).numpy()


def _blurred(image: Tensor, deviation: float) -> Tensor:
    """A frame without what is finer than the hidden part."""
    sides = [
        min(2 * int(2.5 * deviation) + 1, 2 * ((side - 1) // 2) + 1) for side in image.shape[1:]
    ]
    return gaussian_blur(image, sides[::-1], [deviation, deviation])


def _bumps(count: int, length: int, deviation: float) -> Tensor:
    """Gaussians about the middles of ``count`` cells of a side: ``[count, length]``, 1 in the middle."""
    middles = (torch.arange(count) + 0.5) * length / count
    away = torch.arange(length)[None] + 0.5 - middles[:, None]
    return torch.exp(-((away / deviation) ** 2) / 2)
