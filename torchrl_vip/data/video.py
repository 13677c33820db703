"""Clips to frames in a TorchRL storage: decoded once into a memory-map, or at every draw.

Both make a :class:`FrameTable`, whose storage gives uint8 frames of one size by their row.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import numpy as np
import torch
from tensordict import MemoryMappedTensor, TensorDict
from torch import Tensor
from torchrl.data import Storage, TensorStorage, VideoClipRef, set_video_decoder_cache_size
from torchvision.transforms.v2 import functional as F
from tqdm import tqdm

from torchrl_vip.data.sources import IMAGE_SUFFIXES, Clip
from torchrl_vip.files import write_whole
from torchrl_vip.goals import read_image

# TorchRL keeps one open decoder per file and hands it to every thread of the process, which
# crashes when two of them use it at once: torchcodec's decoders have a state and no lock.
# https://github.com/pytorch/rl/blob/main/torchrl/data/video.py (_get_decoder)
_ONE_THREAD_PER_FILE: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


def read_frames(path: str | Path, span: tuple[int, int] | None = None) -> Iterator[Tensor]:
    """Frames of a video file or of a folder of numbered frames, uint8 ``[3, H, W]``, in order.

    Args:
        span: only frames [first, end), as LeRobot v3 packs several episodes into one file.

    Raises:
        ValueError: it cannot be decoded.
    """
    path = Path(path)
    if path.is_dir():
        for file in frame_files(path)[slice(*(span or (None,)))]:
            yield read_image(file).permute(2, 0, 1)
        return
    if span:
        for part in torch.arange(*span).split(64):  # an episode at the camera's size is gigabytes
            yield from decode_at(path, part)
        return
    try:
        import av  # carries its own FFmpeg
    except ImportError as error:
        raise ImportError(f'reading {path} needs PyAV: pip install "torchrl-vip[video]"') from error
    try:
        with av.open(str(path)) as container:
            container.streams.video[0].thread_type = "AUTO"
            for frame in container.decode(video=0):
                image = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
                # upright, as a telephone held otherwise says in the file; torchcodec does by itself
                yield image.rot90(frame.rotation // 90, (1, 2)) if frame.rotation else image
    except (av.FFmpegError, IndexError, OSError) as error:
        raise ValueError(f"{path}: not a readable video ({error})") from error


def frame_files(folder: Path) -> list[Path]:
    """Images of a folder in the order of the numbers in their names: 10.png comes after 9.png, and of
    times in seconds 0.15.png before 0.2.png."""
    files = [
        p
        for p in folder.iterdir()
        if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".") and p.is_file()
    ]
    files = [p for p in files if any(c.isdigit() for c in p.stem)] or files  # a cover is no frame
    number = r"(\d+)"
    if files and all(re.fullmatch(r"\D*\d+\.\d+", p.stem) for p in files):
        number = r"(\d+\.\d+)"

    def order(path: Path) -> tuple[list[str | Decimal], str]:
        parts = re.split(number, path.stem)
        return [Decimal(s) if i % 2 else s for i, s in enumerate(parts)], path.name

    return sorted(files, key=order)


def decode_at(path: Path, index: Tensor) -> Tensor:
    """Frames ``index`` (int64 ``[N]``) of a video file, uint8 ``[N, 3, H, W]``.

    Raises:
        ValueError: it cannot be decoded, or has no such frame.
    """
    try:
        with _ONE_THREAD_PER_FILE[str(path)]:
            return VideoClipRef(sources=str(path), frame_index=index).decode()
    except (RuntimeError, ValueError, IndexError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ValueError(f"{path}: not a readable video ({reason})") from error


def frames_at(path: Path, index: Tensor) -> Sequence[Tensor]:
    """The same of a video file or a folder of numbered frames; uint8 ``[3, H, W]`` each."""
    if not path.is_dir():
        return decode_at(path, index)
    files = frame_files(path)
    return [read_image(files[j]).permute(2, 0, 1) for j in index.tolist()]


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
    return torch.stack(list(_frames(clip, size)))


def _frames(clip: Clip, size: int) -> Iterator[Tensor]:
    """Frames of :func:`read_clip`, one after another, and its errors."""
    count = 0
    try:
        for frame in read_frames(clip.path, clip.span):
            yield to_square(frame, size)
            count += 1
    except OSError as error:  # the folder of frames itself
        raise ValueError(f"{clip.path}: {error.strerror or error}") from error
    if count < 2:
        raise ValueError(f"{clip.path}: {count} frame(s), a clip needs two or more")


class NoReadableClipError(ValueError):
    """Not one of the clips could be read."""


@dataclass
class FrameTable:
    """Clips as rows of a storage: rows ``start[i]`` to ``start[i] + length[i]`` are clip i.

    Attributes:
        storage: its rows are TensorDicts with "pixels" uint8 ``[3, S, S]``; it may hold frames of
            other clips too.
        clips: the clips that could be read.
        start, length: int64 ``[len(clips)]``.
        skipped: clip name -> why it could not be read.
    """

    storage: Storage
    clips: list[Clip]
    start: Tensor
    length: Tensor
    skipped: dict[str, str]

    def clip_ends(self, i: int) -> Tensor:
        """uint8 ``[2, 3, S, S]``, the first and last frame of clip i."""
        start, length = int(self.start[i]), int(self.length[i])
        return self.storage.get(torch.tensor([start, start + length - 1]))["pixels"]

    def clip_frames(self, i: int) -> Tensor:
        """uint8 ``[T, 3, S, S]`` of clip i; of a memory-map a view, not a copy."""
        start, length = int(self.start[i]), int(self.length[i])
        return self.storage.get(slice(start, start + length))["pixels"]


def _readable(
    clips: Sequence[Clip], errors: Sequence[str | None]
) -> tuple[list[int], dict[str, str]]:
    """Numbers of the clips without an error, and the errors of the others by their names."""
    skipped: dict[str, str] = {}
    for clip, error in zip(clips, errors, strict=True):
        if error:  # two sources may have the same names, several clips one file
            names = (clip.name, str(clip.path), f"{clip.path} {clip.span}")
            skipped[next((n for n in names if n not in skipped), names[-1])] = error
    good = [i for i, error in enumerate(errors) if not error]
    if not good:
        reasons = "\n".join(f"  {reason}" for reason in skipped.values())
        raise NoReadableClipError(f"none of {len(clips)} clips could be read:\n{reasons}")
    return good, skipped


def decode_once(
    clips: Sequence[Clip], size: int, cache: str | Path, *, workers: int = 2, progress: bool = True
) -> FrameTable:
    """Decode clips into a memory-map under ``cache``; what was decoded before is not decoded again.

    A clip is known by its path, its files' sizes and times, so that a changed one is decoded anew,
    and an interrupted build goes on where it stopped.

    Args:
        clips: from :func:`find_clips`.
        size: side of the stored squares, in pixels.
        cache: folder of the map (``3 * size ** 2`` bytes a frame).
        workers: decoding threads.
        progress: show a bar.

    Raises:
        NoReadableClipError: what its name says.
        ValueError: the cache is damaged.
    """
    folder = Path(cache) / f"{size}px"
    parts = folder / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    pixels, journal = folder / "pixels.u8", folder / "journal.jsonl"
    frame_bytes = 3 * size * size
    keys = [fingerprint(clip) for clip in clips]
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one process decodes, others wait and find it done
        for left in parts.iterdir():  # by an interruption
            left.unlink()
        # A line of the journal is written after its clip's bytes: bytes past the last line are a
        # clip cut short by an interruption, and so is a last line without its end.
        journal.touch()
        whole = journal.read_bytes().rpartition(b"\n")[0]
        os.truncate(journal, len(whole) + 1 if whole else 0)
        try:
            known = {e["key"]: e for e in map(json.loads, whole.splitlines())}
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{journal} is damaged: delete {folder}, run again.") from error
        total = max((e["start"] + e["frames"] for e in known.values()), default=0)
        pixels.touch()
        if pixels.stat().st_size < total * frame_bytes:
            raise ValueError(
                f"{pixels} is shorter than its journal says: delete {folder}, run again."
            )
        # A clip that failed is tried again: the decoder or the disk may have been at fault.
        todo = [i for i, key in enumerate(keys) if "error" in known.get(key, {"error": ""})]
        with (
            open(pixels, "r+b") as out,
            open(journal, "a") as log,
            ThreadPoolExecutor(workers) as pool,
            tqdm(
                total=len(todo), desc="decoding", unit="clip", disable=not (progress and todo)
            ) as bar,
        ):
            out.truncate(total * frame_bytes)
            out.seek(0, 2)
            # A few clips ahead at most: decoded ones wait in files of their own, as hours of video do
            # not fit into memory.
            for first in range(0, len(todo), 4 * workers):
                batch = todo[first : first + 4 * workers]
                results = pool.map(lambda i: _try_decode(clips[i], size, parts / str(i)), batch)
                for i, decoded in zip(batch, results, strict=True):
                    entry = {"key": keys[i], "name": clips[i].name, "start": total, "frames": 0}
                    if isinstance(decoded, str):
                        entry["error"] = decoded
                    else:
                        with open(parts / str(i), "rb") as part:
                            shutil.copyfileobj(part, out)
                        out.flush()
                        entry["frames"] = decoded
                        total += decoded
                    (parts / str(i)).unlink(missing_ok=True)
                    log.write(json.dumps(entry) + "\n")
                    log.flush()
                    known[keys[i]] = entry
                    bar.update()
    entries = [known[key] for key in keys]
    good, skipped = _readable(clips, [entry.get("error") for entry in entries])
    frames = MemoryMappedTensor.from_filename(str(pixels), torch.uint8, (total, 3, size, size))
    return FrameTable(
        storage=TensorStorage(TensorDict({"pixels": frames}, batch_size=[total])),
        clips=[clips[i] for i in good],
        start=torch.tensor([entries[i]["start"] for i in good]),
        length=torch.tensor([entries[i]["frames"] for i in good]),
        skipped=skipped,
    )


def _try_decode(clip: Clip, size: int, path: Path) -> int | str:
    """Writes a clip's frames to a file; their number, or why they cannot be read."""
    count = 0
    try:
        with open(path, "wb") as out:
            for frame in _frames(clip, size):
                out.write(frame.numpy().tobytes())
                count += 1
    except ValueError as error:
        return str(error)
    return count


