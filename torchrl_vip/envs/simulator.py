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
from collections.abc import Callable
from functools import partial
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
        camera: a camera of the model, or one of VIEWS.
        image_size: height and width in pixels.
        render: ``"fast"`` drops shadows, reflections, and multisampling (a small fraction of
            the time in software), ``"faithful"`` keeps the model as shipped.

    Raises:
        ValueError: an unknown camera or way to render.
    """

    WIDE: ClassVar[Randomization]  # looks to train on
    MILD: ClassVar[Randomization]  # looks to evaluate on
    SURFACES: ClassVar[tuple[str, ...]] = ()  # textures that may be repainted
    # views beside the model's cameras: name -> lookat (m), azimuth, elevation (deg), distance (m)
    VIEWS: ClassVar[dict[str, tuple[tuple[float, float, float], float, float, float]]] = {}
    ACTION_SIZE: ClassVar[int]
    STATE_SIZE: ClassVar[int]
    FULL_STATE_SIZE: ClassVar[int]

    def __init__(self, task: str, *, camera: Any, image_size: int, render: str) -> None:
        if render not in ("fast", "faithful"):
            raise ValueError(f"render is {render!r}; choose 'fast' or 'faithful'")
        self.task, self.image_size, self.fast = task, image_size, render == "fast"
        if isinstance(camera, str) and camera in self.VIEWS:
            camera = _free_camera(*self.VIEWS[camera])
        self.default_camera = self.camera = camera
        self.model = self.data = self._renderer = None
        self._drawn: tuple[Randomization | None, int] = (None, 0)
        self.distractors: list[Distractor] = []
        self.full_state = np.zeros(self.FULL_STATE_SIZE, np.float32)

    def bind(self, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        """Draw this model from now on; suites that compile theirs at every reset call it again."""
        if model is self.model:
            self.data = data
            return
        if self._renderer is not None:
            self._renderer.close()
        self.model, self.data = model, data
        names = [*self.VIEWS, *(model.cam(i).name for i in range(model.ncam))]
        if isinstance(self.default_camera, str) and self.default_camera not in names:
            raise ValueError(f"unknown camera {self.default_camera!r}; choose from {names}")
        visual = model.vis
        visual.global_.offwidth = max(visual.global_.offwidth, self.image_size)
        visual.global_.offheight = max(visual.global_.offheight, self.image_size)
        if self.fast:
            visual.quality.offsamples = visual.quality.shadowsize = 0
        self._renderer = mujoco.Renderer(model, self.image_size, self.image_size)
        # a context freed after the driver has shut down prints a traceback at exit
        atexit.register(_close, weakref.ref(self))
        if self.fast:
            flag = mujoco.mjtRndFlag
            for name in (flag.mjRND_SHADOW, flag.mjRND_REFLECTION):
                self._renderer.scene.flags[name] = 0
        self._looks = Looks(model, self.SURFACES)
        if self._drawn[0] is not None:
            self.randomize(*self._drawn)

    @abstractmethod
    def reset(self, seed: int) -> np.ndarray:
        """Places objects and target as ``seed`` says; returns full_state."""

    @abstractmethod
    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        """Applies an action [A] in [-1, 1]; returns full_state, the task's own reward, success."""

    @abstractmethod
    def state(self) -> np.ndarray:
        """Proprioception, float32 ``[STATE_SIZE]``."""

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

    def render(self) -> np.ndarray:
        """The current frame, uint8 [H, W, 3]."""
        self._renderer.update_scene(self.data, camera=self.camera)
        for thing in self.distractors:
            thing.add_to(self._renderer.scene)
        return self._renderer.render()

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


def _close(sim: weakref.ref[Simulator]) -> None:
    if (alive := sim()) is not None:
        alive.close()


