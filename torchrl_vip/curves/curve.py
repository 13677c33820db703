"""The distance to a goal along a video, and what it says.

A frame or image is uint8 ``[H, W, 3]`` or ``[3, H, W]``. T frames make T - 1 steps.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import resize

from torchrl_vip.curves import words
from torchrl_vip.encoders import FrozenEncoder
from torchrl_vip.functional import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    check_smoothing,
    goal_distance,
    reward_of_distances,
    to_chw,
)
from torchrl_vip.goals import read_image
from torchrl_vip.weights import DEFAULT, load_vip

BATCH = 16
"""Frames of one forward, at most."""
BATCH_BYTES = 32_000_000
"""Of the frames of one forward, at most: five of full HD."""
KEPT = 128
"""Small images that Thumbnails keeps: the frames of a minute of full size do not fit into memory."""
THUMBNAIL = 400
"""Their longer side, pixels."""


@dataclass(frozen=True, eq=False)
class Curve:
    """A video in the eyes of one goal and one encoder.

    Attributes:
        embedding: float32 ``[T, D]``.
        goal: float32 ``[D]``, the goal's embedding.
        smoothing: share of the past in the average of the distance, in [0, 1); 0 is off.
    """

    embedding: np.ndarray
    goal: np.ndarray
    smoothing: float = 0.0

    def __len__(self) -> int:
        return len(self.embedding)

    @cached_property
    def distance(self) -> np.ndarray:
        """``[T]``, embedding units: to the goal, smoothed where ``smoothing`` says so."""
        z, z_goal = torch.from_numpy(self.embedding), torch.from_numpy(self.goal)
        distance = goal_distance(z, z_goal).numpy()
        if not self.smoothing:
            return distance
        from torchrl_vip.evaluation.metrics import smoothed

        return smoothed(distance, self.smoothing)

    @cached_property
    def reward(self) -> np.ndarray:
        """``[T - 1]``, embedding units: how much nearer each step came. That is the reward of
        ``VIPRewardTransform(goal)``; its ``scale`` multiplies this."""
        distance = torch.from_numpy(self.distance)
        return reward_of_distances(distance[:-1], distance[1:]).numpy()

    @property
    def order(self) -> float:
        """Rank correlation of time with minus the distance, in [-1, 1]: 1 where every step leads nearer."""
        from torchrl_vip.evaluation.metrics import voc

        return voc(self.distance)

    @property
    def towards(self) -> float:
        """Share of steps that lead towards the goal, in [0, 1]."""
        return float(np.mean(self.reward > 0))

    @property
    def bumps(self) -> float:
        """Share of steps that lead away from the goal, in [0, 1]."""
        return float(np.mean(self.reward < 0))

    @property
    def bump_size(self) -> float:
        """Sum of all steps away from the goal, in parts of the first distance; NaN where that is 0."""
        from torchrl_vip.evaluation.metrics import bump_size

        return bump_size(self.distance)

    @property
    def covered(self) -> float:
        """Share of the way to the goal that the video covers, at most 1; negative where it ends farther
        than it began, NaN where it began at the goal."""
        first, last = map(float, self.distance[[0, -1]])
        return 1 - last / first if first else np.nan

    def sentences(self) -> list[str]:
        """What the curve says: steps towards the goal, order, way covered."""
        return [words.steps(self), words.order(self), words.way(self)]

    def in_words(self) -> str:
        """:meth:`sentences` as one text: "82 % of steps lead towards the goal, 18 % away from it. ..."."""
        return " ".join(self.sentences())

    def numbers(self) -> dict[str, Any]:
        """All numbers but the embeddings, as JSON can hold them; NaN is None."""
        about = {
            "frames": len(self),
            "smoothing": self.smoothing,
            "order": self.order,
            "bumps": self.bumps,
            "bump_size": self.bump_size,
            "towards": self.towards,
            "covered": self.covered,
        }
        about = {key: None if np.isnan(value) else value for key, value in about.items()}
        return about | {"distance": self.distance.tolist(), "reward": self.reward.tolist()}


def measure(
    frames: str | os.PathLike | np.ndarray | Tensor | Iterable[np.ndarray | Tensor],
    goal: Any = None,
    encoder: str | os.PathLike | nn.Module | None = None,
    *,
    smoothing: float = 0.0,
) -> Curve:
    """The curve of a video; its frames are read once, and only a batch of them is in memory.

    Args:
        frames: a video file or folder of frames; or uint8 ``[T, H, W, 3]`` or ``[T, 3, H, W]``; or one
            frame after another.
        goal: an image (a path, PIL image, array or tensor), an embedding float ``[D]``, or the number of
            a frame of the video (-1 is its last). None is its last frame.
        encoder: see :func:`open_encoder`; opening it once is faster for several videos.
        smoothing: share of the past in the average of the distance, in [0, 1); 0 is off.

    Raises:
        ValueError: fewer than two frames, no frame of that number, a goal or frame of wrong shape or
            range, an embedding that is not finite, smoothing out of range.
        FileNotFoundError, TypeError: a goal that is not there, or is no image.
        CheckpointError: an encoder that cannot be opened.
    """
    check_smoothing(smoothing)
    encoder = open_encoder(encoder)
    number = -1 if goal is None else goal
    is_number = isinstance(number, int | np.integer)
    z_goal = None if is_number else _embed_goal(goal, encoder)  # before minutes of a long video
    if isinstance(frames, str | os.PathLike):
        from torchrl_vip.data.reading import read_frames

        frames = read_frames(os.fspath(frames))
    z = _embed(frames, encoder)
    if len(z) < 2:
        raise ValueError(f"{len(z)} frame(s); wanted a video of two or more.")
    if z_goal is None:
        if not -len(z) <= number < len(z):
            raise ValueError(f"goal {number}: the video has frames 0 to {len(z) - 1}.")
        z_goal = z[number].clone()
    if not z.isfinite().all():
        raise ValueError("the encoder gave values that are not finite.")
    return Curve(z.numpy(), z_goal.numpy(), smoothing)


def _embed_goal(goal: Any, encoder: FrozenEncoder) -> Tensor:
    """An image's embedding, or the embedding that it is: ``[D]``."""
    goal = read_image(goal)
    if goal.is_floating_point() and goal.ndim == 1:
        if len(goal) != encoder.dim:
            raise ValueError(
                f"a goal embedding of {len(goal)} numbers; wanted {encoder.dim}, as the encoder gives."
            )
        return goal.detach().cpu().float()
    if goal.ndim != 3:
        raise ValueError(f"a goal of shape {list(goal.shape)}; wanted one image, [H, W, 3].")
    return encoder(goal).cpu()


