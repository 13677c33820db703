"""A MuJoCo task with fast software rendering and changeable looks, and its TorchRL face.

Each suite's file has a subclass of :class:`Simulator`; all else (rendering, looks, episodes,
environments, goal images) is here.
"""

from __future__ import annotations

import atexit
import importlib
import os
import sys
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial, update_wrapper
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase

# torchrl comes before the first rendering context: the other order crashes the interpreter.
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import EnvBase, ParallelEnv

if sys.platform == "linux" and not {"MUJOCO_GL", "DISPLAY"} & os.environ.keys():
    # without a display only EGL or OSMesa can draw
    os.environ["MUJOCO_GL"] = "egl"
    if "mujoco" in sys.modules:  # it has chosen by now: again
        import mujoco.gl_context

        importlib.reload(mujoco.gl_context)

try:
    import mujoco  # noqa: E402
except ImportError as error:
    raise ImportError(
        'The suites need MuJoCo: pip install "torchrl-vip[metaworld]" (or robotics, dm)'
    ) from error

from torchrl_vip.envs.looks import Distractor, Looks, Randomization  # noqa: E402
from torchrl_vip.envs.meshes import simplify_meshes  # noqa: E402

_STATE = int(mujoco.mjtState.mjSTATE_INTEGRATION)
WITHOUT_ROBOT = "/no-robot"
"""Behind a camera's name: what it sees with the robot left out of the picture."""
REST = 20  # steps of standing still that a solved state must outlast to be a goal
Act = Callable[[np.ndarray, int], np.ndarray]
"""``act(full_state, t) -> action``."""


