"""Clips as rows of a TorchRL storage, decoded once into a memory-map.

:mod:`torchrl_vip.data.lazy` makes the same table of clips that are decoded at every draw.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tensordict import MemoryMappedTensor, TensorDict
from torch import Tensor
from torchrl.data import Storage, TensorStorage
from tqdm import tqdm

from torchrl_vip.data.arrays import files_of
from torchrl_vip.data.clip import ArrayRows, Clip, Moments
from torchrl_vip.data.reading import check_two, measure, read_frames, to_square
from torchrl_vip.data.video_file import probe

VERSION = 2
"""Of what is decoded: 1 took no notice of pixel aspect, mirror images, covers and what is cut short."""


class NoReadableClipError(ValueError):
    """Not one of the clips could be read.

    Attributes:
        skipped: clip name -> why.
    """

    def __init__(self, message: str, skipped: dict[str, str] | None = None):
        super().__init__(message)  # pickle calls with this alone, then restores the attributes
        self.skipped = skipped or {}


@dataclass
class FrameTable:
    """Clips as rows of a storage: rows ``start[i]`` to ``start[i] + length[i]`` are clip i.

    Attributes:
        storage: its rows are TensorDicts with "pixels" uint8 ``[3, S, S]``; it may hold frames of
            other clips too.
        clips: the clips that could be read.
        start, length: int64 ``[len(clips)]``.
        skipped: clip name -> why it could not be read.
        notes: clip name -> how many frames it lacks of those announced; it is used as it is.
    """

    storage: Storage
    clips: list[Clip]
    start: Tensor
    length: Tensor
    skipped: dict[str, str]
    notes: dict[str, str] = field(default_factory=dict)

    def clip_ends(self, i: int) -> Tensor:
        """uint8 ``[2, 3, S, S]``, the first and last frame of clip i."""
        start, length = int(self.start[i]), int(self.length[i])
        return self.storage.get(torch.tensor([start, start + length - 1]))["pixels"]

    def clip_frames(self, i: int) -> Tensor:
        """uint8 ``[T, 3, S, S]`` of clip i; of a memory-map a view, not a copy."""
        start, length = int(self.start[i]), int(self.length[i])
        return self.storage.get(slice(start, start + length))["pixels"]

    def select(self, indices: Sequence[int]) -> FrameTable:
        """Some of the clips, in the same storage."""
        rows = torch.tensor(list(indices), dtype=torch.int64)
        clips = [self.clips[i] for i in rows.tolist()]
        return replace(self, clips=clips, start=self.start[rows], length=self.length[rows])


def by_name(clips: Sequence[Clip], said: Sequence[str | None]) -> dict[str, str]:
    """What is said of clips, which names them, by their names; of others nothing."""
    named: dict[str, str] = {}
    for clip, text in zip(clips, said, strict=True):
        if text:  # two sources may have the same names, several clips one file
            names = (clip.name, str(clip.path), f"{clip.path} {clip.span}")
            said_of = text if clip.name in text else f"{clip.name}: {text}"
            named[next((n for n in names if n not in named), names[-1])] = said_of
    return named


def readable(
    clips: Sequence[Clip], errors: Sequence[str | None], notes: Sequence[str | None]
) -> tuple[list[int], dict[str, str], dict[str, str]]:
    """Numbers of the clips without an error, the errors and the notes by name; warns of the notes.

    Raises:
        NoReadableClipError: all have an error.
    """
    skipped, noted = by_name(clips, errors), by_name(clips, notes)
    good = [i for i, error in enumerate(errors) if not error]
    if not good:
        reasons = [f"  {reason}" for reason in skipped.values()]
        more = [f"  and {len(reasons) - 50} more"] if len(reasons) > 50 else []
        raise NoReadableClipError(
            "\n".join([f"none of {len(clips)} clips could be read:", *reasons[:50], *more]), skipped
        )
    if noted:
        few = "\n".join(f"  {note}" for note in list(noted.values())[:5])
        warnings.warn(
            f"{len(noted)} of {len(clips)} clips lack a few of the frames that are announced, and are used "
            f"as they are; the first of them:\n{few}",
            stacklevel=3,
        )
    return good, skipped, noted


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
    keys = [fingerprint(clip) for clip in clips]
    with _Frames.locked(folder, size) as frames:
        frames.take_over(clips, keys)
        # A clip that failed is tried again: the decoder or the disk may have been at fault.
        todo = [
            i
            for i, key in enumerate(keys)
            if not clips[i].error and "error" in frames.known.get(key, {"error": ""})
        ]
        bar = tqdm(total=len(todo), desc="decoding", unit="clip", disable=not (progress and todo))
        with ThreadPoolExecutor(workers) as pool, bar:
            # A few clips ahead at most: decoded ones wait in files of their own, as hours of video do
            # not fit into memory.
            for first in range(0, len(todo), 4 * workers):
                batch = todo[first : first + 4 * workers]
                results = pool.map(
                    lambda i: _try_decode(clips[i], size, frames.parts / str(i)), batch
                )
                for i, entry in zip(batch, results, strict=True):
                    frames.append(keys[i], clips[i].name, entry, frames.parts / str(i))
                    bar.update()
        entries = [
            {"error": clip.error} if clip.error else frames.known[key]
            for clip, key in zip(clips, keys, strict=True)
        ]
        total = frames.total
    good, skipped, notes = readable(
        clips, [e.get("error") for e in entries], [e.get("note") for e in entries]
    )
    pixels = MemoryMappedTensor.from_filename(
        str(folder / "pixels.u8"), torch.uint8, (total, 3, size, size)
    )
    return FrameTable(
        storage=TensorStorage(TensorDict({"pixels": pixels}, batch_size=[total])),
        clips=[clips[i] for i in good],
        start=torch.tensor([entries[i]["start"] for i in good]),
        length=torch.tensor([entries[i]["frames"] for i in good]),
        skipped=skipped,
        notes=notes,
    )


def _try_decode(clip: Clip, size: int, path: Path) -> dict[str, Any]:
    """Write a clip's frames to a file; an entry with their number, or why they cannot be read."""
    count = 0
    try:
        wanted, note = measure(clip.path, clip.span)
        check_two(clip, wanted)
        with open(path, "wb") as out:
            for frame in read_frames(clip.path, clip.span):
                out.write(to_square(frame, size).numpy().tobytes())
                count += 1
        check_two(clip, count)
        if count < wanted:
            note = f"{clip.path}: {count} of {wanted} frames could be decoded"
    except ValueError as error:
        return {"frames": 0, "error": str(error)}
    except OSError as error:
        return {"frames": 0, "error": f"{clip.path}: {error.strerror or error}"}
    return {"frames": count, **({"note": note} if note else {})}


