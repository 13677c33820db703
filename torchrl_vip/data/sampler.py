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

    which is the official distribution: videos uniformly, whatever their length. With probability
    ``self_transition`` the goal itself is drawn as o_t = o_{t+1} = o_g, with reward 0: without it
    the objective is unbounded below, as scaling the embedding up always pays.

    Every draw is a function of (seed, step), where step counts the batches.

    Args:
        start, length: int64 ``[V]``, first row and number of frames of each clip, at least 2.
        seed: of all draws.
        self_transition: share of samples in [0, 1].

    Raises:
        ValueError: no clip, or one with fewer than two frames.
    """

    def __init__(
        self, start: Tensor, length: Tensor, *, seed: int = 0, self_transition: float = 0.0
    ):
        if len(start) == 0 or len(start) != len(length) or int(length.min()) < 2:
            raise ValueError(
                f"VIPSampler wants clips of at least two frames; got {len(start)} clips of "
                f"{length.tolist()[:8]} frames."
            )
        self.start, self.length = start, length
        self.seed = seed
        self.self_transition = self_transition
        self.step = 0

    def sample(self, storage: Storage, batch_size: int) -> tuple[Tensor, dict]:
        """Rows of the storage, int64 ``[B, 4]``, and "reward" float32 ``[B]``."""
        generator = generator_at(self.seed, self.step)
        self.step += 1
        u = torch.rand(5, batch_size, generator=generator, dtype=torch.float64)
        clip = (u[0] * len(self.start)).long()
        length = self.length[clip]
        i_0 = (u[1] * (length - 2).clamp(min=1)).long()
        i_g = i_0 + 1 + (u[2] * (length - i_0 - 1)).long()
        i_t = i_0 + (u[3] * (i_g - i_0)).long()
        i_next = i_t + 1
        at_goal = u[4] < self.self_transition
        i_t, i_next = torch.where(at_goal, i_g, i_t), torch.where(at_goal, i_g, i_next)
        index = self.start[clip, None] + torch.stack([i_0, i_t, i_next, i_g], 1)
        # The storage reads a flat list of rows; who asks for the batch folds it back to [B, 4].
        return index.flatten(), {"reward": at_goal.float().repeat_interleave(4) - 1}

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seed, self.step = state_dict["seed"], state_dict["step"]

    def _empty(self) -> None:
        self.step = 0

    def dumps(self, path) -> None: ...

    def loads(self, path) -> None: ...


def augment(
    frames: Tensor,
    generator: torch.Generator,
    *,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
    colour: float = 0.0,
) -> Tensor:
    """One random resized crop, flip and colour change for all frames of a sub-clip, in one batch.

    Args:
        frames: uint8 ``[B, K, 3, S, S]``.
        generator: CPU generator of all draws.
        scale: share of the image's area that the crop keeps.
        ratio: width / height of the crop.
        flip: probability of a left-right mirror image.
        colour: brightness, contrast and saturation change by a factor in [1 - colour, 1 + colour].

    Returns:
        float32 ``[B, K, 3, S, S]`` in [0, 1].
    """
    b, k, _, size, _ = frames.shape
    u = torch.rand(8, b, generator=generator)
    area = scale[0] + u[0] * (scale[1] - scale[0])
    aspect = torch.exp(math.log(ratio[0]) + u[1] * math.log(ratio[1] / ratio[0]))
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    # In grid_sample's coordinates the image spans [-1, 1]: a crop of relative width w has its
    # centre anywhere in [-(1 - w), 1 - w].
    x, y = (2 * u[2] - 1) * (1 - width), (2 * u[3] - 1) * (1 - height)
    mirror = torch.where(u[4] < flip, -1.0, 1.0)
    zero = torch.zeros_like(x)
    theta = torch.stack([width * mirror, zero, x, zero, height, y], 1).view(b, 2, 3)
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