def _embed(frames: Iterable[np.ndarray | Tensor], encoder: FrozenEncoder) -> Tensor:
    """Embeddings ``[T, D]``, on the CPU."""
    parts, batch = [], list[Tensor]()
    for given in frames:
        frame = to_chw(torch.as_tensor(given))
        full = len(batch) >= BATCH or (len(batch) + 1) * frame.nbytes > BATCH_BYTES
        # a folder's frames need not be of one size
        if batch and (full or frame.shape != batch[0].shape):
            parts.append(encoder(torch.stack(batch)).cpu())
            batch = []
        batch.append(frame)
    if batch:
        parts.append(encoder(torch.stack(batch)).cpu())
    return torch.cat(parts) if parts else torch.zeros(0, encoder.dim)


class RawPixels(nn.Module):
    """The baseline without learning: the frame itself, 32 x 32 colours in [0, 1], as the embedding.

    Against a video's own last frame it orders frames well; against another episode's it does not.
    """

    image_size = 32
    dim = 3 * image_size**2

    def forward(self, frames: Tensor) -> Tensor:
        """Preprocessed ``[N, 3, 32, 32]`` to ``[N, 3072]``."""
        std = frames.new_tensor(IMAGENET_STD).view(3, 1, 1)
        return (frames * std + frames.new_tensor(IMAGENET_MEAN).view(3, 1, 1)).flatten(1)


