"""Writing LeRobot datasets of format v3.0: several episodes in a file.

::

    meta/info.json                                  fps, features, templates of paths
    meta/stats.json                                 statistics of each feature
    meta/tasks.parquet                              task -> task_index
    meta/episodes/chunk-000/file-000.parquet        a row an episode: where it is, its statistics
    data/chunk-000/file-000.parquet                 a row a frame; a row group an episode
    videos/CAMERA/chunk-000/file-000.mp4            episodes one after another
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from torchrl_vip.data.lerobot.schema import (
    Feature,
    arrow_column,
    as_column,
    describe,
    feature_of,
    huggingface_feature,
    need_pyarrow,
)
from torchrl_vip.data.lerobot.stats import PictureStats, Stats, column_stats, merge_stats
from torchrl_vip.data.lerobot.video_join import Coding, JoinedVideo, coding_of
from torchrl_vip.data.reading import frames_at, read_frames
from torchrl_vip.data.video import write_video
from torchrl_vip.data.video_file import probe
from torchrl_vip.files import NewFolder

if TYPE_CHECKING:
    import pyarrow

Frames: TypeAlias = "str | Path | Iterable[np.ndarray | Tensor]"
"""A video file, or uint8 ``[H, W, 3]`` one after another."""

FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
CHUNK_FILES = 1000
DATA_MB, VIDEO_MB = 100, 200
"""A file that is larger is followed by another one, as in LeRobot."""

GOP = 10
"""Frames from one key frame to the next: a random frame costs at most so many decodings."""

PICTURES = 100
"""Frames of a video file whose values are counted for its statistics."""

ROWS = 100
"""Episodes that are written to meta/episodes at a time."""

OWN = ("timestamp", "frame_index", "episode_index", "index", "task_index")
"""Columns that the writer fills."""


class LeRobotWriter:
    """Writes a dataset, which appears at :meth:`close`, whole or not at all.

    The first episode decides about cameras and columns. Memory is flat whatever the number of episodes.

    Args:
        root: folder of the dataset; nothing but an empty folder may be there.
        fps: frames a second.
        robot_type: as in info.json.
        names: column -> what its D entries are, for info.json.
        episodes_per_file: a file of data and of videos has at most so many; None: as many as go into
            100 MB of data and 200 MB of video.

    Raises:
        FileExistsError: there is something at ``root``.
        ImportError: pyarrow is not installed.

    Example:
        >>> with LeRobotWriter("pushes", fps=10) as writer:  # doctest: +SKIP
        ...     writer.add_episode({"observation.images.top": "a.mp4"}, {"action": actions}, "push")
    """

    def __init__(
        self,
        root: str | Path,
        fps: float | Fraction,
        *,
        robot_type: str | None = None,
        names: Mapping[str, list[str]] | None = None,
        episodes_per_file: int | None = None,
    ) -> None:
        self.root, self.fps = Path(root), Fraction(fps).limit_denominator(1001)
        if not self.fps > 0:
            raise ValueError(f"fps={fps} is invalid: wanted a positive number.")
        if episodes_per_file is not None and episodes_per_file < 1:
            raise ValueError(f"episodes_per_file={episodes_per_file} is invalid: wanted 1 or more.")
        need_pyarrow()
        self.robot_type, self.names = robot_type, dict(names or {})
        self.features: dict[str, Feature] = {}
        self.episodes = self.frames = 0
        self._tasks: dict[str, int] = {}
        self._stats: dict[str, Stats] = {}
        self._rows: list[dict[str, Any]] = []
        self._folder = NewFolder(self.root)
        part = self._folder.part
        self._data = _ParquetFiles(part, f"data/{FILE}.parquet", episodes_per_file)
        self._listed = _ParquetFiles(part, f"meta/episodes/{FILE}.parquet", None)
        self._videos: dict[str, _VideoFiles] = {}
        self._episodes_per_file = episodes_per_file
        self._broken = False

    def add_episode(
        self, frames: Mapping[str, Frames], columns: Mapping[str, Any] | None = None, task: str = ""
    ) -> int:
        """Add an episode of T frames.

        Args:
            frames: camera -> a video file, or uint8 ``[H, W, 3]`` one after another. A name such as
                "observation.images.top" is what LeRobot's policies expect. A video file's frames are taken
                one by one whatever its rate; as they are where it is ``fps`` and its coding allows, else
                coded again.
            columns: name -> numbers, booleans or text ``[T]``, or ``[T, D]``.
            task: in words.

        Returns:
            The episode's index.

        Raises:
            ValueError: lengths, shapes, types or names that differ from each other or from those of the
                first episode. What was written before stays, and the next episode may be added.
        """
        if self._broken:
            raise ValueError(f"{self.root}: writing failed before; begin a new dataset.")
        arrays = {name: as_column(name, values) for name, values in (columns or {}).items()}
        with TemporaryDirectory(dir=self._folder.part) as folder:
            shots = {
                camera: _shoot(source, Path(folder) / f"{i}.mp4", self.fps)
                for i, (camera, source) in enumerate(frames.items())
            }
            length = _common_length(arrays, shots)
            features = {camera: shot.feature(self.fps) for camera, shot in shots.items()}
            features |= {k: feature_of(v, self.names.get(k)) for k, v in arrays.items()}
            self._check_features(features)
            self._broken = True  # what fails from here on may have been written in part
            self._append(length, task, shots, arrays)
            self._broken = False
        return self.episodes - 1

    def _check_features(self, features: dict[str, Feature]) -> None:
        """Of the first episode the names, of another whether it has what the first has."""
        if not self.features:
            bad = [name for name in features if name in OWN or not name or set(name) & set("/{}")]
            if bad:
                raise ValueError(
                    f"{', '.join(map(repr, bad))}: wanted names without slash and braces, other than "
                    f"{', '.join(OWN)}, which the writer fills."
                )
            self.features = features
        said, first = _shapes(features), _shapes(self.features)
        if said != first:
            raise ValueError(
                f"episode {self.episodes} has {said}: wanted what the first one has, {first}."
            )

    def _append(
        self, length: int, task: str, shots: dict[str, _Shot], arrays: dict[str, np.ndarray]
    ) -> None:
        arrays = {name: arrays[name] for name in self.features if name in arrays}  # in one order
        own = self._own_columns(length, self._tasks.setdefault(task, len(self._tasks)))
        place: dict[str, Any] = {}
        for camera, shot in shots.items():
            if camera not in self._videos:
                self._videos[camera] = _VideoFiles(
                    self._folder.part, camera, self.fps, self._episodes_per_file
                )
            place |= self._videos[camera].append(shot)
        place |= self._write_data(arrays | own)
        stats = {k: column_stats(v) for k, v in (arrays | own).items() if v.dtype != object}
        self._list(length, task, place, {k: shot.stats for k, shot in shots.items()} | stats)

    def _own_columns(self, length: int, task: int) -> dict[str, np.ndarray]:
        frame = np.arange(length)
        return {
            "timestamp": (frame / float(self.fps)).astype(np.float32),
            "frame_index": frame,
            "episode_index": np.full(length, self.episodes),
            "index": self.frames + frame,
            "task_index": np.full(length, task),
        }

    def _write_data(self, columns: dict[str, np.ndarray]) -> dict[str, int]:
        pa = need_pyarrow()
        table = pa.table({name: arrow_column(values) for name, values in columns.items()})
        features = {name: huggingface_feature(feature_of(v)) for name, v in columns.items()}
        table = table.replace_schema_metadata(describe(table.schema, features).metadata)
        chunk, file = self._data.place(1)
        self._data.write(table)
        return {"data/chunk_index": chunk, "data/file_index": file}

    def _list(self, length: int, task: str, place: dict, stats: dict[str, Stats]) -> None:
        """Keep an episode's row of meta/episodes, and its part in the dataset's statistics."""
        row = {"episode_index": self.episodes, "tasks": [task], "length": length, **place}
        row |= {"dataset_from_index": self.frames, "dataset_to_index": self.frames + length}
        for name, of_feature in stats.items():
            row |= {f"stats/{name}/{key}": value.tolist() for key, value in of_feature.items()}
            before = self._stats.get(name)
            self._stats[name] = of_feature if before is None else merge_stats(before, of_feature)
        self._rows.append(row)
        self.episodes += 1
        self.frames += length
        if len(self._rows) == ROWS:
            self._flush()

    def _flush(self) -> None:
        chunk, file = self._listed.place(len(self._rows))
        own = {"meta/episodes/chunk_index": chunk, "meta/episodes/file_index": file}
        table = need_pyarrow().Table.from_pylist([row | own for row in self._rows])
        self._listed.write(table)
        self._rows = []

    def close(self) -> Path:
        """Complete the dataset and give it its name.

        Returns:
            ``root``.

        Raises:
            ValueError: it has no episode, or writing failed before.
        """
        try:
            if self._broken or not self.episodes:
                reason = "writing failed before" if self._broken else "no episode was added"
                raise ValueError(f"{self.root} is not written: {reason}.")
            if self._rows:
                self._flush()
            self._data.close()
            self._listed.close()
            for videos in self._videos.values():
                videos.close()
            self._write_meta()
            return self._folder.publish()
        finally:
            self.discard()

    def _write_meta(self) -> None:
        meta = self._folder.part / "meta"
        number = {"dtype": "int64", "shape": [1], "names": None}
        own = {name: dict(number) for name in OWN} | {"timestamp": number | {"dtype": "float32"}}
        info = {
            "codebase_version": "v3.0",
            "robot_type": self.robot_type,
            "total_episodes": self.episodes,
            "total_frames": self.frames,
            "total_tasks": len(self._tasks),
            "chunks_size": CHUNK_FILES,
            "data_files_size_in_mb": DATA_MB,
            "video_files_size_in_mb": VIDEO_MB,
            "fps": as_number(self.fps),
            "splits": {"train": f"0:{self.episodes}"},
            "data_path": f"data/{FILE}.parquet",
            "video_path": f"videos/{{video_key}}/{FILE}.mp4" if self._videos else None,
            "features": self.features | own,
        }
        write_json(meta / "info.json", info)
        stats = {k: {n: v.tolist() for n, v in of.items()} for k, of in self._stats.items()}
        write_json(meta / "stats.json", stats)
        pq = need_pyarrow().parquet
        pq.write_table(_task_table(list(self._tasks)), meta / "tasks.parquet")

    def discard(self) -> None:
        """Delete what was written; nothing to do after :meth:`close`."""
        self._folder.discard()

    def __enter__(self) -> LeRobotWriter:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


def write_json(path: Path, content: Any) -> None:
    """As LeRobot writes them."""
    path.write_text(json.dumps(content, indent=4, ensure_ascii=False), encoding="utf-8")


def _shapes(features: Mapping[str, Feature]) -> str:
    return ", ".join(f"{k} ({v['dtype']} {v['shape']})" for k, v in sorted(features.items()))


def _common_length(arrays: Mapping[str, np.ndarray], shots: Mapping[str, _Shot]) -> int:
    lengths = {name: len(values) for name, values in arrays.items()}
    lengths |= {camera: shot.frames for camera, shot in shots.items()}
    length = next(iter(lengths.values()), 0)
    if not length or set(lengths.values()) != {length}:
        said = ", ".join(f"{name} {n}" for name, n in lengths.items())
        raise ValueError(f"numbers of frames: {said}; wanted one number, 1 or more.")
    return length


def _task_table(tasks: list[str]) -> pyarrow.Table:
    """As pandas writes a frame whose index are the tasks; LeRobot reads it by pandas."""
    pa = need_pyarrow()
    text = {"field_name": "task", "name": "task", "pandas_type": "unicode", "numpy_type": "object"}
    number = {"field_name": "task_index", "name": "task_index"}
    number |= {"pandas_type": "int64", "numpy_type": "int64"}
    said = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [column | {"metadata": None} for column in (number, text)],
    }
    table = pa.table({"task_index": np.arange(len(tasks)), "task": pa.array(tasks, pa.string())})
    return table.replace_schema_metadata({b"pandas": json.dumps(said).encode()})


# --- files of several episodes --------------------------------------------------------------------


class _Numbering:
    """Which file comes next: chunk-000/file-000, file-001, ...

    Args:
        template: of the path in ``folder``.
        most: episodes of a file.
        megabytes: a file that has reached so many is full.
    """

    def __init__(self, folder: Path, template: str, most: int | None, megabytes: int) -> None:
        self._folder, self._template, self._most = folder, template, most
        self._bytes = megabytes * 2**20
        self._number, self._episodes = -1, 0

    @property
    def place(self) -> tuple[int, int]:
        """Indices of chunk and file."""
        return divmod(self._number, CHUNK_FILES)

    @property
    def path(self) -> Path:
        chunk, file = self.place
        return self._folder / self._template.format(chunk_index=chunk, file_index=file)

    def next(self, episodes: int, size: int, *, new: bool = False) -> bool:
        """Count these episodes; True where they begin a file. ``size``: bytes of the present file."""
        full = self._most is not None and self._episodes + episodes > self._most
        if new or self._number < 0 or full or size >= self._bytes:
            self._number, self._episodes = self._number + 1, 0
            self.path.parent.mkdir(parents=True, exist_ok=True)
            new = True
        self._episodes += episodes
        return new


class _ParquetFiles:
    """Tables one after another; each is a row group."""

    def __init__(self, folder: Path, template: str, most: int | None) -> None:
        self._numbering = _Numbering(folder, template, most, DATA_MB)
        self._writer: Any = None

    def place(self, episodes: int) -> tuple[int, int]:
        """Chunk and file of the next table, of so many episodes."""
        size = 0 if self._writer is None else self._numbering.path.stat().st_size
        if self._numbering.next(episodes, size):
            self.close()
            self._writer = None
        return self._numbering.place

    def write(self, table: pyarrow.Table) -> None:
        if self._writer is None:
            pq = need_pyarrow().parquet
            self._writer = pq.ParquetWriter(self._numbering.path, table.schema)
        self._writer.write_table(table)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _VideoFiles:
    """A camera's episodes, one after another."""

    def __init__(self, folder: Path, camera: str, fps: Fraction, most: int | None) -> None:
        self._camera, self._fps = camera, fps
        self._numbering = _Numbering(folder, f"videos/{camera}/{FILE}.mp4", most, VIDEO_MB)
        self._video: JoinedVideo | None = None

    def append(self, shot: _Shot) -> dict[str, Any]:
        """The entries of the episode's row."""
        video = self._video
        size = 0 if video is None else video.size
        other = video is None or not video.fits(shot.coding)
        if self._numbering.next(1, size, new=other) or video is None:
            self.close()
            video = self._video = JoinedVideo(self._numbering.path, self._fps)
        start = video.frames
        video.append(shot.path, shot.coding)
        chunk, file = self._numbering.place
        entries = {
            "chunk_index": chunk,
            "file_index": file,
            "from_timestamp": float(start / self._fps),
            "to_timestamp": float(video.frames / self._fps),
        }
        return {f"videos/{self._camera}/{name}": value for name, value in entries.items()}

    def close(self) -> None:
        if self._video is not None:
            self._video.close()


