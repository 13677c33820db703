"""Goals: reading and embedding them, and who has which in a batch."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from tensordict import NestedKey, unravel_key
from torch import Tensor, nn

from torchrl_vip.files import is_lfs_pointer
from torchrl_vip.functional import to_chw

ONE_FOR_ALL = torch.Size([])
"""Batch shape of a goal that is not stacked."""

MOST_PIXELS = 64_000_000
"""Of an image that is decoded whole, 192 MB: a larger one is a mistake, or meant to fill the memory."""


class ImageEmbedder(Protocol):
    """What embeds the images of one camera: a :class:`torchrl_vip.VIPTransform`."""

    dim: int
    encoder: nn.Module
    channel_dim: int | None


class GoalEmbedder(Protocol):
    """What goals are embedded for: see :mod:`torchrl_vip.transforms.source`."""

    @property
    def dim(self) -> int | None: ...

    @property
    def goal_vip(self) -> ImageEmbedder: ...

    def cameras(self, goal: Any = None) -> list[NestedKey]: ...


def read_goal(goal: Any) -> Any:
    """Files opened, arrays converted, tensors copied; a list or dict of goals stays one.

    Raises:
        FileNotFoundError, ValueError, TypeError: see :func:`read_image`.
    """
    if isinstance(goal, Mapping):
        return {unravel_key(k): read_image(v).clone() for k, v in goal.items()}
    if isinstance(goal, list | tuple):
        return [read_goal(g) for g in goal]
    return read_image(goal).clone()  # a camera's buffer shows something else by the first use


def embed_goal(
    goal: Any, embedder: GoalEmbedder, batch: torch.Size = ONE_FOR_ALL, *, as_set: bool = False
) -> Tensor:
    """The embedding of a goal.

    Args:
        goal: as :func:`read_goal` returns it: an image, an embedding, a list of these, or a dict from
            camera to image.
        embedder: embeds images, knows the cameras and the size of the embedding.
        batch: ``*B``, of goals that are stacked, one for each environment.
        as_set: a list is a set of G goals, of which the nearest counts, instead of their mean.

    Returns:
        float32 ``[D]`` or ``[*B, D]``; ``[..., G, D]`` of a set.

    Raises:
        ValueError, TypeError: a goal of wrong rank, size, channels or range.
        RuntimeError: an image, and nothing to embed it in reach.
    """
    if isinstance(goal, list | tuple):
        if not goal:
            raise ValueError("an empty list of goals; wanted at least one.")
        if any(isinstance(one, list | tuple) for one in goal):
            raise ValueError("a list of lists of goals; wanted a list of images or embeddings.")
        each = torch.stack([_embed_one(one, embedder, ONE_FOR_ALL) for one in goal], -2)
        return each if as_set else each.mean(-2)
    one = _embed_one(goal, embedder, batch)
    return one.unsqueeze(-2) if as_set else one


def _embed_one(goal: Any, embedder: GoalEmbedder, batch: torch.Size) -> Tensor:
    cameras = embedder.cameras(goal)
    if isinstance(goal, Mapping):
        vip = embedder.goal_vip
        if missing := [camera for camera in cameras if camera not in goal]:
            raise ValueError(f"the goal has no image of camera {missing}; got {list(goal)}.")
        return torch.cat([_embed_image(goal[camera], vip, batch) for camera in cameras], -1)
    if is_image(goal, embedder.dim, batch):
        if len(cameras) > 1:
            raise ValueError(
                f"one goal image for {len(cameras)} cameras: pass a dict {{key: image}} with the keys "
                f"{cameras}."
            )
        return _embed_image(goal, embedder.goal_vip, batch)
    if embedder.dim is not None and goal.shape[-1] != embedder.dim:
        raise ValueError(
            f"goal embedding of shape {tuple(goal.shape)}; wanted [..., {embedder.dim}], what the encoder "
            "gives."
        )
    if goal.shape[:-1] not in (ONE_FOR_ALL, batch):
        each = f", or {[*batch, goal.shape[-1]]} for one per environment" if batch else ""
        raise ValueError(
            f"goal embeddings of shape {tuple(goal.shape)}; wanted [{goal.shape[-1]}]{each}. A set of "
            "goals is a list, the same for all environments."
        )
    if not goal.isfinite().all():
        raise ValueError("the goal embedding has values that are not finite.")
    return goal.detach().to(torch.float32, copy=True)


def _embed_image(image: Tensor, vip: ImageEmbedder, batch: torch.Size) -> Tensor:
    try:
        try:
            image = to_chw(image)  # a file's layout need not be the frames'
        except ValueError:
            image = to_chw(image, vip.channel_dim)
        lead = image.shape[:-3]
        if lead not in (ONE_FOR_ALL, batch):
            raise ValueError(
                f"images stacked as {tuple(lead)} for an environment of batch shape {tuple(batch)}. A set "
                "of goals is a list"
            )
        return vip.encoder(image, channel_dim=-3).detach()
    except (ValueError, TypeError) as error:
        raise type(error)(f"goal image: {error}") from error


def read_image(goal: Any, what: str = "goal") -> Tensor:
    """An image as a tensor: files are decoded, arrays and PIL images converted.

    A tensor is returned as it is: it may be an embedding.

    Args:
        goal: a path, PIL image, array or tensor.
        what: it is called in an error.

    Returns:
        uint8 ``[H, W, 3]`` of a file or PIL image; else what was given, as a tensor.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is no readable image, or an image of more than MOST_PIXELS; a JPEG is
            decoded at a reduced size instead.
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
                goal = _upright(image)
        except (
            UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError
        ) as error:  # fmt: skip
            # a PNG that is broken between its chunks is a SyntaxError to Pillow
            lfs = "a Git LFS pointer in its place: run git lfs pull there"
            reason = lfs if is_lfs_pointer(path) else error
            raise ValueError(
                f"image {path} cannot be read; wanted a PNG, JPEG, GIF or WebP ({reason})."
            ) from error
    if isinstance(goal, Image.Image):
        goal = np.array(_upright(goal))
    if isinstance(goal, np.ndarray):
        return torch.from_numpy(np.require(goal, requirements=["C", "W"]))
    raise TypeError(
        f"a {what} of type {type(goal).__name__}; wanted an image (tensor, array or PIL) or a path"
        + (", an embedding, or a list of these." if what == "goal" else ".")
    )