def open_encoder(
    encoder: str | os.PathLike | nn.Module | None = None, *, blur: float = 0.0
) -> FrozenEncoder:
    """An encoder ready for :func:`measure`.

    Args:
        encoder: None or "bundled" is the package's default; "tiny" the small one; "pixels" the baseline
            :class:`RawPixels`; else as :func:`torchrl_vip.load_vip`, or a module. A FrozenEncoder comes
            back as it is.
        blur: see :class:`torchrl_vip.FrozenEncoder`.

    Raises:
        ValueError, CheckpointError: as :func:`torchrl_vip.load_vip`.
    """
    if isinstance(encoder, FrozenEncoder):
        return encoder
    if encoder == "pixels":
        encoder = RawPixels()
    elif not isinstance(encoder, nn.Module):
        encoder = load_vip(None if encoder == "bundled" else encoder)
    return FrozenEncoder(encoder, blur=blur)


class Thumbnails:
    """Frames as they pass, of which some are kept small: ``measure(shown := Thumbnails(frames))``.

    Args:
        frames: of :func:`measure`, one after another.

    Attributes:
        images: frame number -> uint8 ``[h, w, 3]``, of 400 pixels at most; evenly spread, at most 129,
            the first and last frame among them once all have passed.
    """

    def __init__(self, frames: Iterable[np.ndarray | Tensor]):
        self.frames = frames
        self.images: dict[int, np.ndarray] = {}

    def __iter__(self) -> Iterator[np.ndarray | Tensor]:
        self.images, stride, number, frame = {}, 1, -1, None
        for number, frame in enumerate(self.frames):
            if number % stride == 0:
                self.images[number] = small(frame)
            if len(self.images) > KEPT:
                stride *= 2
                self.images = {n: image for n, image in self.images.items() if n % stride == 0}
            yield frame
        if frame is not None:
            self.images.setdefault(number, small(frame))


def small(image: np.ndarray | Tensor, side: int = THUMBNAIL) -> np.ndarray:
    """An image as uint8 ``[h, w, 3]``, its longer side at most ``side`` pixels."""
    image = to_chw(torch.as_tensor(image))
    scale = min(1.0, side / max(image.shape[1:]))
    size = [max(1, round(length * scale)) for length in image.shape[1:]]
    return resize(image, size, antialias=True).permute(1, 2, 0).numpy()


def code_to_reproduce(
    video: str | os.PathLike,
    goal: str | os.PathLike | int | None = None,
    encoder: str | os.PathLike | None = None,
    *,
    smoothing: float = 0.0,
) -> str:
    """Five lines of Python that make the same rewards as :func:`measure`; arguments as there, but the goal
    is a path or the number of a frame."""
    frame = -1 if goal is None else goal
    wanted = f"frames[{frame}]" if isinstance(frame, int) else repr(os.fspath(frame))
    options = [f"goal={wanted}"]
    lines = ["from torchrl_vip import VIPReward"]
    if encoder == "pixels":
        lines[:0] = ["from torchrl_vip.curves import RawPixels"]
        options.append("encoder=RawPixels()")
    elif encoder not in (None, "bundled", DEFAULT):
        options.append(f"encoder={os.fspath(encoder)!r}")
    if smoothing:
        options.append(f"smoothing={smoothing}")
    lines += [
        "from torchrl_vip.data.video import read_frames",
        f"frames = list(read_frames({os.fspath(video)!r}))",
        f"vip = VIPReward({', '.join(options)})",
        "rewards = [vip.reward(frame) for frame in frames][1:]",
    ]
    return "\n".join(lines) + "\n"
