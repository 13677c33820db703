"""Score an embedding on labelled clips, above all against the goal of ANOTHER demonstration.

On a clip's own last frame even raw pixels order time well, so that number alone says little.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from torchrl_vip.evaluation.metrics import (
    auc,
    bootstrap,
    bump_size,
    bumps,
    epic_distance,
    kendall,
    progress,
    r_squared,
    voc,
)


@dataclass
class LabelledClip:
    """Frames uint8 ``[T, 3, H, W]`` or ``[T, H, W, 3]`` of one attempt at a task.

    Clips of one group show the same task in the same scene, so that the last frame of one success
    is a goal for the others.

    Attributes:
        level: 0 failure, 1 partial success, 2 success (by default from ``success``).
        reward: float ``[T - 1]``, the task's own reward at frames 1 to T - 1, or None.
    """

    frames: Tensor
    group: str
    success: bool = True
    name: str = ""
    level: int = None  # type: ignore[assignment]  # None until __post_init__ has filled it
    reward: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.level is None:
            self.level = 2 if self.success else 0


@torch.no_grad()
def embed_clips(
    embed: Callable[[Tensor], Tensor], clips: Sequence[LabelledClip], chunk: int = 64
) -> list[np.ndarray]:
    """Embedding ``[T, D]`` of every frame of every clip."""
    return [
        torch.cat([embed(part).float().cpu() for part in clip.frames.split(chunk)]).numpy()
        for clip in clips
    ]


def _separation(score: dict[int, float], good: Sequence[int], bad: Sequence[int]) -> float:
    win, lose = ([score[i] for i in side if i in score] for side in (good, bad))
    return auc(win, lose) if win and lose else np.nan


def _mean(metric: Callable, items: Sequence) -> float:
    """Of what is not NaN; NaN where there is nothing."""
    values = [value for value in map(metric, items) if not np.isnan(value)]
    return float(np.mean(values)) if values else np.nan


def score_groups(
    z: Sequence[np.ndarray],
    clips: Sequence[LabelledClip],
    goals: Sequence[np.ndarray] | None = None,
) -> dict[str, dict]:
    """Metrics of each group, from the embeddings ``[T, D]`` of its clips.

    Args:
        goals: embedding ``[D]`` of each clip as a goal; its last frame's by default.

    Returns:
        group -> metric -> value, NaN where the group has no pair for it:

        - ``voc``, ``voc_pearson``, ``bumps``, ``bump_size``: successes against the goal of every
          OTHER success;
        - ``voc_own``, ``bumps_own``: against their own last frame, where even raw pixels do well;
        - controls: ``voc_reversed``, clips played backwards against another's first frame;
          ``voc_shuffled``, frames in random order (0 expected); ``voc_wrong_goal``, against a goal of
          another group;
        - ``auc``, ``auc_best``: success against failure by the final, and by the smallest, distance
          over the first one; ``kendall``: order of failure < partial < success by the final one;
        - ``r_squared``, ``epic``: of minus the distance with the task's own reward.

    Raises:
        ValueError: an embedding that is not finite.
    """
    goals = [e[-1] for e in z] if goals is None else goals
    for e, goal, clip in zip(z, goals, clips, strict=True):
        if not (np.isfinite(e).all() and np.isfinite(goal).all()):
            raise ValueError(f"the embedding of clip {clip.name or clip.group!r} is not finite")
    members = defaultdict(list)
    for i, clip in enumerate(clips):
        members[clip.group].append(i)
    names = list(members)

    def curve(i: int, goal: np.ndarray) -> np.ndarray:
        return np.linalg.norm(z[i] - goal, axis=-1)

    rng = np.random.default_rng(0)
    scores = {}
    for position, (group, indices) in enumerate(members.items()):
        good = [i for i in indices if clips[i].success]
        bad = [i for i in indices if not clips[i].success]
        elsewhere = [i for i in members[names[position - 1]] if clips[i].success]
        wrong = goals[elsewhere[0]] if elsewhere and len(names) > 1 else None

        own = [curve(i, z[i][-1]) for i in good]
        cross = {i: [curve(i, goals[j]) for j in good if j != i] for i in indices}
        cross = {i: curves for i, curves in cross.items() if curves}
        flat = [c for i in good if i in cross for c in cross[i]]
        backwards = [curve(i, z[j][0])[::-1] for i in good for j in good if i != j]
        astray = [] if wrong is None else [curve(i, wrong) for i in good]
        final = {i: -float(np.mean([progress(c) for c in curves])) for i, curves in cross.items()}
        best = {
            i: -float(np.mean([c.min() / max(c[0], 1e-12) for c in curves]))
            for i, curves in cross.items()
        }
        judged = [
            (-c[1:], clips[i].reward)
            for i in indices
            if clips[i].reward is not None
            for c in cross.get(i, [])
        ]

        scores[group] = {
            "voc": _mean(voc, flat),
            "voc_pearson": _mean(lambda c: voc(c, "pearson"), flat),
            "bumps": _mean(bumps, flat),
            "bump_size": _mean(bump_size, flat),
            "voc_own": _mean(voc, own),
            "bumps_own": _mean(bumps, own),
            "voc_reversed": _mean(voc, backwards),
            "voc_shuffled": _mean(lambda c: voc(rng.permutation(c)), flat),
            "voc_wrong_goal": _mean(voc, astray),
            "auc": _separation(final, good, bad),
            "auc_best": _separation(best, good, bad),
            "kendall": kendall(list(final.values()), [clips[i].level for i in final]),
            "r_squared": _mean(lambda pair: r_squared(*pair), judged),
            "epic": _mean(lambda pair: epic_distance(*pair), judged),
        }
    return scores


def summarise(scores: dict[str, dict]) -> dict[str, tuple[float, float, float, int]]:
    """metric -> mean over groups, its 95 % bootstrap interval, number of groups that have it."""
    metrics = next(iter(scores.values()))
    out = {}
    for metric in metrics:
        values = [s[metric] for s in scores.values() if not np.isnan(s[metric])]
        if values:
            out[metric] = (*bootstrap(values), len(values))
    return out
