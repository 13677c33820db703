"""Meta-World v3 (50 table-top tasks of a Sawyer arm) as pixel environments.

Shapes: pixels uint8 [H, W, 3]; state float32 [7] = hand xyz (m), gripper opening (0-1) and the way from
the hand to where its controller pulls it (m); full_state float32 [39], what the scripted policies read;
action float32 [4] in [-1, 1] = displacement of the controller's target (1 = 1 cm) and gripper effort.
Needs ``pip install "torchrl-vip[metaworld]"``.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from torchrl_vip.envs import environment
from torchrl_vip.envs.simulator import Act, Randomization, Simulator, mujoco

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

REACHED_BY_FINGERS = ("reach-v3", "reach-wall-v3")
"""Tasks that count how near the fingers are, 5 cm at most, but whose scripts bring the wrist to the target,
4.5 cm above the fingers: their goal images would show states that a move of millimetres loses."""


def _metaworld() -> Any:
    try:
        import metaworld.env_dict
        import metaworld.policies
    except ImportError as error:
        raise ImportError(
            'Meta-World is not installed: pip install "torchrl-vip[metaworld]"'
        ) from error
    # of its own scripts' clipped actions; a line amid every progress bar
    warnings.filterwarnings("ignore", r"Constant\(s\) may be too high")
    return metaworld


def list_tasks() -> list[str]:
    """Names of the 50 tasks, e.g. ``"drawer-open-v3"``."""
    return sorted(_metaworld().env_dict.ALL_V3_ENVIRONMENTS)


class MetaWorldSim(Simulator):
    """One task of Meta-World; cameras that hang upside down are turned upright."""

    # 90 looks from behind the robot, 270 faces it: views blocked by its back are left out
    WIDE = Randomization((0.0, 0.62, 0.12), (140.0, 400.0), (-60.0, -25.0), (0.9, 1.5))
    MILD = WIDE.mild((130, 170), (-45, -30), (0.9, 1.15))
    SURFACES = ("T_table", "T_floor", "T_wallmetal")
    ROBOT = "base"
    CAMERA = "corner4"  # "corner2" from nearer: small objects cover more than a pixel
    MAX_STEPS = 200
    ACTION_SIZE, STATE_SIZE, FULL_STATE_SIZE = 4, 7, 39

    def __init__(
        self,
        task: str,
        *,
        camera: str | None = None,
        image_size: int = 128,
        render: str = "fast",
    ) -> None:
        super().__init__(task, camera=camera, image_size=image_size, render=render)
        registry = _metaworld().env_dict.ALL_V3_ENVIRONMENTS
        if task not in registry:
            raise ValueError(f"unknown task {task!r}; choose from {sorted(registry)}")
        self.env = registry[task]()
        # private: Meta-World's own way to these settings is set_task, which fixes where things are
        self.env._set_task_called = True  # tasks are sampled by seed instead of set_task
        self.env._freeze_rand_vec, self.env.seeded_rand_vec = False, True
        self.env._partially_observable = False  # the scripted policies read the target
        self.env.__dict__.pop("sawyer_observation_space", None)  # cached without the target
        self.env.max_path_length = 2**31  # the time limit belongs to the caller
        self.seed = -1  # of the last reset
        _upright_cameras(self.env.model)
        self.bind(self.env.model, self.env.data)

    def reset(self, seed: int) -> np.ndarray:
        self.seed = int(seed)
        self.env.seed(self.seed)
        self.full_state = self.env.reset()[0].astype(np.float32)
        mujoco.mj_forward(self.model, self.data)  # else the first frame shows the old target
        return self.full_state

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        """As :meth:`Simulator.step`; the reward is the task's dense one, 0 to 10."""
        action = np.clip(np.asarray(action, np.float32), -1.0, 1.0)
        state, reward, _, _, info = self.env.step(action)
        self.full_state = state.astype(np.float32)
        return self.full_state, float(reward), bool(info["success"])

    def get_state(self) -> np.ndarray:
        # private: no method of Meta-World tells or sets what its next observation and reward depend on.
        # The scale is of bin-picking's reward, from its first step on.
        scale = getattr(self.env, "_target_to_obj_init", None)
        kept = [self.seed, np.nan if scale is None else scale]
        return np.concatenate([kept, self.env._prev_obs, self.full_state, self._get_physics()])

    def set_state(self, state: np.ndarray) -> np.ndarray:
        if int(state[0]) != self.seed:  # what a reset draws is in the model and in many attributes
            self.reset(int(state[0]))
        if hasattr(self.env, "_target_to_obj_init"):
            self.env._target_to_obj_init = None if np.isnan(state[1]) else float(state[1])
        self.env._prev_obs, self.full_state = state[2:20].copy(), state[20:59].astype(np.float32)
        self._settle_physics(state[59:])
        return self.full_state

    def state(self) -> np.ndarray:
        # Actions add up in the controller's target. A hand that is held up, by a button pressed to its
        # stop, leaves it decimetres behind and is dragged off later: without it no policy can know.
        pull = self.data.mocap_pos[0] - self.full_state[:3]
        return np.concatenate([self.full_state[:4], pull]).astype(np.float32)

    def script(self) -> Act:
        """Meta-World's own controller, a fresh one: some keep state between steps."""
        policy = _metaworld().policies.ENV_POLICY_MAP[self.task]()

        def act(state: np.ndarray, t: int) -> np.ndarray:
            state = np.array(state)  # the doors' scripts add to it in place
            if self.task in REACHED_BY_FINGERS:
                state[36:39] += self.env.get_endeff_pos() - self.env.tcp_center
            return policy.get_action(state)

        return act

    def hold_still(self, action: np.ndarray) -> np.ndarray:
        return np.array([0.0, 0.0, 0.0, action[3]])

    def displaced(self, full_state: np.ndarray, offset: np.ndarray) -> np.ndarray:
        state = full_state.copy()
        state[:3] += offset
        state[18:21] += offset  # the previous observation
        return state


def _upright_cameras(model: Any) -> None:
    for camera in range(model.ncam):
        axes = np.empty(9)
        mujoco.mju_quat2Mat(axes, model.cam_quat[camera])
        hand_held = model.cam_bodyid[camera] != 0
        if not hand_held and axes.reshape(3, 3)[2, 1] < -1e-3:  # its "up" points down
            half_turn = np.array([0.0, 0.0, 0.0, 1.0])
            quat = np.copy(model.cam_quat[camera])
            mujoco.mju_mulQuat(model.cam_quat[camera], quat, half_turn)


SIMULATOR = MetaWorldSim
make_env = environment.for_suite(environment.make_env, SIMULATOR)
goal_image = environment.for_suite(environment.goal_image, SIMULATOR)
