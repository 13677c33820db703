"""Metrics of a goal-distance curve, in NumPy and SciPy. Distances are ``[T]``, t = 0 first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import signal, stats

from torchrl_vip.functional import check_smoothing


def smoothed(distance: np.ndarray, smoothing: float) -> np.ndarray:
    """The curve that ``VIPRewardTransform(smoothing=)`` is paid by, ``[T]``: a causal average.

    ``a_0 = d_0`` and ``a_t = smoothing * a_{t-1} + (1 - smoothing) * d_t``; other metrics take it as they
    take the distance.

    Args:
        smoothing: share of the past, in [0, 1); 0 changes nothing.

    Raises:
        ValueError: ``smoothing`` is out of range.
    """
    check_smoothing(smoothing)
    distance = np.asarray(distance, dtype=np.float64)
    new = 1 - smoothing
    return signal.lfilter([new], [1, -smoothing], distance, zi=smoothing * distance[:1])[0]


def voc(distance: np.ndarray, kind: str = "spearman") -> float:
    """Value-order correlation: of the time index with the value, minus the distance; in [-1, 1].

    ``"spearman"`` is GVL's definition (arXiv 2411.04549), ``"pearson"`` Robometer's. A constant
    curve orders nothing and counts 0.
    """
    distance = np.asarray(distance, dtype=np.float64)
    if len(distance) < 2 or np.ptp(distance) == 0:
        return 0.0
    correlation = {"spearman": stats.spearmanr, "pearson": stats.pearsonr}[kind]
    return float(correlation(np.arange(len(distance)), -distance).statistic)


def bumps(distance: np.ndarray) -> float:
    """Share of steps whose distance to the goal grows (VIP paper, Table 5); in [0, 1]."""
    return float(np.mean(np.diff(distance) > 0))


def bump_size(distance: np.ndarray) -> float:
    """Sum of all growth, relative to the first distance; NaN for a curve that begins at its goal."""
    if distance[0] == 0:
        return np.nan
    return float(np.clip(np.diff(distance), 0, None).sum() / distance[0])


def progress(distance: np.ndarray) -> float:
    """Final distance relative to the first one: 0 at the goal, 1 where nothing was gained."""
    return float(distance[-1] / max(distance[0], 1e-12))


def auc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """ROC-AUC: how often a positive scores above a negative; ties count half."""
    p, n = np.asarray(positive)[:, None], np.asarray(negative)[None]
    return float(np.mean((p > n) + 0.5 * (p == n)))


def kendall(score: Sequence[float], level: Sequence[int]) -> float:
    """How well scores order levels (failure < partial < success), in [-1, 1].

    Kendall's tau-a over the pairs of different levels: (concordant - discordant) / pairs. NaN where
    there is one level alone.
    """
    score, level = np.asarray(score, dtype=np.float64), np.asarray(level)
    higher = level[:, None] > level
    return float(np.sign(score[:, None] - score)[higher].mean()) if higher.any() else np.nan


def decoy_share(idle: np.ndarray, start: float, end: float) -> float:
    """Share of a demonstration's way to the goal that a robot makes which changes nothing; in [0, 1].

    Args:
        idle: distances ``[T]`` to the goal while the robot moves without effect.
        start, end: distances of a demonstration's first and last frame to the same goal.

    Returns:
        ``(start - min(idle)) / (start - end)``, of which 0 is best; 1 also where the demonstration
        comes no nearer itself.
    """
    way = start - end
    return float(np.clip((start - np.min(idle)) / way, 0, 1)) if way > 0 else 1.0


def r_squared(value: np.ndarray, reward: np.ndarray) -> float:
    """Share of the reward's variance that a line in the value explains, in [0, 1]; 0 if constant."""
    if np.ptp(value) == 0 or np.ptp(reward) == 0:
        return 0.0
    return float(np.corrcoef(value, reward)[0, 1] ** 2)


def epic_distance(value: np.ndarray, reward: np.ndarray) -> float:
    """EPIC distance (arXiv 2006.13900) of two rewards of the next state alone; in [0, 1].

    Of such a reward R(s') the canonical form is R(s') minus a constant, so the distance is Pearson's,
    sqrt((1 - correlation) / 2). It is 0 for equal rewards up to scale and shift, .71 for unrelated
    ones. A difference of values would be pure shaping, which EPIC calls equal to no reward at all.
    """
    if np.ptp(value) == 0 or np.ptp(reward) == 0:
        return float(np.sqrt(0.5))
    return float(np.sqrt(max(1 - np.corrcoef(value, reward)[0, 1], 0) / 2))


def bootstrap(
    values: Sequence[float], *, n: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean and its 95 % percentile-bootstrap interval over independent units (tasks, groups, seeds)."""
    values = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(len(values), size=(n, len(values)))
    low, high = np.quantile(values[draws].mean(1), [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def effective_rank(z: np.ndarray) -> float:
    """How many directions embeddings ``[N, D]`` use (Roy & Vetterli, 2007); in [1, min(N, D)].

    The exponential of the entropy of their normalised singular values, about their mean.
    """
    values = np.linalg.svd(z - z.mean(0), compute_uv=False)
    if values.sum() == 0:
        return 1.0
    share = values / values.sum()
    return float(np.exp(-np.sum(share * np.log(share + 1e-12))))
