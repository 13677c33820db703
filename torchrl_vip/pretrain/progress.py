"""Each task's progress beside the embedding: directions fitted in closed form to stored features.

One number a task that is 0 at a demonstration's start and 1 at its end, linear in the features, joins the
embedding as a dimension. A head that is trained on a few clips spreads over all of its dimensions, and what
moves in them by chance hides the task.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchrl_vip.data.clip import Clip
from torchrl_vip.data.video import FrameTable
from torchrl_vip.encoders import VIPEncoder
from torchrl_vip.functional import ridge
from torchrl_vip.pretrain.clips import HELD_BACK, is_demonstration

PENALTY = 3e-4
"""Of the ridge regression, in parts of the features' variance; ten times less or more changes little."""
WEIGHTS = {"own": 1.0, "start": 1.0, "goal": 0.1, "other": 1.0}
"""How much a task's demonstrations, idle frames of its start and goal state, and other tasks' ends count."""
END = 0.9
"""Of other tasks' clips, frames from here on."""
MOST = 1000
"""Frames of each sort but the demonstrations, at most: the time grows with the cube."""


@torch.no_grad()
def add_progress(
    encoder: VIPEncoder,
    features: FrameTable,
    weight: float,
    *,
    idle: bool = True,
    wrong_goals: bool = True,
) -> None:
    """Give the encoder's embedding a dimension for each task: ``weight`` times the typical distance from a
    demonstration's start to its end goes by in it from start to end.

    Args:
        encoder: changed in place; its head gets rows.
        features: of its backbone, "features" ``[F]`` a frame; of several copies the first one.
        weight: how far progress counts beside the embedding as it is.
        idle: whether idle frames count: 0 in the start state, 1 in the goal state.
        wrong_goals: whether the ends of other tasks, and of data.also, are to be at 0.

    Raises:
        ValueError: the head is not linear, or no demonstration is a success.
    """
    old = encoder.head
    if not isinstance(old, nn.Linear):
        raise ValueError(f"task_progress={weight} wants a linear head; got {type(old).__name__}.")
    clips, device = features.clips, old.weight.device
    own = [i for i, clip in enumerate(clips) if _counts(clip) and is_demonstration(clip)]
    if not own:
        raise ValueError(
            f"task_progress={weight} wants a demonstration that is a success: found none."
        )
    x = [_features(features, i) for i in range(len(clips))]
    ways = [(old(x[i][-1:].to(device)) - old(x[i][:1].to(device))).norm() for i in own]
    unit = weight * torch.stack(ways).mean()
    rows: list[Tensor] = [old.weight]
    bias: list[Tensor] = [old.weight.new_zeros(encoder.dim) if old.bias is None else old.bias]
    lengths, frames = [len(f) for f in x], torch.cat(x)
    for scene in dict.fromkeys(clips[i].scene for i in own):
        target, counts = targets(clips, lengths, scene, idle=idle, wrong_goals=wrong_goals)
        used = counts > 0
        direction, at_0 = ridge(frames[used], target[used], counts[used], PENALTY)
        rows.append(unit * direction[None].to(device))
        bias.append(unit * at_0[None].to(device))
    head = nn.Linear(old.in_features, encoder.dim + len(rows) - 1, device=device)
    head.weight.copy_(torch.cat(rows))
    head.bias.copy_(torch.cat(bias))
    encoder.head, encoder.dim = head, head.out_features


def targets(
    clips: Sequence[Clip],
    lengths: Sequence[int],
    scene: str | None,
    *,
    idle: bool = True,
    wrong_goals: bool = True,
) -> tuple[Tensor, Tensor]:
    """The progress in one task that each frame of all clips shows, and how much it counts, ``[R]`` both."""
    target, sort = [], []
    for clip, length in zip(clips, lengths, strict=True):
        time = torch.linspace(0, 1, length)
        here = clip.scene == scene
        if clip.idle_of:
            counts = idle and (here or clip.scene is None) and not clip.labels.get(HELD_BACK)
            sort.append([clip.idle_of if counts else ""] * length)
            target.append(torch.full((length,), float(clip.idle_of == "goal")))
        elif is_demonstration(clip) and here:
            sort.append(["own" if _counts(clip) else ""] * length)
            target.append(time)
        else:
            counts = wrong_goals and _counts(clip)
            sort.append(["other" if counts and t >= END else "" for t in time.tolist()])
            target.append(torch.zeros(length))
    sorts = [s for of in sort for s in of]
    shares = torch.cat([torch.full((n,), 1 / n) for n in lengths])  # clips count alike
    weight = torch.zeros(len(sorts))
    for name, total in WEIGHTS.items():
        rows = torch.tensor([i for i, s in enumerate(sorts) if s == name], dtype=torch.int64)
        if name != "own":
            rows = rows[:: -(-len(rows) // MOST) or 1]
        weight[rows] = total * shares[rows] / shares[rows].sum()
    return torch.cat(target), weight


def _counts(clip: Clip) -> bool:
    """Whether it is a success that is trained on."""
    return clip.success and not (clip.idle_of or clip.labels.get(HELD_BACK))


def _features(table: FrameTable, i: int) -> Tensor:
    start, length = int(table.start[i]), int(table.length[i])
    return table.storage.get(slice(start, start + length))["features"].float()
