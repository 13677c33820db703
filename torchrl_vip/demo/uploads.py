"""What a visitor may upload, and where it lies: a folder of one's own, gone with the visitor."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import threading
import time
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchrl_vip.data.container import opened

if TYPE_CHECKING:
    from torchrl_vip.data.video_file import VideoFile

MEGABYTES = 200
"""Of one file."""
TOGETHER = 600
"""Megabytes of several files uploaded at once."""
SECONDS = 300
"""Of one video."""
FRAMES = 20_000
"""Of one video; 240 of them are measured, but all that lie between are decoded."""
PIXELS = 10_000_000_000
"""Decoded for one video: two minutes of full HD with 40 frames a second, half a minute of 4K."""
SIDE = 8192
"""Width and height of a video or picture, pixels."""
PICTURE_PIXELS = 50_000_000
"""Of one picture."""
ATTEMPTS = 12
"""Videos to compare."""
VISITS = 100
"""Folders at once; the one that was used least recently goes."""
IDLE = 6 * 3600
"""Seconds after which a visit is over, although its page is open."""


class Refused(ValueError):
    """An upload that the page does not take; the message is for its visitor."""


# -- videos and pictures ----------------------------------------------------------------------------


def check_video(path: Path) -> VideoFile:
    """A video within the limits; nothing is decoded but one frame.

    The header is asked first, so that a file that announces ten hours is not read. What it says is then
    counted, as a header may lie.

    Raises:
        Refused: it is no video, or is too large; the message says what it is and what is wanted.
    """
    from torchrl_vip.data.video_file import probe

    _check_size(path)
    try:
        with opened(path) as (container, stream):
            codec = stream.codec_context
            seconds = float(container.duration or 0) / 1e6
            if stream.duration:
                seconds = max(seconds, float(stream.duration * stream.time_base))
            _check_extent(codec.width, codec.height, seconds, stream.frames)
            packets = sum(1 for _ in islice(container.demux(stream), FRAMES + 2))
            _check_extent(codec.width, codec.height, seconds, packets - 1)  # the last one is empty
        file = probe(path)
        file.check_whole()
    except Refused:
        raise
    except (ValueError, OSError) as error:
        raise Refused(f"This cannot be read as a video: {_reason(path, error)}.") from error
    _check_extent(codec.width, codec.height, file.end, len(file))
    if len(file) < 2:
        raise Refused("This video has one frame; wanted two or more.")
    return file


def _reason(path: Path, error: Exception) -> str:
    """What a reader said, without the place of the file."""
    said = re.sub(r"\[Errno \d+\] |: ?\'\'", "", str(error).replace(str(path), "")).lstrip(": ")
    return re.sub(r"^not a readable video \((.*)\)$", r"\1", said)


def _check_size(path: Path) -> None:
    megabytes = path.stat().st_size / 1e6
    if megabytes > MEGABYTES:
        raise Refused(f"This file has {megabytes:.0f} MB; wanted at most {MEGABYTES} MB.")
    if not megabytes:
        raise Refused("This file is empty.")


def _check_extent(width: int, height: int, seconds: float, frames: int) -> None:
    if max(width, height) > SIDE:
        raise Refused(f"This video has {width} × {height} pixels; wanted at most {SIDE} a side.")
    if seconds > SECONDS:
        raise Refused(
            f"This video lasts {_duration(seconds)}; wanted at most {_duration(SECONDS)}."
        )
    if frames > FRAMES:
        raise Refused(
            f"This video has more than {FRAMES:,} frames; cut it, or lower its frame rate."
        )
    if (decoded := frames * width * height) > PIXELS:
        raise Refused(
            f"This video has {frames:,} frames of {width} × {height} pixels, {decoded / PIXELS:.1f} times "
            "what this page decodes; cut it, or make its pictures smaller."
        )


def _duration(seconds: float) -> str:
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} s"


def check_picture(path: Path) -> None:
    """A picture within the limits, by its header: nothing is decoded yet.

    Raises:
        Refused: as :func:`check_video`.
    """
    import warnings

    from PIL import Image

    _check_size(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                width, height = image.size
    except Image.DecompressionBombError as error:
        raise Refused(
            f"This picture has too many pixels; wanted at most {PICTURE_PIXELS / 1e6:.0f} million."
        ) from error
    except (OSError, ValueError, SyntaxError) as error:
        raise Refused("This is not a picture that can be read (PNG, JPEG, WebP, ...).") from error
    if max(width, height) > 2 * SIDE or width * height > PICTURE_PIXELS:
        raise Refused(
            f"This picture has {width} × {height} pixels; wanted at most "
            f"{PICTURE_PIXELS / 1e6:.0f} million."
        )


# -- visitors ---------------------------------------------------------------------------------------


@dataclass
class Place:
    """A folder for one upload and what is made of it.

    Attributes:
        uploads: what Gradio wrote; it goes with the folder.
        settings: what was asked of it last, so that a download shows the same.
        lock: held by who writes into it.
    """

    folder: Path
    uploads: set[Path] = field(default_factory=set)
    settings: dict[str, Any] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, upload: str | Path) -> Path:
        """Make an uploaded file the visit's own.

        Raises:
            Refused: it is not there any more.
        """
        upload = Path(upload)
        suffix = upload.suffix.lower() if re.fullmatch(r"\.\w{1,8}", upload.suffix) else ""
        own = self.folder / f"upload_{len(self.uploads)}{suffix}"
        self.uploads.add(upload)
        try:
            os.link(upload, own)
        except FileNotFoundError as error:
            raise Refused("This upload is gone; drop the file again.") from error
        except OSError:  # a file system without links
            shutil.copyfile(upload, own)
        return own


@dataclass
class Visit:
    """One open page.

    Attributes:
        token: unguessable; the address of its files holds it.
        stop: set when the visitor stops an episode, or leaves.
    """

    token: str
    folder: Path
    stop: threading.Event = field(default_factory=threading.Event)
    places: dict[str, Place] = field(default_factory=dict)
    used: float = field(default_factory=time.monotonic)

    def uploads(self) -> set[Path]:
        return {upload for place in self.places.values() for upload in place.uploads}


class Visits:
    """All visits: each has a folder that only its token leads to.

    Args:
        root: an empty folder of this server's own.

    Attributes:
        uploaded: where Gradio writes uploads.
    """

    def __init__(self, root: Path):
        self.root, self.uploaded = root, root / "uploaded"
        self.uploaded.mkdir()
        self._of: dict[str, Visit] = {}
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._of)

    def of(self, session: str) -> Visit:
        """The visit of a page; a new one where there is none."""
        with self._lock:
            if session not in self._of:
                for oldest in sorted(self._of, key=lambda s: self._of[s].used)[
                    : 1 - VISITS or None
                ]:
                    if len(self._of) >= VISITS:
                        self.leave(oldest)
                token = secrets.token_urlsafe(24)
                folder = self.root / token
                folder.mkdir(mode=0o700)
                self._of[session] = Visit(token, folder)
            visit = self._of[session]
            visit.used = time.monotonic()
            return visit

    def place(self, session: str, kind: str) -> Place:
        """An empty place of a visit; the one of this kind before goes."""
        with self._lock:
            visit = self.of(session)
            self.vacate(session, kind)
            folder = visit.folder / f"{kind}_{secrets.token_hex(4)}"
            folder.mkdir()
            visit.places[kind] = Place(folder)
            return visit.places[kind]

    def vacate(self, session: str, kind: str) -> None:
        """Delete what a visit has of this kind."""
        with self._lock:
            place = self.of(session).places.pop(kind, None)
            if place is not None:
                shutil.rmtree(place.folder, ignore_errors=True)
                self._forget(place.uploads)

    def leave(self, session: str) -> None:
        """The visitor has gone, and all that was theirs goes."""
        with self._lock:
            visit = self._of.pop(session, None)
            if visit is not None:
                visit.stop.set()
                shutil.rmtree(visit.folder, ignore_errors=True)
                self._forget(visit.uploads())
            self.sweep()

    def find(self, token: str, place: str) -> Place | None:
        """The place that an address names, None where there is none."""
        with self._lock:
            for visit in self._of.values():
                if secrets.compare_digest(visit.token.encode(), token.encode()):
                    places = [p for p in visit.places.values() if p.folder.name == place]
                    return places[0] if places else None
        return None

    def _forget(self, uploads: set[Path]) -> None:
        """Delete what Gradio wrote, unless another visitor has uploaded the very same file."""
        others: set[Path] = set().union(*(visit.uploads() for visit in self._of.values()))
        for upload in uploads - others:
            upload.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty
                upload.parent.rmdir()

    def sweep(self, seconds: float = 600) -> None:
        """End visits that are not used, and delete uploads that nobody took for so long, such as those that
        broke off."""
        with self._lock:
            now = time.monotonic()
            for session in [s for s, visit in self._of.items() if now - visit.used > IDLE]:
                self.leave(session)
            kept: set[Path] = set().union(*(visit.uploads() for visit in self._of.values()))
            for path in sorted(self.uploaded.rglob("*"), reverse=True):  # a folder after its files
                with contextlib.suppress(OSError):
                    if path.is_dir():
                        path.rmdir()
                    elif path not in kept and _is_stale(path, seconds):
                        path.unlink()

    def close(self) -> None:
        """The server stops."""
        with self._lock:
            for session in list(self._of):
                self.leave(session)
            shutil.rmtree(self.root, ignore_errors=True)


def _is_stale(path: Path, seconds: float) -> bool:
    """Whether nothing has been written for so long; for Gradio's empty files, which nobody reads, 5 s do."""
    status = path.stat()
    return time.time() - status.st_mtime > (seconds if status.st_size else 5)