def fingerprint(clip: Clip) -> str:
    """Of its path, its files' sizes and times: another one where it has changed."""
    files = sorted(clip.path.iterdir()) if clip.path.is_dir() else [clip.path]
    stats = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.exists()]
    known = (str(clip.path.resolve()), stats, *([clip.span] if clip.span else []))
    return hashlib.sha256(repr(known).encode()).hexdigest()[:16]


class LazyVideoStorage(Storage):
    """Rows that are decoded when they are read, for sets larger than the disk.

    A frame of a video costs decoding from the key frame before it: slow where key frames are rare.

    Args:
        clips: video files and folders of frames.
        start, length: int64 ``[len(clips)]``, first row and number of rows of each.
        size: side of the frames, in pixels.
    """

    def __init__(self, clips: Sequence[Clip], start: Tensor, length: Tensor, size: int):
        super().__init__(max_size=int(length.sum()))
        self.clips, self.start, self.length, self.size = list(clips), start, length, size

    def get(self, index: Tensor | int | slice | Sequence[int]) -> TensorDict:
        """TensorDict ``[N]`` with "pixels" uint8 ``[N, 3, S, S]``."""
        if isinstance(index, slice):
            index = range(len(self))[index]
        rows = torch.as_tensor(index)
        flat = rows.reshape(-1)
        owner = torch.searchsorted(self.start, flat, right=True) - 1
        pixels = torch.empty(len(flat), 3, self.size, self.size, dtype=torch.uint8)
        for i in owner.unique().tolist():
            mine = (owner == i).nonzero()[:, 0]
            clip = self.clips[i]
            frame = flat[mine] - self.start[i] + (clip.span[0] if clip.span else 0)
            try:
                frames = frames_at(clip.path, frame)
            except ValueError as error:
                raise ValueError(
                    f"{error}; it could be when the run began. Repair the clip {clip.name} or take it "
                    "out, then go on."
                ) from error
            pixels[mine] = torch.stack([to_square(f, self.size) for f in frames])
        return TensorDict({"pixels": pixels.reshape(*rows.shape, *pixels.shape[1:])}, rows.shape)

    def set(self, *args, **kwargs) -> None:
        raise TypeError("LazyVideoStorage reads files and cannot be written.")

    def __len__(self) -> int:
        return int(self.length.sum())

    def contains(self, item: Tensor | int) -> Tensor:
        return (torch.as_tensor(item) >= 0) & (torch.as_tensor(item) < len(self))

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state_dict: dict) -> None: ...

    def dumps(self, path) -> None: ...

    def loads(self, path) -> None: ...

    def _empty(self) -> None: ...


