"""Video on disk to frames in memory-mapped storage, decoded once.

A source is a folder that holds, at any depth, video files and/or folders of numbered frames. Where
it has an ``index.json`` or ``manifest.json`` (a list of objects with "file"), each clip's other
entries become its labels.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tensordict import MemoryMappedTensor, TensorDict
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from tqdm import tqdm

from torchrl_vip.goals import read_image

VIDEO_SUFFIXES = {".mp4", ".webm", ".gif", ".mkv", ".avi", ".mov", ".m4v"}
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg"}


@dataclass(frozen=True)
class Clip:
    """One video: a file, or a folder of numbered frames."""

    path: Path
    name: str
    labels: dict = field(default_factory=dict, compare=False, hash=False)


def find_clips(folder: str | Path) -> list[Clip]:
    """All clips under a folder, sorted by name.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a folder without any clip, or an index.json that is no such list.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is no folder; wanted one that holds video files and/or folders of frames."
        )
    files = [
        p
        for p in folder.rglob("*")
        if p.is_file() and not any(part.startswith(".") for part in p.relative_to(folder).parts)
    ]
    labels = {}
    for index in sorted(p for p in files if p.name in ("index.json", "manifest.json")):
        labels |= _read_labels(index)
    paths = {p for p in files if p.suffix.lower() in VIDEO_SUFFIXES}
    paths |= {p.parent for p in files if p.suffix.lower() in IMAGE_SUFFIXES}
    if not paths:
        raise ValueError(
            f"{folder} holds no clip; wanted video files ({', '.join(sorted(VIDEO_SUFFIXES))}) "
            "and/or folders of numbered frames (0.png, 1.png, ... or .jpg)."
        )
    return [
        Clip(p, p.relative_to(folder).as_posix(), labels.get(p.resolve(), {}))
        for p in sorted(paths)
    ]


def _read_labels(index: Path) -> dict[Path, dict]:
    """Clip -> its labels, of one index.json or manifest.json."""
    try:
        entries = json.loads(index.read_text())
        files = [index.parent / entry["file"] for entry in entries]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f'{index} cannot be used: wanted a list of objects with "file" ({error!r}).'
        ) from error
    labels = {}
    for file, entry in zip(files, entries, strict=True):
        # DROID's index lies beside the folder of its clips.
        file = file if file.exists() else index.parent / "clips" / entry["file"]
        labels[file.resolve()] = {k: v for k, v in entry.items() if k != "file"}
    return labels


def read_frames(path: str | Path) -> Iterator[Tensor]:
    """Frames of a video file or of a folder of numbered frames, uint8 ``[3, H, W]``, in order.

    Raises:
        ValueError: it cannot be decoded.
    """
    path = Path(path)
    if path.is_dir():
        files = [p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES]
        # Numbers in a name count as numbers: 10.png comes after 9.png.
        files.sort(key=lambda p: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", p.name)])
        for file in files:
            yield read_image(file).permute(2, 0, 1)
        return
    try:
        import av  # carries its own FFmpeg
    except ImportError as error:
        raise ImportError(f'reading {path} needs PyAV: pip install "torchrl-vip[video]"') from error
    try:
        with av.open(str(path)) as container:
            container.streams.video[0].thread_type = "AUTO"
            for frame in container.decode(video=0):
                yield torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
    except (av.FFmpegError, IndexError, OSError) as error:
        raise ValueError(f"{path}: not a readable video ({error})") from error


def read_clip(path: str | Path, size: int) -> Tensor:
    """A whole clip at storage size: shorter side resized to ``size``, centre square.

    Returns:
        uint8 ``[T, 3, size, size]``.

    Raises:
        ValueError: it cannot be decoded, or has fewer than two frames.
    """
    frames = [
        F.center_crop(F.resize(frame, [size], antialias=True), [size, size])
        for frame in read_frames(path)
    ]
    if len(frames) < 2:
        raise ValueError(f"{path}: {len(frames)} frame(s), a clip needs two or more")
    return torch.stack(frames)


@dataclass
class FrameTable:
    """Decoded clips: ``data["pixels"][start[i] : start[i] + length[i]]`` is clip i.

    Attributes:
        data: memory-mapped TensorDict ``[N]`` with "pixels" uint8 ``[N, 3, S, S]``; it may hold
            frames of other clips too.
        clips: the clips that could be read.
        start, length: int64 ``[len(clips)]``.
        skipped: clip name -> why it could not be read.
    """

    data: TensorDict
    clips: list[Clip]
    start: Tensor
    length: Tensor
    skipped: dict[str, str]

    def clip_frames(self, i: int) -> Tensor:
        """uint8 ``[T, 3, S, S]`` of clip i."""
        start, length = int(self.start[i]), int(self.length[i])
        return self.data["pixels"][start : start + length]


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
        ValueError: no clip could be read; or the cache is damaged.
    """
    folder = Path(cache) / f"{size}px"
    folder.mkdir(parents=True, exist_ok=True)
    pixels, journal = folder / "pixels.u8", folder / "journal.jsonl"
    frame_bytes = 3 * size * size
    keys = [_fingerprint(clip) for clip in clips]
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one process decodes, others wait and find it done
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
        todo = [i for i, key in enumerate(keys) if key not in known]
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
            # A few clips ahead at most: decoded ones wait in memory.
            for first in range(0, len(todo), 4 * workers):
                batch = todo[first : first + 4 * workers]
                results = pool.map(lambda i: _try_read(clips[i], size), batch)
                for i, frames in zip(batch, results, strict=True):
                    entry = {"key": keys[i], "name": clips[i].name, "start": total, "frames": 0}
                    if isinstance(frames, str):
                        entry["error"] = frames
                    else:
                        out.write(frames.numpy().tobytes())
                        out.flush()
                        entry["frames"] = len(frames)
                        total += len(frames)
                    log.write(json.dumps(entry) + "\n")
                    log.flush()
                    known[keys[i]] = entry
                    bar.update()
    entries = [known[key] for key in keys]
    good = [i for i, e in enumerate(entries) if "error" not in e]
    skipped = {clips[i].name: e["error"] for i, e in enumerate(entries) if "error" in e}
    if not good:
        reasons = "\n".join(f"  {reason}" for reason in skipped.values())
        raise ValueError(f"none of {len(clips)} clips could be read:\n{reasons}")
    frames = MemoryMappedTensor.from_filename(str(pixels), torch.uint8, (total, 3, size, size))
    return FrameTable(
        data=TensorDict({"pixels": frames}, batch_size=[total]),
        clips=[clips[i] for i in good],
        start=torch.tensor([entries[i]["start"] for i in good]),
        length=torch.tensor([entries[i]["frames"] for i in good]),
        skipped=skipped,
    )


def _try_read(clip: Clip, size: int) -> Tensor | str:
    try:
        return read_clip(clip.path, size)
    except ValueError as error:
        return str(error)


def _fingerprint(clip: Clip) -> str:
    files = sorted(clip.path.iterdir()) if clip.path.is_dir() else [clip.path]
    stats = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return hashlib.sha256(repr((str(clip.path.resolve()), stats)).encode()).hexdigest()[:16]


def write_video(path: str | Path, frames: np.ndarray | Tensor, fps: int = 20) -> Path:
    """Write uint8 ``[T, H, W, 3]`` frames (even H and W) as an H.264 mp4."""
    import av

    path = Path(path)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in np.asarray(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path
