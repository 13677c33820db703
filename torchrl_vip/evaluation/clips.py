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

from torchrl_vip.evaluation.metrics import auc, bootstrap, bump_size, bumps, progress, voc


@dataclass
class LabelledClip:
    """Frames uint8 ``[T, 3, H, W]`` or ``[T, H, W, 3]`` of one attempt at a task.

    Clips of one group show the same task in the same scene, so that the last frame of one success
    is a goal for the others.
    """

    frames: Tensor
    group: str
    success: bool = True
    name: str = ""


@torch.no_grad()
def embed_clips(
    embed: Callable[[Tensor], Tensor], clips: Sequence[LabelledClip], chunk: int = 64
) -> list[np.ndarray]:
    """Embedding ``[T, D]`` of every frame of every clip."""
    return [
        torch.cat([embed(part).float().cpu() for part in clip.frames.split(chunk)]).numpy()
        for clip in clips
    ]


def score_groups(z: Sequence[np.ndarray], clips: Sequence[LabelledClip]) -> dict[str, dict]:
    """Metrics of each group, from the embeddings of its clips.

    Returns:
        group -> ``voc``, ``voc_pearson``, ``bumps``, ``bump_size`` of successes against the last
        frame of every other success; ``voc_own``, ``bumps_own`` against their own; ``auc`` of
        success against failure by final distance over first one. NaN where the group has no pair.
    """
    members = defaultdict(list)
    for i, clip in enumerate(clips):
        members[clip.group].append(i)
    scores = {}
    for group, indices in members.items():
        good = [i for i in indices if clips[i].success]
        bad = [i for i in indices if not clips[i].success]

        def curve(i: int, goal: int) -> np.ndarray:
            return np.linalg.norm(z[i] - z[goal][-1], axis=-1)

        own = [curve(i, i) for i in good]
        cross = {i: [curve(i, j) for j in good if j != i] for i in good}
        flat = [c for curves in cross.values() for c in curves]
        win = [-np.mean([progress(c) for c in curves]) for curves in cross.values() if curves]
        lose = [-np.mean([progress(curve(i, j)) for j in good]) for i in bad if good]
        mean = lambda f, curves: float(np.mean([f(c) for c in curves])) if curves else np.nan  # noqa: E731
        scores[group] = {
            "voc": mean(voc, flat),
            "voc_pearson": mean(lambda c: voc(c, "pearson"), flat),
            "bumps": mean(bumps, flat),
            "bump_size": mean(bump_size, flat),
            "voc_own": mean(voc, own),
            "bumps_own": mean(bumps, own),
            "auc": auc(win, lose) if win and lose else np.nan,
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
