"""Any gymnasium or dm_control environment by its name, with the keys of the suites.

Shapes: pixels uint8 [H, W, 3]; state float32 [S] = the environment's observations, flattened and
joined in the order of their names (in gymnasium a discrete one is one-hot, an image its pixels);
action, reward and done as the environment has them. There is no "success", no goal image and no saved
state: nothing tells these of every environment.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from typing import Any

import gymnasium
import torch
from gymnasium.envs.registration import EnvSpec
from torchrl.envs import (
    CatTensors,
    Compose,
    DMControlWrapper,
    DTypeCastTransform,
    EnvBase,
    FlattenObservation,
    GymWrapper,
    ParallelEnv,
    StepCounter,
    Transform,
    TransformedEnv,
    UnsqueezeTransform,
)

from torchrl_vip.envs.gymnasium_env import (
    REGISTERS,
    blame_arguments,
    camera_number,
    find_spec,
    open_env,
    register,
)


def list_tasks() -> list[str]:
    """``"cheetah-run"``, ... of dm_control and ``"Ant-v5"``, ... of gymnasium, as far as installed. Not all
    that gymnasium has registered can be opened: docs/suites.md tells which."""
    for module in REGISTERS:
        register(module)
    return _names()


def make_env(
    task: str,
    *,
    cameras: str | int | None = None,
    image_size: int | None = None,
    num_envs: int = 1,
    seed: int | None = None,
    device: Any = "cpu",
    max_steps: int | None = None,
    **kwargs: Any,
) -> EnvBase:
    """An environment that renders.

    Args:
        task: ``"domain-task"`` of dm_control, or an id of gymnasium, also as ``"module:Env-v0"``.
        cameras: a camera of the model (MuJoCo environments); None is the environment's own view.
        image_size: H and W in pixels (MuJoCo environments); None is 128 in dm_control and in
            gymnasium the environment's own.
        num_envs: more than one gives a ParallelEnv with seed, seed + 1, ...
        seed: of the episodes, and given to the constructor where that takes one.
        max_steps: an episode is truncated then, beside the environment's own limit.
        **kwargs: further arguments of gymnasium's environment, or of dm_control's ``suite.load``.

    Raises:
        ValueError: no such environment; arguments that it lacks or does not take; a camera or size that
            cannot be; no frames; observations without a fixed size; actions that TorchRL lacks.
        gymnasium.error.DependencyNotInstalled: it needs a package, and the message says which.

    Example:
        >>> env = make_env("cheetah-run", seed=0)  # doctest: +SKIP
        >>> env.rollout(3)["next", "pixels"].shape  # doctest: +SKIP
        torch.Size([3, 128, 128, 3])
        >>> env = make_env("Meta-World/MT1", env_name="reach-v3", image_size=128)  # doctest: +SKIP
    """
    if not isinstance(cameras, str | int | None):
        raise ValueError(f"cameras is {cameras!r}; wanted one camera's name or number")
    if image_size is not None and (type(image_size) is not int or image_size < 1):
        raise ValueError(
            f"image_size is {image_size!r}; wanted a whole number of pixels, 1 or more"
        )
    if num_envs < 1:
        raise ValueError(f"num_envs is {num_envs}; wanted 1 or more")
    if tuple(task.split("-", 1)) in _dm_control_tasks():
        opened = partial(_dm_control, task, cameras, image_size or 128, device, kwargs)
    else:
        spec = find_spec(task)  # here, as a worker process has not registered what this one has
        if spec is None:
            raise ValueError(_unknown(task))
        opened = partial(_gymnasium, spec, cameras, image_size, device, kwargs)
    make = partial(_make_one, opened, max_steps)
    if num_envs == 1:
        return make(seed)
    seeds = [None if seed is None else seed + i for i in range(num_envs)]
    return ParallelEnv(num_envs, [partial(make, s) for s in seeds])


def _make_one(
    opened: Callable[[int | None], tuple[EnvBase, list[Transform]]],
    max_steps: int | None,
    seed: int | None,
) -> EnvBase:
    env, flat = opened(seed)
    limit = [] if max_steps is None else [StepCounter(max_steps)]
    env = TransformedEnv(env, Compose(*flat, *limit))
    if seed is not None:
        env.set_seed(seed)
    return env


def _gymnasium(
    spec: EnvSpec,
    camera: str | int | None,
    image_size: int | None,
    device: Any,
    kwargs: dict[str, Any],
    seed: int | None,
) -> tuple[EnvBase, list[Transform]]:
    """The environment, and the transforms that make its observations one "state"."""
    env = GymWrapper(open_env(spec, camera, image_size, kwargs, seed), device=device)
    return env, [CatTensors(["observation"], "state")]


def _dm_control(
    task: str,
    camera: str | int | None,
    side: int,
    device: Any,
    kwargs: dict[str, Any],
    seed: int | None,
) -> tuple[EnvBase, list[Transform]]:
    """The environment, and the transforms that make its observations one "state"."""
    from dm_control import suite

    task_kwargs = {"random": seed, **(kwargs.get("task_kwargs") or {})}
    try:
        loaded = suite.load(*task.split("-", 1), **{**kwargs, "task_kwargs": task_kwargs})
    except TypeError as error:
        raise ValueError(blame_arguments(task, error)) from error
    model = loaded.physics.model
    names = [model.id2name(i, "camera") for i in range(model.ncam)]
    number = 0 if camera is None else camera_number(camera, names)
    # DMControlEnv hands render_kwargs to the task; its wrapper does not
    env = DMControlWrapper(
        loaded,
        from_pixels=True,
        pixels_only=False,
        render_kwargs={"height": side, "width": side, "camera_id": number},
        device=device,
    )
    # of the observations some are scalars and some matrices
    seen = {k: len(s.shape) for k, s in env.observation_spec.items() if k != "pixels"}
    scalars = [key for key, rank in seen.items() if rank == 0]
    return env, [
        *([UnsqueezeTransform(-1, in_keys=scalars)] if scalars else []),
        *(FlattenObservation(-rank, -1, [key]) for key, rank in seen.items() if rank > 1),
        DTypeCastTransform(torch.float64, torch.float32, in_keys=list(seen)),
        CatTensors(sorted(seen), "state"),
    ]


def _dm_control_tasks() -> tuple[tuple[str, str], ...]:
    try:
        from dm_control.suite import ALL_TASKS
    except ImportError:
        return ()
    return tuple(ALL_TASKS)


def _names() -> list[str]:
    return sorted([*gymnasium.registry, *("-".join(task) for task in _dm_control_tasks())])


def _unknown(task: str) -> str:
    names = {name.rpartition("/")[2].lower(): name for name in _names()}
    wanted = task.rpartition(":")[2].rpartition("/")[2].lower()
    nearest = [names[name] for name in get_close_matches(wanted, names, cutoff=0.5)]
    installed = "" if _dm_control_tasks() else ' (not installed: pip install "torchrl-vip[dm]")'
    return (
        f"unknown environment {task!r}: no task of dm_control{installed}, and no id of gymnasium. "
        + (f"The nearest are {', '.join(map(repr, nearest))}. " if nearest else "")
        + "See torchrl_vip.envs.named.list_tasks(); 'module:Env-v0' imports the module that registers Env-v0."
    )
