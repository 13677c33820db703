"""One way of opening a video file: which of its streams, which frames it has, and the way up they are shown.

PyAV reads the files; torchcodec, through TorchRL's VideoClipRef, reads single frames where it can.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchrl.data import VideoClipRef
from torchvision.transforms.v2 import functional as F

from torchrl_vip.data.clip import Moments, check_count
from torchrl_vip.files import is_lfs_pointer

# TorchRL keeps one open decoder per file and hands it to every thread of the process, which
# crashes when two of them use it at once: torchcodec's decoders have a state and no lock.
# https://github.com/pytorch/rl/blob/main/torchrl/data/video.py (_get_decoder)
_ONE_THREAD_PER_FILE: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

DURATION_IN_HEADER = ("matroska", "asf", "flv")
"""Containers that announce no number of frames but a duration; others' durations FFmpeg estimates from
what is there."""


def probe(path: Path) -> VideoFile:
    """What a video file holds: its packets are read, one frame is decoded.

    Raises:
        ValueError: it is no video, or has fewer frames than its container announces.
        ImportError: PyAV is not installed.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise ValueError(f"{path}: not a readable video ({_why_absent(path, error)})") from error
    return _probe(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _probe(path: Path, size: int, changed: int) -> VideoFile:
    first, ours, reach = None, [], 0.0
    with opened(path) as (container, stream):
        for packet in container.demux():
            if packet.stream is stream:
                if packet.size:
                    ours.append((packet.pts, packet.is_keyframe, packet.duration, _shown(packet)))
                if first is None:
                    with suppress(OSError, ValueError, EOFError):  # of a stream that begins midway
                        first = next(iter(packet.decode()), None)
            if packet.size and packet.pts is not None:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                reach = max(reach, end)
        if first is None:
            raise ValueError(f"{path}: not a readable video (not one frame can be decoded)")
        begin = next((i for i, (_, key, *_) in enumerate(ours) if key), 0)
        shown = [(pts, key) for pts, key, _, is_shown in ours[begin:] if is_shown]
        timed = all(pts is not None for pts, _ in shown)
        second = float(stream.time_base) if timed else 1 / float(stream.guessed_rate or 30)
        pts = np.array([p for p, _ in shown] if timed else range(len(shown)), dtype=np.int64)
        keys = np.sort(pts[[key for _, key in shown]])
        pts = np.sort(pts)
        if timed and len(keys):
            pts = pts[pts >= keys[0]]  # frames before the first key frame have nothing to refer to
        interval = float(np.median(np.diff(pts))) if len(pts) > 1 else (ours[-1][2] or 1)
        file = VideoFile(
            path=path,
            stream=stream.index,
            pts=pts,
            keys=keys,
            timed=timed,
            seconds=(pts - pts[0]) * second,
            interval=interval * second,
            turn=_turn(first),
            aspect=_aspect(stream),
            is_first=stream is container.streams.video[0],
        )
        _check_announced(file, container, stream, ours, reach)
        return file


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
        if any(self.turn) or not has_torchcodec():
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
                try:
                    return self.displayed(self._by_torchcodec(rows))
                except (RuntimeError, ValueError, IndexError, OSError) as error:
                    raise _unreadable(self.path, error) from error
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
        elif self.timed:
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
            for frame in container.decode(stream):
                found += 1
                if self.timed and frame.pts is not None and frame.pts < self.pts[0]:
                    continue
                last = frame.pts
                yield self._image(frame)
        if self.timed and last is not None:  # fewer frames may reach as far
            found = int(np.searchsorted(self.pts, last, side="right"))
        total = len(self)
        check_count(found, total, f"{self.path}: only {found} of {total} frames can be decoded")

    def _some(self, rows: Sequence[int]) -> Iterator[Tensor]:
        with opened(self.path) as (container, stream):
            frames, frame, image = iter(()), None, None
            for row in rows:
                wanted = int(self.pts[row])
                key = self.keys[: np.searchsorted(self.keys, wanted, side="right")][-1:]
                if frame is None or (len(key) and frame.pts < key[0]):
                    frames = self._from(container, stream, int(key[0]) if len(key) else wanted)
                    frame = None
                while frame is None or frame.pts < wanted:
                    frame, image = next(frames, None), None
                    if frame is None:
                        raise self._ends_at(row)
                image = self._image(frame) if image is None else image
                yield image

    def _from(self, container: Any, stream: Any, pts: int) -> Iterator[Any]:
        """Decoded frames from this time on, or from before it."""
        container.seek(pts, stream=stream)
        frames = container.decode(stream)
        first = next(frames, None)
        if first is None or first.pts is None or first.pts > pts:
            # transport streams are searched by bytes, and that may end too late
            container.seek(int(self.pts[0]), stream=stream)
            frames = container.decode(stream)
            first = next(frames, None)
        if first is not None:
            yield first
        yield from (frame for frame in frames if frame.pts is not None)

    def _image(self, frame: Any) -> Tensor:
        image = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
        return self.displayed(image)

    def _ends_at(self, row: int) -> ValueError:
        return ValueError(f"{self.path}: frame {row} of {len(self)} cannot be decoded")

    def rows_at(self, part: Moments) -> tuple[np.ndarray, str]:
        """Rows that are shown at these moments, int64 ``[M]``, and a note where some are missing.

        Raises:
            ValueError: more are missing than :func:`check_count` lets pass.
        """
        if part.start == 0 and len(self) == part.count:
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
        raise _unreadable(path, error) from error


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


def _shown(packet: Any) -> bool:
    """Whether a packet has a frame to show: not one that an edit list cuts off, nor VP8's hidden ones."""
    if packet.is_discard:
        return False
    return packet.stream.codec_context.name != "vp8" or bool(bytes(packet)[0] >> 4 & 1)


def _turn(frame: Any) -> tuple[bool, bool, bool]:
    """Of a frame's display matrix, whose upper left 2 x 2 takes stored (x, y) to displayed ones."""
    data = [bytes(d) for d in frame.side_data if d.type.name == "DISPLAYMATRIX"]
    if not data:
        return False, False, False
    a, b, _, c, d = np.frombuffer(data[0], np.int32)[:5].tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, a < 0, d < 0
    return True, c < 0, b < 0


def _aspect(stream: Any) -> float:
    """Width of a pixel by its height; 1 where the file says none, or one that cannot be."""
    aspect = float(stream.sample_aspect_ratio or 1)
    width, height = stream.codec_context.width, stream.codec_context.height
    changes = round(width * aspect) != width or round(height / aspect) != height
    return aspect if 1 / 8 <= aspect <= 8 and changes else 1.0


def _check_announced(
    file: VideoFile, container: Any, stream: Any, packets: list, reach: float
) -> None:
    """Refuse a file that holds less than its container announces, as one does that was cut short.

    Both the number of frames and the duration must say so, where the container has both: edit lists
    and dropped frames make one of them differ.
    """
    found, announced, lasts = len(packets), stream.frames, None
    if any(name in container.format.name for name in DURATION_IN_HEADER):
        lasts = container.duration and container.duration / 1e6
        announced = round(found * lasts / reach) if lasts and reach else found
    elif announced and stream.duration and file.timed:
        lasts = float(stream.duration * stream.time_base)
        reach = float((max(p[0] + (p[2] or 0) for p in packets)) * stream.time_base)
        reach -= float(min(0, *(p[0] for p in packets)) * stream.time_base)
    if lasts and reach > 0.98 * lasts - 1.5 * file.interval:
        return
    check_count(
        found,
        announced,
        f"{file.path}: {found:,} of {announced:,} frames that its container announces are there: it was "
        "cut short, as a download that broke off is",
    )


@cache
def has_torchcodec() -> bool:
    """Whether torchcodec can be used; once said where not."""
    try:
        import torchcodec.decoders  # noqa: F401
    except Exception as error:  # it raises what its libraries raise
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        warnings.warn(
            f"torchcodec does not load ({reason}): PyAV reads the videos, with an FFmpeg of its own. For "
            "torchcodec: pip install torchcodec, and FFmpeg (apt install ffmpeg, or conda install ffmpeg).",
            stacklevel=2,
        )
        return False
    return True


def _unreadable(path: Path, error: Exception) -> ValueError:
    if is_lfs_pointer(path):
        return ValueError(
            f"{path}: not a readable video (a Git LFS pointer in its place: run git lfs pull there, or "
            "download the data set with the hub's client)"
        )
    reason = (str(error).strip().splitlines() or [repr(error)])[0]
    return ValueError(f"{path}: not a readable video ({reason})")


def _why_absent(path: Path, error: OSError) -> str:
    if path.is_symlink():
        return (
            f"a link to {os.readlink(path)}, which is not there; git annex get fetches such files"
        )
    return error.strerror or str(error)
