"""Sub-clips for value-implicit pre-training, drawn by a TorchRL sampler, and their augmentation."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchrl.data.replay_buffers.samplers import Sampler
from torchrl.data.replay_buffers.storages import Storage


def generator_at(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """A CPU generator that depends on (seed, step, stream) alone, so that resuming is exact."""
    mixed = (seed * 1_000_003 + step) * 31 + stream
    return torch.Generator().manual_seed((mixed * 0x9E3779B97F4A7C15) % (1 << 63))


class VIPSampler(Sampler):
    """Draws (o_0, o_t, o_{t+1}, o_g) from clips that lie back to back in a storage.

    ::

        clip          |----|=========|=======|----------|
        frame         0    i_0      i_t      i_g        T-1       i_{t+1} = i_t + 1

        i_0 uniform in [0, T-2)        (0 where T = 2)
        i_g uniform in [i_0+1, T)
        i_t uniform in [i_0, i_g)

    which is the official distribution: videos uniformly, whatever their length. Options change a
    share of the samples, each drawn for itself (``stride`` counts every so many-th frame only)::

        geometric = p   i_g = i_0 + k, k ~ Geometric(1 - p), at most T-1: near goals are frequent

        cross_video     clip          |----|=========|------------|
                                           i_0      i_t          T-1
                        other clip    |---------------------------|    of the same group
                                                                 i_g = its last frame

        self_transition o_t = o_{t+1} = o_g, reward 0

        goal_augmentation
                        o_g from another copy of the storage, where it looks otherwise

    Without self-transitions the objective is unbounded below, as scaling the embedding up always
    pays; HILP and ICVF draw the current state as goal for the same reason. Goals from another video
    teach the distance to ignore what differs between two demonstrations of one task.

    Every draw is a function of (seed, step), where step counts the batches.

    Args:
        start, length: int64 ``[V]``, first row and number of frames of each clip, at least 2.
        seed: of all draws.
        self_transition: share of samples in [0, 1].
        geometric: None for uniform goals, or p in (0, 1).
        cross_video: share of samples in [0, 1]; clips that are alone in their group keep a goal of
            their own.
        stride: frames from o_t to o_{t+1}: where neighbouring frames hardly differ, more than 1. A
            clip shorter than that takes its last frame.
        copies: so often the storage holds all the clips, one copy behind the other; the four frames
            of a sub-clip come from one.
        goal_augmentation: share of samples in [0, 1] whose goal comes from a copy drawn for itself; not
            where o_t is the goal, and to no effect with one copy. A goal image is taken on another day
            than what is compared with it.
        group: int64 ``[V]``, clips that show the same task have the same number; None puts each
            clip in a group of its own.
        scene: ``[V]``, told with the rows of each clip as "group".
        weight: ``[V]``, how often a clip is drawn, in proportion; None draws all alike. One of 0 is not
            drawn; put it in a group of its own, as else it is still a goal.
        shard: (rank, number of processes). Each process draws the whole batch and keeps its part, so
            that together they have what one process would have had.

    Raises:
        ValueError: no clip, one with fewer than two frames, a share outside of [0, 1], a stride
            below 1, weights of which none is positive.
    """

    def __init__(
        self,
        start: Tensor,
        length: Tensor,
        *,
        seed: int = 0,
        self_transition: float = 0.0,
        geometric: float | None = None,
        cross_video: float = 0.0,
        stride: int = 1,
        copies: int = 1,
        goal_augmentation: float = 0.0,
        group: Tensor | None = None,
        scene: Tensor | None = None,
        weight: Tensor | None = None,
        shard: tuple[int, int] = (0, 1),
    ):
        if len(start) == 0 or len(start) != len(length) or int(length.min()) < 2:
            raise ValueError(
                f"VIPSampler wants clips of at least two frames; got {len(start)} clips of "
                f"{length.tolist()[:8]} frames."
            )
        shares = {
            "self_transition": self_transition,
            "cross_video": cross_video,
            "goal_augmentation": goal_augmentation,
        }
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is {share}; wanted a share in [0, 1].")
        if geometric is not None and not 0 < geometric < 1:
            raise ValueError(f"geometric is {geometric}; wanted None or a number in (0, 1).")
        if stride < 1:
            raise ValueError(f"stride is {stride}; wanted 1 or more frames.")
        if weight is not None and not (weight.min() >= 0 and weight.max() > 0):
            raise ValueError(
                f"weight is {weight.tolist()[:8]}; wanted 0 or more for each clip, and one above."
            )
        self.ends = None if weight is None else weight.double().cumsum(0) / weight.double().sum()
        self.start, self.stride = start, (length - 1).clamp(max=stride)
        self.length = (length - 1) // self.stride + 1
        self.copies, self.rows = copies, int((start + length).max())
        self.seed = seed
        self.self_transition = self_transition
        self.geometric = geometric
        self.cross_video = cross_video
        self.goal_augmentation = goal_augmentation
        self.shard = shard
        self.step = 0
        self.scene = scene
        # Clips sorted by group: the mates of a clip are the run of self.sorted that it lies in.
        group = torch.arange(len(start)) if group is None else group
        self.sorted = group.argsort(stable=True)
        _, member, size = group.unique(return_inverse=True, return_counts=True)
        self.mates, self.first = size[member], (size.cumsum(0) - size)[member]
        self.place = self.sorted.argsort() - self.first

    def sample(self, storage: Storage, batch_size: int) -> tuple[Tensor, dict]:
        """Rows of the storage, int64 ``[4 B]``, "reward" float32 ``[4 B]``, and "group" given ``scene``."""
        rank, processes = self.shard
        generator = generator_at(self.seed, self.step)
        self.step += 1
        u = torch.rand(10, batch_size * processes, generator=generator, dtype=torch.float64)
        u = u[:, rank * batch_size : (rank + 1) * batch_size]
        clip = self._clip(u[0])
        length = self.length[clip]
        i_0 = (u[1] * (length - 2).clamp(min=1)).long()
        if self.geometric is None:
            i_g = i_0 + 1 + (u[2] * (length - i_0 - 1)).long()
        else:
            i_g = i_0 + 1 + (torch.log1p(-u[2]) / math.log(self.geometric)).long()
            i_g = torch.minimum(i_g, length - 1)
        crosses = (u[5] < self.cross_video) & (self.mates[clip] > 1)
        i_t = i_0 + (u[3] * (torch.where(crosses, length - 1, i_g) - i_0)).long()
        mate = self._mate(clip, u[6])
        goal_clip = torch.where(crosses, mate, clip)
        i_g = torch.where(crosses, self.length[mate] - 1, i_g)
        o_0, o_t, o_next, goal = (
            self.start[of] + i * self.stride[of]
            for of, i in ((clip, i_0), (clip, i_t), (clip, i_t + 1), (goal_clip, i_g))
        )
        at_goal = u[4] < self.self_transition
        index = torch.stack(
            [o_0, torch.where(at_goal, goal, o_t), torch.where(at_goal, goal, o_next), goal], 1
        )
        copy = (u[7] * self.copies).long()
        otherwise = (u[8] < self.goal_augmentation) & ~at_goal
        goal_copy = torch.where(otherwise, (u[9] * self.copies).long(), copy)
        index += self.rows * torch.stack([copy, copy, copy, goal_copy], 1)
        # The storage reads a flat list of rows; who asks for the batch folds it back to [B, 4].
        info = {"reward": at_goal.float().repeat_interleave(4) - 1}
        if self.scene is not None:
            info["group"] = self.scene[clip].float().repeat_interleave(4)
        return index.flatten(), info

    def _clip(self, u: Tensor) -> Tensor:
        """Clips by draws in [0, 1)."""
        if self.ends is None:
            return (u * len(self.start)).long()
        return torch.searchsorted(self.ends, u, right=True).clamp(max=len(self.ends) - 1)

    def _mate(self, clip: Tensor, u: Tensor) -> Tensor:
        """Another clip of each one's group by draws in [0, 1); where it is alone, itself."""
        # Any mate but the clip itself: those from its own place on move up by one.
        mate = (u * (self.mates[clip] - 1)).long()
        return self.sorted[
            self.first[clip] + (mate + (mate >= self.place[clip])) % self.mates[clip]
        ]

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seed, self.step = state_dict["seed"], state_dict["step"]

    def _empty(self) -> None:
        self.step = 0

    def dumps(self, path: Any) -> None: ...

    def loads(self, path: Any) -> None: ...


