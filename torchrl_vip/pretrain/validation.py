"""What a run measures of itself: held-out clips, the reward's scale, a picture of the curves."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchrl_vip.data.sampler import VIPSampler
from torchrl_vip.data.video import FrameTable
from torchrl_vip.encoders import FrozenEncoder, VIPEncoder
from torchrl_vip.evaluation.calibration import typical_distance
from torchrl_vip.evaluation.clips import LabelledClip, embed_clips, score_groups, summarise
from torchrl_vip.evaluation.metrics import effective_rank
from torchrl_vip.losses import EmbeddingLoss, VIPLoss


def labelled_clips(table: FrameTable, most: int, *, ends: bool = False) -> list[LabelledClip]:
    """Clips of a table with their labels, ``most`` at most: groups (:attr:`Clip.scene`) as whole as that
    allows, spread evenly over the table. ``ends``: successes only, and of each the first and last frame.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for i, clip in enumerate(table.clips):
        if not ends or clip.success:
            groups[str(clip.scene or (clip.name, i))].append(i)  # names may be twice in two sources
    names, count = list(groups), sum(map(len, groups.values()))
    share = min(1.0, most / max(count, 1))
    chosen = [(names[n], i) for n in _spread(len(names), max(1, round(share * len(names))))
              for i in groups[names[n]]]  # fmt: skip
    return [
        LabelledClip(
            frames=table.clip_ends(i) if ends else table.clip_frames(i),
            group=group,
            success=table.clips[i].success,
            name=table.clips[i].name,
        )
        for group, i in (chosen[j] for j in _spread(len(chosen), most))
    ]


def _spread(count: int, most: int) -> list[int]:
    """Numbers below ``count``, evenly spread, ``most`` at most."""
    return np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist()


def validate(
    encoder: VIPEncoder,
    objective: EmbeddingLoss,
    table: FrameTable | None,
    config: dict[str, Any],
    dtype: torch.dtype,
) -> dict[str, float]:
    """Metrics on validation clips, as ``validation/<metric>``; empty without clips.

    The means over groups of :func:`torchrl_vip.evaluation.clips.score_groups`, the objective's loss
    on one fixed draw without augmentation, the embedding's mean norm and effective rank.
    """
    if table is None:
        return {}
    clips = labelled_clips(table, config["validation_clips"])
    frozen = FrozenEncoder(encoder, dtype=dtype)
    z = embed_clips(frozen, clips)
    metrics = {name: mean for name, (mean, *_) in summarise(score_groups(z, clips)).items()}
    frames = np.concatenate(z)
    metrics["embedding_norm"] = float(np.linalg.norm(frames, axis=-1).mean())
    # Some frames will do: the cost grows with the square of the dimension.
    metrics["effective_rank"] = effective_rank(frames[:: max(1, len(frames) // 2000)])
    metrics["loss"] = validation_loss(frozen, objective, table, config)
    return {f"validation/{name}": value for name, value in metrics.items()}


@torch.no_grad()
def validation_loss(
    encoder: FrozenEncoder, objective: EmbeddingLoss, table: FrameTable, config: dict[str, Any]
) -> float:
    """The objective without penalties on the same sub-clips each time; this process's own."""
    sampler = VIPSampler(
        table.start,
        table.length,
        self_transition=config["self_transition"],
        stride=config["stride"],
        seed=0,
    )
    index, info = sampler.sample(table.storage, 64)
    z = encoder(table.storage.get(index)["pixels"]).unflatten(0, (-1, 4))
    if isinstance(objective, VIPLoss):
        objective.generator.manual_seed(0)
    loss, _ = objective.objective(z, info["reward"].view(-1, 4)[:, 0].to(z.device))
    return loss.item()


def reward_calibration(encoder: VIPEncoder, table: FrameTable, most: int = 200) -> dict[str, float]:
    """Typical distance from a clip's first frame to its last, over training clips.

    Returns:
        ``reward_scale``: 1 / that distance, so that a success returns about 1; and
        ``typical_distance``. Empty where no clip is a success.
    """
    clips = labelled_clips(table, most, ends=True)
    if not clips:
        return {}
    z = embed_clips(FrozenEncoder(encoder), clips)
    distance = typical_distance(z, clips)
    return {"typical_distance": distance, "reward_scale": 1 / max(distance, 1e-8)}


def marks_best(metrics: dict[str, float], name: str) -> float | None:
    """The metric that marks the best, None without validation clips.

    Raises:
        ValueError: nothing measured has this name.
    """
    if name == "validation/voc" and name not in metrics:  # no two clips share a group
        name = "validation/voc_own"
    if metrics and name not in metrics:
        order = name in ("validation/voc", "validation/voc_own")
        reason = "no validation clip is a success" if order else "nothing of this name is measured"
        raise ValueError(f"best={name}: {reason}; choose one of {', '.join(sorted(metrics))}.")
    return metrics.get(name)


def plot_curves(metrics: Path, picture: Path) -> None:
    """Draw every logged metric of a run against the step."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    curves = defaultdict(list)
    with open(metrics, newline="") as file:
        for row in csv.DictReader(file):
            curves[row["metric"]].append((int(row["step"]), float(row["value"])))
    if not curves:
        return
    columns = 4
    figure, axes = plt.subplots(
        -(-len(curves) // columns),
        columns,
        figsize=(16, 3 * -(-len(curves) // columns)),
        squeeze=False,
    )
    for axis in axes.flat[len(curves) :]:
        axis.axis("off")
    for axis, (name, points) in zip(axes.flat, sorted(curves.items()), strict=False):
        steps, values = np.array(points).T
        axis.plot(steps, values, marker="o" if len(steps) < 30 else None, markersize=3)
        axis.set_title(name)
        axis.set_xlabel("step")
    figure.tight_layout()
    figure.savefig(picture, dpi=80)
    plt.close(figure)
