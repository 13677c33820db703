"""Opening a video file: which of its streams is shown, which way up, and what it announces."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_vip.files import is_lfs_pointer


@contextmanager
def opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """A video file's container and the stream that a player shows.

    Raises:
        ValueError: it is no video.
        ImportError: PyAV is not installed.
    """
    try:
        import av  # carries its own FFmpeg
    except ImportError as error:
        raise ImportError(
            f'reading {path} needs PyAV, which brings its own FFmpeg: pip install "torchrl-vip[video]"'
        ) from error
    try:
        with av.open(str(path)) as container:
            stream = _player_stream(path, container)
            stream.thread_type = "AUTO"
            yield container, stream
    except (av.FFmpegError, IndexError, OSError) as error:
        raise unreadable(path, error) from error


def _player_stream(path: Path, container: Any) -> Any:
    """The default stream; never a cover, a thumbnail or a preview."""
    streams = [s for s in container.streams.video if not _is_cover(s)]
    if not streams:
        kinds = sorted(
            {"a cover picture" if s.type == "video" else s.type for s in container.streams}
        )
        raise ValueError(f"{path}: no video stream, only {' and '.join(kinds) or 'nothing'}")

    def rank(stream: Any) -> tuple:
        size = (stream.codec_context.width or 0) * (stream.codec_context.height or 0)
        default = bool(int(stream.disposition) & 1)
        return stream.frames != 1, default, size, -stream.index

    return max(streams, key=rank)


def _is_cover(stream: Any) -> bool:
    disposition = stream.disposition
    kinds = ("attached_pic", "timed_thumbnails", "still_image")
    return any(disposition & getattr(type(disposition), kind) for kind in kinds)


def decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Frames from where the container is, without what a torn packet would give."""
    for packet in container.demux(stream):
        if not is_torn(packet):
            yield from packet.decode()


def is_torn(packet: Any) -> bool:
    """Whether a packet ends early, as the last one of a file that was cut short: the decoder's error would
    cost the frames before it. Of a transport stream it only says that something was lost before it."""
    return packet.is_corrupt and "mpegts" not in packet.stream.container.format.name


def is_shown(packet: Any) -> bool:
    """Whether a packet has a frame to show: not one that an edit list cuts off, nor VP8's hidden ones."""
    if packet.is_discard:
        return False
    return packet.stream.codec_context.name != "vp8" or bool(bytes(packet)[0] >> 4 & 1)


def display_turn(frame: Any) -> tuple[bool, bool, bool]:
    """Of a frame's display matrix, whose upper left 2 x 2 takes stored (x, y) to displayed ones."""
    data = [bytes(d) for d in frame.side_data if d.type.name == "DISPLAYMATRIX"]
    if not data:
        return False, False, False
    a, b, _, c, d = np.frombuffer(data[0], np.int32)[:5].tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, a < 0, d < 0
    return True, c < 0, b < 0


def pixel_aspect(stream: Any) -> float:
    """Width of a pixel by its height; 1 where the file says none, or one that cannot be."""
    aspect = float(stream.sample_aspect_ratio or 1)
    width, height = stream.codec_context.width, stream.codec_context.height
    changes = round(width * aspect) != width or round(height / aspect) != height
    return aspect if 1 / 8 <= aspect <= 8 and changes else 1.0


def announced_seconds(path: Path, container: Any, stream: Any) -> float | None:
    """How long the stream is by the file's header; None where the container does not announce it, as FFmpeg
    then estimates a duration from what is there."""
    kind = container.format.name
    if "mov" in kind:
        return stream.duration and float(stream.duration * stream.time_base)
    if kind == "avi":  # FFmpeg shortens the duration of a short file, but not the number of ticks
        return float(stream.frames * stream.time_base)
    if kind == "asf" and container.duration is None:
        return _asf_seconds(path)
    if "matroska" in kind or kind in ("flv", "asf"):
        return container.duration and container.duration / 1e6
    return None


def _asf_seconds(path: Path) -> float | None:
    """Of the header of ASF; FFmpeg does not believe it where the file has another size than it says."""
    with open(path, "rb") as file:
        header = file.read(1 << 16)
    at = header.find(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"))
    if at < 0 or len(header) < at + 92:
        return None
    play, _, preroll, flags = struct.unpack_from("<QQQI", header, at + 64)
    return None if flags & 1 else play / 1e7 - preroll / 1e3  # 1: a broadcast


def unreadable(path: Path, error: Exception) -> ValueError:
    if is_lfs_pointer(path):
        return ValueError(
            f"{path}: not a readable video (a Git LFS pointer in its place: run git lfs pull there, or "
            "download the data set with the hub's client)"
        )
    reason = (str(error).strip().splitlines() or [repr(error)])[0]
    return ValueError(f"{path}: not a readable video ({reason})")


def why_absent(path: Path, error: OSError) -> str:
    if path.is_symlink():
        return (
            f"a link to {os.readlink(path)}, which is not there; git annex get fetches such files"
        )
    return error.strerror or str(error)
