"""Labels in the dataset's own format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torchrl_vip.label.goals import Goals
from torchrl_vip.label.job import Labeller
from torchrl_vip.label.rows import Summary


def is_lerobot(source: Path) -> bool:
    """Whether a folder is a LeRobot dataset."""
    return (source / "meta" / "info.json").is_file()


def check_outputs(source: Path, out: Path | None, in_place: bool) -> None:
    """Raise ValueError for outputs that this kind of dataset does not have, before any work."""
    wanted = "--out" if out else "--in-place" if in_place else ""
    if wanted and not is_lerobot(source):
        raise ValueError(
            f"{wanted} writes a LeRobot dataset anew, and {source} is none: the tables in --results are "
            "what there is of videos and frames."
        )
    if out and out.exists():
        raise ValueError(f"--out {out} exists already: give a folder that does not.")


def write_dataset(
    labeller: Labeller,
    goals: Goals,
    summaries: Sequence[Summary],
    out: Path | None = None,
    in_place: bool = False,
) -> list[Path]:
    """Write what the dataset's own tools read; returns what was written."""
    return []
