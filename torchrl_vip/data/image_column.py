"""Images in the cells of a parquet file, as LeRobot stores cameras that are no videos."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from torchrl_vip.data.clip import ImageColumn
from torchrl_vip.files import is_lfs_pointer
from torchrl_vip.goals import read_image

BATCH = 32
"""Cells read at a time: the images of a file may not fit into memory."""


def open_parquet(path: Path) -> Any:
    """A pyarrow ParquetFile.

    Raises:
        ValueError: it cannot be read.
        ImportError: pyarrow is not installed.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ImportError(
            f'reading {path} needs pyarrow: pip install "torchrl-vip[lerobot]"'
        ) from error
    try:
        return parquet.ParquetFile(path)
    except (OSError, ArrowException) as error:
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        if is_lfs_pointer(path):
            reason = "a Git LFS pointer in its place: run git lfs pull there"
        raise ValueError(f"{path}: not a readable parquet file ({reason})") from error


def image_rows(path: Path, part: ImageColumn) -> np.ndarray:
    """The file's rows that are the episode's frames, in order, int64 ``[T]``.

    Raises:
        ValueError: the file cannot be read, or has no such column.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from error
    episode, frame, columns = _index_columns(path, stat.st_size, stat.st_mtime_ns)
    if part.column not in columns:
        raise ValueError(f"{path}: no column {part.column}; its columns are {list(columns)}")
    rows = np.flatnonzero(episode == part.episode)
    return rows[np.argsort(frame[rows], kind="stable")]


@lru_cache(maxsize=64)
def _index_columns(path: Path, size: int, changed: int) -> tuple[np.ndarray, np.ndarray, tuple]:
    with open_parquet(path) as file:
        columns = tuple(file.schema_arrow.names)
        table = file.read([c for c in ("episode_index", "frame_index") if c in columns])

        def numbers(name: str, otherwise: int) -> np.ndarray:
            if name not in columns:  # a file of one episode, in the order of its rows
                return np.full(file.metadata.num_rows, otherwise)
            return table[name].fill_null(otherwise).to_numpy().reshape(-1)

        return numbers("episode_index", -1), numbers("frame_index", 0), columns


def read_images(path: Path, column: str, rows: np.ndarray) -> Iterator[Tensor]:
    """Images uint8 ``[3, H, W]`` of these rows, in their order.

    Raises:
        ValueError: one of them cannot be read.
    """
    order = np.argsort(rows, kind="stable")
    cells = _cells(path, column, rows[order])
    if (order != np.arange(len(rows))).any():
        ordered = dict(zip(order.tolist(), cells, strict=True))
        cells = (ordered[i] for i in range(len(rows)))
    for row, cell in zip(rows.tolist(), cells, strict=True):
        yield _image(path, column, row, cell)


def _cells(path: Path, column: str, rows: np.ndarray) -> Iterator[Any]:
    """The column's values in these rows, which ascend; a row may be there more than once."""
    with open_parquet(path) as file:
        first = 0
        for group in range(file.num_row_groups):
            end = first + file.metadata.row_group(group).num_rows
            mine = rows[(rows >= first) & (rows < end)]
            batches = file.iter_batches(BATCH, row_groups=[group], columns=[column])
            while len(mine):
                batch = next(batches)
                here = mine[mine < first + len(batch)]
                yield from (batch.column(column)[int(r) - first].as_py() for r in here)
                mine, first = mine[len(here) :], first + len(batch)
            first = end


def _image(path: Path, column: str, row: int, cell: Any) -> Tensor:
    data, file = cell, cell
    if isinstance(cell, dict):
        data, file = cell.get("bytes"), cell.get("path")
    try:
        if isinstance(data, bytes) and data:
            with Image.open(io.BytesIO(data)) as image:
                return read_image(image).permute(2, 0, 1)
        if not isinstance(file, str) or not file:
            raise ValueError("it is empty")
        return read_image(_beside(path, column, file)).permute(2, 0, 1)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: row {row} of {column} is no readable image ({error})") from error


def _beside(path: Path, column: str, file: str) -> Path:
    """An image file that a cell names, by its path from the data set's folder or from ``images``."""
    roots = [Path(), *list(path.parents)[:4]]
    found = [p for root in roots for p in (root / file, root / "images" / column / file)]
    return next((p for p in found if p.is_file()), path.parent / file)
