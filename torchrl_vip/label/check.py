"""The distance against people's labels: does it order failure, partial success and success?"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_vip.data.clip import Clip, whole_number
from torchrl_vip.evaluation.metrics import auc, kendall
from torchrl_vip.files import write_whole
from torchrl_vip.label.job import index_of
from torchrl_vip.label.report import filmstrip
from torchrl_vip.label.rows import Summary

LEVELS = ("failure", "partial", "success")
DOUBTFUL = 10


def read_levels(path: Path, clips: Sequence[Clip]) -> dict[int, int]:
    """Number of an episode -> 0 failure, 1 partial, 2 success.

    The file has the columns "episode", a name as in episodes.csv or an index, and "level".

    Raises:
        FileNotFoundError: no such file.
        ValueError: another table, an unknown episode, one twice, or another level; the line is named.
    """
    by_name = {clip.name: n for n, clip in enumerate(clips)}
    by_index = {str(index_of(clip, n)): n for n, clip in enumerate(clips)}
    known = by_index | by_name
    levels: dict[int, int] = {}
    with open(path, newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file)
        if not {"episode", "level"} <= set(table.fieldnames or ()):
            raise ValueError(
                f"{path} has the columns {table.fieldnames}; wanted episode and level."
            )
        for line, row in enumerate(table, 2):
            number = known.get((row["episode"] or "").strip())
            if number is None:
                raise ValueError(
                    f"{path}, line {line}: no episode {row['episode']!r}; they are named as in "
                    f"episodes.csv, such as {next(iter(by_name), None)!r}."
                )
            if number in levels:
                raise ValueError(f"{path}, line {line}: episode {row['episode']!r} a second time.")
            try:
                levels[number] = whole_number(row["level"], "level")
            except ValueError as error:
                raise ValueError(f"{path}, line {line}: {error}") from error
            if levels[number] not in range(len(LEVELS)):
                raise ValueError(
                    f"{path}, line {line}: level={row['level']}; wanted 0 (failure), 1 (partial) or 2 "
                    "(success)."
                )
    return levels


def agreement(summaries: Sequence[Summary], levels: dict[int, int]) -> dict[str, Any]:
    """How well ``end_progress`` orders the levels.

    Returns:
        ``kendall``: tau-a, the mean over tasks with two levels, in [-1, 1]; ``auc``: of success over
        failure, the same way, in [0, 1]; ``tasks``: how many these are; ``episodes``; ``levels``: their
        counts; ``doubtful``: numbers of episodes that stand on the wrong side of others, the worst first.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for number in levels:
        if not math.isnan(summaries[number].end_progress):
            groups[summaries[number].task].append(number)
    taus, aucs = [], []
    wrong: dict[int, float] = {}
    for members in groups.values():
        score = np.array([summaries[n].end_progress for n in members])
        level = np.array([levels[n] for n in members])
        taus.append(kendall(score.tolist(), level.tolist()))
        good, bad = score[level == 2], score[level == 0]
        aucs.append(auc(good, bad) if len(good) and len(bad) else math.nan)
        higher = np.sign(level[:, None] - level)
        discordant = (higher * np.sign(score[:, None] - score) < 0).sum(1)
        compared = np.maximum((higher != 0).sum(1), 1)
        wrong |= dict(zip(members, discordant / compared, strict=True))
    doubtful = sorted((n for n in wrong if wrong[n] > 0), key=lambda n: -wrong[n])
    return {
        "kendall": _mean(taus),
        "auc": _mean(aucs),
        "tasks": sum(not math.isnan(tau) for tau in taus),
        "episodes": sum(map(len, groups.values())),
        "levels": {name: list(levels.values()).count(i) for i, name in enumerate(LEVELS)},
        "doubtful": doubtful[:DOUBTFUL],
        "wrong": {n: float(wrong[n]) for n in doubtful[:DOUBTFUL]},
    }


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def draw_doubtful(
    path: Path,
    clips: Sequence[Clip],
    summaries: Sequence[Summary],
    levels: dict[int, int],
    found: dict[str, Any],
) -> None:
    """A contact sheet of the most doubtful episodes: is the label wrong, or the reward?"""
    from matplotlib.figure import Figure

    numbers = found["doubtful"]
    figure = Figure(figsize=(8, 1.5 * max(len(numbers), 1)), dpi=100, layout="constrained")
    for position, n in enumerate(numbers):
        axes = figure.add_subplot(len(numbers), 1, position + 1)
        axes.imshow(filmstrip(clips[n]))
        axes.axis("off")
        axes.set_title(
            f"{summaries[n].episode}: labelled {LEVELS[levels[n]]}, end progress "
            f"{summaries[n].end_progress:.2f}, against {found['wrong'][n]:.0%} of the others",
            fontsize=7,
        )
    write_whole(path, lambda part: figure.savefig(part, format="png"))
