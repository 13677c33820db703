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
    decoy_share,
    epic_distance,
    kendall,
    progress,
    r_squared,
    smoothed,
    voc,
)

WRONG_GOALS = 8
"""Goals of other groups that a clip is judged against, at most."""


@dataclass
class LabelledClip:
    """Frames uint8 ``[T, 3, H, W]`` or ``[T, H, W, 3]`` of one attempt at a task.

    Clips of one group show the same task in the same scene, so that the last frame of one success
    is a goal for the others.

    Attributes:
        level: 0 failure, 1 partial success, 2 success (by default from ``success``).
        reward: float ``[T - 1]``, the task's own reward at frames 1 to T - 1, or None.
        idle_of: "start" or "goal" where the clip shows the robot moving without effect, with things as
            the task finds or leaves them. It is no attempt then, of its group or with group "" of every
            group.
        scored: False for a clip whose end is a goal for others and that is not judged itself.
    """

    frames: Tensor
    group: str
    success: bool = True
    name: str = ""
    level: int = None  # type: ignore[assignment]  # None until __post_init__ has filled it
    reward: np.ndarray | None = None
    idle_of: str | None = None
    scored: bool = True

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
    *,
    smoothing: float = 0.0,
) -> dict[str, dict]:
    """Metrics of each group, from the embeddings ``[T, D]`` of its clips.

    Args:
        goals: embedding ``[D]`` of each clip as a goal; its last frame's by default.
        smoothing: of every distance curve, see :func:`~torchrl_vip.evaluation.metrics.smoothed`.

    Returns:
        group -> metric -> value, NaN where the group has no pair for it:

        - ``kendall``, ``auc``, ``auc_best``: order of failure < partial < success by the final distance
          over the first one; success against failure by that, and by the smallest over the first;
        - ``voc_specific``: ``voc`` minus ``voc_wrong_goal``, what the goal adds to the order;
          ``right_above_wrong``: how often a success is ordered better by a goal of its group than by one
          of another group;
        - ``decoy_share``: the largest of :func:`~torchrl_vip.evaluation.metrics.decoy_share` over an
          idle clip's frames, mean over clips and goals;
        - ``voc``, ``voc_pearson``, ``bumps``, ``bump_size``: successes against the goal of every
          OTHER success;
        - ``voc_own``, ``bumps_own``: against their own last frame, where even raw pixels do well;
        - controls: ``voc_reversed``, clips played backwards against another's first frame;
          ``voc_shuffled``, frames in random order (0 expected); ``voc_wrong_goal``, against goals of
          other groups;
        - ``r_squared``, ``epic``: of minus the distance with the task's own reward.

    Raises:
        ValueError: an embedding that is not finite; smoothing out of range.
    """
    goals = [e[-1] for e in z] if goals is None else goals
    for e, goal, clip in zip(z, goals, clips, strict=True):
        if not (np.isfinite(e).all() and np.isfinite(goal).all()):
            raise ValueError(f"the embedding of clip {clip.name or clip.group!r} is not finite")
    members, idle = defaultdict(list), defaultdict(list)
    for i, clip in enumerate(clips):
        if clip.idle_of is None:
            members[clip.group].append(i)
        elif clip.idle_of == "start":
            idle[clip.group].append(z[i])
    ends = {
        name: goals[good[0]]
        for name, of in members.items()
        if (good := [i for i in of if clips[i].success])
    }
    rng = np.random.default_rng(0)
    scores = {}
    for name, of in members.items():
        others = [end for other, end in ends.items() if other != name]
        chosen = np.linspace(0, len(others) - 1, min(WRONG_GOALS, len(others))).round().astype(int)
        wrong, unlabelled = [others[n] for n in chosen], idle[""] if name else []
        decoys = idle[name] + unlabelled
        scores[name] = _score_group(z, clips, goals, of, wrong, decoys, smoothing, rng)
    return scores


def _score_group(
    z: Sequence[np.ndarray],
    clips: Sequence[LabelledClip],
    goals: Sequence[np.ndarray],
    members: Sequence[int],
    wrong_goals: Sequence[np.ndarray],
    idle: Sequence[np.ndarray],
    smoothing: float,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Metrics of the clips whose indices are ``members``; see :func:`score_groups`."""
    good = [i for i in members if clips[i].success]
    successes = [i for i in good if clips[i].scored]
    to_others = {}  # a lone success has nothing to be compared with
    for i in members:
        curves = [_curve(z[i], goals[j], smoothing) for j in good if j != i]
        if curves and clips[i].scored:
            to_others[i] = curves
    cross = [curve for i in successes for curve in to_others.get(i, ())]
    own = [_curve(z[i], z[i][-1], smoothing) for i in successes]
    backwards = [_curve(z[i][::-1], z[j][0], smoothing) for i in successes for j in good if i != j]
    astray = {i: [_curve(z[i], goal, smoothing) for goal in wrong_goals] for i in successes}
    order, order_wrong = _mean(voc, cross), _mean(voc, [c for of in astray.values() for c in of])
    specific = [
        auc([voc(c) for c in to_others[i]], [voc(c) for c in astray[i]])
        for i in successes
        if i in to_others and astray[i]
    ]
    return {
        **_outcome(to_others, clips),
        "voc_specific": order - order_wrong,
        "right_above_wrong": float(np.mean(specific)) if specific else np.nan,
        "decoy_share": _decoyed(z, goals, successes, good, idle, smoothing),
        "voc": order,
        "voc_pearson": _mean(lambda c: voc(c, "pearson"), cross),
        "bumps": _mean(bumps, cross),
        "bump_size": _mean(bump_size, cross),
        "voc_own": _mean(voc, own),
        "bumps_own": _mean(bumps, own),
        "voc_reversed": _mean(voc, backwards),
        "voc_shuffled": _mean(lambda c: voc(rng.permutation(c)), cross),
        "voc_wrong_goal": order_wrong,
        **_agreement(to_others, clips),
    }


def _decoyed(
    z: Sequence[np.ndarray],
    goals: Sequence[np.ndarray],
    successes: Sequence[int],
    good: Sequence[int],
    idle: Sequence[np.ndarray],
    smoothing: float,
) -> float:
    """Mean decoy share over idle clips ``[T, D]`` and goals: those of other successes, a lone one's own."""
    shares = []
    for i in successes:
        for j in [j for j in good if j != i] or [i]:
            start, end = _curve(z[i], goals[j], smoothing)[[0, -1]]
            shares += [decoy_share(_curve(e, goals[j], smoothing), start, end) for e in idle]
    return float(np.mean(shares)) if shares else np.nan


def _curve(z: np.ndarray, goal: np.ndarray, smoothing: float) -> np.ndarray:
    """Distances ``[T]`` of a clip ``[T, D]`` to a goal ``[D]``, or their causal average."""
    distance = np.linalg.norm(z - goal, axis=-1)
    return smoothed(distance, smoothing) if smoothing else distance


def _outcome(
    curves: dict[int, list[np.ndarray]], clips: Sequence[LabelledClip]
) -> dict[str, float]:
    """How well the distance tells success from failure, from each clip's curves to others' goals."""
    final = {i: -float(np.mean([progress(c) for c in of])) for i, of in curves.items()}
    best = {
        i: -float(np.mean([c.min() / max(c[0], 1e-12) for c in of])) for i, of in curves.items()
    }
    return {
        "kendall": kendall(list(final.values()), [clips[i].level for i in final]),
        "auc": _separation(final, clips),
        "auc_best": _separation(best, clips),
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
