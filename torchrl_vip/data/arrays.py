"""Frames in arrays, on the disk: HDF5 files and folders of memory-mapped tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from torch import Tensor

from torchrl_vip.data import hdf5, memory_map
from torchrl_vip.data.clip import ArrayRows
from torchrl_vip.data.pixels import PixelArray


def open_array(path: Path, name: str) -> AbstractContextManager[PixelArray]:
    """An array of pictures by its name in a file or folder.

    Raises:
        ValueError: on entering: it cannot be read.
    """
    return (memory_map if path.is_dir() else hdf5).open_pixels(path, name)


def count_rows(path: Path, part: ArrayRows) -> int:
    """Number of frames of a clip.

    Raises:
        ValueError: it cannot be read, or is shorter than that.
    """
    last = int(part.rows().max(initial=-1))
    for name in filter(None, (part.array, part.next_array)):
        with open_array(path, name) as array:
            if len(array) <= last:
                raise ValueError(f"{path}: {name} has {len(array)} rows, wanted row {last}.")
    return part.count


def read_rows(path: Path, part: ArrayRows) -> Iterator[Tensor]:
    """Frames uint8 ``[3, H, W]`` of a clip, in order.

    Raises:
        ValueError: one of them cannot be read.
    """
    rows = part.rows()
    with open_array(path, part.array) as array:
        yield from array.read(rows)
    if part.next_array:
        with open_array(path, part.next_array) as array:
            yield from array.read(rows[-1:])


def rows_at(path: Path, part: ArrayRows, index: Tensor) -> list[Tensor]:
    """Frames ``index`` (int64 ``[N]``) of a clip; uint8 ``[3, H, W]`` each.

    Raises:
        ValueError: one of them cannot be read.
    """
    rows, wanted = part.rows(), index.numpy()
    frames: dict[int, Tensor] = {}
    inside = np.unique(wanted[wanted < len(rows)])
    if len(inside):
        with open_array(path, part.array) as array:
            frames |= zip(inside.tolist(), array.read(rows[inside]), strict=True)
    if part.next_array and (wanted >= len(rows)).any():
        with open_array(path, part.next_array) as array:
            frames[len(rows)] = next(iter(array.read(rows[-1:])))
    return [frames[i] for i in wanted.tolist()]


def files_of(path: Path, part: ArrayRows) -> list[Path]:
    """The files that a clip's frames lie in."""
    if not path.is_dir():
        return [path]
    names = [part.array, *([part.next_array] if part.next_array else [])]
    return [path / f"{name}.memmap" for name in names]
