"""Episodes in folders of memory-mapped tensors: TorchRL's saved replay buffers, and TensorDicts.

::

    storage/meta.json, storage/pixels.memmap, storage/next/...     rb.dumps(folder)
    meta.json, pixels.memmap, next/...                             td.memmap(folder)

Frames are read from their files row by row: nothing is mapped, unpickled or written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchrl.data import find_start_stop_traj

from torchrl_vip.data.clip import ArrayRows, Clip
from torchrl_vip.data.pixels import is_picture, to_frame

IDS = (("collector", "traj_ids"), ("episode",))
"""What tells trajectories apart, in the order in which SliceSampler looks for it."""
ENDS = (("next", "done"), ("next", "truncated"), ("next", "terminated"))
SUCCESS = ("next", "success")
DEEPEST = 16
"""Nested tensordicts; a link may lead back."""


class Leaf(NamedTuple):
    """A tensor's file."""

    path: Path
    shape: tuple[int, ...]
    dtype: str

    def read(self) -> np.ndarray:
        """All of it.

        Raises:
            ValueError: the file has another size.
        """
        values = np.fromfile(self.path, np.dtype(self.dtype))
        if values.size != np.prod(self.shape):
            raise ValueError(f"{self.path}: {values.size} values, wanted {list(self.shape)}.")
        return values.reshape(self.shape)


@dataclass(frozen=True)
class MemoryMap:
    """A folder of memory-mapped tensors.

    Attributes:
        source: the folder that was given; names of arrays count from it.
        folder: of the tensordict itself, ``source`` or its ``storage``.
        batch: its batch size: ``[N]``; of a storage ``[T, B]``, of a tensordict ``[B, T]``.
        leaves: key -> tensor.
        texts: key -> value, of what is stored as JSON at the top.
        is_storage: whether a replay buffer wrote it.
        length: rows in use along the time.
        cursor: row that a full buffer would write next; None where it is not full, or unknown.
    """

    source: Path
    folder: Path
    batch: tuple[int, ...]
    leaves: dict[tuple[str, ...], Leaf]
    texts: dict[str, str]
    is_storage: bool
    length: int
    cursor: int | None

    @property
    def lanes(self) -> int:
        """Number of environments that wrote side by side."""
        return int(np.prod(self.batch)) // max(1, self.batch[self.time])

    @property
    def time(self) -> int:
        """The dimension that is the time."""
        return 0 if self.is_storage else len(self.batch) - 1

    @cached_property
    def cameras(self) -> list[tuple[str, ...]]:
        """Keys of pictures, without those of the next step."""
        return sorted(key for key in self.leaves if key[0] != "next" and self._is_picture(key))

    def _is_picture(self, key: tuple[str, ...]) -> bool:
        leaf, dims = self.leaves[key], len(self.batch)
        fits = leaf.shape[:dims] == self.batch and is_picture(leaf.shape[dims:])
        return fits and leaf.dtype == "uint8"

    def name(self, key: tuple[str, ...]) -> str:
        """Of an array, from the source."""
        return "/".join([*self.folder.relative_to(self.source).parts, *key])

    def per_step(self, key: tuple[str, ...]) -> np.ndarray | None:
        """A number a step ``[length, lanes]``, the time first; None where there is no such tensor."""
        leaf = self.leaves.get(key)
        if leaf is None or np.prod(leaf.shape) != np.prod(self.batch):
            return None
        values = np.moveaxis(leaf.read().reshape(self.batch), self.time, 0)
        return values.reshape(self.batch[self.time], self.lanes)[: self.length]

    def episodes(self) -> list[tuple[int, int, int]]:
        """First step, number of steps and lane of each episode, a lane after another, oldest first."""
        ids = next((v for k in IDS if (v := self.per_step(k)) is not None), None)
        flags = [v != 0 for k in ENDS if (v := self.per_step(k)) is not None]
        ends = np.logical_or.reduce(flags) if flags else np.zeros((self.length, self.lanes), bool)
        how = {"end": torch.from_numpy(ends)}
        if ids is not None:
            how = {"trajectory": torch.from_numpy(ids.copy())}
        last = None if self.cursor is None else (self.cursor - 1) % self.length
        starts, _, steps = find_start_stop_traj(**how, at_capacity=last is not None, cursor=last)
        found = [(t, n, b) for (t, b), n in zip(starts.tolist(), steps.tolist(), strict=True)]
        return sorted(found, key=lambda e: (e[2], (e[0] - (self.cursor or 0)) % self.length))

    def rows(self, key: tuple[str, ...], first: int, steps: int, lane: int) -> ArrayRows:
        """A camera's frames of an episode."""
        after = ("next", *key)
        has_next = after in self.leaves and self._is_picture(after)
        next_array = self.name(after) if has_next else None
        if not self.is_storage:  # [B, T]: a lane's rows follow each other
            first += lane * self.batch[self.time]
            return ArrayRows(self.name(key), steps, first, next_array)
        ring = self.length if self.cursor is not None else 0
        return ArrayRows(self.name(key), steps, first, next_array, ring, lane, self.lanes)


