"""Writing videos; and, by their earlier path, the names that read them."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from itertools import chain
from pathlib import Path

import numpy as np
from torch import Tensor

from torchrl_vip.data.clip import IMAGE_SUFFIXES, Clip
from torchrl_vip.data.frame_table import FrameTable, NoReadableClipError, decode_once, fingerprint
from torchrl_vip.data.lazy import LazyVideoStorage, decode_lazily
from torchrl_vip.data.reading import (
    decode_at,
    frame_files,
    frames_at,
    read_clip,
    read_frames,
    to_square,
)
from torchrl_vip.files import write_whole

__all__ = [
    "IMAGE_SUFFIXES",
    "Clip",
    "FrameTable",
    "LazyVideoStorage",
    "NoReadableClipError",
    "decode_at",
    "decode_lazily",
    "decode_once",
    "fingerprint",
    "frame_files",
    "frames_at",
    "read_clip",
    "read_frames",
    "to_square",
    "write_video",
]


FPS = 20
"""Frames a second of a video where nothing else is said."""


def write_video(
    path: str | Path,
    frames: np.ndarray | Tensor | Iterable[np.ndarray | Tensor],
    fps: int | Fraction = FPS,
    *,
    gop_size: int | None = None,
) -> Path:
    """Write frames as an mp4, whole or not at all.

    H.264, or MPEG-4 where PyAV has no libx264.

    Args:
        frames: uint8 ``[T, H, W, 3]``, or one ``[H, W, 3]`` after another; H and W are even.
        gop_size: frames from one key frame to the next at most, for random access; None is the codec's own.

    Raises:
        ValueError: no frame, one of another shape than the first or not of uint8, or an odd size.
    """
    import av

    codec, options = "libx264", {"crf": "18"}
    if codec not in av.codecs_available:
        codec, options = "mpeg4", {"qscale": "2"}

    def write(part: Path) -> None:
        with av.open(str(part), "w", format="mp4") as container:
            stream = container.add_stream(codec, rate=fps, options=options)
            stream.height, stream.width = first.shape[:2]
            stream.pix_fmt = "yuv420p"
            if gop_size:
                stream.gop_size = gop_size
            for frame in chain([first], rest):
                picture = np.asarray(frame)
                _check_frame(picture, first.shape)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())

    rest = iter(frames)
    if (begin := next(rest, None)) is None:
        raise ValueError(f"{path}: no frames were given; wanted one or more.")
    first = np.asarray(begin)
    return write_whole(path, write)


def _check_frame(frame: np.ndarray, shape: tuple[int, ...]) -> None:
    """Raise ValueError for a frame that does not go into a video of this shape."""
    wanted = len(shape) == 3 and shape[2] == 3 and shape[0] % 2 == shape[1] % 2 == 0
    if not wanted or frame.shape != shape or frame.dtype != np.uint8:
        raise ValueError(
            f"a frame of shape {list(frame.shape)} and {frame.dtype} in a video of {list(shape)}: wanted "
            "uint8 [H, W, 3], all of one size, H and W even."
        )