class Simulator(ABC):
    """One task's physics and its renderer; no TorchRL inside.

    A subclass calls :meth:`bind` when it has a model, and keeps ``full_state`` up to date.

    Attributes:
        task: its name.
        model, data: MuJoCo's.
        full_state: float32 ``[F]``, what the scripted policies read.

    Args:
        task: a name of the suite.
        camera: a camera of the model, or one of VIEWS; None is CAMERA. With "/no-robot" behind its
            name (``"corner4/no-robot"``) it sees the scene without the robot: what a goal image taken
            by a person shows, and what the robot's own pose cannot make look solved.
        image_size: height and width in pixels.
        render: ``"fast"`` drops shadows, reflections, multisampling and, with MESH_CELL, details of
            large meshes (a small fraction of the time in software), ``"faithful"`` keeps the model as
            shipped.

    Raises:
        ValueError: an unknown camera or way to render; "/no-robot" where the suite has no ROBOT.
    """

    ROBOT: ClassVar[str] = ""  # a body of the robot; none: it cannot be left out of pictures
    CAMERA: ClassVar[str]  # by default
    MAX_STEPS: ClassVar[int]  # of an episode, by default
    WIDE: ClassVar[Randomization]  # looks to train on
    MILD: ClassVar[Randomization]  # looks to evaluate on
    SURFACES: ClassVar[tuple[str, ...]] = ()  # textures that may be repainted
    # views beside the model's cameras: name -> lookat (m), azimuth, elevation (deg), distance (m)
    VIEWS: ClassVar[dict[str, tuple[tuple[float, float, float], float, float, float]]] = {}
    MESH_CELL: ClassVar[float] = 0.0  # m: details of large meshes that "fast" drops
    ACTION_SIZE: ClassVar[int]
    STATE_SIZE: ClassVar[int]
    FULL_STATE_SIZE: ClassVar[int]

    def __init__(
        self, task: str, *, camera: str | None = None, image_size: int = 128, render: str = "fast"
    ) -> None:
        if render not in ("fast", "faithful"):
            raise ValueError(f"render is {render!r}; choose 'fast' or 'faithful'")
        self.task, self.image_size, self.fast = task, image_size, render == "fast"
        self.default_camera = self.camera = self.find_camera(camera or self.CAMERA)
        self._with_robot = self._shows_robot(camera or self.CAMERA)
        self.model = self.data = self._renderer = None
        self._drawn: tuple[Randomization | None, int] = (None, 0)
        self.distractors: list[Distractor] = []
        self.full_state = np.zeros(self.FULL_STATE_SIZE, np.float32)

    def bind(self, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        """Draw this model from now on; suites that compile theirs at every reset call it again."""
        if model is self.model:
            self.data = data
            return
        first = self._renderer is None
        if not first:
            self._renderer.close()
        self.model, self.data = model, data
        self._check_camera(self.default_camera)
        self._robot_parts = self._parts_of_robot()
        visual = model.vis
        visual.global_.offwidth = max(visual.global_.offwidth, self.image_size)
        visual.global_.offheight = max(visual.global_.offheight, self.image_size)
        if self.fast:
            visual.quality.offsamples = visual.quality.shadowsize = 0
            if self.MESH_CELL:
                simplify_meshes(model, self.MESH_CELL)
        self._renderer = mujoco.Renderer(model, self.image_size, self.image_size)
        if first:
            # A context freed after the driver has shut down prints a traceback at exit. Hooks run
            # last registered first; a driver's own comes with a suite's import or the first renderer.
            _open.add(self)
            atexit.unregister(_close_all)
            atexit.register(_close_all)
        if self.fast:
            flag = mujoco.mjtRndFlag
            for name in (flag.mjRND_SHADOW, flag.mjRND_REFLECTION):
                self._renderer.scene.flags[name] = 0
        self._looks = Looks(model, self.SURFACES)
        if self._drawn[0] is not None:
            self.randomize(*self._drawn)

    def find_camera(self, name: str) -> str | mujoco.MjvCamera:
        """The camera of the model, or the one of VIEWS, with this name, less "/no-robot"."""
        name = name.removesuffix(WITHOUT_ROBOT)
        return _free_camera(*self.VIEWS[name]) if name in self.VIEWS else name

    def _check_camera(self, camera: str | mujoco.MjvCamera) -> None:
        names = [*self.VIEWS, *(self.model.cam(i).name for i in range(self.model.ncam))]
        if isinstance(camera, str) and camera not in names:
            raise ValueError(f"unknown camera {camera!r}; choose from {names}")

    def _shows_robot(self, camera: str) -> bool:
        hidden = camera.endswith(WITHOUT_ROBOT)
        if hidden and not self.ROBOT:
            raise ValueError(
                f"camera {camera!r}: {type(self).__name__} knows no robot to leave out"
            )
        return not hidden

    def _parts_of_robot(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Colours of geoms and of sites, each with the rows of those that the robot carries."""
        if not self.ROBOT:
            return []
        model, root = self.model, self.model.body_rootid
        carried = root == root[model.body(self.ROBOT).id]
        return [
            (model.geom_rgba, np.flatnonzero(carried[model.geom_bodyid])),
            (model.site_rgba, np.flatnonzero(carried[model.site_bodyid])),
        ]

    @abstractmethod
    def reset(self, seed: int) -> np.ndarray:
        """Places objects and target as ``seed`` says; returns full_state."""

    @abstractmethod
    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        """Applies an action [A] in [-1, 1]; returns full_state, the task's own reward, success."""

    @abstractmethod
    def state(self) -> np.ndarray:
        """Proprioception, float32 ``[STATE_SIZE]``."""

    def get_state(self) -> np.ndarray:
        """All that the next steps depend on, float64: what :meth:`set_state` of any simulator of this
        task goes on from exactly.

        Raises:
            NotImplementedError: the suite keeps part of it outside of MuJoCo's state.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot save its state")

    def set_state(self, state: np.ndarray) -> np.ndarray:
        """Continues exactly where :meth:`get_state` was called; returns full_state."""
        raise NotImplementedError(f"{type(self).__name__} cannot restore a state")

    def _get_physics(self) -> np.ndarray:
        state = np.empty(mujoco.mj_stateSize(self.model, _STATE))
        mujoco.mj_getState(self.model, self.data, state, _STATE)
        return state

    def _set_physics(self, state: np.ndarray) -> None:
        mujoco.mj_setState(self.model, self.data, state, _STATE)

    def script(self) -> Act:
        """A fresh scripted policy that solves the task.

        Raises:
            NotImplementedError: the suite has none.
        """
        raise NotImplementedError(f"{type(self).__name__} has no scripted policies")

    def still(self, action: np.ndarray) -> np.ndarray:
        """The action that stands still and holds what ``action`` held."""
        return np.zeros_like(action)

    def displaced(self, full_state: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """``full_state`` as if the hand were ``offset`` [3] (m) from where it is."""
        raise NotImplementedError(f"{type(self).__name__} has no scripted policies")

    def solved_frame(
        self, seed: int, attempt: int = 0, cameras: Sequence[str] | None = None
    ) -> np.ndarray | None:
        """The task solved from the start that ``seed`` draws, as :meth:`look` sees it at the end of a
        scripted episode, or None where the script fails.

        A state at rest where there is one: a button that the script has pushed past and is about to
        lose shows what nobody could hold. The script goes on for a while and then stands still; if
        that loses the task, it stands still from the first success on.

        Raises:
            NotImplementedError: the task has no scripted policy.
        """
        for hold, rest in ((False, REST), (True, REST), (attempt % 2 == 1, 0)):
            played = play(self, self.script(), seed, steps=500, stride=500, hold=hold, rest=rest)
            if ends_solved(played.success, attempt):
                return self.look(cameras)
        return None

    def render(self, camera: str | None = None) -> np.ndarray:
        """The current frame, uint8 [H, W, 3], of the simulator's camera or another one.

        Raises:
            ValueError: an unknown camera; "/no-robot" where the suite has no ROBOT.
        """
        view, with_robot = self.camera, self._with_robot
        if camera is not None:
            view, with_robot = self.find_camera(camera), self._shows_robot(camera)
            self._check_camera(view)
        if with_robot:
            self._renderer.update_scene(self.data, camera=view)
        else:
            self._update_without_robot(view)
        for thing in self.distractors:
            thing.add_to(self._renderer.scene)
        return self._renderer.render()

    def _update_without_robot(self, view: str | mujoco.MjvCamera) -> None:
        alphas = [rgba[rows, 3].copy() for rgba, rows in self._robot_parts]
        for rgba, rows in self._robot_parts:
            rgba[rows, 3] = 0.0
        try:
            self._renderer.update_scene(self.data, camera=view)
        finally:
            for (rgba, rows), alpha in zip(self._robot_parts, alphas, strict=True):
                rgba[rows, 3] = alpha

    def look(self, cameras: Sequence[str] | None = None) -> np.ndarray:
        """A frame to keep, uint8 [H, W, 3], or one of each of several cameras, [K, H, W, 3]."""
        if cameras is None:
            return self.render().copy()
        return np.stack([self.render(camera) for camera in cameras])

    def randomize(self, randomization: Randomization | None, seed: int = 0) -> None:
        """Draws new looks from ``seed``, always starting from the shipped ones (None: those)."""
        self._drawn = (randomization, seed)
        if randomization is None:
            self.camera, self.distractors = self.default_camera, []
            changed = self._looks.restore()
        else:
            self.camera, self.distractors, changed = self._looks.draw(randomization, seed)
        self._renderer._gl_context.make_current()  # another simulator may have drawn last
        for texture in sorted(changed):
            mujoco.mjr_uploadTexture(self.model, self._renderer._mjr_context, texture)

    def close(self) -> None:
        """Frees the rendering context."""
        _open.discard(self)
        if self._renderer is not None:
            self._renderer.close()


def _free_camera(
    lookat: tuple[float, float, float], azimuth: float, elevation: float, distance: float
) -> mujoco.MjvCamera:
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    camera.lookat[:] = lookat
    camera.azimuth, camera.elevation, camera.distance = azimuth, elevation, distance
    return camera


_open: weakref.WeakSet[Simulator] = weakref.WeakSet()


def _close_all() -> None:
    for sim in list(_open):
        sim.close()


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
        device: Any = "cpu",
    ) -> None:
        super().__init__(device=device, batch_size=torch.Size([]))
        if frame_skip < 1:
            raise ValueError(f"frame_skip is {frame_skip}; wanted a positive number of steps")
        self.sim, self.max_steps, self.randomize = sim, max_steps, randomize
        self.frame_skip = frame_skip
        self.cameras, self.goal = cameras, goal
        frame = Bounded(0, 255, (sim.image_size, sim.image_size, 3), dtype=torch.uint8)
        self.observation_spec = Composite(
            pixels=frame if cameras is None else Composite({name: frame for name in cameras}),
            state=Unbounded((sim.STATE_SIZE,)),
            full_state=Unbounded((sim.FULL_STATE_SIZE,)),
            success=Binary(1, dtype=torch.bool),
        )
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
        if self.cameras is None:
            pixels: Any = torch.from_numpy(self.sim.render().copy())
        else:
            pixels = {name: torch.from_numpy(self.sim.render(name).copy()) for name in self.cameras}
        seen = {
            "pixels": pixels,
            "state": torch.from_numpy(self.sim.state().copy()),
            "full_state": torch.from_numpy(self.sim.full_state.copy()),
            "success": torch.tensor([success]),
        }
        return seen if self.goal is None else {**seen, "goal_image": self._goal_image}

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
        for _ in range(self.frame_skip):
            _, own_reward, success = self.sim.step(action)
            reward += own_reward
        self._steps += self.frame_skip
        values = {"reward": torch.tensor([reward]), **self._done(self._steps >= self.max_steps)}
        return TensorDict({**self._observe(success), **values}, [], device=self.device)

    def close(self, *args: Any, **kwargs: Any) -> None:
        """Frees the rendering context."""
        if not self.is_closed:
            self.sim.close()
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
            rendering a reset: every reset then writes "goal_image", which a VIPRewardTransform takes
            up.
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

    Raises:
        ValueError: an unknown task, camera, goal or way to render; ``randomize`` with several cameras;
            ``frame_skip`` below 1.

    Example:
        >>> env = make_env(MetaWorldSim, "drawer-open-v3", seed=0)  # doctest: +SKIP
        >>> env.rollout(3)["next", "pixels"].shape  # doctest: +SKIP
        torch.Size([3, 128, 128, 3])
    """
    if isinstance(goal, str) and goal != "solved":
        raise ValueError(f"goal is {goal!r}; wanted an image [H, W, 3] or 'solved'")
    several = None if cameras is None or isinstance(cameras, str) else list(cameras)
    if several is not None and randomize:
        raise ValueError("randomize= moves the one camera; several were given")
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
        device=device,
    )
    if num_envs == 1:
        return make(seed=seed)
    seeds = [None if seed is None else seed + i for i in range(num_envs)]
    return ParallelEnv(num_envs, [partial(make, seed=s) for s in seeds])


def _make_one(
    make_sim: Callable[[], Simulator], randomize: Randomization | bool | None, **settings: Any
) -> SimulatorEnv:
    sim = make_sim()
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


class Episode(NamedTuple):
    """What :func:`play` saw: T environment steps and N frames.

    Attributes:
        frames: uint8 ``[N, H, W, 3]``, one every ``stride`` steps from the reset on.
        success: bool ``[T]``.
        reward: float32 ``[T]``, the task's own.
    """

    frames: np.ndarray
    success: np.ndarray
    reward: np.ndarray


def play(
    sim: Simulator,
    act: Act,
    seed: int,
    *,
    steps: int = 200,
    settle: int | None = 10,
    stride: int = 2,
    hold: bool = False,
    rest: int = 0,
) -> Episode:
    """Runs ``act(full_state, t) -> action`` from a fresh reset.

    Stops ``settle`` steps after the first success, so that a clip ends in a settled state
    (None: never), or after ``steps``. With ``hold`` the hand stands still from the first success
    on: some scripts push past the target and lose it again. ``rest`` adds steps of standing still
    after the settling ones.
    """
    state, success, reward = sim.reset(seed), [], []
    frames = [sim.render().copy()]
    action = np.zeros(sim.ACTION_SIZE)
    for t in range(steps):
        settled = settle is not None and any(success[: len(success) - settle])
        still = settled or (hold and any(success))
        action = sim.still(action) if still else act(state, t)
        state, own_reward, solved = sim.step(action)
        success.append(solved)
        reward.append(own_reward)
        if (t + 1) % stride == 0:
            frames.append(sim.render().copy())
        if settle is not None and any(success[: len(success) - settle - rest]):
            break
    return Episode(np.stack(frames), np.array(success), np.array(reward, np.float32))


def ends_solved(success: np.ndarray, attempt: int) -> bool:
    """Whether an episode's flags (bool [T]) mean a solved last frame.

    A handle pressed past its target loses the flag while it looks solved. So from the sixth
    attempt on a flag that held for three steps is enough.
    """
    if success[:5].any():  # solved before anything was done
        return False
    return bool(success[-1]) or (attempt >= 5 and success.sum() >= 3)


def goal_image(
    simulator: type[Simulator],
    task: str,
    *,
    camera: str | None = None,
    seed: int = 0,
    image_size: int = 128,
    render: str = "fast",
) -> np.ndarray:
    """The task solved, uint8 [H, W, 3]: the last frame of a demonstration from ``seed``.

    Args: as of :func:`make_env`.

    Raises:
        NotImplementedError: the task has no scripted policy and no stored demonstration.
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
