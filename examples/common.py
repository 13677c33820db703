"""What the reinforcement-learning examples share: flags, the environment with the reward to learn
from, and the scaling of its inputs. workers.py collects, runs.py evaluates, logs and resumes.

Algorithms are not here: sac.py, drq.py and goal_switching.py each read from top to bottom, and import
this file first.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import types
import typing
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from terminal import fail

# Without it OpenMP's idle threads spin on the cores that the renderer needs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Processes that this one starts say no more than it does itself, at Ctrl-C either.
os.environ.setdefault("RL_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker,ignore:init_random_frames")

import numpy as np
import torch
import torchrl
from tensordict import NestedKey, TensorDict, TensorDictBase
from torchrl.data import Composite, Unbounded
from torchrl.envs import EnvBase, ObservationNorm, Transform, TransformedEnv

from torchrl_vip import VIPRewardTransform, camera_weights
from torchrl_vip.envs import SUITES, load_suite

torchrl.logger.setLevel("WARNING")  # its notes break the progress bar
warnings.filterwarnings("ignore", "The env passed to Collector is missing transforms")

# -- flags ------------------------------------------------------------------------------------------


def arg(default: Any, meaning: str, **options: Any) -> Any:
    """A field of a config that is a flag too; ``options`` go to ``ArgumentParser.add_argument``."""
    return field(default=default, metadata={"help": meaning, **options})


@dataclass(frozen=True)
class Config:
    """Flags of every example."""

    suite: str = arg("metaworld", "suite of torchrl_vip.envs", choices=SUITES)
    task: str = arg("coffee-button-v3", "one of the suite's list_tasks()")
    camera: str | None = arg(None, "camera, or several joined by + (the suite's own)")
    camera_shares: str | None = arg(
        None, "how much each of these cameras counts in the reward, as 1+1+4 (all alike)"
    )
    image_size: int = arg(128, "side of the rendered frames, pixels")
    max_steps: int = arg(100, "simulator steps an episode (all steps here are the simulator's)")
    frame_skip: int = arg(2, "steps that an action is held; only the last one is rendered")
    encoder: str | None = arg(None, "checkpoint's name or folder (the bundled one)")
    blur: float = arg(0.0, "standard deviation of a blur before the encoder, in its pixels")
    reward: str = arg("vip", "what to learn from", choices=("vip", "sparse", "dense", "vip+sparse"))
    seed: int = arg(0, "of networks, exploration and training starts")
    steps: int = arg(50_000, "environment steps in all")
    warmup: int = arg(1_000, "steps of random actions before the first update")
    batch_size: int = arg(256, "transitions an update")
    updates_per_step: float = arg(1.0, "updates per environment step")
    eval_every: int = arg(5_000, "steps between evaluations")
    eval_episodes: int = arg(10, "episodes of an evaluation, their starts never trained on")
    final_episodes: int = arg(50, "episodes of the last evaluation")
    checkpoint_every: int = arg(5_000, "steps between checkpoints")
    processes: int = arg(0, "worker processes that collect; 0 collects in this one")
    collector: str = arg(
        "process", "how workers run, with --processes", choices=("process", "distributed", "ray")
    )
    overlap: bool = arg(False, "with --collector process: collect during the updates")
    threads: int = arg(1, "torch threads of this process")
    out: str = arg("run", "folder of the results")
    resume: bool = arg(False, "continue the run in --out where its last checkpoint stands")
    smoke: bool = arg(False, "a run of seconds, to see that everything works")

    @property
    def cameras(self) -> str | list[str] | None:
        """What the suite's ``make_env`` takes."""
        names = (self.camera or "").split("+")
        return names if len(names) > 1 else self.camera

    @property
    def frame_keys(self) -> list[NestedKey]:
        """Where its environment writes frames."""
        several = isinstance(self.cameras, list)
        return [("pixels", name) for name in self.cameras] if several else ["pixels"]

    @property
    def shares(self) -> torch.Tensor:
        """``[K]``, how much each camera counts in the reward, 1 on average.

        Raises:
            ValueError: other than one positive number for each camera.
        """
        cameras, given = len(self.frame_keys), self.camera_shares
        try:
            shares = [1.0] * cameras if given is None else [float(n) for n in given.split("+")]
        except ValueError:
            shares = []
        if len(shares) != cameras or not all(0 < share < math.inf for share in shares):
            raise ValueError(
                f"--camera-shares {given}: {cameras} positive numbers joined by + are wanted, one for "
                f"each camera of --camera {self.camera}."
            )
        return torch.tensor(shares) * cameras / sum(shares)


# what may change between a run and its continuation
CHANGEABLE = {"steps", "processes", "collector", "overlap", "threads", "compile", "out", "resume"}
CHANGEABLE |= {n for n in Config.__annotations__ if n.startswith(("eval", "final", "checkpoint"))}

