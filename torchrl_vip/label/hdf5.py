"""Labelled copies of HDF5 files and of Minari datasets."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_vip.data.clip import ArrayRows
from torchrl_vip.data.hdf5 import minari_file, opened, split_episode
from torchrl_vip.data.sources import find_clips
from torchrl_vip.files import NewFolder, write_whole
from torchrl_vip.label.job import Labelled
from torchrl_vip.label.rows import Summary
from torchrl_vip.label.steps import Episodes, check_copy, step_rewards, step_vectors

VECTOR = "vip_vec"
REWARDS = ("rewards", "reward")
ACTIONS = ("actions", "action")
SCORES = ("ref_min_score", "ref_max_score", "num_episodes_average_score")
"""Entries of Minari's metadata that are of the old rewards."""
STATISTICS: dict[str, Callable[[np.ndarray], Any]] = {
    "rewards_sum": np.sum,
    "rewards_mean": np.mean,
    "rewards_std": np.std,
    "rewards_max": np.max,
    "rewards_min": np.min,
}
"""Attributes that Minari's collector gives an episode."""


def write_hdf5(
    source: Path,
    out: Path,
    labelled: Iterable[Labelled],
    *,
    embeddings: str | None = None,
    progress: bool = True,
) -> list[Summary]:
    """A copy of an HDF5 file, of a folder of such files or of a Minari dataset, with rewards.

    "rewards" are replaced, and the old ones kept beside as "rewards_original". With embeddings there is
    "vip_vec", a row a picture, beside the observations, and beside the next ones where the file has them. In
    a Minari dataset it is among the "infos": its observation space stays.

    Args:
        source: file or folder.
        out: the new file, or the new folder. A Minari dataset's is named as its datasets are, ``NAME-v0``;
            the path below MINARI_DATASETS_PATH, or else the name, becomes its id.
        labelled: every episode of one camera.
        embeddings: their dtype, ``"float16"`` or ``"float32"``; None: no embeddings.
        progress: show a bar.

    Returns:
        The summary of every episode; those with an error have NaN. An episode with another number of
        rewards or actions than its pictures allow gets an error here.

    Raises:
        FileExistsError: there is something at ``out``.
        OSError: no room.
        ValueError: the source cannot be read; ``out`` lies in it; a name that Minari does not take.
    """
    minari = minari_file(source) if source.is_dir() else None
    if not minari and source.is_dir() and any(source.rglob("main_data.hdf5")):
        raise ValueError(f"{source} holds Minari datasets: give one of them.")
    base = minari.parent if minari else source
    if minari and base.name == "data":
        source = base.parent
    dataset_id = minari_id(minari, out) if minari else ""
    episodes = Episodes(labelled, progress)
    dtype = embeddings if episodes.dim else None
    check_copy(source, out, _size_of_vectors(source, episodes.dim, dtype) if dtype else 0)
    if source.is_file():
        if out.exists():
            raise FileExistsError(f"{out} exists: give a file that does not.")

        def write(part: Path) -> None:
            shutil.copyfile(source, part)
            _write_files(lambda path: part, episodes, dtype)

        write_whole(out, write)
        return episodes.summaries
    with NewFolder(out) as new:
        shutil.copytree(source, new.part, dirs_exist_ok=True)
        copies = new.part / base.relative_to(source)
        _write_files(lambda path: copies / path.relative_to(base), episodes, dtype, bool(minari))
        if minari:
            _update_metadata(copies, dataset_id)
    return episodes.summaries


def _size_of_vectors(source: Path, dim: int, dtype: str) -> int:
    """Bytes of the embeddings before and after each step, of all cameras: rather too many."""
    frames = sum(c.span.count for c in find_clips(source) if isinstance(c.span, ArrayRows))
    return 2 * frames * dim * np.dtype(dtype).itemsize


def _write_files(
    copy_of: Callable[[Path], Path], episodes: Episodes, dtype: str | None, minari: bool = False
) -> None:
    for path, group in itertools.groupby(episodes, lambda one: one.clip.path):
        usable = (one for one in group if isinstance(one.clip.span, ArrayRows))
        first = next(usable, None)
        if first is None:  # a file that cannot be read
            continue
        with opened(copy_of(path), "r+") as file:
            copy = _Copy(file, episodes.dim, dtype, minari)
            for one in itertools.chain([first], usable):
                copy.write(one)


