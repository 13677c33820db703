"""Frames of many clips through one encoder, in batches of one size that cross the clips' borders.

A batch is always full, its last rows with black frames where the clips end: the network sees one shape, and a
frame's embedding depends neither on its neighbours nor on where a run was cut.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

from torchrl_vip.data.clip import Clip
from torchrl_vip.data.reading import measure, read_frames

AHEAD = 64
"""Frames that a thread decodes ahead of the encoder."""


@dataclass(frozen=True)
class End:
    """The last thing that is said of a clip: what was noticed, or why it cannot be used."""

    note: str = ""
    error: str = ""


@dataclass
class Embedded:
    """A clip's embeddings.

    Attributes:
        number: of the clip, in the order in which they were given.
        z: float32 ``[T, D]``, a row a frame; T = 0 with an error.
        end: what was noticed.
    """

    number: int
    z: Tensor
    end: End


@dataclass
class Meter:
    """Where the time went, in seconds of the thread that feeds the encoder."""

    frames: int = 0
    encoding: float = 0.0
    waiting: float = 0.0

    @property
    def waiting_share(self) -> float:
        """Share of the time in which the encoder waited for frames; in [0, 1]."""
        total = self.encoding + self.waiting
        return self.waiting / total if total else 0.0


def decode(clips: Sequence[Clip], threads: int = 2) -> Iterator[tuple[int, Tensor | End]]:
    """The frames of clips in order, uint8 ``[3, H, W]``, and after each clip's last one its :class:`End`.

    ``threads`` clips are decoded at a time, each at most :data:`AHEAD` frames ahead.
    """
    stop = threading.Event()
    # The same threads for all clips: a new one each time leaves its memory in another arena of malloc.
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    lines: deque[queue.Queue] = deque()
    todo = iter(clips)

    def start_next() -> None:
        for clip in itertools.islice(todo, 1):
            lines.append(queue.Queue(AHEAD))
            pool.submit(_decode_one, clip, lines[-1], stop)

    try:
        for _ in range(threads):
            start_next()
        for number in range(len(clips)):
            while True:
                item = lines[0].get()
                if isinstance(item, BaseException):
                    raise item
                yield number, item
                if isinstance(item, End):
                    break
            lines.popleft()
            start_next()
    finally:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)


def _decode_one(clip: Clip, line: queue.Queue, stop: threading.Event) -> None:
    """Put a clip's frames and its end, or the exception that is nobody's fault but ours."""

    def put(item: Tensor | End | BaseException) -> None:
        while not stop.is_set():
            with suppress(queue.Full):
                return line.put(item, timeout=0.2)
        raise InterruptedError

    try:
        put(_decode_into(clip, put))
    except InterruptedError:
        return
    except BaseException as error:
        with suppress(InterruptedError):
            put(error)


def _decode_into(clip: Clip, put: Callable[[Tensor], None]) -> End:
    if clip.error:
        return End(error=clip.error)
    count = 0
    try:
        wanted, note = measure(clip.path, clip.span)
        for frame in read_frames(clip.path, clip.span):
            put(frame)
            count += 1
    except ValueError as error:
        return End(error=str(error))
    except InterruptedError:
        raise
    except OSError as error:
        return End(error=f"{clip.path}: {error.strerror or error}")
    if not count:
        return End(error=f"{clip.path}: it has no frame")
    if count < wanted:
        note = f"{clip.path}: {count} of {wanted} frames could be decoded"
    return End(note=note)


def embed_stream(
    clips: Sequence[Clip],
    embed: Callable[[Tensor], Tensor],
    *,
    batch_size: int = 64,
    threads: int = 2,
    meter: Meter | None = None,
) -> Iterator[Embedded]:
    """Embeddings of clips, each as soon as its last frame has been embedded.

    Args:
        embed: from frames uint8 ``[batch_size, 3, H, W]`` to ``[batch_size, D]``.
        batch_size: frames of one forward; frames of another size than those before begin a new batch.
        threads: clips that are decoded at a time.
        meter: is told frames and seconds.
    """
    batches = _Batches(embed, batch_size, meter or Meter())
    waiting: dict[int, End] = {}  # clips that are decoded, but not embedded to their end
    frames = decode(clips, threads)
    nothing = (-1, None)
    while True:
        began = time.perf_counter()
        number, item = next(frames, nothing)
        batches.meter.waiting += time.perf_counter() - began
        if item is None:
            batches.flush()
        elif isinstance(item, End):
            waiting[number] = item
        else:
            batches.add(number, item)
        for ended in [n for n in waiting if not batches.holds(n)]:
            z, end = batches.take(ended), waiting.pop(ended)
            yield Embedded(ended, z[:0] if end.error else z, end)
        if item is None:
            return


@dataclass
class _Batches:
    embed: Callable[[Tensor], Tensor]
    size: int
    meter: Meter
    frames: list[Tensor] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    done: dict[int, list[Tensor]] = field(default_factory=dict)

    def add(self, owner: int, frame: Tensor) -> None:
        if self.frames and frame.shape != self.frames[0].shape:
            self.flush()
        self.frames.append(frame)
        self.owners.append(owner)
        if len(self.frames) == self.size:
            self.flush()

    def flush(self) -> None:
        """Embed what there is."""
        if not self.frames:
            return
        began = time.perf_counter()
        batch = torch.zeros(self.size, *self.frames[0].shape, dtype=torch.uint8)
        torch.stack(self.frames, out=batch[: len(self.frames)])
        z = self.embed(batch)[: len(self.frames)].to("cpu", torch.float32)
        for owner in dict.fromkeys(self.owners):  # their frames lie one after another
            first = self.owners.index(owner)
            count = self.owners.count(owner)
            self.done.setdefault(owner, []).append(z[first : first + count].clone())
        self.meter.frames += len(self.frames)
        self.meter.encoding += time.perf_counter() - began
        self.frames, self.owners = [], []

    def holds(self, owner: int) -> bool:
        """Whether frames of a clip wait for their batch to be full."""
        return owner in self.owners

    def take(self, owner: int) -> Tensor:
        return torch.cat(self.done.pop(owner, [torch.zeros(0, 0)]))
