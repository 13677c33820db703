"""Frames of a clip, wherever they lie: a video, a folder of numbered frames, a parquet file, an array."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from torchrl_vip.data.arrays import count_rows, read_rows, rows_at
from torchrl_vip.data.clip import (
    IMAGE_SUFFIXES,
    ArrayRows,
    Clip,
    ImageColumn,
    Moments,
    Part,
    check_count,
)
from torchrl_vip.data.image_column import image_rows, read_images
from torchrl_vip.data.video_file import probe
from torchrl_vip.goals import read_image


def read_frames(path: str | Path, span: Part = None) -> Iterator[Tensor]:
    """Frames of a video file, a folder of numbered frames or an array, uint8 ``[3, H, W]``, in order.

    Args:
        span: a part of it only, as LeRobot v3 packs several episodes into one file.

    Raises:
        ValueError: it cannot be decoded, or fewer frames are there than announced.
    """
    path = Path(path)
    if isinstance(span, ArrayRows):
        yield from read_rows(path, span)
    elif isinstance(span, ImageColumn):
        yield from read_images(path, span.column, _rows(path, span)[0])
    elif path.is_dir():
        yield from map(_image, _files(path, span)[0])
    elif span is None:
        file = probe(path)
        file.check_whole()
        yield from file.frames()
    else:
        yield from probe(path).frames(_rows(path, span)[0].tolist())


def measure(path: Path, span: Part = None) -> tuple[int, str]:
    """Number of frames of a clip, and a note where its source announces a few more.

    Nothing is decoded but one frame of a video.

    Raises:
        ValueError: it cannot be read, or has much fewer frames than announced.
    """
    if isinstance(span, ArrayRows):
        return count_rows(path, span), ""
    if path.is_dir() and not isinstance(span, ImageColumn):
        files, note = _files(path, span)
        return len(files), note
    if span is None:
        file = probe(path)
        return len(file), file.check_whole()
    rows, note = _rows(path, span)
    return len(rows), note


def frames_at(path: Path, index: Tensor, span: Part = None) -> Tensor | Sequence[Tensor]:
    """Frames ``index`` (int64 ``[N]``) of a clip; uint8 ``[3, H, W]`` each.

    Raises:
        ValueError: one of them cannot be read.
    """
    if isinstance(span, ArrayRows):
        return rows_at(path, span, index)
    if path.is_dir() and not isinstance(span, ImageColumn):
        files = _files(path, span)[0]
        return [_image(files[j]) for j in index.tolist()]
    if span is None:
        return probe(path).at(index)
    rows = _rows(path, span)[0][index.numpy()]
    if isinstance(span, ImageColumn):
        return list(read_images(path, span.column, rows))
    return probe(path).at(torch.from_numpy(rows))


def decode_at(path: Path, index: Tensor) -> Tensor:
    """Frames ``index`` (int64 ``[N]``) of a video file, uint8 ``[N, 3, H, W]``.

    Raises:
        ValueError: it cannot be decoded, or has no such frame.
    """
    return probe(Path(path)).at(index)


def _image(file: Path) -> Tensor:
    try:
        return read_image(file).permute(2, 0, 1)
    except FileNotFoundError as error:  # a link that leads nowhere, or gone meanwhile
        raise ValueError(str(error)) from error


def _files(folder: Path, span: Part) -> tuple[list[Path], str]:
    """Frames of a folder, and a note where a few of them are missing."""
    try:
        files = frame_files(folder)
    except OSError as error:
        raise ValueError(f"{folder}: {error.strerror or error}") from error
    if span is None:
        return files, ""
    if not isinstance(span, tuple):
        raise ValueError(f"{folder}: a folder of frames has no {type(span).__name__}.")
    files, wanted = files[slice(*span)], span[1] - span[0]
    reason = f"{folder}: {len(files)} of {wanted} frames that its data set announces are there"
    return files, check_count(len(files), wanted, reason)


def _rows(path: Path, span: Part) -> tuple[np.ndarray, str]:
    """Rows of a video or parquet file that a part of it is, and a note where a few are missing."""
    if isinstance(span, ImageColumn):
        rows, wanted = image_rows(path, span)[: span.count], span.count
    else:
        file = probe(path)
        if isinstance(span, Moments):
            return file.rows_at(span)
        assert span is None or isinstance(span, tuple)  # arrays are read in arrays.py
        first, end = span or (0, len(file))
        rows, wanted = np.arange(first, max(min(end, len(file)), first)), end - first
    reason = f"{path}: {len(rows)} of {wanted} frames that its data set announces are there"
    return rows, check_count(len(rows), wanted, reason)


def frame_files(folder: Path) -> list[Path]:
    """Images of a folder in the order of the numbers in their names: 10.png comes after 9.png, and of
    times in seconds 0.15.png before 0.2.png."""
    files = [
        p
        for p in folder.iterdir()
        if p.suffix.lower() in IMAGE_SUFFIXES
        and not p.name.startswith(".")
        and (p.is_file() or p.is_symlink())
    ]
    files = [p for p in files if any(c.isdigit() for c in p.stem)] or files  # a cover is no frame
    number = r"(\d+)"
    if files and all(re.fullmatch(r"\D*\d+\.\d+", p.stem) for p in files):
        number = r"(\d+\.\d+)"

    def order(path: Path) -> tuple[list[str | Decimal], str]:
        parts = re.split(number, path.stem)
        return [Decimal(s) if i % 2 else s for i, s in enumerate(parts)], path.name

    return sorted(files, key=order)


def to_square(frames: Tensor, size: int) -> Tensor:
    """``[*B, 3, H, W]`` at storage size: shorter side resized to ``size``, centre square."""
    return F.center_crop(F.resize(frames, [size], antialias=True), [size, size])


def read_clip(clip: Clip, size: int) -> Tensor:
    """A whole clip at storage size.

    Returns:
        uint8 ``[T, 3, size, size]``.

    Raises:
        ValueError: it cannot be decoded, or has fewer than two frames.
    """
    frames = [to_square(frame, size) for frame in read_frames(clip.path, clip.span)]
    check_two(clip, len(frames))
    return torch.stack(frames)


def check_two(clip: Clip, count: int) -> None:
    """Refuse a clip without a next frame: ValueError."""
    if count < 2:
        raise ValueError(f"{clip.path}: {count} frame(s), a clip needs two or more")