class _Copy:
    """A file whose rewards are replaced.

    Attributes:
        new: columns that are written: several episodes may lie in one.
    """

    def __init__(self, file: Any, dim: int, dtype: str | None, minari: bool):
        self.file, self.dim, self.dtype, self.minari = file, dim, dtype, minari
        self.new: set[str] = set()

    def write(self, one: Labelled) -> None:
        """Write an episode's rewards and embeddings."""
        span = one.clip.span
        assert isinstance(span, ArrayRows)
        name, camera = split_episode(self.file, span.array)
        group = self.file[name or "/"]
        total = self._steps(group, span)
        steps = total if name else min(span.steps, total - span.first)
        if one.rows is not None and steps not in (span.count, span.count - 1):
            one.summary.error = (
                f"{one.clip.path}: {name or 'the file'} has {steps} steps and {span.count} pictures"
            )
            one = one._replace(rows=None)
        rewards = step_rewards(one, steps)
        key = next((key for key in REWARDS if key in group), REWARDS[0])
        self._rewards(group, key, total)[span.first : span.first + steps] = rewards
        for statistic, of in STATISTICS.items():
            if statistic in group.attrs and steps:
                group.attrs[statistic] = float(of(rewards))
        if self.dtype and self.file.get(span.array) is not None:
            self._write_vectors(one, group, camera, span)

    def _steps(self, group: Any, span: ArrayRows) -> int:
        """Number of steps of a group: of its rewards, else of its actions, else of the pictures."""
        arrays = [group.get(key) for key in (*REWARDS, *ACTIONS)] + [self.file.get(span.array)]
        return next((len(array) for array in arrays if getattr(array, "shape", None)), 0)

    def _rewards(self, group: Any, key: str, steps: int) -> Any:
        """The new rewards, NaN at first; the old ones are moved beside."""
        if f"{group.name}/{key}" not in self.new:
            self.new.add(f"{group.name}/{key}")
            dtype, old = "float32", group.get(key)
            if old is not None:
                dtype = old.dtype if old.dtype.kind == "f" else dtype
                if f"{key}_original" in group:  # labelled before
                    del group[key]
                else:
                    group.move(key, f"{key}_original")
            self._create(group, key, (steps,), dtype)
        return group[key]

    def _write_vectors(self, one: Labelled, group: Any, camera: str, span: ArrayRows) -> None:
        rows = slice(span.first, span.first + span.steps)
        now, after = step_vectors(one, self.dim, str(self.dtype))
        folder = "infos" if self.minari else camera.rpartition("/")[0].partition("/")[0]
        self._vectors(group, folder, VECTOR, len(self.file[span.array]))[rows] = now
        if span.next_array and not self.minari:
            inside = span.next_array.removeprefix(group.name.strip("/")).strip("/")
            folder = inside.rpartition("/")[0].partition("/")[0]
            name = VECTOR if folder.startswith("next_") else f"next_{VECTOR}"
            self._vectors(group, folder, name, len(self.file[span.next_array]))[rows] = after

    def _vectors(self, group: Any, folder: str, key: str, rows: int) -> Any:
        group = group.require_group(folder) if folder else group
        if f"{group.name}/{key}" not in self.new:
            self.new.add(f"{group.name}/{key}")
            if key in group:  # labelled before
                del group[key]
            self._create(group, key, (rows, self.dim), self.dtype)
        return group[key]

    @staticmethod
    def _create(group: Any, key: str, shape: tuple[int, ...], dtype: Any) -> None:
        """NaN that take no room until they are written; more steps can be appended, as Minari does."""
        group.create_dataset(
            key, shape, dtype, chunks=True, maxshape=(None, *shape[1:]), fillvalue=np.nan
        )


def minari_id(file: Path, out: Path) -> str:
    """The id of the dataset that is written to ``out``: its path below the root of Minari's datasets.

    Args:
        file: the source's main_data.hdf5.

    Raises:
        ValueError: its name is none that Minari takes, or the source's metadata cannot be read.
    """
    if not re.fullmatch(r"[-\w]+-v\d+", out.name):
        raise ValueError(
            f"{out} is no name of a Minari dataset: wanted NAME-v0, or another version."
        )
    try:
        old = json.loads((file.parent / "metadata.json").read_text(encoding="utf-8"))["dataset_id"]
        depth = len(str(old).split("/"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file.parent}/metadata.json cannot be read: {error!r}") from error
    roots = [os.environ.get("MINARI_DATASETS_PATH")]
    if len(above := file.resolve().parent.parents) > depth:
        roots.append(str(above[depth]))  # of ROOT/namespace/name-v0/data
    for root in filter(None, roots):
        if out.resolve().is_relative_to(Path(root).resolve()):
            return out.resolve().relative_to(Path(root).resolve()).as_posix()
    return out.name


def _update_metadata(data: Path, dataset_id: str) -> None:
    """Make metadata.json say what the labelled dataset is."""
    path = data / "metadata.json"
    metadata = json.loads(path.read_text(encoding="utf-8"))
    said = "Rewards by torchrl_vip; rewards_original are the earlier ones."
    size = sum(file.stat().st_size for file in data.rglob("*") if file.is_file())
    metadata |= {
        "dataset_id": dataset_id,
        "description": f"{metadata.get('description') or ''} {said}".strip(),
        "dataset_size": round(size / 1e6, 1),
    }
    kept = {key: value for key, value in metadata.items() if key not in SCORES}
    path.write_text(json.dumps(kept), encoding="utf-8")
