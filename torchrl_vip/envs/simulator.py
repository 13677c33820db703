"""A MuJoCo task with fast software rendering and changeable looks.

Each suite's file has a subclass of :class:`Simulator`; rendering, looks and scripted episodes are here,
environments and goal images in :mod:`torchrl_vip.envs.environment`.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import sys
import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torchrl  # noqa: F401  before the first rendering context: the other order crashes the interpreter

if sys.platform == "linux" and not {"MUJOCO_GL", "DISPLAY"} & os.environ.keys():
    # without a display only EGL or OSMesa can draw
    os.environ["MUJOCO_GL"] = "egl"
    if "mujoco" in sys.modules:  # it has chosen by now: again
        import mujoco.gl_context

        importlib.reload(mujoco.gl_context)

try:
    import mujoco
except ImportError as error:
    raise ImportError(
        'The suites need MuJoCo: pip install "torchrl-vip[metaworld]" (or robotics, dm)'
    ) from error

from torchrl_vip.envs.looks import Distractor, Looks, Randomization
from torchrl_vip.envs.meshes import simplify_meshes

_STATE = int(mujoco.mjtState.mjSTATE_INTEGRATION)
WITHOUT_ROBOT = "/no-robot"
"""Behind a camera's name: what it sees with the robot left out of the picture."""
REST = 20  # steps of standing still that a solved state must outlast to be a goal
Act = Callable[[np.ndarray, int], np.ndarray]
"""``act(full_state, t) -> action``."""


