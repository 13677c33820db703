"""TorchRL environments and goal images of a :class:`~torchrl_vip.envs.simulator.Simulator`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, update_wrapper
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Binary, Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase, ParallelEnv

from torchrl_vip.envs.looks import Randomization
from torchrl_vip.envs.simulator import Simulator


class SimulatorEnv(EnvBase):
    """TorchRL face of a :class:`Simulator`; every reset draws objects, target and looks.

    Args: see :func:`make_env`.
    """

    _has_frame_skip = True  # else TorchRL would add a transform that renders every skipped step

    def __init__(
        self,
        sim: Simulator,
        *,
        max_steps: int,
        frame_skip: int = 1,
        cameras: Sequence[str] | None = None,
        goal: np.ndarray | str | None = None,
        seed: int | None = None,
        randomize: Randomization | None = None,
        robot_mask: bool = False,
        device: Any = "cpu",
    ) -> None:
        super().__init__(device=device, batch_size=torch.Size([]))
        if frame_skip < 1:
            raise ValueError(f"frame_skip is {frame_skip}; wanted a positive number of steps")
        self.sim, self.max_steps, self.randomize = sim, max_steps, randomize
        self.frame_skip = frame_skip
        self.cameras, self.goal, self.robot_mask = cameras, goal, robot_mask
        frame = Bounded(0, 255, (sim.image_size, sim.image_size, 3), dtype=torch.uint8)
        self.observation_spec = Composite(
            pixels=frame if cameras is None else Composite(dict.fromkeys(cameras, frame)),
            state=Unbounded((sim.STATE_SIZE,)),
            full_state=Unbounded((sim.FULL_STATE_SIZE,)),
            success=Binary(1, dtype=torch.bool),
        )
        if robot_mask:
            mask = Categorical(2, (sim.image_size, sim.image_size), dtype=torch.bool)
            several_masks = Composite(dict.fromkeys(cameras or (), mask))
            self.observation_spec["robot_mask"] = mask if cameras is None else several_masks
        if goal is not None:
            several = () if cameras is None else (len(cameras),)
            shape = (*several, *frame.shape) if isinstance(goal, str) else goal.shape
            self.observation_spec["goal_image"] = Bounded(0, 255, shape, dtype=torch.uint8)
        self.action_spec = Bounded(-1.0, 1.0, (sim.ACTION_SIZE,))
        self.reward_spec = Unbounded((1,))
        self.done_spec = Composite(
            {name: Binary(1, dtype=torch.bool) for name in ("done", "terminated", "truncated")}
        )
        self.to(device)
        self._set_seed(seed)

    def _set_seed(self, seed: int | None) -> None:
        self._rng = np.random.default_rng(seed)

    def _observe(self, success: bool) -> dict[str, Any]:
        seen = {
            "pixels": self._of_cameras(self.sim.render),
            "state": torch.from_numpy(self.sim.state().copy()),
            "full_state": torch.from_numpy(self.sim.full_state.copy()),
            "success": torch.tensor([success]),
        }
        if self.robot_mask:
            seen["robot_mask"] = self._of_cameras(self.sim.robot_mask)
        return seen if self.goal is None else {**seen, "goal_image": self._goal_image.clone()}

    def _of_cameras(self, draw: Callable[..., np.ndarray]) -> Any:
        """What ``draw`` makes of the one camera, or a dict of what it makes of each of several."""
        if self.cameras is None:
            return torch.from_numpy(draw().copy())
        return {name: torch.from_numpy(draw(name).copy()) for name in self.cameras}

    def _done(self, truncated: bool) -> dict[str, torch.Tensor]:
        flag = torch.tensor([truncated])
        return {"done": flag, "truncated": flag.clone(), "terminated": torch.tensor([False])}

    def _reset(self, tensordict: TensorDictBase | None = None, **_: Any) -> TensorDictBase:
        self._steps = 0
        start = self._draw()
        if self.randomize is not None:
            self.sim.randomize(self.randomize, self._draw())
        if self.goal is not None:
            start, goal = (
                self._solvable(start) if isinstance(self.goal, str) else (start, self.goal)
            )
            self._goal_image = torch.from_numpy(goal)
        self.sim.reset(start)
        return TensorDict({**self._observe(False), **self._done(False)}, [], device=self.device)

    def _draw(self) -> int:
        return int(self._rng.integers(2**31))

    def _solvable(self, start: int) -> tuple[int, np.ndarray]:
        for attempt in range(20):
            frame = self.sim.solved_frame(start, attempt, self.cameras)
            if frame is not None:
                return start, frame
            start = self._draw()
        raise RuntimeError(f"{self.sim.task!r} was not solved from any of 20 starts")

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action, reward = tensordict["action"].cpu().numpy(), 0.0
        if not np.isfinite(action).all():  # MuJoCo would reset in mid-episode and only log it
            raise ValueError(f"the action is {action.tolist()}; wanted finite numbers")
        for _ in range(self.frame_skip):
            _, own_reward, success = self.sim.step(action)
            reward += own_reward
        self._steps += self.frame_skip
        values = {"reward": torch.tensor([reward]), **self._done(self._steps >= self.max_steps)}
        return TensorDict({**self._observe(success), **values}, [], device=self.device)

    def close(self, *args: Any, **kwargs: Any) -> None:
        """Frees the rendering context."""
        self.sim.close()  # whatever is_closed says: EnvBase begins with True and never resets it
        super().close(*args, **kwargs)


def make_env(
    simulator: type[Simulator],
    task: str,
    *,
    cameras: str | Sequence[str] | None = None,
    image_size: int = 128,
    goal: np.ndarray | str | None = None,
    num_envs: int = 1,
    seed: int | None = None,
    device: Any = "cpu",
    max_steps: int | None = None,
    frame_skip: int = 1,
    render: str = "fast",
    randomize: Randomization | bool | None = None,
    robot_mask: bool = False,
) -> EnvBase:
    """A task with pixels, state, full_state, the task's own dense reward, and success.

    Each reset places objects and target anew (reproducible by ``seed``). An episode is truncated
    after ``max_steps``; success does not end it. What the tensors hold stands at the top of the
    suite's file.

    Args:
        simulator: of the suite; its ``make_env`` has it filled in.
        task: one of the suite's ``list_tasks()``.
        cameras: a name (None: the suite's default), whose frames are "pixels" uint8 [H, W, 3]; or a
            list of names, each with its frames under ("pixels", name). ``"/no-robot"`` behind a name
            leaves the robot out, see :class:`Simulator`.
        image_size: H and W in pixels.
        goal: an image, uint8 [H, W, 3], or with a list of cameras one of each, [K, H, W, 3]; or
            ``"solved"`` for this very start's solved state, which costs a scripted episode without
            rendering a reset (in the kitchen the end of one of its shipped demonstrations): every reset
            then writes "goal_image", which a VIPRewardTransform takes up.
        num_envs: more than one gives a ParallelEnv whose workers use seed, seed + 1, ...
        seed: of starts and looks.
        device: of the tensors; physics and rendering stay on the CPU (or EGL's device).
        max_steps: of an episode, in the simulator's steps; None is the suite's
            ``SIMULATOR.MAX_STEPS``.
        frame_skip: steps that an action is held. Only the last one is rendered, the task's own
            rewards are summed.
        render: ``"fast"`` or ``"faithful"``, see :class:`Simulator`.
        randomize: True or a :class:`Randomization` also draws camera, colours, lights and textures
            at every reset.
        robot_mask: True also writes "robot_mask", bool [H, W], or ("robot_mask", name) of several
            cameras: where the robot is in the frame, for :class:`torchrl_vip.MaskRobot`. It renders once
            more.

    Raises:
        ValueError: an unknown task, camera, goal or way to render; ``randomize`` with several cameras; a
            size or number below 1; ``robot_mask`` where the suite knows no robot. A step raises it for an
            action that is not finite.

    Example:
        >>> env = make_env(MetaWorldSim, "drawer-open-v3", seed=0)  # doctest: +SKIP
        >>> env.rollout(3)["next", "pixels"].shape  # doctest: +SKIP
        torch.Size([3, 128, 128, 3])
    """
    several = None if cameras is None or isinstance(cameras, str) else list(cameras)
    _check(several, goal, randomize, num_envs=num_envs, max_steps=max_steps)
    make = partial(
        _make_one,
        partial(
            simulator,
            task,
            camera=several[0] if several else cameras,
            image_size=image_size,
            render=render,
        ),
        randomize,
        max_steps=max_steps or simulator.MAX_STEPS,
        frame_skip=frame_skip,
        cameras=several,
        goal=goal if goal is None or isinstance(goal, str) else _image(goal, several),
        robot_mask=robot_mask,
        device=device,
    )
    if num_envs == 1:
        return make(seed=seed)
    seeds = [None if seed is None else seed + i for i in range(num_envs)]
    return ParallelEnv(num_envs, [partial(make, seed=s) for s in seeds])


def _check(
    cameras: list[str] | None,
    goal: np.ndarray | str | None,
    randomize: Randomization | bool | None,
    **counts: int | None,
) -> None:
    """Raise ValueError for settings that :func:`make_env` cannot have."""
    if isinstance(goal, str) and goal != "solved":
        raise ValueError(f"goal is {goal!r}; wanted an image [H, W, 3] or 'solved'")
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; wanted 1 or more")
    if cameras is not None and (not cameras or len(set(cameras)) < len(cameras)):
        raise ValueError(f"cameras are {cameras}; wanted a name, or different ones in a list")
    if cameras is not None and randomize:
        raise ValueError("randomize= moves the one camera; several were given")


def _make_one(
    make_sim: Callable[[], Simulator], randomize: Randomization | bool | None, **settings: Any
) -> SimulatorEnv:
    sim = make_sim()
    for name in settings["cameras"] or ():
        sim.render(name)  # an unknown one is an error now, and not at the first reset
    if settings["robot_mask"]:
        sim.robot_mask()
    if isinstance(randomize, bool):
        randomize = sim.WIDE if randomize else None
    return SimulatorEnv(sim, randomize=randomize, **settings)


def _image(goal: Any, cameras: Sequence[str] | None) -> np.ndarray:
    image = np.asarray(goal)
    count = () if cameras is None else (len(cameras),)
    lead, size = image.shape[:-3], image.shape[-3:]
    if image.dtype != np.uint8 or len(size) != 3 or size[-1] != 3 or lead != count:
        wanted = "[H, W, 3]" if cameras is None else f"[{len(cameras)}, H, W, 3] (one a camera)"
        raise ValueError(
            f"goal of shape {image.shape}, {image.dtype}; wanted an image, uint8 {wanted}"
        )
    return image.copy()


def goal_image(
    simulator: type[Simulator],
    task: str,
    *,
    camera: str | None = None,
    seed: int = 0,
    image_size: int = 128,
    render: str = "fast",
) -> np.ndarray:
    """The task solved, uint8 [H, W, 3]: the last frame of a script's episode from ``seed``, or of one of the
    kitchen's demonstrations; else the start with all things put where they are wanted.

    Args: as of :func:`make_env`.

    Raises:
        NotImplementedError: the task has no script, no stored demonstration and no known solved state.
        RuntimeError: the script failed from 20 consecutive seeds.
    """
    sim = simulator(task, camera=camera, image_size=image_size, render=render)
    try:
        for attempt in range(20):
            if (frame := sim.solved_frame(seed + attempt, attempt)) is not None:
                return frame
    finally:
        sim.close()
    raise RuntimeError(f"the scripted policy did not solve {task!r} from 20 seeds")


def for_suite(function: Callable, simulator: type[Simulator]) -> Callable:
    """:func:`make_env` or :func:`goal_image` with its first argument filled in."""
    filled = update_wrapper(partial(function, simulator), function)
    del filled.__wrapped__  # else help() and inspect.signature show the first argument
    return filled
