"""A LeRobot dataset, v2 or v3, with further columns: rewards, embeddings.

Parquet files and statistics are written anew, a data file at a time; videos, images and all else are copied
(:func:`with_columns`) or linked (:func:`in_place`).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from torchrl_vip.data.image_column import open_parquet
from torchrl_vip.data.lerobot.reading import camera_kind, read_info
from torchrl_vip.data.lerobot.schema import (
    Feature,
    arrow_column,
    as_column,
    feature_of,
    huggingface_feature,
    need_pyarrow,
    put_column,
)
from torchrl_vip.data.lerobot.stats import QUANTILES, Stats, column_stats, merge_stats
from torchrl_vip.data.lerobot.writer import OWN, write_json
from torchrl_vip.files import NewFolder, check_space, restore_folder

if TYPE_CHECKING:
    import pyarrow

Columns = Callable[[int], Mapping[str, Any]]
"""Episode -> name -> numbers, booleans or text ``[T]``, or ``[T, D]``, in the order of "frame_index"."""


@dataclass(frozen=True)
class EpisodeRows:
    """Where an episode's T frames are in the data.

    Attributes:
        episode: value of "episode_index".
        rows: int64 ``[T]``, rows of its data file, in the order of "frame_index".
        frame_index: int64 ``[T]``.
        index: int64 ``[T]``, "index" in the whole dataset.
    """

    episode: int
    rows: np.ndarray
    frame_index: np.ndarray
    index: np.ndarray


def episode_rows(root: str | Path) -> Iterator[EpisodeRows]:
    """All episodes of a dataset, in the order of its data files; what a sidecar's rows are made of.

    Raises:
        ValueError: it is no LeRobot dataset, or a data file cannot be read.
    """
    read_info(Path(root))
    for path in data_files(Path(root)):
        yield from _episodes_in(path)


def data_files(root: Path) -> list[Path]:
    """The parquet files of a dataset's frames.

    Raises:
        ValueError: there are none.
    """
    if paths := sorted((root / "data").rglob("*.parquet")):
        return paths
    raise ValueError(f"{root} has no parquet files in data/: download the dataset whole.")


def with_columns(
    source: str | Path,
    out: str | Path,
    columns: Columns,
    *,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Write a dataset anew with further columns; ``source`` stays as it is.

    info.json, the statistics and the parquet files' own descriptions have the columns too. ``out`` appears
    when all of it is written and what was written has been read back. Hidden files at the top of ``source``
    (.git, .cache) are left out.

    Args:
        columns: called once for each episode.
        overwrite: whether columns of these names that are there already are replaced.
        progress: whether a bar is shown.

    Returns:
        ``out``.

    Raises:
        FileExistsError: there is something at ``out``.
        OSError: not enough room, checked before anything is written; or writing failed.
        ValueError: it is no LeRobot dataset; columns that differ between episodes, have another number of
            rows than the episode, or are there already; or what was read back differs.
    """
    source, out = Path(source), Path(out)
    if source.resolve() in (out.resolve(), *out.resolve().parents):
        raise ValueError(f"{out} is in {source}: give a folder outside, or write in place.")
    with NewFolder(out) as folder:
        _Rewriting(source, folder.part, links=False).run(columns, overwrite, progress)
    return out


def in_place(
    source: str | Path, columns: Columns, *, overwrite: bool = False, progress: bool = True
) -> Path:
    """Add columns to a dataset: :func:`with_columns` beside it, which then takes its place.

    Videos and images are linked where the file system has hard links, so that room is needed for the parquet
    files only. Killed at any moment, either the old or the new dataset is in place; the next call deletes
    what is left beside.

    Raises:
        As :func:`with_columns`.
    """
    root = Path(os.path.realpath(source))
    restore_folder(root)
    read_info(root)
    with NewFolder(root, replace=True) as folder:
        shutil.copymode(root, folder.part)
        _Rewriting(root, folder.part, links=True).run(columns, overwrite, progress)
    return Path(source)


# --- the columns ----------------------------------------------------------------------------------