def _upright(image: Image.Image) -> Image.Image:
    """As RGB, the way up that a telephone or camera held otherwise says in the file."""
    if image.width * image.height > MOST_PIXELS:
        image.draft("RGB", (2048, 2048))  # a JPEG's decoder can leave out detail, others cannot
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(
            f"{image.width} x {image.height} pixels, the limit is {MOST_PIXELS // 10**6} million: resize it"
        )
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow would cut off what is above 255
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode!r}; wanted 8 or 16 bits a colour")
    return image.convert("RGB")


def is_image(tensor: Tensor, dim: int | None, batch: torch.Size) -> bool:
    """Whether a goal tensor holds images; else it holds embeddings ``[..., D]``.

    uint8 is always an image. Floating point is an embedding when it has fewer than three dimensions, or
    when its last dimension is D and it is stacked as the batch is or has no three colours: a picture may
    be D pixels wide.
    """
    if not tensor.is_floating_point():
        return True
    if tensor.ndim < 3:
        return False
    coloured = tensor.shape[-3] in (3, 4) or tensor.shape[-1] in (3, 4)
    return tensor.shape[-1] != dim or (tensor.shape[:-1] != batch and coloured)


def align(goal: Tensor, z: Tensor, batch: torch.Size, as_sets: bool) -> Tensor:
    """Goals ``[D]`` or ``[*B, D]`` (``[..., G, D]`` of sets) made to broadcast against z ``[*B, *N, D]``."""
    tail = 2 if as_sets else 1
    if goal.ndim > tail:
        extra = z.ndim - len(batch) - 1
        goal = goal.reshape(*goal.shape[: len(batch)], *[1] * extra, *goal.shape[len(batch) :])
    # One dimension more than z makes it a set; line its leading ones up.
    return goal.expand(*z.shape[:-1], *goal.shape[-2:]) if as_sets else goal


