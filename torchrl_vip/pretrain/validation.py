"""What a run measures of itself: held-out clips, and the reward's scale."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Collection

import numpy as np
import torch

from torchrl_vip.data.sampler import VIPSampler
from torchrl_vip.data.video import FrameTable
from torchrl_vip.encoders import FrozenEncoder, VIPEncoder
from torchrl_vip.evaluation.calibration import typical_approach, typical_distance
from torchrl_vip.evaluation.clips import LabelledClip, embed_clips, score_groups, summarise
from torchrl_vip.evaluation.metrics import effective_rank
from torchrl_vip.losses import EmbeddingLoss, VIPLoss


def labelled_clips(table: FrameTable, most: int, *, ends: bool = False) -> list[LabelledClip]:
    """Clips of a table with their labels, ``most`` at most: groups (:attr:`Clip.scene`) as whole as that
    allows, spread evenly over the table. ``ends``: successes only, and of each the first and last frame.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for i, clip in enumerate(table.clips):
        if not ends or (clip.success and not clip.idle_of):
            # Names may be twice in two sources; an idle clip without a scene is of every one.
            name = str(clip.scene or ("" if clip.idle_of else (clip.name, i)))
            groups[name].append(i)
    names, count = list(groups), sum(map(len, groups.values()))
    share = min(1.0, most / max(count, 1))
    whole = _spread(len(names), max(1, round(share * len(names))))
    chosen = [(names[n], i) for n in whole for i in groups[names[n]]]
    return [
        LabelledClip(
            frames=table.clip_ends(i) if ends else table.clip_frames(i),
            group=group,
            success=table.clips[i].success and not table.clips[i].idle_of,
            name=table.clips[i].name,
            idle_of=table.clips[i].idle_of,
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
    *,
    clips: int = 48,
    self_transition: float = 0.0,
    stride: int = 1,
    dtype: torch.dtype = torch.float32,
) -> dict[str, float]:
    """Metrics on validation clips, as ``validation/<metric>``; empty without clips.

    The means over groups of :func:`torchrl_vip.evaluation.clips.score_groups`, the objective's loss
    on one fixed draw without augmentation, the embedding's mean norm and effective rank.

    Args:
        clips: how many at most.
        self_transition, stride: of that draw, see :class:`torchrl_vip.data.sampler.VIPSampler`.
        dtype: of the network's arithmetic.
    """
    if table is None:
        return {}
    labelled = labelled_clips(table, clips)
    frozen = FrozenEncoder(encoder, dtype=dtype)
    z = embed_clips(frozen, labelled)
    metrics = {name: mean for name, (mean, *_) in summarise(score_groups(z, labelled)).items()}
    frames = np.concatenate(z)
    metrics["embedding_norm"] = float(np.linalg.norm(frames, axis=-1).mean())
    # Some frames will do: the cost grows with the square of the dimension.
    metrics["effective_rank"] = effective_rank(frames[:: max(1, len(frames) // 2000)])
    sampler = VIPSampler(
        table.start, table.length, self_transition=self_transition, stride=stride, seed=0
    )
    metrics["loss"] = validation_loss(frozen, objective, table, sampler)
    return {f"validation/{name}": value for name, value in metrics.items()}


@torch.no_grad()
def validation_loss(
    encoder: FrozenEncoder, objective: EmbeddingLoss, table: FrameTable, sampler: VIPSampler
) -> float:
    """The objective without penalties on the sampler's next sub-clips; this process's own."""
    index, info = sampler.sample(table.storage, 64)
    z = encoder(table.storage.get(index)["pixels"]).unflatten(0, (-1, 4))
    if isinstance(objective, VIPLoss):
        objective.generator = torch.Generator().manual_seed(0)
    loss, _ = objective.objective(z, info["reward"].view(-1, 4)[:, 0].to(z.device))
    return loss.item()


LEAST_MOTION = 0.01
"""Share of the embedding's norm. The ends of real clips are .2 to .7 of it apart (eight of DROID, by either
bundled encoder), those of a still picture as a video file .002, by coding and rounding."""


def reward_calibration(encoder: VIPEncoder, table: FrameTable, most: int = 200) -> dict[str, float]:
    """What training clips say of the reward's scale, from their first and last frames.

    Returns:
        ``typical_distance`` from a success's first frame to its last; ``reward_scale``, 1 / that, so that
        a success returns about 1 with its own end as goal; and ``reward_scale_other``, with which it
        returns about 1 with the end of another success of the same scene as goal, where a scene holds
        two. Empty where no clip is a success, and with a warning where none moves.
    """
    clips = labelled_clips(table, most, ends=True)
    if not clips:
        return {}
    z = embed_clips(FrozenEncoder(encoder), clips)
    least = LEAST_MOTION * float(np.linalg.norm(np.concatenate(z), axis=-1).mean())
    distance, approach = typical_distance(z, clips), typical_approach(z, clips)
    if not distance > least:
        warnings.warn(
            "no reward_scale: the typical clip's last frame is where its first one is in the embedding. "
            "Give clips in which the task is done from start to end.",
            stacklevel=2,
        )
        return {}
    scales = {"typical_distance": distance, "reward_scale": 1 / distance}
    if approach is None:
        return scales
    if not approach > least:
        warnings.warn(
            "no reward_scale_other: the typical success comes no nearer to the end of another one.",
            stacklevel=2,
        )
        return scales
    return scales | {"reward_scale_other": 1 / approach}


def best_metric(metrics: Collection[str], name: str) -> str:
    """The metric that marks the best: ``name``, or voc_own for voc where no two clips share a group.

    Raises:
        ValueError: nothing measured has this name.
    """
    if name == "validation/voc" and name not in metrics:
        name = "validation/voc_own"
    if name not in metrics:
        order = name in ("validation/voc", "validation/voc_own")
        reason = "no validation clip is a success" if order else "nothing of this name is measured"
        raise ValueError(f"best={name}: {reason}; choose one of {', '.join(sorted(metrics))}.")
    return name


def marks_best(metrics: dict[str, float], name: str) -> float | None:
    """The value of :func:`best_metric`, None where nothing was validated."""
    return metrics[best_metric(metrics, name)] if metrics else None
