"""Environments and encoders for the tests, small enough to compute every number by hand."""

from __future__ import annotations

from functools import partial

import gymnasium
import numpy as np
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import Compose, EnvBase, TransformedEnv

from torchrl_vip import VIPRewardTransform, VIPTransform, preprocess

STEP = 10  # grey levels per step


class GreyEnv(EnvBase):
    """Uniformly grey frames: level 10 after a reset, 10 more after every step, done after ``length``.

    ``cameras`` are the frames' keys; camera i is i levels brighter. The environment's own reward
    is 1, under ``reward_key`` with the bounded spec [-5, 5].
    """

    def __init__(
        self, length=4, size=8, cameras=("pixels",), reward_key="reward", channels_last=True
    ):
        super().__init__(device="cpu", batch_size=[])
        self.length, self.size, self.cameras = length, size, list(cameras)
        self.own_reward_key = reward_key
        self.frame_shape = (size, size, 3) if channels_last else (3, size, size)
        self.observation_spec = Composite(
            {c: Bounded(0, 255, shape=self.frame_shape, dtype=torch.uint8) for c in self.cameras}
        )
        self.action_spec = Bounded(-1, 1, shape=(1,))
        self.reward_spec = Composite({reward_key: Bounded(-5, 5, shape=(1,))})

    def _frames(self):
        return {
            c: torch.full(self.frame_shape, self.level + i, dtype=torch.uint8)
            for i, c in enumerate(self.cameras)
        }

    def _reset(self, tensordict=None, **kwargs):
        self.time, self.level = 0, STEP
        return TensorDict(self._frames(), batch_size=[])

    def _step(self, tensordict):
        self.time, self.level = self.time + 1, self.level + STEP
        done = torch.tensor([self.time >= self.length])
        own = {self.own_reward_key: torch.ones(1), "done": done, "terminated": done.clone()}
        return TensorDict({**self._frames(), **own}, batch_size=[])

    def _set_seed(self, seed):
        pass


class GoalEnv(GreyEnv):
    """Shows its own goal: level 200 in episodes 1, 3, ..., level 5 in episodes 2, 4, ..."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.episode = 0
        self.observation_spec["goal_image"] = self.observation_spec["pixels"].clone()

    def _reset(self, tensordict=None, **kwargs):
        self.episode += 1
        return super()._reset(tensordict)

    def _frames(self):
        level = 200 if self.episode % 2 else 5
        return {**super()._frames(), "goal_image": grey(level, *self.frame_shape)}


class CountingEncoder(nn.Module):
    """[N, 3, S, S] -> [N, 1], the mean over everything; counts frames and calls."""

    def __init__(self):
        super().__init__()
        self.frames = self.calls = 0

    def forward(self, frames):
        self.frames += len(frames)
        self.calls += len(frames) > 0
        return frames.mean((1, 2, 3))[:, None]


class NormEncoder(nn.Module):
    """A real little network whose batch norm would tie images together in training mode."""

    def __init__(self, dim=4):
        super().__init__()
        self.conv = nn.Conv2d(3, dim, 5, stride=4)
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, frames):
        return self.norm(self.conv(frames)).mean((-2, -1))


# One grey level in CountingEncoder's embedding: mean over channels of 1 / (255 std).
LEVEL = sum(1 / (255 * s) for s in (0.229, 0.224, 0.225)) / 3


class GreyBatch(EnvBase):
    """One environment of batch shape ``[n]``, whose frames are as GreyEnv's; all end after ``length``."""

    def __init__(self, n=2, length=9, agents=()):
        super().__init__(device="cpu", batch_size=[n])
        self.length, shape = length, (n, *agents, 8, 8, 3)
        self.observation_spec = Composite(
            pixels=Bounded(0, 255, shape=shape, dtype=torch.uint8), shape=(n,)
        )
        self.action_spec = Bounded(-1, 1, shape=(n, 1))
        self.reward_spec = Composite(reward=Bounded(-5, 5, shape=(n, *agents, 1)), shape=(n,))

    def _seen(self, **more):
        frames = self.level.reshape(-1, *[1] * (self.observation_spec["pixels"].ndim - 1))
        pixels = frames.expand(self.observation_spec["pixels"].shape).to(torch.uint8)
        done = (self.level >= 10 + STEP * self.length).unsqueeze(-1)
        seen = {"pixels": pixels.clone(), "done": done, "terminated": done.clone()}
        return TensorDict(seen | more, batch_size=self.batch_size)

    def _reset(self, tensordict=None, **kwargs):
        rows = None if tensordict is None else tensordict.get("_reset", None)
        fresh = torch.full(self.batch_size, 10)
        self.level = fresh if rows is None else torch.where(rows.reshape(-1), fresh, self.level)
        return self._seen()

    def _step(self, tensordict):
        self.level = self.level + STEP
        return self._seen(reward=self.full_reward_spec["reward"].one())

    def _set_seed(self, seed):
        pass


