"""A gymnasium environment by its id, with frames and a flat state as observations.

Shapes: pixels uint8 [H, W, 3]; observation float32 [S].
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.error import DependencyNotInstalled
from gymnasium.spaces import (
    Box,
    Dict,
    Discrete,
    MultiBinary,
    MultiDiscrete,
    Tuple,
    flatten,
    flatten_space,
)

from torchrl_vip.envs.simulator import close_at_exit  # its import picks a MUJOCO_GL that works

# module that registers ids with gymnasium: how these begin, and what installs it
REGISTERS = {
    "gymnasium_robotics": (
        ("Fetch", "Hand", "Adroit", "AntMaze", "PointMaze", "FrankaKitchen"),
        'pip install "torchrl-vip[robotics]"',
    ),
    "metaworld": (("Meta-World/",), 'pip install "torchrl-vip[metaworld]"'),
    "ale_py": (("ALE/",), "pip install ale-py"),
    "minigrid": (("MiniGrid-", "BabyAI-"), "pip install minigrid"),
}


# -- ids --------------------------------------------------------------------------------------------


def register(module: str) -> None:
    """Registers a module's environments, where it is installed."""
    if importlib.util.find_spec(module) is not None:
        gymnasium.register_envs(importlib.import_module(module))


def find_spec(task: str) -> EnvSpec | None:
    """What gymnasium makes an environment from, or None: no such id. ``"module:Env-v0"`` imports the module
    first; without a version it is the newest one.

    Raises:
        DependencyNotInstalled: the module of the id is not installed.
    """
    module, _, name = task.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise DependencyNotInstalled(
                f"{task!r} wants the module {module!r} to register it: {error}"
            ) from error
    for module, (starts, install) in REGISTERS.items():
        if name.startswith(starts) and not _versions(name):
            register(module)
            if importlib.util.find_spec(module) is None:
                raise DependencyNotInstalled(
                    f"unknown environment {task!r}: {module} has ids like this one and is not "
                    f"installed: {install}"
                )
    if name not in gymnasium.registry and name == _stem(name) and _versions(name):
        name = _versions(name)[-1]
    return gymnasium.registry.get(name)


def _stem(name: str) -> str:
    return re.sub(r"-v\d+$", "", name)


def _versions(name: str) -> list[str]:
    """The registered ids that differ from ``name`` in their version at most, oldest first."""
    ids = [i for i in gymnasium.registry if _stem(i) == _stem(name)]
    return sorted(ids, key=lambda i: gymnasium.registry[i].version or 0)


# -- making it --------------------------------------------------------------------------------------


def open_env(
    spec: EnvSpec,
    camera: str | int | None,
    image_size: int | None,
    kwargs: dict[str, Any],
    seed: int | None,
) -> gymnasium.Env:
    """The environment with "pixels" and "observation"; ``named.make_env`` tells the arguments and errors."""
    try:
        creator = spec.entry_point
        creator = load_env_creator(creator) if isinstance(creator, str) else creator
        if creator is None:
            raise ValueError(f"{spec.id!r} opens as a vector of environments only: use make_vec.")
        if seed is not None and "seed" in inspect.signature(creator).parameters:
            kwargs = {**kwargs, "seed": seed}
        env = _construct(spec, kwargs, {})
        owner = _mujoco_env(env)
        if owner is not None:
            env.reset(seed=0)  # a maze's init_qpos is where its last episode began
            _set_view(owner, camera, image_size)
            env.reset(seed=int(np.random.SeedSequence().generate_state(1)[0]))  # unseeded again
        elif camera is not None or image_size is not None:
            env.close()
            env = _construct(spec, kwargs, _view_arguments(camera, image_size))
        env = PixelsAndFlat(env)
    except (ImportError, DependencyNotInstalled) as error:
        why = " ".join(map(str, error.args)).rstrip(".")
        newest = _versions(spec.id)[-1:]  # none, where a worker has not registered it
        hint = "" if newest in ([], [spec.id]) else f" The newest version is {newest[0]!r}."
        raise DependencyNotInstalled(f"{spec.id!r} needs a package: {why}.{hint}") from error
    height, width = env.observation_space["pixels"].shape[:2]
    if image_size is not None and (height, width) != (image_size, image_size):
        raise ValueError(_own_view(spec.id, f"they are {height} × {width}"))
    return env


