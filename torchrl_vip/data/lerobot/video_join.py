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


def coding_of(path: Path, fps: Fraction) -> Coding | None:
    """How a video is coded; None where its frames cannot be taken over as they are.

    That is where frames are turned or stretched for display, hidden, or without times; where the first is no
    key frame; and where the frame rate is another: it is written in the frames of H.264 too, where LeRobot's
    merging of datasets finds it.

    Raises:
        ValueError: it cannot be read.
    """
    file = probe(path)
    with opened(path) as (container, stream):
        packets = [(p.pts, p.duration or 0) for p in container.demux(stream) if p.size]
        times, durations = zip(*packets, strict=True)
        rates = float(stream.time_base * fps) * np.array(durations)
        codec = stream.codec_context
        plain = file.timed and file.is_first and not any(file.turn) and file.aspect == 1
        whole = len(times) == len(file) and file.keys[0] == file.pts[0]
        timely = np.abs(rates - 1).max() < 0.01 and abs(file.interval * fps - 1) < 0.01
        if not (plain and whole and timely and codec.name in CODECS and codec.pix_fmt):
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
                self._container = self._new_file(av)
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

    def _new_file(self, av: Any) -> Any:
        # By default durations are whole milliseconds; LeRobot's merging would add the roundings up.
        rate = self._time_base.denominator
        options = {"movie_timescale": str(rate if rate >= 1000 else 1000 * rate)}
        return av.open(str(self.path), "w", format="mp4", options=options)

    def close(self) -> None:
        """Complete the file; without any video there is none."""
        if self._container is not None:
            self._container.close()