def decode_lazily(
    clips: Sequence[Clip], size: int, *, workers: int = 2, progress: bool = True
) -> FrameTable:
    """Clips behind a :class:`LazyVideoStorage`; only their numbers of frames are read now.

    Raises:
        NoReadableClipError: what its name says.
    """
    set_video_decoder_cache_size(64)  # open decoders, of TorchRL's default 8
    with ThreadPoolExecutor(workers) as pool:
        counts = list(
            tqdm(
                pool.map(_try_count, clips),
                total=len(clips),
                desc="opening",
                unit="clip",
                disable=not progress,
            )
        )
    good, skipped = _readable(clips, [c if isinstance(c, str) else None for c in counts])
    length = torch.tensor([counts[i] for i in good])
    start = length.cumsum(0) - length
    kept = [clips[i] for i in good]
    return FrameTable(LazyVideoStorage(kept, start, length, size), kept, start, length, skipped)


def _try_count(clip: Clip) -> int | str:
    """Number of frames of a clip whose first and last frame can be read, or why not."""
    try:
        if clip.path.is_dir():
            count = len(frame_files(clip.path)[slice(*(clip.span or (None,)))])
            first, end = 0, count
        else:
            with _ONE_THREAD_PER_FILE[str(clip.path)]:
                count = len(VideoClipRef(str(clip.path)))
            if clip.span and count < clip.span[1]:
                return f"{clip.path}: {count} frames, frames {clip.span} wanted"
            first, end = clip.span or (0, count)
            count = end - first
        if count < 2:
            return f"{clip.path}: {count} frame(s), a clip needs two or more"
        frames_at(clip.path, torch.tensor([first, end - 1]))
        return count
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()
        return f"{clip.path}: not a readable video ({reason[0] if reason else error!r})"


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
            stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
            if gop_size:
                stream.gop_size = gop_size
            for frame in np.asarray(frames):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())

    return write_whole(path, write)
