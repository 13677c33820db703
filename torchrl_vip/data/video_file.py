"""A video file's frames and their times, one after another or one by one.

PyAV reads the files; torchcodec, through TorchRL's VideoClipRef, reads single frames where it can.
"""

from __future__ import annotations

import threading
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchrl.data import VideoClipRef
from torchvision.transforms.v2 import functional as F

from torchrl_vip.data.clip import Moments, check_count
from torchrl_vip.data.container import (
    announced_seconds,
    decoded,
    display_turn,
    is_shown,
    is_torn,
    opened,
    pixel_aspect,
    why_absent,
)

# TorchRL keeps one open decoder per file and hands it to every thread of the process, which
# crashes when two of them use it at once: torchcodec's decoders have a state and no lock.
# https://github.com/pytorch/rl/blob/main/torchrl/data/video.py (_get_decoder)
_ONE_THREAD_PER_FILE: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

TORCHCODEC = ("mov", "matroska")
"""Containers in which torchcodec finds every frame; in others it lost some near the end."""

NEAR = 32
"""Frames ahead that are decoded through: looking for a key frame costs more."""


def probe(path: Path) -> VideoFile:
    """What a video file holds: its packets are read, one frame is decoded.

    Raises:
        ValueError: it is no video.
        ImportError: PyAV is not installed.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise ValueError(f"{path}: not a readable video ({why_absent(path, error)})") from error
    return _probe(path, stat.st_size, stat.st_mtime_ns)


class _Packet(NamedTuple):
    pts: int | None
    duration: int
    is_key: bool
    is_shown: bool


@lru_cache(maxsize=256)
def _probe(path: Path, size: int, changed: int) -> VideoFile:
    with opened(path) as (container, stream):
        packets, first, reach = _read_packets(container, stream)
        if first is None:
            raise ValueError(f"{path}: not a readable video (not one frame can be decoded)")
        begin = next((i for i, packet in enumerate(packets) if packet.is_key), 0)
        shown = [packet for packet in packets[begin:] if packet.is_shown]
        # MPEG program streams and AVI with B-frames give the frames no times of their own
        kind, reordered = container.format.name, stream.codec_context.has_b_frames
        timed = all(packet.pts is not None for packet in shown)
        timed &= kind not in ("mpeg", "mpegvideo") and not (kind == "avi" and reordered)
        unit = float(stream.time_base) if timed else 1 / float(stream.guessed_rate or 30)
        pts = np.array([p.pts for p in shown] if timed else range(len(shown)), dtype=np.int64)
        keys = np.sort(pts[[packet.is_key for packet in shown]])
        pts = np.sort(pts)
        if timed and len(keys):
            pts = pts[pts >= keys[0]]  # frames before the first key frame have nothing to refer to
        interval = float(np.median(np.diff(pts))) if len(pts) > 1 else shown[-1].duration or 1
        file = VideoFile(
            path=path,
            stream=stream.index,
            pts=pts,
            keys=keys,
            timed=timed,
            seconds=(pts - pts[0]) * unit,
            interval=interval * unit,
            turn=display_turn(first),
            aspect=pixel_aspect(stream),
            is_first=stream is container.streams.video[0],
            in_known_container=any(name in kind for name in TORCHCODEC),
        )
        return replace(file, announced=_announced(file, container, stream, packets, reach))


def _read_packets(container: Any, stream: Any) -> tuple[list[_Packet], Any, float]:
    """The stream's packets as they are decoded, its first frame, and the seconds at which all streams end."""
    packets, first, reach = [], None, 0.0
    for packet in container.demux():
        if packet.stream is stream:
            if packet.size and not is_torn(packet):
                packets.append(
                    _Packet(packet.pts, packet.duration or 0, packet.is_keyframe, is_shown(packet))
                )
            if first is None:
                with suppress(OSError, ValueError, EOFError):  # of a stream that begins midway
                    first = next(iter(packet.decode()), None)
        if packet.size and packet.pts is not None:
            end = (packet.pts + (packet.duration or 0)) * packet.time_base
            reach = max(reach, float(end))
    return packets, first, reach