class _Renderer(mujoco.Renderer):
    """Is freed in a GL context of its own. MuJoCo's frees textures and framebuffers by number in whichever
    context is current: under OSMesa another renderer's, which draws black or noise from then on
    (https://github.com/google-deepmind/mujoco/issues/1186)."""

    def close(self) -> None:
        if not hasattr(self, "_mjr_context"):
            return  # it could not be made
        if self._gl_context and self._mjr_context:
            self._gl_context.make_current()
            self._mjr_context.free()
        super().close()

    def render_with_depth(self) -> tuple[np.ndarray, np.ndarray]:
        """The scene, uint8 [H, W, 3], and the depth buffer, float32 [H, W]; MuJoCo's ``render`` would draw it
        twice for both."""
        frame = np.empty((self.height, self.width, 3), np.uint8)
        depth = np.empty((self.height, self.width), np.float32)
        self._gl_context.make_current()
        whole = mujoco.MjrRect(0, 0, self.width, self.height)
        mujoco.mjr_render(whole, self.scene, self._mjr_context)
        mujoco.mjr_readPixels(frame, depth, whole, self._mjr_context)
        return frame[::-1], depth[::-1]

    def upload_textures(self, textures: Iterable[int]) -> None:
        """Show what has been painted on the model's textures."""
        self._gl_context.make_current()  # another simulator may have drawn last
        for texture in textures:
            mujoco.mjr_uploadTexture(self.model, self._mjr_context, texture)


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
        ValueError: an unknown camera or way to render; "/no-robot" where the suite has no ROBOT; an
            image_size that is no whole number above 0.
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
        if type(image_size) is not int or image_size < 1:
            raise ValueError(
                f"image_size is {image_size!r}; wanted a whole number of pixels, 1 or more"
            )
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
        self._parts = self._parts_of_robot()
        visual = model.vis
        visual.global_.offwidth = max(visual.global_.offwidth, self.image_size)
        visual.global_.offheight = max(visual.global_.offheight, self.image_size)
        if self.fast:
            visual.quality.offsamples = visual.quality.shadowsize = 0
            if self.MESH_CELL:
                simplify_meshes(model, self.MESH_CELL)
        self._renderer = _Renderer(model, self.image_size, self.image_size)
        if first:
            close_at_exit(self)
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
        """Colours of geoms and of sites, each with which of them the robot carries."""
        if not self.ROBOT:
            return []
        model, root = self.model, self.model.body_rootid
        carried = root == root[model.body(self.ROBOT).id]
        return [
            (model.geom_rgba, carried[model.geom_bodyid]),
            (model.site_rgba, carried[model.site_bodyid]),
        ]

    def things(self) -> np.ndarray:
        """Rows of ``data.qpos`` that say where things are, int64 ``[K]``: all that the robot does not carry.

        Raises:
            NotImplementedError: the suite has no ROBOT, so nothing tells it from things.
        """
        if not self.ROBOT:
            raise NotImplementedError(f"{type(self).__name__} knows no robot to tell from things")
        model, root = self.model, self.model.body_rootid
        others = np.flatnonzero(root[model.jnt_bodyid] != root[model.body(self.ROBOT).id])
        first = np.append(model.jnt_qposadr, model.nq)
        rows = [np.arange(first[j], first[j + 1]) for j in others]
        return np.concatenate([np.zeros(0, np.int64), *rows])

    @abstractmethod
    def reset(self, seed: int) -> np.ndarray:
        """Places objects and target as ``seed`` says; returns full_state."""

    @abstractmethod
    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        """Applies an action [A] in [-1, 1]; returns full_state, the task's own reward, success."""

    @abstractmethod
    def state(self) -> np.ndarray:
        """Proprioception, float32 ``[STATE_SIZE]``."""

    @abstractmethod
    def get_state(self) -> np.ndarray:
        """All that the next steps depend on, float64: what :meth:`set_state` of any simulator of this
        task goes on from exactly."""

    @abstractmethod
    def set_state(self, state: np.ndarray) -> np.ndarray:
        """Continues exactly where :meth:`get_state` was called; returns full_state."""

    def _get_physics(self) -> np.ndarray:
        state = np.empty(mujoco.mj_stateSize(self.model, _STATE))
        mujoco.mj_getState(self.model, self.data, state, _STATE)
        return state

    def _set_physics(self, state: np.ndarray) -> None:
        mujoco.mj_setState(self.model, self.data, state, _STATE)

    def _settle_physics(self, state: np.ndarray) -> None:
        """And all that follows from it: where things are drawn, contacts."""
        self._set_physics(state)
        mujoco.mj_forward(self.model, self.data)
        # forward overwrites the solver's warm start, which the next step begins with
        self._set_physics(state)

    def script(self) -> Act:
        """A fresh scripted policy that solves the task.

        Raises:
            NotImplementedError: the suite has none.
        """
        raise NotImplementedError(
            f"{self.task!r} has no scripted policy: use a trained one or demonstrations"
        )

    def put_solved(self) -> None:
        """Puts things where the task wants them, by no hand: where no script brings them there.

        Raises:
            NotImplementedError: the suite leaves that to its scripts.
        """
        raise NotImplementedError(f"nothing tells how {self.task!r} looks when it is solved")

    def hold_still(self, action: np.ndarray) -> np.ndarray:
        """The action that keeps the hand where it is and holds what ``action`` held."""
        return np.zeros_like(action)

    def still(self, action: np.ndarray) -> np.ndarray:
        """Old name of :meth:`hold_still`."""
        warnings.warn("still() is now hold_still()", DeprecationWarning, stacklevel=2)
        return self.hold_still(action)

    def displaced(self, full_state: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """``full_state`` as if the hand were ``offset`` [3] (m) from where it is."""
        raise NotImplementedError(f"{type(self).__name__} has no scripted policies")

    def solved_frame(
        self, seed: int, attempt: int = 0, cameras: Sequence[str] | None = None
    ) -> np.ndarray | None:
        """The task solved from the start that ``seed`` draws, as :meth:`look` sees it at the end of a
        scripted episode, or None where the script fails. Where there is no script, :meth:`put_solved`.

        A state at rest where there is one: a button that the script has pushed past and is about to
        lose shows what nobody could hold. The script goes on for a while and then stands still; if
        that loses the task, it stands still from the first success on.

        Raises:
            NotImplementedError: the task has neither a script nor a state that is known as solved.
        """
        try:
            self.script()
        except NotImplementedError:
            self.reset(seed)
            self.put_solved()
            return self.look(cameras)
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
        view, with_robot = self._view(camera)
        if with_robot:
            self._renderer.update_scene(self.data, camera=view)
        else:
            self._update_less(view, robot=True)
        for thing in self.distractors:
            thing.add_to(self._renderer.scene)
        return self._renderer.render()

    def _view(self, camera: str | None) -> tuple[str | mujoco.MjvCamera, bool]:
        """A camera to draw from, None is the simulator's, and whether it shows the robot."""
        if camera is None:
            return self.camera, self._with_robot
        view, with_robot = self.find_camera(camera), self._shows_robot(camera)
        self._check_camera(view)
        return view, with_robot

    def robot_mask(self, camera: str | None = None) -> np.ndarray:
        """Where a camera sees the robot, bool ``[H, W]``; nowhere for a camera without the robot. It is one
        more rendering.

        Raises:
            ValueError: an unknown camera; the suite has no ROBOT.
        """
        if not self._parts:
            raise ValueError(f"robot_mask: {type(self).__name__} knows no robot")
        view, with_robot = self._view(camera)
        if not with_robot:
            return np.zeros((self.image_size, self.image_size), bool)
        renderer = self._renderer
        renderer.update_scene(self.data, camera=view)
        for thing in self.distractors:
            thing.add_to(renderer.scene)
        renderer.enable_segmentation_rendering()
        try:
            number, kind = np.moveaxis(renderer.render(), -1, 0)  # -1 where nothing is
        finally:
            renderer.disable_segmentation_rendering()
        mask = np.zeros(kind.shape, bool)
        drawn = (mujoco.mjtObj.mjOBJ_GEOM, mujoco.mjtObj.mjOBJ_SITE)
        for (_, carried), of_kind in zip(self._parts, drawn, strict=True):
            here = kind == of_kind
            mask[here] = carried[number[here]]
        return mask

    def layer(self, camera: str, *, robot: bool) -> tuple[np.ndarray, np.ndarray]:
        """What a camera sees of the robot alone, or of all else alone, and how near that is.

        With ``render="fast"``, where nothing casts a shadow, the nearer one of each two pixels is that of the
        whole picture, but for what is behind glass; a robot that moves in a scene that stays is drawn in
        less than half of the time like that.

        Returns:
            uint8 ``[H, W, 3]`` and the depth buffer, float32 ``[H, W]``: 1 nearest, 0 where nothing is.

        Raises:
            ValueError: an unknown camera; the suite has no ROBOT.
        """
        self._shows_robot(camera.removesuffix(WITHOUT_ROBOT) + WITHOUT_ROBOT)  # knows which it is
        view, renderer = self.find_camera(camera), self._renderer
        self._check_camera(view)
        self._update_less(view, robot=not robot)
        if not robot:
            for thing in self.distractors:
                thing.add_to(renderer.scene)
        return renderer.render_with_depth()

    def _update_less(self, view: str | mujoco.MjvCamera, *, robot: bool) -> None:
        """Puts into the scene all but the robot, or all but what is not the robot."""
        parts = [(rgba, carried == robot) for rgba, carried in self._parts]
        alphas = [rgba[rows, 3] for rgba, rows in parts]
        for rgba, rows in parts:
            rgba[rows, 3] = 0.0
        try:
            self._renderer.update_scene(self.data, camera=view)
        finally:
            for (rgba, rows), alpha in zip(parts, alphas, strict=True):
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
        self._renderer.upload_textures(sorted(changed))

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


_open: weakref.WeakSet[Any] = weakref.WeakSet()


def close_at_exit(drawn: Any) -> None:
    """Closes what has drawn, where its user has not: a GL context that is freed after the driver has shut
    down prints a traceback."""
    _open.add(drawn)
    # hooks run last registered first; a driver's own comes with its import or the first renderer
    atexit.unregister(_close_all)
    atexit.register(_close_all)


def _close_all() -> None:
    with contextlib.ExitStack() as stack:  # one that fails does not keep the others open
        for drawn in list(_open):
            stack.callback(drawn.close)


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
        settled = settle is not None and any(success[: max(0, len(success) - settle)])
        resting = settled or (hold and any(success))
        action = sim.hold_still(action) if resting else act(state, t)
        state, own_reward, solved = sim.step(action)
        success.append(solved)
        reward.append(own_reward)
        if (t + 1) % stride == 0:
            frames.append(sim.render().copy())
        if settle is not None and any(success[: max(0, len(success) - settle - rest)]):
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
