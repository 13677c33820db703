"""What a clip is: a video file, a folder of numbered frames, or a part of a file or memory-map."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np

VIDEO_SUFFIXES = {
    *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".f4v", ".mkv", ".webm", ".avi", ".divx"),
    *(".mpg", ".mpeg", ".mpe", ".m1v", ".m2v", ".vob", ".ts", ".mts", ".m2ts", ".m2t", ".mxf"),
    *(".wmv", ".asf", ".flv", ".ogv", ".dv", ".rm", ".rmvb", ".y4m", ".mjpeg", ".mjpg", ".gif"),
    *(".h264", ".264", ".h265", ".hevc"),
}
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg"}


@dataclass(frozen=True)
class Moments:
    """Frames of a video file by time: those shown at ``start + i / fps`` seconds for ``i < count``.

    Attributes:
        start: seconds from the file's first frame.
        fps: frames a second of the data set, which may differ from the video's.
        count: number of frames that the data set announces.
        end: seconds, where the part ends; None where that is not known.
        is_alone: whether the file holds nothing else; with ``count`` frames it is taken frame by frame.
    """

    start: float
    fps: float
    count: int
    end: float | None = None
    is_alone: bool = False


@dataclass(frozen=True)
class ImageColumn:
    """Encoded images in a parquet file, an episode's rows in the order of their "frame_index".

    Attributes:
        column: name of the column: structs of "bytes" and "path", or either of them.
        episode: value of "episode_index" in the rows.
        count: number of frames that the data set announces.
    """

    column: str
    episode: int
    count: int


@dataclass(frozen=True)
class ArrayRows:
    """Frames that are rows of an array, in an HDF5 file or in a folder of memory-mapped tensors.

    ::

        array           |----|o_0  o_1  ...  o_T-1|-------|     rows first, first + 1, ...
        next_array      |----|               o_T  |-------|     its row of the last step

    A full replay buffer is a ring: its last row is followed by row 0. Rows that several environments wrote
    side by side (``[T, lanes]``) are counted with the lanes inside.

    Attributes:
        array: name of the array: ``data/demo_0/obs/front``, ``storage/pixels``.
        steps: number of rows.
        first: row of the first frame.
        next_array: the array of the frames after each; its last row is one frame more. None: there is none.
        ring: number of rows after which a ring goes on at row 0; 0: it is none.
        lane, lanes: number of the environment, and how many there are.
    """

    array: str
    steps: int
    first: int = 0
    next_array: str | None = None
    ring: int = 0
    lane: int = 0
    lanes: int = 1

    @property
    def count(self) -> int:
        """Number of frames: one more than steps where the frame after the last step is known."""
        return self.steps + (self.next_array is not None)

    def rows(self) -> np.ndarray:
        """Rows of the steps, int64 ``[steps]``."""
        time = self.first + np.arange(self.steps)
        return (time % self.ring if self.ring else time) * self.lanes + self.lane


Part: TypeAlias = "tuple[int, int] | Moments | ImageColumn | ArrayRows | None"
"""Frames [first, end) of a file or folder, moments of a video, images in a parquet file, rows of an array;
None: all."""


@dataclass(frozen=True)
class Clip:
    """One video.

    Attributes:
        path: a video file, a folder of numbered frames or of memory-mapped tensors, a parquet or HDF5 file.
        name: tells it from other clips of its source.
        labels: what is known of it, such as "task".
        span: the part of ``path`` that the clip is; None: all of it.
        error: why it cannot be used where its data set says too little of it; it is skipped and named.
    """

    path: Path
    name: str
    labels: dict = field(default_factory=dict, compare=False, hash=False)
    span: Part = None
    error: str | None = None

    @property
    def scene(self) -> str | None:
        """What clips have in common whose ends are each other's goals: their label "group", or else
        "task", seen by the same "camera"; None where the labels tell neither."""
        group, task, camera = (
            None if (label := self.labels.get(key)) in (None, "") else str(label)  # 0 is one
            for key in ("group", "task", "camera")
        )
        return group or (f"{task}/{camera}" if task and camera else task)

    @property
    def success(self) -> bool:
        """False where the label "success" says so, in a table's words too; True without one, or null."""
        said = self.labels.get("success")
        said = "yes" if said is None else str(said).strip().lower()
        return said not in ("false", "0", "0.0", "no", "none", "")

    @property
    def idle_of(self) -> str | None:
        """Of a clip in which the robot moves without effect, the label "idle_of": "start" or "goal", with
        things as a task finds or leaves them. None for an attempt at a task."""
        return self.labels.get("idle_of") or None


def check_count(found: int, announced: int, reason: str) -> str:
    """Judge a clip that has fewer frames than was announced.

    Args:
        reason: a sentence that names the file and both numbers.

    Returns:
        ``reason`` as a note where at most a frame, or two in a hundred, are missing; "" where none is.

    Raises:
        ValueError: more are missing. Its last frame would be a goal that it never reached.
    """
    if announced - found > max(1, 0.02 * announced):
        raise ValueError(reason)
    return reason if found < announced else ""


def whole_number(value: object, name: str) -> int:
    """A table's number, which may be the float or text of a whole number.

    Raises:
        ValueError: null, NaN or anything else.
    """
    try:
        number = float(value)  # type: ignore[arg-type]  # anything that a table may hold; what is no number raises
        if number == int(number):
            return int(number)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"{name}={value} is invalid: wanted a whole number.")
