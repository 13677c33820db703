"""Which goal each episode is measured against."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from torchrl_vip.data.clip import IMAGE_SUFFIXES, Clip
from torchrl_vip.functional import goal_distance

OTHERS = 64
"""Ends of other episodes that one is compared with: more change nothing but the time."""


@dataclass(frozen=True)
class Goals:
    """Goals by task.

    Attributes:
        kind: ``"last"``, ``"mean-last"`` or ``"images"``.
        shared: task -> embedding ``[D]``: the images', or the mean of the last frames.
        ends: task -> embeddings of last frames ``[N, D]``, with :attr:`owners`, their clips' numbers.
    """

    kind: str
    shared: dict[str, Tensor]
    ends: dict[str, Tensor]
    owners: dict[str, list[int]]

    def of(self, task: str, z: Tensor) -> Tensor:
        """The goal ``[D]`` of an episode of this task with embeddings ``[T, D]``."""
        return z[-1] if self.kind == "last" else self.shared[task]

    def to_the_end(self, task: str, number: int, z: Tensor) -> Tensor | None:
        """Distances ``[T]`` of an episode's frames to where it should have come: to the goal images; or the
        median to the last frames of other episodes of its task, None without any."""
        if self.kind == "images":
            return goal_distance(z, self.shared[task])
        others = [i for i, owner in enumerate(self.owners.get(task, [])) if owner != number]
        if not others:
            return None
        chosen = self.ends[task][others[:: -(-len(others) // OTHERS)]]
        return goal_distance(z[:, None], chosen).median(-1).values


def task_of(clip: Clip) -> str:
    """What episodes have in common that share goals: :attr:`Clip.scene`, or the folder they lie in."""
    if clip.scene:
        return str(clip.labels.get("group") or clip.labels.get("task"))
    return str(Path(clip.name).parent)


def gather_ends(clips: Sequence[Clip], read_end: Callable[[Clip], Tensor | None]) -> Goals:
    """Last frames of the successful episodes of each task; where a task has none, of all.

    Args:
        read_end: embedding ``[D]`` of a clip's last frame; None of one that could not be read.
    """
    good: dict[str, list[tuple[int, Tensor]]] = defaultdict(list)
    rest: dict[str, list[tuple[int, Tensor]]] = defaultdict(list)
    for number, clip in enumerate(clips):
        if (end := read_end(clip)) is not None:
            (good if clip.success else rest)[task_of(clip)].append((number, end))
    kept = {task: good[task] or rest[task] for task in {**good, **rest}}
    ends = {task: torch.stack([end for _, end in pairs]) for task, pairs in kept.items()}
    owners = {task: [number for number, _ in pairs] for task, pairs in kept.items()}
    return Goals("mean-last", {task: z.mean(0) for task, z in ends.items()}, ends, owners)


def goal_images(source: Path, tasks: Sequence[str]) -> dict[str, list[Path]]:
    """The goal images of each task: an image is everyone's; a folder has images, or folders of images, named
    as the tasks are, whatever their case and punctuation; images that are all named otherwise are everyone's.

    Raises:
        FileNotFoundError: no such image or folder.
        ValueError: a folder without images, or with images of some tasks and not of others.
    """
    if not source.exists():
        raise FileNotFoundError(
            f"--goal {source} does not exist; wanted last, mean-last, an image, or a folder of images "
            "named as the tasks are."
        )
    if source.is_file():
        return {task: [source] for task in tasks}
    images: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(p for p in source.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES):
        inside = path.relative_to(source).parts
        images[_plain(inside[0] if len(inside) > 1 else path.stem)].append(path)
    if not images:
        raise ValueError(f"--goal {source}: there is no .png or .jpg in it.")
    named = {task: images[_plain(task)] for task in tasks if _plain(task) in images}
    if not named:
        return {task: [path for paths in images.values() for path in paths] for task in tasks}
    if missing := [task for task in tasks if task not in named]:
        raise ValueError(
            f"--goal {source} has images of {len(named)} of {len(tasks)} tasks; none is named "
            f"{missing[0]!r}, for example {_plain(missing[0])}.png."
        )
    return named


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "_", name.lower()).strip("_")