def _view_arguments(camera: str | int | None, image_size: int | None) -> dict[str, Any]:
    sizes = {} if image_size is None else {"width": image_size, "height": image_size}
    if camera is None:
        return sizes
    return {**sizes, "camera_name" if isinstance(camera, str) else "camera_id": camera}


def _construct(spec: EnvSpec, kwargs: dict[str, Any], view: dict[str, Any]) -> gymnasium.Env:
    """``kwargs`` are the user's, ``view`` is ours: the error blames the one or the other."""
    given = {"disable_env_checker": True, "render_mode": "rgb_array", **kwargs, **view}
    try:
        try:
            return gymnasium.make(spec, **given)
        except TypeError as error:
            if _unexpected(error) != "render_mode" or "render_mode" in kwargs:
                raise
        del given["render_mode"]
        env = gymnasium.make(spec, **given)
        env.unwrapped.render_mode = "rgb_array"  # which the constructor does not take
        return env
    except TypeError as error:
        if _unexpected(error) in view:
            raise ValueError(_own_view(spec.id, str(error))) from error
        raise ValueError(blame_arguments(spec.id, error)) from error


def _unexpected(error: TypeError) -> str | None:
    found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    return found and found[1]


def _own_view(task: str, why: str) -> str:
    return (
        f"{task!r} takes no camera and draws frames of its own size only ({why}): leave "
        "cameras= and image_size= out; VIPTransform takes any size"
    )


def blame_arguments(task: str, error: TypeError) -> str:
    """What is wrong with the arguments of a constructor that raised ``error``."""
    text = str(error).partition(" was raised from the environment creator")[0]
    if (name := _unexpected(error)) is not None:
        return f"{task!r} takes no argument {name!r} ({text})."
    if lacking := re.findall(r"'(\w+)'", text.partition(" missing ")[2]):
        call = ", ".join([repr(task), *(f"{name}=..." for name in lacking)])
        return f"{task!r} wants arguments of its own: make_env({call})."
    return f"{task!r} cannot be made with the arguments given: {text}"


# -- its observations -------------------------------------------------------------------------------


def _has_fixed_size(space: gymnasium.Space | None) -> bool:
    try:
        return space is not None and space.is_np_flattenable
    except NotImplementedError:  # a space that gymnasium does not know
        return False


def _takes(space: gymnasium.Space) -> bool:
    """Whether TorchRL writes actions of this space, and as they are."""
    if isinstance(space, Dict):
        return all(_takes(s) and not isinstance(s, Dict) for s in space.values())
    if isinstance(space, Tuple):
        return all(_takes(s) and s == space[0] for s in space)
    plain = isinstance(space, Box | Discrete | MultiBinary | MultiDiscrete)
    return plain and not np.any(getattr(space, "start", 0))  # TorchRL counts from 0


