"""Writing videos; and, by their earlier path, the names that read them."""

from __future__ import annotations

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


def write_video(
    path: str | Path, frames: np.ndarray | Tensor, fps: int = 20, *, gop_size: int | None = None
) -> Path:
    """Write uint8 ``[T, H, W, 3]`` frames (even H and W) as an mp4, whole or not at all.

    H.264, or MPEG-4 where PyAV has no libx264. ``gop_size``: frames from one key frame to the next at
    most, for random access; None is the codec's own.
    """
    import av

    codec, options = "libx264", {"crf": "18"}
    if codec not in av.codecs_available:
        codec, options = "mpeg4", {"qscale": "2"}

    def write(part: Path) -> None:
        with av.open(str(part), "w", format="mp4") as container:
            stream = container.add_stream(codec, rate=fps, options=options)
            stream.height, stream.width = frames.shape[1], frames.shape[2]
            stream.pix_fmt = "yuv420p"
            if gop_size:
                stream.gop_size = gop_size
            for frame in np.asarray(frames):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())

    return write_whole(path, write)
