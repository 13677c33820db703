"""A policy of offline_rl.py that learns to see: convolutions of its own, from small frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.envs import Compose, Resize, ToTensorImage, Transform
from torchrl.modules import MLP, ConvNet

from torchrl_vip.data.reading import read_frames
from torchrl_vip.data.sources import find_clips
from torchrl_vip.files import write_whole
from torchrl_vip.functional import random_shift
from torchrl_vip.offline.policies import CELLS

SIZE, SHIFT = 64, 4  # pixels
SHRINK = Resize(SIZE, SIZE, in_keys=["small"])


class FromPixels(nn.Module):
    """DrQ's convolutions and the same MLP as the others', of frames that training shifts."""

    def __init__(self, state: int, action: int) -> None:
        super().__init__()
        self.see = ConvNet(3, num_cells=[32] * 4, kernel_sizes=3, strides=[2, 2, 1, 1])
        size = self.see(torch.zeros(1, 3, SIZE, SIZE)).shape[1]
        self.trunk = nn.Sequential(nn.Linear(size, 64), nn.LayerNorm(64), nn.Tanh())
        self.act = MLP(64 + state, action, num_cells=list(CELLS), activation_class=nn.ReLU)

    def forward(self, small: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        batch = small.shape[:-3]
        frames = (small.flatten(0, -4) if batch else small[None]).float() - 0.5
        if self.training:
            frames = random_shift(frames, SHIFT)
        seen = self.trunk(self.see(frames)).reshape(*batch, -1)
        return torch.tanh(self.act(torch.cat([seen, state], -1)))


def make_actor(steps: TensorDict) -> TensorDictModule:
    """From "small" and "state" to "action"."""
    return _actor(steps["state"].shape[1], steps["action"].shape[1])


def _actor(state: int, action: int) -> TensorDictModule:
    return TensorDictModule(FromPixels(state, action), ["small", "state"], ["action"])


def save_policy(actor: TensorDictModule, steps: TensorDict, file: Path, **about: Any) -> None:
    sizes = [steps[key].shape[1] for key in ("state", "action")]
    state = {"sizes": sizes, "weights": actor.state_dict(), "about": about}
    write_whole(file, lambda part: torch.save(state, part))


def load_policy(file: Path) -> tuple[TensorDictModule, dict[str, Any]]:
    state = torch.load(file, weights_only=True)
    actor = _actor(*state["sizes"])
    actor.load_state_dict(state["weights"])
    return actor.eval(), state["about"]


def small_frames(labelled: Path) -> torch.Tensor:
    """The frames of all steps, float16 ``[N, 3, SIZE, SIZE]`` in [0, 1]."""
    found = []
    for clip in find_clips(labelled):
        frames = torch.stack(list(read_frames(clip.path, clip.span))[:-1])
        found.append(SHRINK(TensorDict({"small": frames.float() / 255}, []))["small"].half())
    return torch.cat(found)


def transform() -> Transform:
    """Pixels of an environment to "small"."""
    return Compose(ToTensorImage(in_keys=["pixels"], out_keys=["small"]), SHRINK.clone())