def is_memory_map(folder: Path) -> bool:
    """Whether a folder is a saved replay buffer or TensorDict."""
    saved = (folder / "storage" / "meta.json", folder / "buffer_metadata.json")
    return any(path.is_file() for path in saved) or _is_tensordict(folder)


def _is_tensordict(folder: Path) -> bool:
    try:
        return "_type" in json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def open_memory_map(source: Path) -> MemoryMap:
    """What lies in a folder; of the tensors nothing is read.

    Raises:
        ValueError: it is none that can be read.
    """
    inside = (source / "storage").is_dir() and not (source / "meta.json").is_file()
    folder = source / "storage" if inside else source
    meta = _read_json(folder / "meta.json") if (folder / "meta.json").is_file() else {}
    if not meta or "_storage_shape" in meta:
        raise ValueError(
            f"{folder} holds no memory-mapped TensorDict of steps: save the buffer from a LazyMemmapStorage "
            "or LazyTensorStorage, with no other checkpointer than its own."
        )
    try:
        batch = tuple(int(size) for size in meta["shape"])
        kind = str(meta["_type"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder}/meta.json is no TensorDict's ({error!r}): wanted a folder of rb.dumps or td.memmap."
        ) from error
    if not kind.endswith(".TensorDict'>") or len(batch) not in (1, 2) or 0 in batch:
        raise ValueError(
            f"{folder} holds a {kind} of batch size {list(batch)}: wanted a TensorDict [N], or of several "
            "environments [T, B] in a replay buffer and [B, T] outside."
        )
    leaves, texts = _leaves(folder, meta)
    length, cursor, stored = batch[-1], None, folder / "storage_metadata.json"
    if stored.is_file():
        length, cursor = _rows_in_use(stored, batch)
    return MemoryMap(source, folder, batch, leaves, texts, stored.is_file(), length, cursor)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(value, dict):
            return value
        raise ValueError("no object")
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _rows_in_use(stored: Path, batch: tuple[int, ...]) -> tuple[int, int | None]:
    """Length along the time of a replay buffer's storage, and its cursor where it is full."""
    said = _read_json(stored)
    if said.get("is_pytree"):
        raise ValueError(f"{stored.parent} holds no TensorDict: wanted a storage of TensorDicts.")
    try:
        length = int(said["len"]) // int(np.prod(batch[1:]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{stored} does not say how long it is: {error!r}") from error
    if not 0 < length <= batch[0]:
        raise ValueError(f"{stored} says len={said['len']}: wanted 1 to {int(np.prod(batch))}.")
    if length < batch[0]:
        return length, None
    writer = stored.parent.parent / "writer" / "metadata.json"
    cursor = _read_json(writer).get("cursor") if writer.is_file() else None
    return length, int(cursor) % length if isinstance(cursor, int) else None