class _NewColumns:
    """The caller's columns; those of one episode are like those of the first.

    Attributes:
        features: name -> its entry in info.json.
    """

    def __init__(self, columns: Columns, first: int) -> None:
        self._columns = columns
        self._kept = {first: self._read(first)}  # asked for once
        self.features = {name: feature_of(v) for name, v in self._kept[first].items()}

    def _read(self, episode: int) -> dict[str, np.ndarray]:
        return {name: as_column(name, v) for name, v in self._columns(episode).items()}

    def of(self, episode: int, length: int) -> dict[str, np.ndarray]:
        """Of an episode of so many frames."""
        found = self._kept.pop(episode, None) or self._read(episode)
        said = {name: feature_of(values) for name, values in found.items()}
        lengths = {name: len(values) for name, values in found.items()}
        if said != self.features or set(lengths.values()) - {length}:
            raise ValueError(
                f"episode {episode} of {length} frames: given {_describe(said, lengths)}; wanted "
                f"{_describe(self.features, dict.fromkeys(self.features, length))}."
            )
        return found

    @property
    def bytes(self) -> int:
        """Of a row, before compression; text by a guess."""
        sizes = {"string": 32}
        return sum(
            int(np.prod(f["shape"])) * (sizes.get(f["dtype"]) or np.dtype(f["dtype"]).itemsize)
            for f in self.features.values()
        )


def _describe(features: Mapping[str, Feature], lengths: Mapping[str, int]) -> str:
    parts = (f"{k} {v['dtype']} {[lengths[k], *v['shape']]}" for k, v in sorted(features.items()))
    return ", ".join(parts) or "nothing"


def _check_names(info: dict[str, Any], features: Mapping[str, Feature], overwrite: bool) -> None:
    """Raise ValueError for a name that cannot be added."""
    bad = [
        name
        for name in features
        if name in OWN or "/" in name or camera_kind(name, info["features"].get(name))
    ]
    if bad or not features:
        raise ValueError(
            f"columns {bad or 'without a name'}: wanted one or more, without a slash in their names, and "
            f"none of the cameras or of {', '.join(OWN)}."
        )
    there = sorted(set(features) & set(info["features"]))
    if there and not overwrite:
        raise ValueError(
            f"the dataset has {', '.join(there)} already: overwrite=True replaces them, or choose other "
            "names."
        )


# --- the files ------------------------------------------------------------------------------------