class DecoySampler(VIPSampler):
    """Draws sub-clips, and a share of decoys: frames in which the robot moves without effect.

    ::

        demonstration   |=|------------------------|=|    a success
                       start                       end
        another one     |--------------------------|=|    of the same group; the same one if it is alone
                                                  goal
        idle clip       |---------|=|----------------|
                                  idle

    The four rows of a decoy are (start, idle, end, goal), as :func:`torchrl_vip.functional.decoy_loss`
    reads them, with reward -1.

    Args:
        start, length: as of :class:`VIPSampler`; of all clips, the idle ones too, whose weight is 0.
        idle: clip -> the clips whose ends are goals that it must not seem to reach (or, of the goal
            state, to leave); all numbers count from 0 in the order of ``start``.
        of_goal: those keys of ``idle`` that show things as the task leaves them.
        share: of the batch; one decoy at least.
        **options: as of :class:`VIPSampler`.

    Raises:
        ValueError: no idle clip, or one without a demonstration; see :class:`VIPSampler` too.
    """

    def __init__(
        self,
        start: Tensor,
        length: Tensor,
        *,
        idle: dict[int, list[int]],
        of_goal: set[int] | frozenset[int] = frozenset(),
        share: float = 0.25,
        **options: Any,
    ):
        super().__init__(start, length, **options)
        if not idle or not all(idle.values()):
            raise ValueError(
                f"DecoySampler wants idle clips, each with demonstrations; got {idle}."
            )
        self.share = share
        self.idle = torch.tensor(list(idle))
        self.of_goal = torch.tensor([i in of_goal for i in idle])
        self.goals = [torch.tensor(of) for of in idle.values()]

    def sample(self, storage: Storage, batch_size: int) -> tuple[Tensor, dict]:
        """As :meth:`VIPSampler.sample`, the decoys last; and "decoy" float32 ``[4 B]``: 0 for a sub-clip, 1
        for a decoy in the start state, 2 for one in the goal state."""
        rank, processes = self.shard
        count = max(1, round(self.share * batch_size))
        generator = generator_at(self.seed, self.step, stream=3)
        index, info = super().sample(storage, batch_size - count)
        u = torch.rand(5, count * processes, generator=generator, dtype=torch.float64)
        u = u[:, rank * count : (rank + 1) * count]
        which = (u[0] * len(self.idle)).long()
        idle = self.idle[which]
        goal = torch.stack(
            [self.goals[w][int(v * len(self.goals[w]))] for w, v in zip(which, u[1], strict=True)]
        )
        demo = self._mate(goal, u[2])
        frame = (u[3] * self.length[idle]).long() * self.stride[idle]
        last = (self.length - 1) * self.stride
        rows = torch.stack(
            [
                self.start[demo],
                self.start[idle] + frame,
                self.start[demo] + last[demo],
                self.start[goal] + last[goal],
            ],
            1,
        )
        rows = rows + self.rows * (u[4] * self.copies).long()[:, None]
        kind = torch.cat([torch.zeros(batch_size - count), 1.0 + self.of_goal[which]])
        # As numbers of no group and of no reward they stand in every other column.
        info = {name: torch.cat([x, -torch.ones(4 * count)]) for name, x in info.items()}
        return torch.cat([index, rows.flatten()]), info | {"decoy": kind.repeat_interleave(4)}