def _leaves(
    folder: Path, meta: dict[str, Any], key: tuple[str, ...] = ()
) -> tuple[dict[tuple[str, ...], Leaf], dict[str, str]]:
    leaves: dict[tuple[str, ...], Leaf] = {}
    texts: dict[str, str] = {}
    for name, entry in meta.items():
        if not isinstance(entry, dict) or set(name) & set("/\\\0") or len(key) > DEEPEST:
            continue
        path, inside = folder / name, (*key, name)
        if "type" not in entry:
            file = folder / f"{name}.memmap"
            shape = None if entry.get("is_nested") else entry.get("shape")
            if isinstance(shape, list) and file.is_file():
                dtype = str(entry.get("dtype")).removeprefix("torch.")
                leaves[inside] = Leaf(file, tuple(shape), dtype)
        elif (path / "meta.json").is_file():
            inner = _read_json(path / "meta.json")
            if entry["type"] == "TensorDict":
                leaves |= _leaves(path, inner, inside)[0]
            elif not key and isinstance(inner.get("data"), str):
                texts[name] = inner["data"]
    return leaves, texts


def memory_map_clips(source: Path) -> list[Clip]:
    """One clip for every episode and camera; of the pictures nothing is read.

    Episodes are cut as TorchRL's SliceSampler does: by the trajectories' numbers where they are stored, else
    by where they are done or truncated; a full buffer's also where it was written last.

    Raises:
        ValueError: it cannot be read, or holds no picture.
    """
    data = open_memory_map(source)
    if not data.cameras:
        listed = [f"{'/'.join(k)} {v.dtype} {list(v.shape)}" for k, v in data.leaves.items()]
        raise ValueError(
            f"{source} holds no pictures: wanted a key of uint8 [{', '.join(map(str, data.batch))}, 3, H, W] "
            f"or [..., H, W, 3]; it has {'; '.join(listed) or 'no tensor'}."
        )
    try:
        episodes, success = data.episodes(), data.per_step(SUCCESS)
    except TypeError as error:  # a type that numpy has not
        raise ValueError(f"{source}: where episodes end cannot be read ({error})") from error
    clips = []
    for key in data.cameras:
        camera = "/".join(key)
        for number, (first, steps, lane) in enumerate(episodes):
            labels: dict[str, Any] = {"camera": camera, "episode": number}
            if success is not None:
                labels["success"] = bool(success[(first + steps - 1) % len(success), lane])
            if data.texts.get("task"):
                labels["task"] = data.texts["task"]
            rows = data.rows(key, first, steps, lane)
            clips.append(Clip(source, f"{camera}/episode_{number:06d}", labels, rows))
    return clips


# --- frames -------------------------------------------------------------------------------------------


class MappedPixels:
    """A tensor of pictures whose file is open.

    Args:
        folder: that a clip names.
        name: of the tensor, from there.

    Raises:
        ValueError: there is none, or it is cut short.
    """

    def __init__(self, folder: Path, name: str) -> None:
        where, _, key = name.rpartition("/")
        meta = _read_json(folder / where / "meta.json")
        leaf = _leaves(folder / where, {key: meta.get(key)})[0].get((key,))
        if leaf is None or leaf.dtype != "uint8" or not is_picture(leaf.shape[-3:]):
            raise ValueError(f"{folder}: {name} is no tensor of pictures.")
        self.path, self.shape = leaf.path, leaf.shape
        self.size = int(np.prod(self.shape[-3:]))
        there = self.path.stat().st_size
        if there < len(self) * self.size:
            raise ValueError(
                f"{self.path} is cut short: {there} bytes of {len(self) * self.size} are there."
            )

    def __len__(self) -> int:
        return int(np.prod(self.shape[:-3]))

    def read(self, rows: np.ndarray) -> Iterator[Tensor]:
        """Frames uint8 ``[3, H, W]`` of these rows, one in memory at a time."""
        with open(self.path, "rb", buffering=0) as file:
            for row in rows.tolist():
                yield to_frame(self._row(file, row))

    def _row(self, file: IO[bytes], row: int) -> np.ndarray:
        file.seek(row * self.size)
        values = np.fromfile(file, np.uint8, self.size)
        if len(values) < self.size:
            raise ValueError(f"{self.path}: row {row} is cut short.")
        return values.reshape(self.shape[-3:])


@contextmanager
def open_pixels(folder: Path, name: str) -> Iterator[MappedPixels]:
    """A tensor of pictures in a folder.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        yield MappedPixels(folder, name)
    except OSError as error:
        raise ValueError(f"{folder}: {error.strerror or error}") from error