class _Rewriting:
    """One dataset, from ``source`` to the folder ``part``.

    Args:
        links: whether files that stay as they are become hard links where they can.
    """

    def __init__(self, source: Path, part: Path, *, links: bool) -> None:
        self.source, self.part, self.links = source, part, links
        self.info = read_info(source)
        self.data = data_files(source)
        self.listed = sorted((source / "meta/episodes").rglob("*.parquet"))
        self.files: dict[int, Path] = {}
        """Episode -> the new data file that it is in."""

    def run(self, columns: Columns, overwrite: bool, progress: bool) -> None:
        first = next(iter(_episodes_in(self.data[0])), None)
        if first is None:
            raise ValueError(f"{self.data[0]} has no rows.")
        new = _NewColumns(columns, first.episode)
        _check_names(self.info, new.features, overwrite)
        kept = self._kept_files()
        check_space(self.part.parent, self._bytes(new, kept))
        total = self._write_data(new, progress)
        self._write_meta(new.features, total)
        for path in tqdm(kept, "files", disable=not progress, unit="file"):
            _carry(self.source / path, self.part / path, self.links)
        lost = set(_files_below(self.source)) - set(_files_below(self.part))
        if lost and self.links:  # the source will be deleted
            raise ValueError(
                f"{self.source} changed meanwhile: {sorted(lost)[0]} was not taken over."
            )

    def _new(self, path: Path) -> Path:
        """The new file of one of the source's, in a folder that is there."""
        target = self.part / path.relative_to(self.source)
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    @property
    def _meta(self) -> list[Path]:
        """Further files that are written anew, where they are there."""
        names = ("info.json", "stats.json", "episodes_stats.jsonl")
        return [path for name in names if (path := self.source / "meta" / name).exists()]

    def _kept_files(self) -> list[str]:
        """Files that stay as they are."""
        anew = {p.relative_to(self.source).as_posix() for p in self.data + self.listed + self._meta}
        kept = [name for name in _files_below(self.source) if name not in anew]
        return kept if self.links else [name for name in kept if not name.startswith(".")]

    def _bytes(self, new: _NewColumns, kept: list[str]) -> int:
        """Room that is needed at most."""
        rows = 0
        for path in self.data:
            with open_parquet(path) as file:
                rows += file.metadata.num_rows
        anew = sum(path.stat().st_size for path in self.data + self.listed + self._meta)
        copied = [self.source / name for name in kept]
        if self.links and _has_links(self.source / "meta/info.json", self.part):
            here = self.part.stat().st_dev
            copied = [path for path in copied if path.stat().st_dev != here]
        return anew + rows * new.bytes + sum(path.stat().st_size for path in copied)

    def _write_data(self, new: _NewColumns, progress: bool) -> dict[str, Stats]:
        """Write the data files; returns statistics of the new columns over the whole dataset."""
        total: dict[str, Stats] = {}
        bar = tqdm(self.data, "data", disable=not progress, unit="file")
        for path in bar:
            target = self._new(path)
            values: dict[str, np.ndarray] = {}
            with open_parquet(path) as file:
                table = file.read()
            for rows in _episodes_in(path):
                if rows.episode in self.files:
                    raise ValueError(f"{path}: episode {rows.episode} is in another data file too.")
                self.files[rows.episode] = target
                for name, column in new.of(rows.episode, len(rows.rows)).items():
                    shape = (table.num_rows, *column.shape[1:])
                    values.setdefault(name, np.empty(shape, column.dtype))[rows.rows] = column
                    if column.dtype != object:
                        stats = column_stats(column)
                        total[name] = merge_stats(total[name], stats) if name in total else stats
            for name, column in values.items():
                feature = huggingface_feature(new.features[name])
                table = put_column(table, name, arrow_column(column), feature)
            _write_like(path, target, table)
            _check_written(target, table, values)
        return total

    def _write_meta(self, features: dict[str, Feature], total: dict[str, Stats]) -> None:
        """Write the files that describe the data."""
        info = dict(self.info)
        info["features"] = info["features"] | features
        write_json(self._new(self.source / "meta/info.json"), info)
        numbers = [name for name, feature in features.items() if feature["dtype"] != "string"]
        stats = _EpisodeStats(self.files, numbers, quantiles=bool(self.listed))
        path = self.source / "meta/stats.json"
        if path.exists():
            said = json.loads(path.read_text(encoding="utf-8-sig"))
            said = {k: v for k, v in said.items() if k not in features}
            said |= {k: _listed(stats.kept(v)) for k, v in total.items()}
            write_json(self._new(path), said)
        for path in self.listed:
            self._write_listed(path, stats)
        path = self.source / "meta/episodes_stats.jsonl"
        if path.exists():
            self._write_lines(path, features, stats)

    def _write_listed(self, path: Path, stats: _EpisodeStats) -> None:
        """A file of v3's meta/episodes, with "stats/NAME/mean" and so on of each episode."""
        pa = need_pyarrow()
        with open_parquet(path) as file:
            table = file.read()
        rows = [stats.of(episode) for episode in table["episode_index"].to_pylist()]
        for name in stats.names:
            for key in rows[0][name] if rows else ():
                column = pa.array([row[name][key] for row in rows])
                value = {"dtype": str(column.type.value_type), "_type": "Value"}
                value["dtype"] = {"double": "float64"}.get(value["dtype"], value["dtype"])
                feature = {"feature": value, "_type": "Sequence"}
                table = put_column(table, f"stats/{name}/{key}", column, feature)
        _write_like(path, self._new(path), table)

    def _write_lines(self, path: Path, features: dict[str, Feature], stats: _EpisodeStats) -> None:
        """v2.1's meta/episodes_stats.jsonl."""
        with (
            open(path, encoding="utf-8-sig") as lines,
            open(self._new(path), "w", encoding="utf-8") as out,
        ):
            for line in filter(str.strip, lines):
                said = json.loads(line)
                kept = {k: v for k, v in said["stats"].items() if k not in features}
                new = {k: _listed(v) for k, v in stats.of(said["episode_index"]).items()}
                out.write(json.dumps(said | {"stats": kept | new}) + "\n")


