"""Meta-World v3 (50 table-top tasks of a Sawyer arm) as pixel environments.

Shapes: pixels uint8 [H, W, 3]; state float32 [4] = hand xyz (m) and gripper opening (0-1);
full_state float32 [39], what the scripted policies read; action float32 [4] in [-1, 1] =
hand displacement (1 = 1 cm) and gripper effort. Needs ``pip install "torchrl-vip[metaworld]"``.
"""

from __future__ import annotations

import atexit
import importlib
import os
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase

# torchrl comes before the first rendering context: the other order crashes the interpreter.
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import EnvBase, ParallelEnv

HELD_OUT_TASKS: tuple[str, ...] = (
    "button-press-topdown-v3",
    "coffee-button-v3",
    "door-open-v3",
    "drawer-open-v3",
    "faucet-open-v3",
    "handle-pull-v3",
    "lever-pull-v3",
    "plate-slide-v3",
    "push-v3",
    "window-close-v3",
)
"""Tasks no checkpoint of this package was trained on."""

DEFAULT_CAMERA = "corner4"  # "corner2" from nearer: small objects cover more than a pixel
_SURFACES = ("T_table", "T_floor", "T_wallmetal")


def _metaworld() -> Any:
    try:
        import metaworld.env_dict
        import metaworld.policies
    except ImportError as error:
        raise ImportError(
            'Meta-World is not installed: pip install "torchrl-vip[metaworld]"'
        ) from error
    if sys.platform == "linux" and not {"MUJOCO_GL", "DISPLAY"} & os.environ.keys():
        # without a display only EGL or OSMesa can draw, and mujoco has chosen by now: again
        os.environ["MUJOCO_GL"] = "egl"
        import mujoco.gl_context

        importlib.reload(mujoco.gl_context)
    return metaworld


def list_tasks() -> list[str]:
    """Names of the 50 tasks, e.g. ``"drawer-open-v3"``."""
    return sorted(_metaworld().env_dict.ALL_V3_ENVIRONMENTS)


def scripted_policy(task: str) -> Any:
    """Meta-World's own controller: ``.get_action(full_state [39]) -> action [4]``."""
    return _metaworld().policies.ENV_POLICY_MAP[task]()


@dataclass(frozen=True)
class Randomization:
    """What one draw of the scene's looks may change. Angles in degrees, lengths in metres."""

    # 90 looks from behind the robot, 270 faces it: views blocked by its back are left out
    azimuth: tuple[float, float] = (140.0, 400.0)
    elevation: tuple[float, float] = (-60.0, -25.0)
    distance: tuple[float, float] = (0.9, 1.5)  # camera to the point it looks at
    target_jitter: float = 0.08  # around the workspace's centre
    fovy: tuple[float, float] = (42.0, 55.0)
    colour: float = 1.0  # 0 keeps the colours, 1 replaces them
    light: float = 1.0  # 0 keeps the lights
    texture: float = 0.7  # probability that a surface gets a new texture

    @classmethod
    def mild(cls) -> Randomization:
        """Near the default camera, with tinted colours: another laboratory, not another world."""
        return cls((130, 170), (-45, -30), (0.9, 1.15), 0.04, (42, 50), 0.4, 0.5, 0.3)


