"""Labels where the dataset's own tools read them: LeRobot's sidecar, and datasets with rewards."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from torchrl_vip.data.lerobot.reading import read_info
from torchrl_vip.label.arrays import writer_of
from torchrl_vip.label.goals import Goals
from torchrl_vip.label.job import Labeller, index_of
from torchrl_vip.label.rows import padded
from torchrl_vip.label.tables import COLUMNS, columns_of, embeddings_of
from torchrl_vip.weights import DEFAULT

REWARD, EMBEDDING = "next.reward", "observation.vip"
"""Features of a LeRobot dataset: float32 of shape (1,) and (D,)."""


class Written(NamedTuple):
    """Paths that were written; episode -> why its labels are NaN there."""

    paths: list[Path]
    errors: dict[str, str]


def is_lerobot(source: Path) -> bool:
    """Whether a folder is a LeRobot dataset."""
    return (source / "meta" / "info.json").is_file()


def check_outputs(
    labeller: Labeller, out: Path | None, in_place: bool, overwrite: bool = False
) -> None:
    """Refuse, before any work, what cannot be written.

    Raises:
        ValueError: this kind of dataset is not written anew, or not in place; or it has the columns already.
        FileExistsError: there is something at ``out``.
    """
    source = labeller.settings.source
    if in_place and not is_lerobot(source):
        raise ValueError(f"--in-place is for LeRobot datasets, and {source} is none: give --out.")
    if out and not is_lerobot(source) and writer_of(labeller.clips) is None:
        raise ValueError(
            f"--out writes a dataset of steps anew (LeRobot, HDF5, Minari, TorchRL), and {source} is none: "
            "the tables in --results are what there is of videos and frames."
        )
    if out and out.exists():
        raise FileExistsError(f"--out {out} exists already: give a path that does not.")
    if (out or in_place) and is_lerobot(source) and not overwrite:
        there = read_info(source)["features"].keys()
        if there := {REWARD, EMBEDDING} & there:
            names = ", ".join(sorted(there))
            raise ValueError(f"{source} has {names} already: --overwrite replaces it.")


def write_dataset(
    labeller: Labeller,
    goals: Goals,
    *,
    out: Path | None = None,
    in_place: bool = False,
    overwrite: bool = False,
    embeddings: str | None = None,
) -> Written:
    """Write what the dataset's own tools read.

    Args:
        out: a new dataset.
        in_place: put it in the old one's place.
        overwrite: replace columns of these names that are there already; of LeRobot datasets.
        embeddings: their dtype in ``out``. None: float32, and none in HDF5 files.

    Returns:
        What was written; nothing for videos and frames, whose tables are all there is. And, by episode, what
        went wrong.

    Raises:
        OSError: no room, or no right to write there.
        ValueError: the columns are there already.
    """
    if is_lerobot(labeller.settings.source):
        return Written(_write_lerobot(labeller, goals, out, in_place, overwrite), {})
    writer = writer_of(labeller.clips)
    if writer is None or out is None:
        return Written([], {})
    options = {"embeddings": embeddings} if embeddings else {}
    summaries = writer(labeller.settings.source, out, labeller.labelled(goals), **options)
    return Written([out], {one.episode: one.error for one in summaries if one.error})


def _write_lerobot(
    labeller: Labeller, goals: Goals, out: Path | None, in_place: bool, overwrite: bool
) -> list[Path]:
    from torchrl_vip.data.lerobot.columns import in_place as replace
    from torchrl_vip.data.lerobot.columns import with_columns

    episodes, root = LeRobotEpisodes(labeller, goals), labeller.settings.source
    if out is not None:
        with_columns(root, out, episodes.features, overwrite=overwrite)
        return [out, episodes.write_progress(out)]
    if in_place:
        replace(root, episodes.features, overwrite=overwrite)
        return [root, episodes.write_progress(root)]
    return [episodes.write_progress(root)]


class LeRobotEpisodes:
    """The labels of a LeRobot dataset's episodes, a row for each row of its data."""

    def __init__(self, labeller: Labeller, goals: Goals):
        from torchrl_vip.data.lerobot.columns import episode_rows

        self.labeller, self.goals = labeller, goals
        self.numbers = {index_of(clip, n): n for n, clip in enumerate(labeller.clips)}
        self.rows = {rows.episode: rows for rows in episode_rows(labeller.settings.source)}

    def _columns(self, episode: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Numbers and embeddings of an episode, as many rows as the data has, NaN where there are fewer."""
        count, dim = len(self.rows[episode].index), self.labeller.vip.dim
        number = self.numbers.get(episode)
        if number is None:  # its row in meta/ cannot be used
            empty = {name: np.full(count, np.nan, np.float32) for name in COLUMNS}
            return empty, np.full((count, dim), np.nan, np.float32)
        labelled = self.labeller.label(number, self.goals)
        numbers = {k: padded(v[:count], count) for k, v in columns_of(labelled).items()}
        return numbers, padded(embeddings_of(labelled, dim, "float32")[:count], count)

    def features(self, episode: int) -> dict[str, np.ndarray]:
        """Reward and embedding of an episode's frames, float32 ``[T]`` and ``[T, D]``."""
        numbers, z = self._columns(episode)
        return {REWARD: numbers["reward"], EMBEDDING: z}

    def write_progress(self, root: Path) -> Path:
        """Write LeRobot's sidecar into ``root``, with the other numbers beside the progress."""
        from torchrl_vip.data.lerobot.progress import write_progress

        each = [self._columns(episode)[0] for episode in self.rows]
        rows = list(self.rows.values())
        columns = {
            "index": np.concatenate([one.index for one in rows]),
            "episode_index": np.concatenate([np.full_like(one.index, one.episode) for one in rows]),
            "frame_index": np.concatenate([one.frame_index for one in rows]),
            "progress_sparse": np.concatenate([one["progress_clipped"] for one in each]),
        }
        for name in ("progress", "distance", "reward"):
            columns[name] = np.concatenate([one[name] for one in each])
        return write_progress(root, columns, encoder=str(self.labeller.settings.encoder or DEFAULT))