class Goals:
    """Which goal each environment of a batch ``*B`` has.

    Args:
        as_sets: a goal is a set of G embeddings, of which the nearest counts, and every shape below
            has G before its D.

    Attributes:
        embedding: float32 ``[D]``, one for all, or ``[*B, D]``; None before the first goal.
        images: uint8 or float ``[*B, *S]``, those that came as images, as they came, and zeros for a
            goal that did not; None before the first.
    """

    def __init__(self, as_sets: bool) -> None:
        self.as_sets = as_sets
        self.embedding: Tensor | None = None
        self.images: Tensor | None = None
        # As the environments last had them, [*B, D] and [*B, *S].
        self._written: Tensor | None = None
        self._written_images: Tensor | None = None

    @property
    def _tail(self) -> int:
        return 2 if self.as_sets else 1

    def set(self, embedding: Tensor) -> None:
        """One goal for all, ``[D]``, or one for each, ``[*B, D]``.

        Raises:
            ValueError: a set of another size than before.
        """
        self._check_count(embedding)
        self.embedding = embedding
        self.images = None if self.images is None else torch.zeros_like(self.images)

    def set_rows(self, embedding: Tensor, rows: Tensor, batch: torch.Size) -> None:
        """Goals of some environments.

        Args:
            embedding: ``[D]``, one for all of these, or ``[n, D]``.
            rows: bool ``[*B]`` with n times True.

        Raises:
            ValueError: the others have none yet; a set of another size than before.
        """
        self._check_count(embedding)
        goal = self.embedding
        if goal is None:
            if not rows.all():
                raise ValueError(
                    f"goals for {int(rows.sum())} of {rows.numel()} environments, and the others "
                    "have none yet: give every environment a goal first."
                )
            goal = embedding.new_zeros(embedding.shape[-self._tail :])
        goal = goal.expand(*batch, *goal.shape[-self._tail :]).clone()
        goal[rows.to(goal.device)] = embedding.to(goal.device)
        self.embedding = goal
        if self.images is not None:
            self.images = self.images.clone()
            self.images[rows.to(self.images.device)] = 0

    def take(self, embedding: Tensor, rows: Tensor) -> None:
        """Adopt what a reset of the environments ``rows`` (bool ``[*B]``) brings, ``[*B, D]``.

        A tensordict that went through the environment carries the goals that :meth:`write` gave it:
        only those that differ are the caller's.
        """
        new = rows.to(embedding.device) & _changed(embedding, self._written, rows.ndim)
        if new.any():
            self.set_rows(embedding[new].to(torch.float32), new, rows.shape)

    def take_images(self, images: Tensor, rows: Tensor, embed: Callable[[Tensor], Tensor]) -> None:
        """The same for images ``[*B, *S]``; ``embed`` makes ``[n, D]`` of ``[n, *S]``."""
        new = rows.to(images.device) & _changed(images, self._written_images, rows.ndim)
        if new.any():
            self.set_rows(embed(images[new]), new, rows.shape)
            if self.images is None:
                self.images = torch.zeros_like(images)
            self.images[new] = images[new]
        self._written_images = _replaced(self._written_images, images, rows)

    def where_carried(self, carried: Tensor, batch: torch.Size) -> Tensor:
        """The goal of each row of a tensordict that carries ``[*B, D]``: its own where it is not what
        :meth:`write` gave; ``embedding`` itself where no row has one."""
        goal, own = self._known(self.embedding), _changed(carried, self._written, len(batch))
        if not own.any():
            return goal
        if own.all():
            return carried
        own = own.reshape(*batch, *[1] * self._tail)
        return torch.where(own, carried, goal.to(carried.device))

    def write(
        self, batch: torch.Size, device: torch.device | None, rows: Tensor | None = None
    ) -> Tensor:
        """The goal of every environment, ``[*B, D]``, on this device.

        Args:
            rows: bool ``[*B]``, those of the environments that will have it; None is all.

        Raises:
            ValueError: the goals are of another batch.
        """
        goal = self.embedding = self._known(self.embedding).to(device=device)
        lead, tail = goal.shape[: -self._tail], goal.shape[-self._tail :]
        if lead not in (torch.Size([]), batch):
            raise ValueError(
                f"goals for environments {tuple(lead)}, but this batch is {tuple(batch)}."
            )
        goal = goal.expand(*batch, *tail)
        self._written = _replaced(self._written, goal, rows)
        return goal.clone()  # whoever edits it in place gives a new goal

    def write_images(self, device: torch.device | None, rows: Tensor | None = None) -> Tensor:
        """The goal image of every environment, ``[*B, *S]``; arguments as of :meth:`write`."""
        images = self.images = self._known(self.images).to(device=device)
        self._written_images = _replaced(self._written_images, images, rows)
        return images.clone()

    @staticmethod
    def _known(goals: Tensor | None) -> Tensor:
        if goals is None:
            raise ValueError("there is no goal yet: give one first.")
        return goals

    def _check_count(self, embedding: Tensor) -> None:
        """The size of a set of goals is part of the environment's spec and stays."""
        if not self.as_sets or self.embedding is None:
            return
        count, before = embedding.shape[-2], self.embedding.shape[-2]
        if count != before:
            raise ValueError(
                f"a set of {count} goals where there were {before}: goal_reduction='nearest' keeps their "
                "number."
            )


def _changed(new: Tensor, old: Tensor | None, batch_dims: int) -> Tensor:
    """Which environments of ``[*B, *S]`` have other values than before: bool ``[*B]``."""
    if old is None or old.shape != new.shape:
        return torch.ones(new.shape[:batch_dims], dtype=torch.bool, device=new.device)
    return (new != old.to(new.device)).flatten(batch_dims).any(-1)


def _replaced(old: Tensor | None, new: Tensor, rows: Tensor | None) -> Tensor:
    """A copy of ``[*B, *S]`` with these rows of ``new``; all of them where ``old`` has no such shape."""
    if rows is None or old is None or old.shape != new.shape:
        return new.clone()
    rows = rows.reshape(*rows.shape, *[1] * (new.ndim - rows.ndim)).to(new.device)
    return torch.where(rows, new, old.to(new.device))