def augment(
    frames: Tensor,
    generator: torch.Generator,
    *,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
    colour: float = 0.0,
    goal_augmentation: float | Tensor = 0.0,
    shard: tuple[int, int] = (0, 1),
) -> Tensor:
    """One random resized crop, flip and colour change for all frames of a sub-clip, in one batch.

    Args:
        frames: uint8 ``[B, K, 3, S, S]``.
        generator: CPU generator of all draws.
        scale: share of the image's area that the crop keeps; (1, 1) crops nothing.
        ratio: width / height of the crop.
        flip: probability of a left-right mirror image.
        colour: brightness, contrast and saturation change by a factor in [1 - colour, 1 + colour].
        goal_augmentation: probability, a number or ``[B]``, that the last frame gets a crop and colours
            of its own; it is mirrored as the others are.
        shard: (rank, number of processes), as in :class:`VIPSampler`.

    Returns:
        float32 ``[B, K, 3, S, S]`` in [0, 1].
    """
    b = len(frames)
    rank, processes = shard

    def draw(count: int) -> Tensor:
        return torch.rand(count, b * processes, generator=generator)[:, rank * b : (rank + 1) * b]

    u = draw(8)
    u[4] = torch.where(u[4] < flip, -1.0, 1.0)
    images = _change(frames, u, scale, ratio, colour)
    if isinstance(goal_augmentation, Tensor) or goal_augmentation > 0:
        own = draw(9)
        own[4] = u[4]
        goal = _change(frames[:, -1:], own[:8], scale, ratio, colour)
        otherwise = (own[8] < torch.as_tensor(goal_augmentation).cpu()).to(images.device)
        images[:, -1:] = torch.where(otherwise.view(b, 1, 1, 1, 1), goal, images[:, -1:])
    return images


def _change(frames: Tensor, u: Tensor, scale: tuple, ratio: tuple, colour: float) -> Tensor:
    """Crop, mirror and recolour ``[B, K, 3, S, S]`` by draws ``[8, B]``: area, aspect and centre in [0, 1),
    mirror (-1 or 1), brightness, contrast and saturation in [0, 1)."""
    b, k, _, size, _ = frames.shape
    area = scale[0] + u[0] * (scale[1] - scale[0])
    aspect = torch.exp(math.log(ratio[0]) + u[1] * math.log(ratio[1] / ratio[0]))
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    if scale[0] == 1:
        width = height = torch.ones(b)
    # In grid_sample's coordinates the image spans [-1, 1]: a crop of relative width w has its
    # centre anywhere in [-(1 - w), 1 - w].
    x, y = (2 * u[2] - 1) * (1 - width), (2 * u[3] - 1) * (1 - height)
    zero = torch.zeros_like(x)
    theta = torch.stack([width * u[4], zero, x, zero, height, y], 1).view(b, 2, 3)
    images = frames.reshape(b, k * 3, size, size).float() / 255  # K frames share one grid
    grid = F.affine_grid(theta.to(images.device), list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    images = images.view(b, k, 3, size, size)
    if colour:
        brightness, contrast, saturation = (
            (1 + colour * (2 * v - 1)).view(b, 1, 1, 1, 1).to(images.device) for v in u[5:8]
        )
        images = images * brightness
        mean = images.mean((1, 2, 3, 4), keepdim=True)
        images = (images - mean) * contrast + mean
        grey = images.mean(2, keepdim=True)
        images = ((images - grey) * saturation + grey).clamp_(0, 1)
    return images