class _EpisodeStats:
    """Statistics of the new columns, by episode, of what the new data files hold.

    Args:
        files: episode -> data file.
        names: of the columns.
        quantiles: whether these are among them; of format v2 they are not.
    """

    def __init__(self, files: Mapping[int, Path], names: list[str], *, quantiles: bool) -> None:
        self._files, self.names, self._quantiles = files, names, quantiles
        self._path: Path | None = None
        self._stats: dict[int, dict[str, Stats]] = {}

    def of(self, episode: int) -> dict[str, Stats]:
        """Of an episode; the others of its file are kept for the next call."""
        path = self._files.get(episode)
        if path is None:
            raise ValueError(f"meta/ lists episode {episode}, which is in no data file.")
        if path != self._path:
            columns = _read_columns(path, self.names)
            self._path, self._stats = path, {}
            for rows in _episodes_in(path):
                self._stats[rows.episode] = {
                    name: self.kept(column_stats(columns[name][rows.rows])) for name in self.names
                }
        return self._stats[episode]

    def kept(self, stats: Stats) -> Stats:
        return {k: v for k, v in stats.items() if self._quantiles or k not in QUANTILES}


def _listed(stats: Stats) -> dict[str, list]:
    return {key: value.tolist() for key, value in stats.items()}


def _episodes_in(path: Path) -> list[EpisodeRows]:
    """Episodes of a data file, in the order in which they begin."""
    wanted = ["episode_index", "frame_index", "index"]
    with open_parquet(path) as file:
        if lost := [name for name in wanted if name not in file.schema_arrow.names]:
            raise ValueError(f"{path} has no column {', '.join(lost)}: it is no data of LeRobot.")
        table = file.read(wanted)
    columns = [table[name].to_numpy().reshape(-1) for name in wanted]
    if any(column.dtype.kind not in "iu" for column in columns):
        raise ValueError(f"{path}: {', '.join(wanted)} are not all whole numbers.")
    episode, frame, index = (column.astype(np.int64) for column in columns)
    found, begins = np.unique(episode, return_index=True)
    order = np.lexsort((frame, episode))
    parts = np.split(order, np.searchsorted(episode[order], found[1:]))
    in_order = sorted(zip(begins, found, parts, strict=True), key=lambda part: part[0])
    return [EpisodeRows(int(e), rows, frame[rows], index[rows]) for _, e, rows in in_order]


def _read_columns(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    """Columns of a parquet file, ``[T]`` or ``[T, D]``."""
    with open_parquet(path) as file:
        table = file.read(names)
    columns = {}
    for name in names:
        column = table[name].combine_chunks()
        flat = column.flatten() if column.type.num_fields else column
        values = flat.to_numpy(zero_copy_only=False)
        columns[name] = values.reshape(len(column), -1) if column.type.num_fields else values
    return columns


def _write_like(path: Path, target: Path, table: pyarrow.Table) -> None:
    """Write a table with the row groups and the compression of ``path``."""
    pq = need_pyarrow().parquet
    with open_parquet(path) as file:
        groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    compression = groups[0].column(0).compression if groups else "SNAPPY"
    with pq.ParquetWriter(target, table.schema, compression=compression) as writer:
        begin = 0
        for group in groups:
            writer.write_table(table.slice(begin, group.num_rows))
            begin += group.num_rows


def _check_written(path: Path, table: pyarrow.Table, values: dict[str, np.ndarray]) -> None:
    """Raise ValueError where a data file does not hold what it should."""
    with open_parquet(path) as file:
        same = file.metadata.num_rows == table.num_rows
        same &= file.schema_arrow.names == table.schema.names
    found = _read_columns(path, list(values))
    for name, column in values.items():
        same &= np.array_equal(found[name], column, equal_nan=column.dtype.kind == "f")
    if not same:
        raise ValueError(f"{path} was written and read back otherwise: is the disk sound?")


def _files_below(folder: Path) -> list[str]:
    """All files, relative to the folder; behind links too."""
    found = []
    for name, _, files in os.walk(folder, followlinks=True):
        found += [Path(name, file).relative_to(folder).as_posix() for file in files]
    return sorted(found)


def _has_links(file: Path, folder: Path) -> bool:
    """Whether a file's hard link can be in this folder."""
    try:
        os.link(os.path.realpath(file), folder / ".link")
    except OSError:
        return False
    (folder / ".link").unlink()
    return True


def _carry(path: Path, target: Path, links: bool) -> None:
    """Bring a file to another place as it is."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if links:
        try:
            os.link(os.path.realpath(path), target)
            return
        except OSError:  # another file system, or one without hard links
            pass
    shutil.copy2(path, target)
