"""Any gymnasium or dm_control environment by its name, with the keys of the suites.

Shapes: pixels uint8 [H, W, 3]; state float32 [S] = the environment's observations, flattened and
joined in the order of their names; action, reward and done as the environment has them. There is no
"success" and no goal image: these environments know none.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
from torchrl.envs import (
    CatTensors,
    Compose,
    DMControlWrapper,
    DTypeCastTransform,
    EnvBase,
    FlattenObservation,
    GymEnv,
    ParallelEnv,
    StepCounter,
    TransformedEnv,
    UnsqueezeTransform,
)

from torchrl_vip.envs.simulator import close_at_exit  # its import picks a MUJOCO_GL that works


def list_tasks() -> list[str]:
    """``"cheetah-run"``, ... of dm_control and ``"Ant-v5"``, ... of gymnasium, as far as installed."""
    names: list[str] = []
    try:
        import gymnasium

        names += [name for name in gymnasium.registry if "/" not in name]
    except ImportError:
        pass
    return sorted([*names, *("-".join(task) for task in _dm_control_tasks())])


def make_env(
    task: str,
    *,
    cameras: str | int | None = None,
    image_size: int | None = None,
    num_envs: int = 1,
    seed: int | None = None,
    device: Any = "cpu",
    max_steps: int | None = None,
) -> EnvBase:
    """An environment that renders.

    Args:
        task: ``"domain-task"`` of dm_control, or an id of gymnasium.
        cameras: a camera of the model (MuJoCo environments); None is the environment's own view.
        image_size: H and W in pixels (MuJoCo environments); None is 128 in dm_control and in
            gymnasium the environment's own.
        num_envs: more than one gives a ParallelEnv with seed, seed + 1, ...
        max_steps: an episode is truncated then, beside the environment's own limit.

    Raises:
        ValueError: no such environment; a camera or size that cannot be.

    Example:
        >>> env = make_env("cheetah-run", seed=0)  # doctest: +SKIP
        >>> env.rollout(3)["next", "pixels"].shape  # doctest: +SKIP
        torch.Size([3, 128, 128, 3])
    """
    if not isinstance(cameras, str | int | None):
        raise ValueError(f"cameras is {cameras!r}; wanted one camera's name or number")
    if image_size is not None and (type(image_size) is not int or image_size < 1):
        raise ValueError(
            f"image_size is {image_size!r}; wanted a whole number of pixels, 1 or more"
        )
    if num_envs < 1:
        raise ValueError(f"num_envs is {num_envs}; wanted 1 or more")
    make = partial(_make_one, task, cameras, image_size, device, max_steps)
    if num_envs == 1:
        return make(seed)
    seeds = [None if seed is None else seed + i for i in range(num_envs)]
    return ParallelEnv(num_envs, [partial(make, s) for s in seeds])


def _make_one(
    task: str,
    camera: str | int | None,
    image_size: int | None,
    device: Any,
    max_steps: int | None,
    seed: int | None,
) -> EnvBase:
    domain, _, name = task.partition("-")
    if (domain, name) in _dm_control_tasks():
        side = image_size or 128
        render = {"height": side, "width": side, "camera_id": 0 if camera is None else camera}
        from dm_control import suite

        # DMControlEnv hands render_kwargs to the task; its wrapper does not
        env = DMControlWrapper(
            suite.load(domain, name, task_kwargs={"random": seed}),
            from_pixels=True,
            pixels_only=False,
            render_kwargs=render,
            device=device,
        )
    else:
        env = _gym(task, camera, image_size, device)
    # of the observations some are scalars and some matrices
    seen = {k: len(s.shape) for k, s in env.observation_spec.items() if k != "pixels"}
    scalars = [key for key, rank in seen.items() if rank == 0]
    steps = [
        *([UnsqueezeTransform(-1, in_keys=scalars)] if scalars else []),
        *(FlattenObservation(-rank, -1, [key]) for key, rank in seen.items() if rank > 1),
        DTypeCastTransform(torch.float64, torch.float32, in_keys=list(seen)),
        CatTensors(sorted(seen), "state"),
        *([] if max_steps is None else [StepCounter(max_steps)]),
    ]
    env = TransformedEnv(env, Compose(*steps))
    if seed is not None:
        env.set_seed(seed)
    return env


def _gym(task: str, camera: str | int | None, image_size: int | None, device: Any) -> EnvBase:
    import gymnasium

    options: dict[str, Any] = {}
    if image_size is not None:
        options |= {"width": image_size, "height": image_size}
    if camera is not None:
        options["camera_name" if isinstance(camera, str) else "camera_id"] = camera
    try:
        env = GymEnv(task, from_pixels=True, pixels_only=False, device=device, **options)
        _mend(env._env.unwrapped, camera)
        return env
    except gymnasium.error.UnregisteredEnv as error:
        raise ValueError(
            f"unknown environment {task!r}: no task of dm_control, and gymnasium says: {error}"
            " See torchrl_vip.envs.named.list_tasks()."
        ) from error
    except TypeError as error:
        raise ValueError(
            f"{task!r} takes no camera and draws frames of its own size only ({error}): leave "
            "cameras= and image_size= out; VIPTransform takes any size"
        ) from error


def _mend(env: Any, camera: str | int | None) -> None:
    """Has gymnasium's MuJoCo environment draw in a GL context of its own, see _own_context, and points its
    free camera at the first state of the model, not at whatever state it was first used in: else no
    seed repeats a picture."""
    drawn = getattr(env, "mujoco_renderer", None)
    if drawn is None:
        return
    if drawn.viewer is not None:
        drawn.viewer.__class__ = _own_context(type(drawn.viewer))
        close_at_exit(drawn)
    names = [env.model.camera(i).name for i in range(env.model.ncam)]
    if isinstance(camera, str) and camera not in names:
        raise ValueError(f"unknown camera {camera!r}; choose from {names}")
    if drawn.viewer is not None and camera is None:
        env.set_state(env.init_qpos, env.init_qvel)
        drawn.viewer._init_camera()
        drawn._set_cam_config()


@cache
def _own_context(viewer: type) -> type:
    """The viewer that draws, and is freed, in its own GL context. Gymnasium's uses whichever is current:
    of two environments in a process one shows the other, and one that is freed, be it by the garbage
    collector, blackens another (https://github.com/Farama-Foundation/Gymnasium/issues/736)."""

    class OwnContext(viewer):  # type: ignore[misc, valid-type]
        def render(self, *args: Any, **kwargs: Any) -> Any:
            self.make_context_current()
            return super().render(*args, **kwargs)

        def free(self) -> None:
            if self.con is not None:
                self.make_context_current()
                self.con.free()
                self.con = None
                super().free()

    return OwnContext


def _dm_control_tasks() -> tuple[tuple[str, str], ...]:
    try:
        from dm_control.suite import ALL_TASKS
    except ImportError:
        return ()
    return tuple(ALL_TASKS)
