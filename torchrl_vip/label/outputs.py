"""Labels where the dataset's own tools read them: LeRobot's sidecar, and datasets with rewards."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from torchrl_vip.label.goals import Goals
from torchrl_vip.label.job import Labeller, index_of
from torchrl_vip.label.rows import padded
from torchrl_vip.label.tables import COLUMNS, columns_of, embeddings_of
from torchrl_vip.weights import DEFAULT

REWARD, EMBEDDING = "next.reward", "observation.vip"
"""Features of a LeRobot dataset: float32 of shape (1,) and (D,)."""


def is_lerobot(source: Path) -> bool:
    """Whether a folder is a LeRobot dataset."""
    return (source / "meta" / "info.json").is_file()


def check_outputs(source: Path, out: Path | None, in_place: bool) -> None:
    """Refuse, before any work, what cannot be written.

    Raises:
        ValueError: this kind of dataset is not written anew.
        FileExistsError: there is something at ``out``.
    """
    wanted = "--out" if out else "--in-place" if in_place else ""
    if wanted and source.exists() and not is_lerobot(source):
        raise ValueError(
            f"{wanted} writes a LeRobot dataset anew, and {source} is none: the tables in --results are "
            "what there is of videos and frames."
        )
    if out and out.exists():
        raise FileExistsError(f"--out {out} exists already: give a folder that does not.")


def write_dataset(
    labeller: Labeller,
    goals: Goals,
    *,
    out: Path | None = None,
    in_place: bool = False,
    overwrite: bool = False,
) -> list[Path]:
    """Write what the dataset's own tools read.

    Args:
        out: a new dataset.
        in_place: put it in the old one's place.
        overwrite: replace columns of these names that are there already.

    Returns:
        What was written; nothing for videos and frames, whose tables are all there is.

    Raises:
        OSError: no room, or no right to write there.
        ValueError: the columns are there already.
    """
    source = labeller.settings.source
    if not is_lerobot(source):
        return []
    from torchrl_vip.data.lerobot_columns import in_place as replace
    from torchrl_vip.data.lerobot_columns import with_columns

    episodes = LeRobotEpisodes(labeller, goals)
    if out is not None:
        root = with_columns(source, out, episodes.features, overwrite=overwrite)
    elif in_place:
        root = replace(source, episodes.features, overwrite=overwrite)
    else:
        root = source
    sidecar = episodes.write_progress(root)
    return [sidecar] if root == source and not in_place else [root, sidecar]


class LeRobotEpisodes:
    """The labels of a LeRobot dataset's episodes, a row for each row of its data."""

    def __init__(self, labeller: Labeller, goals: Goals):
        from torchrl_vip.data.lerobot_columns import episode_rows

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
        from torchrl_vip.data.lerobot_progress import write_progress

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
