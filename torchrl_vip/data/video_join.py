"""mp4 files one after another in one file, as they are: nothing is decoded or encoded again."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_vip.data.container import opened
from torchrl_vip.data.video_file import probe

CODECS = ("h264", "hevc", "av1", "mpeg4")
"""What mp4 holds and LeRobot's decoders read."""

LEAST_DELAY = 2
"""Of libx264, so that its videos can follow one whose frames are in the order of their display."""


@dataclass(frozen=True)
class Coding:
    """What two videos have in common that can stand in one file.

    Attributes:
        delay: by how many frames decoding runs ahead of the display at most.
    """

    codec: str
    width: int
    height: int
    pix_fmt: str
    extradata: bytes
    delay: int = field(compare=False)


def coding_of(path: Path) -> Coding | None:
    """How a video is coded; None where its frames cannot be taken over as they are.

    That is where frames are turned or stretched for display, hidden, or without times, or where the first
    is no key frame.

    Raises:
        ValueError: it cannot be read.
    """
    file = probe(path)
    with opened(path) as (container, stream):
        times = [packet.pts for packet in container.demux(stream) if packet.size]
        codec = stream.codec_context
        plain = file.timed and file.is_first and not any(file.turn) and file.aspect == 1
        whole = len(times) == len(file) and file.keys[0] == file.pts[0]
        if not (plain and whole and codec.name in CODECS and codec.pix_fmt):
            return None
        ahead = np.arange(len(times)) - np.searchsorted(file.pts, times)
        return Coding(
            codec=codec.name,
            width=codec.width,
            height=codec.height,
            pix_fmt=codec.pix_fmt,
            extradata=bytes(codec.extradata or b""),
            delay=max(LEAST_DELAY, int(ahead.max())),
        )


class JoinedVideo:
    """One mp4 of videos of one coding, a frame every 1 / fps seconds.

    Args:
        path: of the mp4, which is complete after :meth:`close`.
        fps: frames a second; the sources' own times are not used.

    Attributes:
        frames: number of frames so far.
        size: bytes of them.
    """

    def __init__(self, path: Path, fps: Fraction) -> None:
        self.path, self.frames, self.size = path, 0, 0
        self._time_base = 1 / fps
        self._coding: Coding | None = None
        self._container: Any = None
        self._stream: Any = None

    def fits(self, coding: Coding) -> bool:
        """Whether a video of this coding can be appended; the first always can."""
        mine = self._coding
        return mine is None or (mine == coding and coding.delay <= mine.delay)

    def append(self, source: Path, coding: Coding) -> None:
        """Append a video of this coding, which :meth:`fits`.

        Its packets keep their order. A packet is shown at its frame's place among those of the source, and
        decoded ``delay`` frames earlier at least::

            packets of the source   I0 P3 B1 B2 ...        delay 2
            pts                     n  n+3 n+1 n+2         n: frames of the videos before
            dts                     n-2 n-1 n n+1
        """
        import av

        times = probe(source).pts
        with av.open(str(source)) as container:
            stream = container.streams.video[0]
            if self._coding is None:
                self._coding = coding
                self._container = av.open(str(self.path), "w", format="mp4")
                self._stream = self._container.add_stream_from_template(stream)
                self._stream.time_base = self._time_base
            dts = self.frames - self._coding.delay
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                shown = int(np.searchsorted(times, packet.pts))
                packet.stream = self._stream
                packet.time_base = self._time_base
                packet.pts, packet.dts, packet.duration = self.frames + shown, dts, 1
                self.size += packet.size
                self._container.mux(packet)
                dts += 1
        self.frames += len(times)

    def close(self) -> None:
        """Complete the file; without any video there is none."""
        if self._container is not None:
            self._container.close()
