"""Pictures without the robot: where a mask covers it, what was last seen there.

Frames are ``[*B, H, W, 3]`` or ``[*B, 3, H, W]``, uint8 in 0-255 or floating point in [0, 1]. A mask is
bool or uint8 ``[*B, H, W]``, ``[*B, H, W, 1]`` or ``[*B, 1, H, W]``, not 0 where the robot is.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torchrl_vip.functional import to_chw
from torchrl_vip.goals import read_image


def mask_robot(image: Any, mask: Any, background: Any = None, *, grow: int = 0) -> Tensor:
    """A picture, such as a goal image, whose masked pixels show the background or else a neutral colour.

    Args:
        image: frames, as an array or tensor, or the path of one.
        mask: where the robot is in them; see the module for shapes.
        background: a picture by the same camera without the robot, ``[H, W, 3]`` or ``[3, H, W]``, or its
            path; None fills with the mean colour of what is not masked, of each frame by itself.
        grow: pixels by which the mask is made larger on all sides: a mask that is not exact leaves an edge
            of the robot, which moves with it.

    Returns:
        As ``image``.

    Raises:
        ValueError: a mask or background of another size; ``grow`` below 0.
        TypeError: a mask that is neither bool nor uint8.
    """
    return BehindRobot(background, grow=grow, warn=False).start(image, mask)


class BehindRobot:
    """What a camera last saw where the robot is now: a memory for each pixel of each environment.

    Pixels that were never seen show the background, or else the mean colour of what was seen in the first
    frame; then a warning says once how much of the picture that is.

    Args:
        background, grow: see :func:`mask_robot`.
        warn: False leaves out the warning.

    Examples:
        >>> behind = BehindRobot()  # doctest: +SKIP
        >>> vip.reset(behind.start(frame, mask))  # doctest: +SKIP
        >>> vip.reward(behind.step(next_frame, next_mask))  # doctest: +SKIP
    """

    def __init__(self, background: Any = None, *, grow: int = 0, warn: bool = True):
        if grow < 0:
            raise ValueError(f"grow={grow} is invalid: wanted 0 or more pixels.")
        self.background = None if background is None else read_image(background, "background")
        self.grow = grow
        self._warns = warn
        # As it was shown last. New tensors, never edited ones: a shallow copy is a whole one.
        self._shown: Tensor | None = None

    def start(self, frame: Any, mask: Any, rows: Tensor | None = None) -> Tensor:
        """First frames of episodes; what was seen before is forgotten.

        Args:
            frame, mask: see the module.
            rows: bool ``[*B]``, where an episode begins; the others are shown as they were. None is all.

        Returns:
            As ``frame``, without the robot.
        """
        frame, mask, channels = self._read(frame, mask)
        self._warn_once(mask if rows is None else mask[rows])
        if self.background is None:
            behind = _mean_colour(frame, ~mask, channels)
        else:
            behind = _like(self.background, frame, channels)
        return self._keep(torch.where(mask.unsqueeze(channels), behind, frame), rows)

    def step(self, frame: Any, mask: Any, rows: Tensor | None = None) -> Tensor:
        """Frames that follow; as :meth:`start`, but masked pixels show what was last seen there.

        ``rows`` are those with a new frame; None is all. Without a first frame this is one.
        """
        frame, mask, channels = self._read(frame, mask)
        seen = self._seen(frame)
        if seen is None:
            return self.start(frame, mask)
        return self._keep(torch.where(mask.unsqueeze(channels), seen, frame), rows)

    def _keep(self, shown: Tensor, rows: Tensor | None) -> Tensor:
        seen = self._seen(shown)
        if rows is not None and seen is not None:
            rows = rows.reshape((*rows.shape, *[1] * (shown.ndim - rows.ndim)))
            shown = torch.where(rows, shown, seen)
        self._shown = shown.clone()  # whoever gets it may edit it in place
        return shown

    def _seen(self, frame: Tensor) -> Tensor | None:
        """What was shown last, where the frame is; None where there is nothing of its shape."""
        if self._shown is None or self._shown.shape != frame.shape:
            return None
        return self._shown.to(frame.device)

    def _read(self, frame: Any, mask: Any) -> tuple[Tensor, Tensor, int]:
        """The frame, its mask ``[*B, H, W]``, and where its channels are."""
        frame = read_image(frame, "frame")
        mask, channels = _aligned(mask, frame)
        if self.grow:
            flat = mask.reshape(-1, 1, *mask.shape[-2:]).float()
            flat = F.max_pool2d(flat, 2 * self.grow + 1, stride=1, padding=self.grow)
            mask = flat.reshape(mask.shape) > 0
        return frame, mask, channels

    def _warn_once(self, mask: Tensor) -> None:
        if self.background is None and self._warns and mask.any():
            self._warns = False
            warnings.warn(
                f"the robot covers {float(mask.float().mean()):.0%} of the first frame, and nothing was seen "
                "behind it yet: these pixels have the mean colour until they are seen. Pass background=, a "
                "picture by the same camera without the robot.",
                stacklevel=3,
            )


def _aligned(mask: Any, frame: Tensor) -> tuple[Tensor, int]:
    """A mask as bool ``[*B, H, W]``, and where the frame has its channels, -1 or -3.

    Raises:
        ValueError: the shapes do not belong together.
        TypeError: neither bool nor uint8.
    """
    mask = torch.as_tensor(mask)
    if mask.dtype not in (torch.bool, torch.uint8):
        raise TypeError(
            f"a mask of dtype {mask.dtype}; wanted bool, or uint8 that is 0 where the robot is not: "
            "mask > 0.5 makes one."
        )
    shapes = {}
    for channels in (-3, -1):  # the last wins
        if frame.ndim >= 3 and frame.shape[channels] == 3:
            one_channel = frame.select(channels, 0)
            shapes[one_channel.shape] = channels
    flat = [mask, mask.squeeze(-1), mask.squeeze(-3) if mask.ndim > 2 else mask]
    for one in flat:
        if one.shape in shapes:
            return one.bool().to(frame.device), shapes[one.shape]
    raise ValueError(
        f"a mask of shape {tuple(mask.shape)} for frames of shape {tuple(frame.shape)}: wanted [*B, H, W] or "
        "[*B, H, W, 1] for RGB frames [*B, H, W, 3] or [*B, 3, H, W]."
    )


def _mean_colour(frame: Tensor, seen: Tensor, channels: int) -> Tensor:
    """Of the pixels that are seen, bool ``[*B, H, W]``, of each frame by itself; grey where none is."""
    is_uint8 = frame.dtype == torch.uint8
    plane = (-3, -2) if channels == -1 else (-2, -1)
    seen = seen.unsqueeze(channels)
    count = seen.sum(plane, keepdim=True)
    mean = (frame * seen).sum(plane, keepdim=True, dtype=torch.float32) / count
    mean = torch.where(count > 0, mean, 127.5 if is_uint8 else 0.5)
    return (mean.round() if is_uint8 else mean).to(frame.dtype)


def _like(background: Tensor, frame: Tensor, channels: int) -> Tensor:
    """A background in the frame's dtype and layout."""
    image = to_chw(background).to(frame.device)
    size = frame.shape[-3:-1] if channels == -1 else frame.shape[-2:]
    if image.shape[-2:] != size:
        raise ValueError(
            f"a background of {tuple(image.shape[-2:])} pixels for frames of {tuple(size)}: wanted a "
            "picture by the same camera, of the same size."
        )
    if image.dtype == torch.uint8 and frame.dtype != torch.uint8:
        image = image.float() / 255
    elif image.dtype != torch.uint8 and frame.dtype == torch.uint8:
        image = (image * 255).round()
    return image.movedim(-3, channels).to(frame.dtype)