class MetaWorldSim:
    """One task's simulator and its renderer; no TorchRL inside.

    Args:
        task: a name of :func:`list_tasks`.
        camera: a camera of the model; those that hang upside down are turned upright.
        image_size: height and width in pixels.
        render: ``"fast"`` drops shadows, reflections, and multisampling (a small fraction of
            the time in software), ``"faithful"`` keeps the model as shipped.
    """

    def __init__(
        self,
        task: str,
        *,
        camera: str = DEFAULT_CAMERA,
        image_size: int = 128,
        render: str = "fast",
    ) -> None:
        if render not in ("fast", "faithful"):
            raise ValueError(f"render is {render!r}; choose 'fast' or 'faithful'")
        registry = _metaworld().env_dict.ALL_V3_ENVIRONMENTS
        if task not in registry:
            raise ValueError(f"unknown task {task!r}; choose from {sorted(registry)}")
        import mujoco

        self.task, self.image_size = task, image_size
        self.env = registry[task]()
        self.env._set_task_called = True  # tasks are sampled by seed instead of set_task
        self.env._freeze_rand_vec, self.env.seeded_rand_vec = False, True
        self.env._partially_observable = False  # the scripted policies read the target
        self.env.__dict__.pop("sawyer_observation_space", None)  # cached without the target
        self.env.max_path_length = 2**31  # the time limit belongs to the caller
        self.model, self.data = self.env.model, self.env.data
        self._upright_cameras()
        names = [self.model.cam(i).name for i in range(self.model.ncam)]
        if camera not in names:
            raise ValueError(f"unknown camera {camera!r}; choose from {names}")
        self.camera: Any = camera

        visual = self.model.vis
        visual.global_.offwidth = max(visual.global_.offwidth, image_size)
        visual.global_.offheight = max(visual.global_.offheight, image_size)
        if render == "fast":
            visual.quality.offsamples = visual.quality.shadowsize = 0
        self._renderer = mujoco.Renderer(self.model, image_size, image_size)
        # a context freed after the driver has shut down prints a traceback at exit
        atexit.register(_close, weakref.ref(self))
        if render == "fast":
            flag = mujoco.mjtRndFlag
            for name in (flag.mjRND_SHADOW, flag.mjRND_REFLECTION):
                self._renderer.scene.flags[name] = 0
        self._looks = {
            name: np.copy(getattr(self.model, name))
            for name in ("mat_rgba", "geom_rgba", "light_pos", "light_dir", "light_diffuse")
        } | {"tex_data": np.copy(self.model.tex_data)}
        self._default = (camera, visual.global_.fovy, np.copy(visual.headlight.diffuse))
        self._repainted: set[int] = set()
        self.full_state = np.zeros(39, np.float32)

    def _upright_cameras(self) -> None:
        import mujoco

        for camera in range(self.model.ncam):
            axes = np.empty(9)
            mujoco.mju_quat2Mat(axes, self.model.cam_quat[camera])
            hand_held = self.model.cam_bodyid[camera] != 0
            if not hand_held and axes.reshape(3, 3)[2, 1] < -1e-3:  # its "up" points down
                half_turn = np.array([0.0, 0.0, 0.0, 1.0])
                quat = np.copy(self.model.cam_quat[camera])
                mujoco.mju_mulQuat(self.model.cam_quat[camera], quat, half_turn)

    def reset(self, seed: int) -> np.ndarray:
        """Places objects and target as ``seed`` says; returns full_state."""
        import mujoco

        self.env.seed(int(seed))
        self.full_state = self.env.reset()[0].astype(np.float32)
        mujoco.mj_forward(self.model, self.data)  # else the first frame shows the old target
        return self.full_state

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        """Applies an action [4]; returns full_state, the task's dense reward (0-10), success."""
        action = np.clip(np.asarray(action, np.float32), -1.0, 1.0)
        state, reward, _, _, info = self.env.step(action)
        self.full_state = state.astype(np.float32)
        return self.full_state, float(reward), bool(info["success"])

    def render(self) -> np.ndarray:
        """The current frame, uint8 [H, W, 3]."""
        self._renderer.update_scene(self.data, camera=self.camera)
        return self._renderer.render()

    def randomize(self, randomization: Randomization | None, seed: int = 0) -> None:
        """Draws new looks from ``seed``, always starting from the shipped ones (None: those)."""
        import mujoco

        rng, model, r = np.random.default_rng(seed), self.model, randomization
        for name, value in self._looks.items():
            getattr(model, name)[:] = value
        self.camera, model.vis.global_.fovy, model.vis.headlight.diffuse[:] = self._default
        repainted, self._repainted = self._repainted, set()
        if r is not None:
            self.camera = mujoco.MjvCamera()
            self.camera.type = mujoco.mjtCamera.mjCAMERA_FREE
            self.camera.azimuth = rng.uniform(*r.azimuth)
            self.camera.elevation = rng.uniform(*r.elevation)
            self.camera.distance = rng.uniform(*r.distance)
            jitter = rng.uniform(-r.target_jitter, r.target_jitter, 3)
            self.camera.lookat[:] = np.array([0.0, 0.62, 0.12]) + jitter
            model.vis.global_.fovy = rng.uniform(*r.fovy)
            self._recolour(rng, r.colour)
            self._relight(rng, r.light)
            self._repaint(rng, r.texture)
        self._renderer._gl_context.make_current()  # another simulator may have drawn last
        for texture in sorted(repainted | self._repainted):
            mujoco.mjr_uploadTexture(model, self._renderer._mjr_context, texture)

    def _recolour(self, rng: np.random.Generator, strength: float) -> None:
        model = self.model
        for material in range(model.nmat):  # a textured one is multiplied: keep it light
            darkest = 0.45 if (model.mat_texid[material] >= 0).any() else 0.05
            colour = rng.uniform(darkest, 1.0, 3)
            model.mat_rgba[material, :3] += strength * (colour - model.mat_rgba[material, :3])
        # geoms that share a colour are one part (the arm, the gripper, an object): keep them so
        for old in np.unique(self._looks["geom_rgba"][:, :3], axis=0):
            colour = old + strength * (rng.uniform(0.05, 1.0, 3) - old)
            same = (self._looks["geom_rgba"][:, :3] == old).all(1)
            if not np.allclose(old, 0.5):  # 0.5 means "take the material's"
                model.geom_rgba[same, :3] = colour

    def _relight(self, rng: np.random.Generator, strength: float) -> None:
        model = self.model
        shift = rng.normal(0.0, 0.5 * strength, (model.nlight, 3))
        model.light_pos[:] += shift
        model.light_dir[:] -= shift * [1, 1, 0]
        model.light_dir[:] /= np.linalg.norm(model.light_dir, axis=1, keepdims=True)
        model.light_diffuse[:] *= 1 + strength * rng.uniform(-0.7, 0.7, (model.nlight, 1))
        model.light_diffuse[:] *= 1 + strength * rng.uniform(-0.15, 0.15, (model.nlight, 3))
        model.vis.headlight.diffuse[:] *= 1 + strength * rng.uniform(-0.6, 0.4)

    def _repaint(self, rng: np.random.Generator, probability: float) -> None:
        import mujoco

        model = self.model
        for texture in range(model.ntex):
            draw, pattern_rng = rng.uniform(), np.random.default_rng(rng.integers(2**31))
            sky = model.tex_type[texture] == mujoco.mjtTexture.mjTEXTURE_SKYBOX
            if draw > probability or not (sky or model.tex(texture).name in _SURFACES):
                continue
            height, width = model.tex_height[texture], model.tex_width[texture]
            channels, start = model.tex_nchannel[texture], model.tex_adr[texture]
            image = _pattern(pattern_rng, height, width)[..., :channels]
            model.tex_data[start : start + image.size] = image.ravel()
            self._repainted.add(texture)

    def close(self) -> None:
        """Frees the rendering context."""
        self._renderer.close()