# what these numbers may be, in whichever example has them
POSITIVE = (
    "max_steps",
    "frame_skip",
    "steps",
    "batch_size",
    "eval_every",
    "eval_episodes",
    "final_episodes",
    "checkpoint_every",
    "threads",
    "image_size",
    "buffer_size",
    "hidden",
    "updates_per_step",
    "alpha",
    "alpha_lr",
    "lr",
    "tau",
    "n_steps",
    "stack",
    "frame_size",
    "features",
    "noise_steps",
)
NOT_NEGATIVE = ("seed", "warmup", "processes", "blur", "goals", "action_cost", "shift")
SHARES = ("gamma", "average", "her_ratio")


def parse(config: type[Config], description: str, smoke: Mapping[str, Any]) -> Any:
    """Flags to a config. ``smoke``: other defaults with ``--smoke``.

    Every field is a flag: ``updates_per_step: float`` is ``--updates-per-step``.
    """
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    types_of = typing.get_type_hints(config)
    for entry in fields(config):
        options = dict(entry.metadata)
        untold = entry.default is None or entry.default is False
        options["help"] += "" if untold else " (%(default)s)"
        kind = types_of[entry.name]
        if kind is bool:
            options["action"] = "store_true"
        else:
            optional = isinstance(kind, types.UnionType)
            options["type"] = typing.get_args(kind)[0] if optional else kind
        parser.add_argument(f"--{entry.name.replace('_', '-')}", default=entry.default, **options)
    if "--smoke" in sys.argv:
        parser.set_defaults(**smoke)
    cfg = config(**vars(parser.parse_args()))
    if cfg.task not in (tasks := load_suite(cfg.suite).list_tasks()):
        parser.error(f"--task {cfg.task}: --suite {cfg.suite} has {', '.join(tasks)}")
    try:
        cfg.shares  # noqa: B018  reading it is the check
    except ValueError as error:
        parser.error(str(error))
    for names, wanted, fits in (
        (POSITIVE, "more than 0", lambda v: 0 < v < math.inf),
        (NOT_NEGATIVE, "0 or more", lambda v: 0 <= v < math.inf),
        (SHARES, "from 0 to 1", lambda v: 0 <= v <= 1),
    ):
        for name in names:
            value = getattr(cfg, name, None)
            if value is not None and not fits(value):
                parser.error(f"--{name.replace('_', '-')} {value}: wanted {wanted}")
    if len(set(cfg.frame_keys)) < len(cfg.frame_keys):
        parser.error(f"--camera {cfg.camera}: wanted different ones")
    if not cfg.processes and (cfg.overlap or cfg.collector != "process"):
        parser.error("--collector and --overlap are for workers: --processes says how many")
    if cfg.collector == "ray":
        check_ray()
    if cfg.image_size % 2:
        parser.error(f"--image-size {cfg.image_size}: the videos want an even number")
    torch.set_num_threads(cfg.threads)
    torch.manual_seed(cfg.seed)
    return cfg


def check_ray() -> None:
    """End with the install command where Ray cannot be imported."""
    try:
        import ray  # noqa: F401  whether it loads is the question
    except ImportError as error:
        fail(f'--collector ray: Ray cannot be imported ({error}): pip install "torchrl-vip[ray]"')


# -- environment ------------------------------------------------------------------------------------

# Factors that bring each reward to the order of .1 to 1 a step. VIP's with scale="auto" adds up to about
# 1 on the way to the episode's own end, and to less for a goal image of another episode; the suites'
# dense rewards are up to 10 a step.
REWARD_SCALES = {"vip": 10.0, "sparse": 1.0, "dense": 0.1}

EVALUATION_SEED = 2**40  # and following ones; training starts from smaller ones


def training_seed(cfg: Config, worker: int, step: int) -> int:
    """A seed of starts for each worker, and another one after ``--resume``."""
    return ((cfg.seed * 1_000 + worker) << 20) + step // cfg.max_steps


class TrainingReward(Transform):
    """The reward to learn from as "reward" ``[*B, 1]``; the environment's own as "dense_reward".

    Stands behind a ``VIPRewardTransform(mode="keep")`` as :func:`vip_reward` makes it. "sparse" is 1 where
    "success".

    Args:
        choice: names in REWARD_SCALES, joined by "+": their weighted sum.
        action_cost: what is taken off for an action of full size, in proportion to its mean square.
    """

    def __init__(self, choice: str, action_cost: float = 0.0) -> None:
        super().__init__(in_keys=["reward", "vip_reward"], out_keys=["reward", "dense_reward"])
        self.choice, self.action_cost = choice, action_cost

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        dense = next_tensordict["reward"]
        terms = {
            "vip": next_tensordict["vip_reward"],
            "sparse": next_tensordict["success"].to(dense.dtype),
            "dense": dense,
        }
        reward = sum(REWARD_SCALES[name] * terms[name] for name in self.choice.split("+"))
        if self.action_cost:
            effort = tensordict["action"].square().mean(-1, keepdim=True)
            reward = reward - self.action_cost * effort
        return next_tensordict.update({"reward": reward, "dense_reward": dense})

    def transform_reward_spec(self, reward_spec: Composite) -> Composite:
        reward_spec = reward_spec.clone()
        own = reward_spec["reward"]
        reward_spec["dense_reward"] = own.clone()
        reward_spec["reward"] = Unbounded(own.shape, device=own.device, dtype=own.dtype)
        return reward_spec


