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
    rng = np.random.default_rng(0)
    scores = {}
    for position, name in enumerate(names):
        elsewhere = [i for i in members[names[position - 1]] if clips[i].success]
        wrong = goals[elsewhere[0]] if elsewhere and len(names) > 1 else None
        scores[name] = _score_group(z, clips, goals, members[name], wrong, rng)
    return scores


def _score_group(
    z: Sequence[np.ndarray],
    clips: Sequence[LabelledClip],
    goals: Sequence[np.ndarray],
    members: Sequence[int],
    wrong_goal: np.ndarray | None,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Metrics of the clips whose indices are ``members``; see :func:`score_groups`."""
    successes = [i for i in members if clips[i].success]
    to_others = {}  # a lone success has nothing to be compared with
    for i in members:
        if curves := [_curve(z[i], goals[j]) for j in successes if j != i]:
            to_others[i] = curves
    cross = [curve for i in successes for curve in to_others.get(i, ())]
    own = [_curve(z[i], z[i][-1]) for i in successes]
    backwards = [_curve(z[i], z[j][0])[::-1] for i in successes for j in successes if i != j]
    astray = [] if wrong_goal is None else [_curve(z[i], wrong_goal) for i in successes]
    return {
        "voc": _mean(voc, cross),
        "voc_pearson": _mean(lambda c: voc(c, "pearson"), cross),
        "bumps": _mean(bumps, cross),
        "bump_size": _mean(bump_size, cross),
        "voc_own": _mean(voc, own),
        "bumps_own": _mean(bumps, own),
        "voc_reversed": _mean(voc, backwards),
        "voc_shuffled": _mean(lambda c: voc(rng.permutation(c)), cross),
        "voc_wrong_goal": _mean(voc, astray),
        **_outcome(to_others, clips),
        **_agreement(to_others, clips),
    }


def _curve(z: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Distances ``[T]`` of a clip ``[T, D]`` to a goal ``[D]``."""
    return np.linalg.norm(z - goal, axis=-1)


def _outcome(
    curves: dict[int, list[np.ndarray]], clips: Sequence[LabelledClip]
) -> dict[str, float]:
    """How well the distance tells success from failure, from each clip's curves to others' goals."""
    final = {i: -float(np.mean([progress(c) for c in of])) for i, of in curves.items()}
    best = {
        i: -float(np.mean([c.min() / max(c[0], 1e-12) for c in of])) for i, of in curves.items()
    }
    return {
        "auc": _separation(final, clips),
        "auc_best": _separation(best, clips),
        "kendall": kendall(list(final.values()), [clips[i].level for i in final]),
    }


def _agreement(
    curves: dict[int, list[np.ndarray]], clips: Sequence[LabelledClip]
) -> dict[str, float]:
    """Of minus the distance with the task's own reward, where a clip has one."""
    pairs = [
        (-curve[1:], clips[i].reward)
        for i, of in curves.items()
        if clips[i].reward is not None
        for curve in of
    ]
    return {
        "r_squared": _mean(lambda pair: r_squared(*pair), pairs),
        "epic": _mean(lambda pair: epic_distance(*pair), pairs),
    }


def _separation(score: dict[int, float], clips: Sequence[LabelledClip]) -> float:
    win = [value for i, value in score.items() if clips[i].success]
    lose = [value for i, value in score.items() if not clips[i].success]
    return auc(win, lose) if win and lose else np.nan


def _mean(metric: Callable, items: Sequence) -> float:
    """Of what is not NaN; NaN where there is nothing."""
    values = [value for value in map(metric, items) if not np.isnan(value)]
    return float(np.mean(values)) if values else np.nan


def summarise(scores: dict[str, dict]) -> dict[str, tuple[float, float, float, int]]:
    """metric -> mean over groups, its 95 % bootstrap interval, number of groups that have it."""
    metrics = next(iter(scores.values()))
    out = {}
    for metric in metrics:
        values = [s[metric] for s in scores.values() if not np.isnan(s[metric])]
        if values:
            out[metric] = (*bootstrap(values), len(values))
    return out