class GreyAgents(EnvBase):
    """Two agents, each with a camera and an end of its own: agent i begins at level 10, brightens by i + 1
    levels a step, ends after ``lengths[i]`` steps and is then reset alone ("_reset" under "agents")."""

    def __init__(self, lengths=(3, 5)):
        super().__init__(device="cpu", batch_size=[])
        self.lengths, n = torch.tensor(lengths), len(lengths)
        flag = Categorical(2, dtype=torch.bool, shape=(n, 1))
        pixels = Bounded(0, 255, (n, 8, 8, 3), dtype=torch.uint8)
        self.observation_spec = Composite(agents=Composite(pixels=pixels, shape=(n,)))
        self.action_spec = Composite(agents=Composite(action=Bounded(-1, 1, (n, 1)), shape=(n,)))
        self.reward_spec = Composite(agents=Composite(reward=Unbounded((n, 1)), shape=(n,)))
        flags = {"done": flag, "terminated": flag.clone()}
        self.done_spec = Composite(agents=Composite(flags, shape=(n,)))
        self.time, self.level = torch.zeros(n), torch.full((n,), 10.0)

    def _seen(self, done, **more):
        pixels = self.level.reshape(-1, 1, 1, 1).expand(-1, 8, 8, 3).to(torch.uint8)
        agents = {"pixels": pixels, "done": done, "terminated": done.clone(), **more}
        return TensorDict({"agents": TensorDict(agents, [len(pixels)])}, [])

    def _reset(self, tensordict=None, **kwargs):
        rows = None if tensordict is None else tensordict.get(("agents", "_reset"), None)
        rows = torch.ones(len(self.time), dtype=torch.bool) if rows is None else rows.reshape(-1)
        self.time = torch.where(rows, 0.0, self.time)
        self.level = torch.where(rows, 10.0, self.level)
        return self._seen(torch.zeros(len(self.time), 1, dtype=torch.bool))

    def _step(self, tensordict):
        self.time = self.time + 1
        self.level = self.level + torch.arange(1.0, len(self.time) + 1)
        done = (self.time >= self.lengths)[:, None]
        return self._seen(done, reward=torch.ones(len(self.time), 1))

    def _set_seed(self, seed):
        pass


def grey(level: int, *shape: int) -> torch.Tensor:
    """A uint8 image of one level, by default ``[8, 8, 3]``."""
    return torch.full(shape or (8, 8, 3), level, dtype=torch.uint8)


class NativeAutoresetEnv(GreyEnv):
    """Resets itself in ``step``: the frame after a finished episode is the next one's first."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._torchrl_native_autoreset = True

    def _step(self, tensordict):
        out = super()._step(tensordict)
        if out["done"].any():
            out.update(self._reset())
        return out


class Lamp(gymnasium.Env):
    """Brightens by ten levels a step; renders 8 x 8."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}
    action_space = gymnasium.spaces.Discrete(2)
    observation_space = gymnasium.spaces.Box(0, 255, (1,))

    def __init__(self, render_mode="rgb_array"):
        self.render_mode, self.level = render_mode, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.level = 10
        return np.array([10.0], np.float32), {}

    def step(self, action):
        self.level += 10
        return np.array([self.level], np.float32), 1.0, self.level >= 50, False, {}

    def render(self):
        return np.full((8, 8, 3), self.level, np.uint8)


class LampWithFrames(Lamp):
    observation_space = gymnasium.spaces.Dict(
        pixels=gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8)
    )

    def reset(self, **kwargs):
        super().reset(**kwargs)
        return {"pixels": self.render()}, {}

    def step(self, action):
        _, *rest = super().step(action)
        return {"pixels": self.render()}, *rest


# -- rewards that are known -------------------------------------------------------------------------

GAIN = STEP * LEVEL  # reward of a step towards a bright goal
MAKE = [partial(GreyEnv, length=3), partial(GreyEnv, length=5)]


def z_of(level):
    return preprocess(grey(level)).mean().reshape(1)


def reward_env(base=None, encoder=None, **kwargs):
    encoder = CountingEncoder() if encoder is None else encoder
    return TransformedEnv(
        base or GreyEnv(), Compose(VIPTransform(encoder), VIPRewardTransform(**kwargs))
    )


def worker_env(make):
    return reward_env(make(), goal=grey(200))