def vip_reward(
    cfg: Config, statistics: TensorDict | None, goal: list[np.ndarray | dict] | None = None
) -> VIPRewardTransform:
    """The "vip_reward" ``[*B, 1]``. It adds up to about 1 from an episode's start to its own solved state
    (--goals 0), and to less for a goal image of another episode. Of several cameras each has its share in
    that, by :func:`input_statistics`."""
    if statistics is None or len(cfg.frame_keys) == 1:
        return VIPRewardTransform(goal=goal, mode="keep", scale="auto")
    weights = statistics["camera_weights"]
    return VIPRewardTransform(goal=goal, mode="keep", scale=1.0, weights=weights)


def suite_env(cfg: Config, seed: int, *, goal: str | None) -> EnvBase:
    """The task as its suite makes it; ``goal`` is None, or "solved" for each start's own."""
    return load_suite(cfg.suite).make_env(
        cfg.task,
        cameras=cfg.cameras,
        image_size=cfg.image_size,
        goal=goal,
        max_steps=cfg.max_steps,
        frame_skip=cfg.frame_skip,
        seed=seed,
    )


def goal_images(cfg: Config, count: int) -> list[np.ndarray | dict]:
    """The task solved in ``count`` other episodes, uint8 ``[H, W, 3]`` each, or by camera."""
    draw = partial(load_suite(cfg.suite).goal_image, cfg.task, image_size=cfg.image_size)
    seeds = [1_000 * (1 + i) for i in range(count)]  # as a script that fails tries the following
    if not isinstance(cfg.cameras, list):
        return [draw(camera=cfg.camera, seed=seed) for seed in seeds]
    return [{key: draw(camera=key[1], seed=seed) for key in cfg.frame_keys} for seed in seeds]


def input_statistics(make: Callable[[int], EnvBase], cfg: Config) -> TensorDict:
    """Mean and scale of "vip_vec" and "state" over random steps, for :func:`scaled_inputs`, and
    "camera_weights" ``[K]`` of the cameras in "vip_vec", from where episodes begin, their
    "goal_embedding" and ``cfg.shares``. ``make``: a seed to an environment."""
    env, cameras = make(EVALUATION_SEED - 1), len(cfg.frame_keys)
    seen = env.rollout(3 * cfg.max_steps, break_when_any_done=False)
    env.close()
    z, state = seen["vip_vec"], seen["state"]
    weights = torch.ones(1)
    if cameras > 1:
        begins = torch.ones(len(seen), dtype=torch.bool)
        begins[1:] = seen["next", "done"][:-1, 0]
        weights = camera_weights(z[begins], seen["goal_embedding"][begins], cameras)
    # One scale for all of an embedding: distances keep their proportions, and the directions in
    # which random actions change little are not blown up. Its many numbers weigh as much together
    # as the few of the state, else these drown. Cameras weigh alike, each by the way to its goal: one
    # that sees no robot changes little at random, and shows what counts.
    spread = z.std(0).square().sum().sqrt() / state.shape[-1] ** 0.5
    share = (1 / weights) / (1 / weights).square().mean().sqrt()
    return TensorDict(
        z_loc=z.mean(0),
        z_scale=spread * share.repeat_interleave(z.shape[-1] // cameras),
        camera_weights=weights * cfg.shares,
        state_loc=state.mean(0),
        state_scale=state.std(0).clamp_min(1e-2),
    )


def scaled_inputs(env: TransformedEnv, statistics: TensorDict, *goals: str) -> TransformedEnv:
    """Append what the networks read: "z" and "s", centred "vip_vec" and "state" of order 1.

    Raw embeddings share a mean that is far larger than what tells two frames of a task apart.
    ``goals``: "goal_embedding" comes out as "z_goal".
    """
    loc, scale = statistics["z_loc"], statistics["z_scale"]
    in_keys, out_keys = ["vip_vec", *goals], ["z", *["z_goal"] * len(goals)]
    env.append_transform(ObservationNorm(loc, scale, in_keys, out_keys, standard_normal=True))
    loc, scale = statistics["state_loc"], statistics["state_scale"]
    env.append_transform(ObservationNorm(loc, scale, ["state"], ["s"], standard_normal=True))
    return env