def _close(sim: weakref.ref[MetaWorldSim]) -> None:
    if (alive := sim()) is not None:
        alive.close()


def _pattern(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Blocks, stripes or speckle between two colours, uint8 [height, width, 3]."""
    low, high = rng.uniform(40, 255, (2, 3))
    cells = int(rng.choice([4, 8, 16, 64]))
    grid = rng.uniform(0, 1, (cells, cells)) ** rng.uniform(0.5, 2)
    kind = rng.choice(["speckle", "stripes", "checker", "plain"])
    if kind == "stripes":
        grid = np.broadcast_to(grid[:1], grid.shape)
    elif kind == "checker":
        grid = np.indices(grid.shape).sum(0) % 2
    elif kind == "plain":
        grid = 0.1 * grid
    rows, columns = np.arange(height) * cells // height, np.arange(width) * cells // width
    blend = grid[rows][:, columns, None]
    return (low + blend * (high - low)).astype(np.uint8)


class MetaWorldEnv(EnvBase):
    """TorchRL face of :class:`MetaWorldSim`; every reset draws objects, target and looks."""

    def __init__(
        self,
        sim: MetaWorldSim,
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
            state=Unbounded((4,)),
            full_state=Unbounded((39,)),
            success=Binary(1, dtype=torch.bool),
        )
        self.action_spec = Bounded(-1.0, 1.0, (4,))
        self.reward_spec = Unbounded((1,))
        self.done_spec = Composite(
            {name: Binary(1, dtype=torch.bool) for name in ("done", "terminated", "truncated")}
        )
        self.to(device)
        self._set_seed(seed)

    def _set_seed(self, seed: int | None) -> None:
        self._rng = np.random.default_rng(seed)

    def _observe(self, success: bool) -> dict[str, Any]:
        full_state = torch.from_numpy(self.sim.full_state.copy())
        return {
            "pixels": torch.from_numpy(self.sim.render().copy()),
            "state": full_state[:4].clone(),
            "full_state": full_state,
            "success": torch.tensor([success]),
        }

    def _done(self, truncated: bool) -> dict[str, torch.Tensor]:
        flag = torch.tensor([truncated])
        return {"done": flag, "truncated": flag.clone(), "terminated": torch.tensor([False])}

    def _reset(self, tensordict: TensorDictBase | None = None, **_: Any) -> TensorDictBase:
        self._steps = 0
        self.sim.reset(self._rng.integers(2**31))
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
    task: str,
    *,
    camera: str = DEFAULT_CAMERA,
    image_size: int = 128,
    seed: int | None = None,
    device: Any = "cpu",
    num_envs: int = 1,
    max_steps: int = 200,
    render: str = "fast",
    randomize: Randomization | bool | None = None,
) -> EnvBase:
    """A Meta-World task with pixels, state, full_state, the task's dense reward and success.

    Each reset places objects and target anew (reproducible by ``seed``). ``randomize`` (True or a
    :class:`Randomization`) also draws camera, colours, lights and textures. An episode is
    truncated after ``max_steps``; success does not end it. ``num_envs > 1`` gives a ParallelEnv
    whose workers use seed, seed + 1, ...

    Example:
        >>> env = make_env("drawer-open-v3", seed=0)
        >>> env.rollout(3)["next", "pixels"].shape
        torch.Size([3, 128, 128, 3])
    """
    make = partial(
        _make_one, task, camera, image_size, render, max_steps, _looks(randomize), device
    )
    if num_envs == 1:
        return make(seed)
    seeds = [None if seed is None else seed + i for i in range(num_envs)]
    return ParallelEnv(num_envs, [partial(make, s) for s in seeds])


def _looks(randomize: Randomization | bool | None) -> Randomization | None:
    if isinstance(randomize, bool):
        return Randomization() if randomize else None
    return randomize


def _make_one(
    task: str,
    camera: str,
    image_size: int,
    render: str,
    max_steps: int,
    randomize: Randomization | None,
    device: Any,
    seed: int | None,
) -> MetaWorldEnv:
    sim = MetaWorldSim(task, camera=camera, image_size=image_size, render=render)
    return MetaWorldEnv(sim, max_steps=max_steps, seed=seed, randomize=randomize, device=device)


def play(
    sim: MetaWorldSim,
    act: Callable[[np.ndarray, int], np.ndarray],
    seed: int,
    *,
    steps: int = 200,
    settle: int | None = 10,
    stride: int = 2,
    hold: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Runs ``act(full_state, t) -> action`` from a fresh reset.

    Stops ``settle`` steps after the first success, so that a clip ends in a settled state
    (None: never), or after ``steps``. With ``hold`` the hand stands still from the first success
    on: some scripts push past the target and lose it again.

    Returns:
        frames uint8 [N, H, W, 3], one every ``stride`` steps from the reset on, and success
        bool [T], one a step.
    """
    state, frames, success = sim.reset(seed), [sim.render().copy()], []
    action = np.zeros(4)
    for t in range(steps):
        still = hold and any(success)
        action = np.array([0.0, 0.0, 0.0, action[3]]) if still else act(state, t)
        state, _, solved = sim.step(action)
        success.append(solved)
        if (t + 1) % stride == 0:
            frames.append(sim.render().copy())
        if settle is not None and any(success[: len(success) - settle]):
            break
    return np.stack(frames), np.array(success)


def ends_solved(success: np.ndarray, attempt: int) -> bool:
    """Whether an episode's flags (bool [T]) mean a solved last frame.

    A handle pressed past its target loses the flag while it looks solved. So from the sixth
    attempt on a flag that held for three steps is enough.
    """
    if success[:5].any():  # solved before anything was done
        return False
    return bool(success[-1]) or (attempt >= 5 and success.sum() >= 3)


def goal_image(
    task: str,
    *,
    camera: str = DEFAULT_CAMERA,
    seed: int = 0,
    image_size: int = 128,
    render: str = "fast",
) -> np.ndarray:
    """Last frame of a scripted episode that solved the task, uint8 [H, W, 3].

    Raises:
        RuntimeError: the script failed from 20 consecutive seeds.
    """
    sim = MetaWorldSim(task, camera=camera, image_size=image_size, render=render)
    try:
        for attempt in range(20):
            policy = scripted_policy(task)  # a fresh one: some keep state between steps
            act = lambda state, t: policy.get_action(state)  # noqa: B023, E731
            hold = attempt % 2 == 1
            _, success = play(sim, act, seed + attempt, steps=500, stride=500, hold=hold)
            if ends_solved(success, attempt):
                return sim.render().copy()
    finally:
        sim.close()
    raise RuntimeError(f"the scripted policy did not solve {task!r} from 20 seeds")
