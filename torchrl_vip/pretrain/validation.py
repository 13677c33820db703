"""What a run measures of itself: held-out clips, the reward's scale, a picture of the curves."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchrl_vip.data.video import FrameTable
from torchrl_vip.encoders import FrozenEncoder, VIPEncoder
from torchrl_vip.evaluation.clips import LabelledClip, embed_clips, score_groups, summarise


def labelled_clips(table: FrameTable, most: int | None = None) -> list[LabelledClip]:
    """Clips of a table with their labels; spread evenly over the table where there are too many."""
    count = len(table.clips)
    chosen = (
        range(count) if not most or count <= most else np.linspace(0, count - 1, most).astype(int)
    )
    return [
        LabelledClip(
            frames=table.clip_frames(i),
            group=str(table.clips[i].labels.get("group", table.clips[i].name)),
            success=bool(table.clips[i].labels.get("success", True)),
            name=table.clips[i].name,
        )
        for i in map(int, chosen)
    ]


def validate(
    encoder: VIPEncoder, table: FrameTable | None, config: dict[str, Any]
) -> dict[str, float]:
    """Mean metrics over validation groups, as ``validation/<metric>``; empty without clips."""
    if table is None:
        return {}
    clips = labelled_clips(table, config["validation_clips"])
    scores = summarise(score_groups(embed_clips(FrozenEncoder(encoder), clips), clips))
    return {f"validation/{metric}": mean for metric, (mean, *_) in scores.items()}


def reward_calibration(encoder: VIPEncoder, table: FrameTable, most: int = 200) -> dict[str, float]:
    """Typical distance from a clip's first frame to its last, over training clips.

    Returns:
        ``reward_scale``: 1 / that distance, so that a success returns about 1; and
        ``typical_distance``. Empty where no clip is a success.
    """
    clips = [
        LabelledClip(torch.stack([c.frames[0], c.frames[-1]]), c.group, c.success)
        for c in labelled_clips(table, most)
        if c.success
    ]
    if not clips:
        return {}
    z = embed_clips(FrozenEncoder(encoder), clips)
    distance = float(np.median([np.linalg.norm(pair[0] - pair[1]) for pair in z]))
    return {"typical_distance": distance, "reward_scale": 1 / max(distance, 1e-8)}


def plot_curves(metrics: Path, picture: Path) -> None:
    """Draw every logged metric of a run against the step."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    curves = defaultdict(list)
    with open(metrics, newline="") as file:
        for row in csv.DictReader(file):
            curves[row["metric"]].append((int(row["step"]), float(row["value"])))
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