def fingerprint(clip: Clip) -> str:
    """Of its path, its files' sizes and times: another one where it has changed."""
    if isinstance(clip.span, ArrayRows):
        files = files_of(clip.path, clip.span)
    else:
        files = sorted(clip.path.iterdir()) if clip.path.is_dir() else [clip.path]
    stats = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.exists()]
    known = (str(clip.path.resolve()), stats, *([clip.span] if clip.span else []))
    return hashlib.sha256(repr(known).encode()).hexdigest()[:16]


class _Frames:
    """The files of a cache, while no other process writes them.

    A line of the journal is written after its clip's bytes: bytes past the last line are a clip cut
    short by an interruption, and so is a last line without its end. The last line of a key counts.

    Attributes:
        known: key -> the journal's entry: "start", "frames", "error" or "note", "version".
        total: frames in the file of pixels.
        parts: folder for clips that are being decoded.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self.parts = folder / "parts"
        self.pixels, self.journal = folder / "pixels.u8", folder / "journal.jsonl"
        for left in self.parts.iterdir():  # by an interruption
            left.unlink()
        self.journal.touch()
        whole = self.journal.read_bytes().rpartition(b"\n")[0]
        os.truncate(self.journal, len(whole) + 1 if whole else 0)
        try:
            self.known = {e["key"]: e for e in map(json.loads, whole.splitlines())}
            self.total = max((e["start"] + e["frames"] for e in self.known.values()), default=0)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{self.journal} is damaged: delete {folder}, run again.") from error
        self.pixels.touch()
        if self.pixels.stat().st_size < self.total * 3 * size * size:
            raise ValueError(
                f"{self.pixels} is shorter than its journal says: delete {folder}, run again."
            )
        os.truncate(self.pixels, self.total * 3 * size * size)

    @classmethod
    @contextmanager
    def locked(cls, folder: Path, size: int) -> Iterator[_Frames]:
        """One process decodes, others wait and find it done."""
        (folder / "parts").mkdir(parents=True, exist_ok=True)
        with open(folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield cls(folder, size)

    def append(self, key: str, name: str, entry: dict[str, Any], part: Path) -> None:
        """Add a clip that was decoded into the file ``part``, which is deleted, or its error."""
        if "error" not in entry:
            with open(self.pixels, "ab") as out, open(part, "rb") as decoded:
                shutil.copyfileobj(decoded, out)
        part.unlink(missing_ok=True)
        self._write({"key": key, "name": name, "start": self.total, "version": VERSION, **entry})
        self.total += entry["frames"]

    def _write(self, entry: dict[str, Any]) -> None:
        with open(self.journal, "a") as log:
            log.write(json.dumps(entry) + "\n")
        self.known[entry["key"]] = entry

    def take_over(self, clips: Sequence[Clip], keys: Sequence[str]) -> None:
        """Keep what an earlier version decoded where this one would decode the same frames; the rest is
        forgotten, with a word."""
        old = {k: e for k, e in self.known.items() if "error" not in e and "version" not in e}
        again = 0
        for clip, key in zip(clips, keys, strict=True) if old else ():
            if clip.error or "version" in self.known.get(key, {}):
                continue
            earlier, same = _earlier(clip)
            entry = old.get(earlier)
            if entry and same == entry["frames"]:
                self._write(entry | {"key": key, "version": VERSION})
            elif entry or key in old:
                self.known.pop(key, None)
                again += 1
        if again:
            warnings.warn(
                f"{again} clips in {self.pixels.parent} are decoded again: an earlier version took no notice "
                "of pixel aspect, mirror images, covers, times, or files cut short.",
                stacklevel=3,
            )


def _earlier(clip: Clip) -> tuple[str, int | None]:
    """The key that a clip had before version 2, and the number of its frames where they are the same."""
    try:
        if clip.path.is_dir():
            return fingerprint(clip), measure(clip.path, clip.span)[0]
        file, span, count = probe(clip.path), clip.span, measure(clip.path, clip.span)[0]
        if isinstance(span, Moments):  # LeRobot: v2's files are whole, v3's are spans of frames
            moments = span
            first = round(span.start * span.fps)
            span = None if span.is_alone else (first, first + span.count)
            rows = file.rows_at(moments)[0].tolist()
            same = rows == list(range(len(file)) if span is None else range(*span))
        else:
            same = True
        mirrored = sum(file.turn) % 2 == 1
        same = same and file.is_first and file.aspect == 1 and not mirrored
        return fingerprint(Clip(clip.path, clip.name, span=span)), count if same else None
    except ValueError:
        return fingerprint(clip), None