class SimulatorEnv(EnvBase):
    """TorchRL face of a :class:`Simulator`; every reset draws objects, target and looks."""

    def __init__(
        self,
        sim: Simulator,
        *,
        max_steps: int,
        seed: int | None = None,
        randomize: Randomization | None = None,
        device: Any = "cpu",
    ) -> None:
        super().__init__(device=device, batch_size=torch.Size([]))
        self.sim, self.max_steps, self.randomize = sim, max_steps, randomize
        size = sim.image_size
        self.observation_spec = Composite(
            pixels=Bounded(0, 255, (size, size, 3), dtype=torch.uint8),
            state=Unbounded((sim.STATE_SIZE,)),
            full_state=Unbounded((sim.FULL_STATE_SIZE,)),
            success=Binary(1, dtype=torch.bool),
        )
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
        return {
            "pixels": torch.from_numpy(self.sim.render().copy()),
            "state": torch.from_numpy(self.sim.state().copy()),
            "full_state": torch.from_numpy(self.sim.full_state.copy()),
            "success": torch.tensor([success]),
        }

    def _done(self, truncated: bool) -> dict[str, torch.Tensor]:
        flag = torch.tensor([truncated])
        return {"done": flag, "truncated": flag.clone(), "terminated": torch.tensor([False])}

    def _reset(self, tensordict: TensorDictBase | None = None, **_: Any) -> TensorDictBase:
        self._steps = 0
        self.sim.reset(int(self._rng.integers(2**31)))
        if self.randomize is not None:
            self.sim.randomize(self.randomize, int(self._rng.integers(2**31)))
        return TensorDict({**self._observe(False), **self._done(False)}, [], device=self.device)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self._steps += 1
        _, reward, success = self.sim.step(tensordict["action"].cpu().numpy())
        values = {"reward": torch.tensor([reward]), **self._done(self._steps >= self.max_steps)}
        return TensorDict({**self._observe(success), **values}, [], device=self.device)

    def close(self, *args: Any, **kwargs: Any) -> None:
        """Frees the rendering context."""
        if not self.is_closed:
            self.sim.close()
        super().close(*args, **kwargs)


def make_env(
    make_sim: Callable[[], Simulator],
    *,
    num_envs: int,
    seed: int | None,
    max_steps: int,
    randomize: Randomization | bool | None,
    device: Any,
) -> EnvBase:
    """One environment of a simulator, or a ParallelEnv of ``num_envs`` with seed, seed + 1, ..."""
    make = partial(_make_one, make_sim, max_steps, randomize, device)
    if num_envs == 1:
        return make(seed)
    seeds = [None if seed is None else seed + i for i in range(num_envs)]
    return ParallelEnv(num_envs, [partial(make, s) for s in seeds])


def _make_one(
    make_sim: Callable[[], Simulator],
    max_steps: int,
    randomize: Randomization | bool | None,
    device: Any,
    seed: int | None,
) -> SimulatorEnv:
    sim = make_sim()
    if isinstance(randomize, bool):
        randomize = sim.WIDE if randomize else None
    return SimulatorEnv(sim, max_steps=max_steps, seed=seed, randomize=randomize, device=device)


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
) -> Episode:
    """Runs ``act(full_state, t) -> action`` from a fresh reset.

    Stops ``settle`` steps after the first success, so that a clip ends in a settled state
    (None: never), or after ``steps``. With ``hold`` the hand stands still from the first success
    on: some scripts push past the target and lose it again.
    """
    state, success, reward = sim.reset(seed), [], []
    frames = [sim.render().copy()]
    action = np.zeros(sim.ACTION_SIZE)
    for t in range(steps):
        action = sim.still(action) if hold and any(success) else act(state, t)
        state, own_reward, solved = sim.step(action)
        success.append(solved)
        reward.append(own_reward)
        if (t + 1) % stride == 0:
            frames.append(sim.render().copy())
        if settle is not None and any(success[: len(success) - settle]):
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


def goal_image(sim: Simulator, seed: int) -> np.ndarray:
    """Last frame of a scripted episode that solved the task, uint8 [H, W, 3]; closes ``sim``.

    Raises:
        RuntimeError: the script failed from 20 consecutive seeds.
    """
    try:
        for attempt in range(20):
            act, hold = sim.script(), attempt % 2 == 1
            played = play(sim, act, seed + attempt, steps=500, stride=500, hold=hold)
            if ends_solved(played.success, attempt):
                return sim.render().copy()
    finally:
        sim.close()
    raise RuntimeError(f"the scripted policy did not solve {sim.task!r} from 20 seeds")
