"""What a checkpoint's config.json says of its reward: scale, success threshold, precision."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from torchrl_vip.encoders import FrozenEncoder, VIPEncoder
from torchrl_vip.evaluation.clips import LabelledClip, embed_clips


def typical_distance(z: Sequence[np.ndarray], clips: Sequence[LabelledClip]) -> float:
    """Median distance from the first frame of a success to its last, embedding units."""
    return float(
        np.median(
            [np.linalg.norm(e[0] - e[-1]) for e, c in zip(z, clips, strict=True) if c.success]
        )
    )


def typical_approach(z: Sequence[np.ndarray], clips: Sequence[LabelledClip]) -> float | None:
    """How much nearer a success comes to the end of ANOTHER success of its group, embedding units.

    ||z_i[0] - z_j[-1]|| - ||z_i[-1] - z_j[-1]||: the sum of a difference reward over clip i, with the
    last frame of clip j as goal.

    Returns:
        The median over ordered pairs of successes of one group; None where no group holds two.
    """

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.linalg.norm(a - b))

    approaches = [
        distance(z[i][0], z[j][-1]) - distance(z[i][-1], z[j][-1])
        for j, goal in enumerate(clips)
        for i, clip in enumerate(clips)
        if i != j and goal.success and clip.success and clip.group == goal.group
    ]
    return float(np.median(approaches)) if approaches else None


def success_threshold(
    z: Sequence[np.ndarray], clips: Sequence[LabelledClip]
) -> tuple[float, float]:
    """Distance below which a final frame counts as success, from groups of successes and failures.

    Final frames are compared with the last frame of every other success of their group; the
    threshold has the best balanced accuracy.

    Returns:
        The threshold, in embedding units, and that balanced accuracy (.5 is chance).

    Raises:
        ValueError: no group with two successes and a failure.
    """
    good: list[float] = []
    bad: list[float] = []
    for j, goal in enumerate(clips):
        for i, clip in enumerate(clips):
            if goal.success and i != j and clip.group == goal.group:
                (good if clip.success else bad).append(float(np.linalg.norm(z[i][-1] - z[j][-1])))
    if not good or not bad:
        raise ValueError("calibration needs a group with two successes and a failure.")
    successes, failures = np.sort(good), np.sort(bad)
    candidates = np.concatenate([successes, failures])
    kept = np.searchsorted(successes, candidates, side="right") / len(successes)
    refused = 1 - np.searchsorted(failures, candidates, side="right") / len(failures)
    accuracy = (kept + refused) / 2
    best = int(accuracy.argmax())
    return float(candidates[best]), float(accuracy[best])


def reward_correlation(
    encoder: VIPEncoder, clips: Sequence[LabelledClip], dtype: torch.dtype
) -> float:
    """Pearson correlation of the per-step reward in ``dtype`` with float32's, goal = last frame.

    This is what ``inference_dtype`` reads from a checkpoint's config.json.

    Frames in which nothing moves are part of real roll-outs and stay in.
    """
    rewards = []
    for frozen in (
        FrozenEncoder(encoder, dtype=torch.float32),
        FrozenEncoder(encoder, dtype=dtype),
    ):
        z = embed_clips(frozen, clips)
        rewards.append(np.concatenate([-np.diff(np.linalg.norm(e - e[-1], axis=-1)) for e in z]))
    return float(np.corrcoef(rewards)[0, 1])