@dataclass(frozen=True)
class _Shot:
    """One episode of one camera as a video of its own."""

    path: Path
    coding: Coding
    frames: int
    stats: Stats

    def feature(self, fps: Fraction) -> Feature:
        """As LeRobot describes a video."""
        coding = self.coding
        return {
            "dtype": "video",
            "shape": [coding.height, coding.width, 3],
            "names": ["height", "width", "channels"],
            "info": {
                "video.height": coding.height,
                "video.width": coding.width,
                "video.codec": coding.codec,
                "video.pix_fmt": coding.pix_fmt,
                "video.is_depth_map": False,
                "video.fps": as_number(fps),
                "video.channels": 3,
                "has_audio": False,
            },
        }


def _shoot(source: Frames, target: Path, fps: Fraction) -> _Shot:
    """An episode's video: the source itself where it can be taken over, else ``target``."""
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.is_dir() and (coding := coding_of(path, fps)):
            file = probe(path)
            file.check_whole()
            return _Shot(path, coding, len(file), _sampled_stats(path, len(file)))
        source = (frame.permute(1, 2, 0) for frame in read_frames(path))
    stats = PictureStats()

    def counted() -> Iterator[np.ndarray]:
        for frame in source:
            picture = np.asarray(frame)
            yield picture
            stats.update(picture)  # once write_video has checked it

    write_video(target, counted(), fps, gop_size=GOP)
    coding = coding_of(target, fps)
    assert coding is not None  # as write_video codes it
    return _Shot(target, coding, stats.frames, stats.result())


def _sampled_stats(path: Path, frames: int) -> Stats:
    stats = PictureStats()
    rows = np.unique(np.linspace(0, frames - 1, PICTURES).round().astype(np.int64))
    for frame in frames_at(path, torch.from_numpy(rows)):
        stats.update(frame.permute(1, 2, 0).numpy())
    return stats.result()


def as_number(fps: Fraction) -> int | float:
    """For JSON: whole where it is."""
    return int(fps) if fps.denominator == 1 else float(fps)