class PixelsAndFlat(gymnasium.ObservationWrapper):
    """Observations {"pixels": uint8 [H, W, 3], "observation": float32 [S]} of an environment that
    renders: the frame, and its own observation flattened, however that is nested.

    Raises:
        ValueError: it draws no such frames, or its observations have no fixed size, or TorchRL has no
            actions of its kind.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self._flat = self._flattened_space(env.observation_space)
        if not _takes(env.action_space):
            raise ValueError(
                f"{self.spec.id!r} has actions that TorchRL does not write: {env.action_space}."
            )
        env.reset()
        pixels = Box(0, 255, self._frame().shape, np.uint8)
        flat = Box(-np.inf, np.inf, flatten_space(self._flat).shape, np.float32)
        self.observation_space = Dict(pixels=pixels, observation=flat)

    def _flattened_space(self, space: gymnasium.Space) -> gymnasium.Space:
        """``space`` without entries of no fixed size or of a kind of their own, as MiniGrid's mission is."""
        left_out = []
        if isinstance(space, Dict):
            left_out = [key for key, entry in space.items() if not _has_fixed_size(entry)]
            kept = {key: entry for key, entry in space.items() if key not in left_out}
            space = Dict(kept)  # in the order of their names
        if not _has_fixed_size(space) or (left_out and not space.spaces):
            raise ValueError(
                f"{self.spec.id!r} has observations that no flat state of one size holds: "
                f"{self.env.observation_space}."
            )
        if left_out:
            warnings.warn(
                f"{self.spec.id!r}: {', '.join(left_out)} is not in the state, as its size is not fixed.",
                stacklevel=2,
            )
        return space

    def observation(self, observation: Any) -> dict[str, np.ndarray]:
        flat = flatten(self._flat, observation)
        return {"pixels": self._frame(), "observation": flat.astype(np.float32)}

    def _frame(self) -> np.ndarray:
        try:
            frame = self.env.render()
        except NotImplementedError:
            frame = None
        if not isinstance(frame, np.ndarray):
            seen = "nothing" if frame is None else f"a {type(frame).__name__}"
        elif frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3:
            return np.ascontiguousarray(frame)  # most come flipped
        else:
            seen = f"{frame.dtype} {list(frame.shape)}"
        raise ValueError(
            f"{self.spec.id!r} draws no frames: render() gives {seen}, wanted uint8 [H, W, 3]. Its "
            f"render modes are {self.metadata.get('render_modes')}, wanted one like 'rgb_array'."
        )


# -- MuJoCo's cameras -------------------------------------------------------------------------------


def _mujoco_env(env: gymnasium.Env) -> Any:
    """What has gymnasium's MujocoRenderer: the environment or, in the mazes, the one inside it; else None."""
    base = env.unwrapped
    for owner in (base, *vars(base).values()):
        if isinstance(owner, gymnasium.Env) and getattr(owner, "mujoco_renderer", None) is not None:
            return owner
    return None


def _set_view(owner: Any, camera: str | int | None, image_size: int | None) -> None:
    """Sets camera and size, has the viewer draw in a GL context of its own, see _own_context, and points
    its free camera at init_qpos, not at whatever state it was first used in: else no seed repeats a
    picture."""
    import mujoco

    drawn, model = owner.mujoco_renderer, owner.model
    if camera is not None:
        drawn.camera_id = camera_number(camera, [model.camera(i).name for i in range(model.ncam)])
    if image_size is not None:
        drawn.width = drawn.height = image_size
        model.vis.global_.offwidth = model.vis.global_.offheight = image_size
    viewer = drawn._get_viewer("rgb_array")
    viewer.__class__ = _own_context(type(viewer))
    close_at_exit(drawn)
    if camera is None:
        data, viewer.data = viewer.data, mujoco.MjData(model)
        viewer.data.qpos[:] = getattr(owner, "init_qpos", viewer.data.qpos)
        mujoco.mj_forward(model, viewer.data)
        viewer._init_camera()
        viewer.data = data
        drawn._set_cam_config()


def camera_number(camera: str | int, names: Sequence[str]) -> int:
    """The number of a model's camera.

    Raises:
        ValueError: it has no such camera.
    """
    numbers = range(-1, len(names))  # -1 is MuJoCo's free camera
    if camera in (numbers if isinstance(camera, int) else names):
        return camera if isinstance(camera, int) else names.index(camera)
    raise ValueError(f"unknown camera {camera!r}; choose from {list(names)}, or their numbers")


@cache
def _own_context(viewer: type) -> type:
    """The viewer that draws, and is freed, in its own GL context. Gymnasium's uses whichever is current:
    of two environments in a process one shows the other, and one that is freed, be it by the garbage
    collector, blackens another (https://github.com/Farama-Foundation/Gymnasium/issues/736)."""

    class OwnContext(viewer):  # type: ignore[misc, valid-type]  # the class is known at run time
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