def _announced(
    file: VideoFile, container: Any, stream: Any, packets: list[_Packet], reach: float
) -> int:
    """Number of frames that the container announces, or 0 where it does not, or keeps what it says.

    Both the number of frames and the duration must be short, where the container has both: edit lists
    and dropped frames make one of them differ.
    """
    seconds = announced_seconds(file.path, container, stream)
    if not seconds or not reach:
        return 0
    if "mov" in container.format.name:
        times = [p.pts for p in packets if p.pts is not None]
        reach = float((max(times) + packets[-1].duration - min(0, *times)) * stream.time_base)
    if reach > 0.98 * seconds - 1.5 * file.interval and stream.frames <= len(packets):
        return 0
    if "mov" in container.format.name:
        return stream.frames if reach < seconds else 0
    return round(len(packets) * seconds / reach)


@dataclass(frozen=True, eq=False)
class VideoFile:
    """Frames of a file's one video stream, N of them, by their presentation times.

    Attributes:
        stream: index of the stream in the file.
        pts: int64 ``[N]``, ascending, in units of the stream's time base; row numbers where the
            file has no times.
        keys: those of the key frames.
        timed: whether the file has times.
        seconds: float64 ``[N]`` from the first frame.
        interval: seconds from frame to frame.
        turn: (transpose, mirror left-right, mirror up-down), in this order, for display.
        aspect: width of a pixel by its height.
        is_first: whether no other video stream stands before it, a cover for example.
        in_known_container: whether it is one of TORCHCODEC.
        announced: number of frames that its container announces, where fewer are there; else 0.
    """

    path: Path
    stream: int
    pts: np.ndarray
    keys: np.ndarray
    timed: bool
    seconds: np.ndarray
    interval: float
    turn: tuple[bool, bool, bool]
    aspect: float
    is_first: bool
    in_known_container: bool
    announced: int = 0

    def __len__(self) -> int:
        return len(self.pts)

    @property
    def end(self) -> float:
        """Seconds from the first frame's beginning to the last one's end."""
        return float(self.seconds[-1]) + self.interval

    def displayed(self, frames: Tensor) -> Tensor:
        """Stored frames ``[*B, 3, H, W]`` as a player shows them: square pixels, upright."""
        if self.aspect != 1:  # the longer side grows, so that no detail is lost
            height, width = frames.shape[-2:]
            size = [height, max(round(width * self.aspect), 1)]
            if self.aspect < 1:
                size = [max(round(height / self.aspect), 1), width]
            frames = F.resize(frames, size, antialias=True)
        transpose, left_right, up_down = self.turn
        frames = frames.transpose(-2, -1) if transpose else frames
        flips = [dim for dim, flip in ((-1, left_right), (-2, up_down)) if flip]
        return frames.flip(flips) if flips else frames

    @cached_property
    def in_torchcodec(self) -> bool:
        """Whether torchcodec sees the same frames; the lock of the file is held."""
        known = self.timed and self.in_known_container
        if not known or any(self.turn) or not has_torchcodec():
            return False
        try:
            same = len(VideoClipRef(sources=str(self.path), stream=self.stream)) == len(self)
            return same and len(self._by_torchcodec(torch.tensor([0]))) == 1
        except (RuntimeError, ValueError, IndexError, OSError):  # a codec that only PyAV has
            return False

    def _by_torchcodec(self, rows: Tensor) -> Tensor:
        return VideoClipRef(sources=str(self.path), frame_index=rows, stream=self.stream).decode()

    def at(self, rows: Tensor) -> Tensor:
        """Frames ``rows`` (int64 ``[M]``), in any order, uint8 ``[M, 3, H, W]``.

        Raises:
            ValueError: one of them cannot be decoded.
        """
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self):
            raise ValueError(f"{self.path}: it has {len(self)} frames, not number {rows.max()}")
        with _ONE_THREAD_PER_FILE[str(self.path)]:
            if self.in_torchcodec:
                # what it cannot decode, PyAV may; and has the better words where not
                with suppress(RuntimeError, ValueError, IndexError, OSError):
                    return self.displayed(self._by_torchcodec(rows))
        unique, place = rows.unique(return_inverse=True)  # ascending
        return torch.stack(list(self.frames(unique.tolist())))[place]

    def frames(self, rows: Sequence[int] | None = None) -> Iterator[Tensor]:
        """Frames uint8 ``[3, H, W]``, one after another.

        Args:
            rows: ascending, a frame may be repeated; None is all.

        Raises:
            ValueError: it cannot be decoded, or ends early.
        """
        if rows is None:
            yield from self._all()
        elif self.timed and len(self.keys):
            yield from self._some(rows)
        else:  # without times there is nothing to look for: count
            frames, number, image = enumerate(self._all()), -1, None
            for row in rows:
                while number < row:
                    number, image = next(frames, (len(self), None))
                if image is None:
                    raise self._ends_at(row)
                yield image

    def _all(self) -> Iterator[Tensor]:
        found, last = 0, None
        with opened(self.path) as (container, stream):
            for frame in decoded(container, stream):
                if self.timed and frame.pts is not None and frame.pts < self.pts[0]:
                    continue
                found, last = found + 1, frame.pts
                yield self._image(frame)
        if self.timed and last is not None:  # fewer frames may reach as far
            found = int(np.searchsorted(self.pts, last, side="right"))
        total = len(self)
        check_count(found, total, f"{self.path}: only {found} of {total} frames can be decoded")

    def _some(self, rows: Sequence[int]) -> Iterator[Tensor]:
        with opened(self.path) as (container, stream):
            frames, frame, image, last = iter(()), None, None, 0
            for row in rows:
                wanted = int(self.pts[row])
                key = max(int(np.searchsorted(self.keys, wanted, side="right")) - 1, 0)
                if frame is None or (row - last > NEAR and frame.pts < self.keys[key]):
                    frames = (f for f in self._from(container, stream, key) if f.pts is not None)
                    frame = None
                while frame is None or frame.pts < wanted:
                    frame, image = next(frames, None), None
                    if frame is None:
                        raise self._ends_at(row)
                last = row
                image = self._image(frame) if image is None else image
                yield image

    def _from(self, container: Any, stream: Any, key: int) -> Iterator[Any]:
        """Decoded frames from this row of ``keys`` on, or from before it."""
        # transport streams are searched by bytes, and that may end too late
        for back in (0, 1, 2, 4):
            wanted = int(self.keys[max(key - back, 0)])
            container.seek(wanted, stream=stream)
            frames = decoded(container, stream)
            first = next(frames, None)
            if first is not None and first.pts is not None and first.pts <= int(self.keys[key]):
                yield first
                yield from frames
                return
        with opened(self.path) as (container, stream):
            yield from decoded(container, stream)

    def _image(self, frame: Any) -> Tensor:
        image = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
        return self.displayed(image)

    def _ends_at(self, row: int) -> ValueError:
        return ValueError(f"{self.path}: frame {row} of {len(self)} cannot be decoded")

    def check_whole(self) -> str:
        """A note where fewer frames are there than announced.

        Raises:
            ValueError: many fewer.
        """
        return check_count(
            len(self),
            self.announced,
            f"{self.path}: {len(self):,} of {self.announced:,} frames that its container announces are "
            "there: it was cut short, as a download that broke off is",
        )

    def rows_at(self, part: Moments) -> tuple[np.ndarray, str]:
        """Rows that are shown at these moments, int64 ``[M]``, and a note where some are missing.

        Raises:
            ValueError: more are missing than :func:`check_count` lets pass.
        """
        if part.is_alone and len(self) == part.count:
            return np.arange(part.count), ""  # frame by frame, whatever rates are said
        times = part.start + np.arange(part.count) / part.fps
        end = self.end if part.end is None else min(self.end, part.end)
        times = times[times < end - 1e-3]
        if part.count and part.start >= self.end - 1e-3:
            raise ValueError(
                f"{self.path}: the episode begins at {part.start:.2f} s, but the file ends at "
                f"{self.end:.2f} s"
            )
        bound = "the file ends" if end == self.end else "its to_timestamp is"
        note = check_count(
            len(times),
            part.count,
            f"{self.path}: {len(times)} of {part.count} frames: from {part.start:.2f} s at {part.fps:g} "
            f"frames a second they last until {part.start + part.count / part.fps:.2f} s, but {bound} "
            f"at {end:.2f} s; the video has {1 / self.interval:.3g} frames a second",
        )
        # a quarter of a frame: containers round times, to milliseconds at worst
        rows = np.searchsorted(self.seconds, times + self.interval / 4, side="right") - 1
        return rows.clip(min=0), note


@cache
def has_torchcodec() -> bool:
    """Whether torchcodec can be used; once said where not."""
    try:
        import torchcodec.decoders  # noqa: F401  whether it loads is the question
    except Exception as error:  # it raises what its libraries raise
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        warnings.warn(
            f"torchcodec does not load ({reason}): PyAV reads the videos, with an FFmpeg of its own. For "
            "torchcodec: pip install torchcodec, and FFmpeg (apt install ffmpeg, or conda install ffmpeg).",
            stacklevel=2,
        )
        return False
    return True
