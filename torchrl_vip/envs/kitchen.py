"""FrankaKitchen (a 9-joint Franka at a kitchen front, 12 tasks) as pixel environments.

Shapes: pixels uint8 [H, W, 3]; state float32 [9] = arm joints (rad) and fingers (m); full_state
float32 [59] = qpos [30] and qvel [29]; action float32 [9] in [-1, 1] = joint velocity (1 = 2 rad/s,
or m/s for the fingers), held for 80 ms. The physics is gymnasium-robotics' KitchenEnv without
observation noise. Needs ``pip install "torchrl-vip[robotics]"``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from torchrl_vip.envs import environment
from torchrl_vip.envs.planned import Demonstration, PlannedSim, shipped
from torchrl_vip.envs.simulator import WITHOUT_ROBOT, Randomization, mujoco


class Task(NamedTuple):
    """One joint to move: from ``start`` to ``target`` (rad, or m for the sliding door)."""

    joint: str
    site: str  # where to hold it
    start: float
    target: float


# name: joint, handle, open or on position, the two words
_OBJECTS = {
    "micro": ("microwave", "microhandle_site", -1.25, "open", "close"),
    "sdoor": ("slide_cabinet", "slide_site", 0.44, "open", "close"),
    "ldoor": ("left_hinge_cabinet", "hinge_site1", -1.25, "open", "close"),
    "rdoor": ("right_hinge_cabinet", "hinge_site2", 1.57, "open", "close"),
    "knob1": ("knob_Joint_1", "knob1_site", -1.57, "on", "off"),
    "light": ("light_switch", "light_site", -0.7, "on", "off"),
}
TASKS: dict[str, Task] = {
    f"{name}_{word}": Task(joint, site, start, opened - start)
    for name, (joint, site, opened, *words) in _OBJECTS.items()
    for word, start in zip(words, (0.0, opened), strict=True)
}

# At -1.25 the door's outer face is some 9 cm beyond the arm's reach in this model, so that nothing
# could close it; at -1.02 it is still open by ldoor_open's own tolerance.
TASKS["ldoor_close"] = TASKS["ldoor_close"]._replace(start=-1.02)

SCRIPTED_TASKS: tuple[str, ...] = ()  # demonstrations are planned and shipped instead

CAMERAS = ("default", "left_cam", "right_cam")

TOLERANCE = 0.15  # of a joint's range
KETTLE_RANGE = 1.0  # m: the kettle moves freely, so its range is a convention of this file
START_NOISE = 0.02  # rad, of the arm's joints after a reset
_ROBOT, _KETTLE = slice(0, 9), slice(23, 26)  # in qpos; what lies between are the objects' joints


def list_tasks() -> list[str]:
    """Names of the 12 tasks, e.g. ``"sdoor_open"``."""
    return sorted(TASKS)


def _environment() -> Any:
    try:
        from gymnasium_robotics.envs.franka_kitchen.kitchen_env import KitchenEnv
    except ImportError as error:
        raise ImportError(
            'gymnasium-robotics is not installed: pip install "torchrl-vip[robotics]"'
        ) from error
    return KitchenEnv(object_noise_ratio=0.0, robot_noise_ratio=0.0)


class KitchenSim(PlannedSim):
    """One FrankaKitchen task. The reward is ``-5 |joint error| / range`` minus the distance (m) of the
    hand to the handle; success is the task's joint within 0.15 of its range of the target and every other
    object's within 0.15 of its range of where it started (the kettle: 0.15 m)."""

    # 90 looks over the robot at the kitchen front; beyond 25 and 155 the cabinets hide the oven
    WIDE = Randomization((-0.2, 0.5, 2.0), (35.0, 145.0), (-50.0, -10.0), (1.8, 2.6))
    MILD = WIDE.mild((55, 90), (-40, -28), (2.0, 2.4))
    SURFACES = ("texplane", "T_wall_marble", "T_wall_metal", "T_counter_marble", "T_hinge_wood")
    VIEWS = {
        # relay-policy-learning's camera, which gymnasium-robotics kept; that of the VIP paper's
        # "default" runs is not published
        "default": ((-0.2, 0.5, 2.0), 70.0, -35.0, 2.2),
    }
    ROBOT = "panda0_link0"
    CAMERA = "default"
    MESH_CELL = 0.008  # the arm has 134,000 faces, more than its picture has pixels
    MAX_STEPS = 100
    ACTION_SIZE, STATE_SIZE, FULL_STATE_SIZE = 9, 9, 59

    def __init__(
        self,
        task: str,
        *,
        camera: str | None = None,
        image_size: int = 128,
        render: str = "fast",
    ) -> None:
        if task not in TASKS:
            raise ValueError(f"unknown task {task!r}; choose from {list_tasks()}")
        super().__init__(task, camera=camera, image_size=image_size, render=render)
        self.rule = TASKS[task]
        self.env = _environment()
        self.robot = self.env.robot_env
        model = self.env.model
        # the paper's poses: higher and farther to the side than the model's
        model.cam("left_cap").pos, model.cam("left_cap").quat = _unit(
            (-1.4, -0.75, 3.0), (0.78, 0.49, -0.22, -0.32)
        )
        model.cam("right_cap").pos, model.cam("right_cap").quat = _unit(
            (1.4, -0.75, 3.0), (0.76, 0.5, 0.21, 0.35)
        )
        # the model asks for a buffer of 2560 x 1920 whatever the image
        model.vis.global_.offwidth = model.vis.global_.offheight = image_size
        self.bind(model, self.env.data)
        self._aim()

    def find_camera(self, name: str) -> str | mujoco.MjvCamera:
        if name.removesuffix(WITHOUT_ROBOT) not in CAMERAS:
            raise ValueError(f"unknown camera {name!r}; choose from {list(CAMERAS)}")
        return super().find_camera(name.replace("_cam", "_cap"))  # the model's own name for it

    def _aim(self) -> None:
        """Start, target and range of every object's joint, in qpos' order without the kettle."""
        model, rule = self.model, self.rule
        between = range(_ROBOT.stop, _KETTLE.start)
        joints = [j for j in range(model.njnt) if model.jnt_qposadr[j] in between]
        self._start = self.robot.init_qpos.copy()
        moved = {model.joint(rule.joint).id: (rule.start, rule.target)}
        for i in range(model.neq):  # knob = 174 burner, switch = 14 lamp: the follower moves too
            leader, follower, ratio = model.eq_obj1id[i], model.eq_obj2id[i], model.eq_data[i, 1]
            if leader in moved:
                moved[follower] = tuple(value / ratio for value in moved[leader])
        self._goal = self._start[between].copy()
        for joint, (start, target) in moved.items():
            adr = model.jnt_qposadr[joint]
            self._goal[adr - _ROBOT.stop] = target
            if start != 0.0:  # else where the environment puts it, a thousandth from zero
                self._start[adr] = start
        low, high = model.jnt_range[joints].T
        self._range = high - low
        self._index = model.joint(rule.joint).qposadr[0] - _ROBOT.stop

    def reset(self, seed: int) -> np.ndarray:
        """The arm's joints start within a small normal noise of the usual pose."""
        rng = np.random.default_rng(seed)
        qpos = self._start.copy()
        low, high = self.model.jnt_range[:7].T
        qpos[:7] = np.clip(qpos[:7] + rng.normal(0.0, START_NOISE, 7), low, high)
        mujoco.mj_resetData(self.model, self.data)
        self.robot.set_state(qpos, np.zeros(self.model.nv))
        self.robot._get_obs()  # the next control starts from the joints it saw last
        return self._read()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        # through float32, so that stored actions repeat an episode exactly
        action = np.clip(np.asarray(action, np.float32), -1.0, 1.0).astype(np.float64)
        self.robot.step(action)
        return self._read(), self.reward(), self.success()

    def _read(self) -> np.ndarray:
        # a step leaves sites and geoms where they were before its last 2 ms
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)
        self.full_state = np.concatenate([self.data.qpos, self.data.qvel]).astype(np.float32)
        return self.full_state

    def state(self) -> np.ndarray:
        return self.full_state[:9]

    def joint_errors(self) -> np.ndarray:
        """Distance of each object's joint from where it belongs, in parts of its range, [15]: the
        kettle's position is the last."""
        qpos = self.data.qpos
        joints = np.abs(qpos[_ROBOT.stop : _KETTLE.start] - self._goal) / self._range
        kettle = np.linalg.norm(qpos[_KETTLE] - self._start[_KETTLE]) / KETTLE_RANGE
        return np.append(joints, kettle)

    def joint_error(self) -> float:
        """Distance of the task's joint from its target, in parts of its range."""
        return float(self.joint_errors()[self._index])

    def hand(self) -> np.ndarray:
        """Where the hand is, [3] (m)."""
        return self.data.site("end_effector").xpos.copy()

    def handle(self) -> np.ndarray:
        """Where the thing to move is held, [3] (m)."""
        return self.data.site(self.rule.site).xpos.copy()

    def reward(self) -> float:
        return -5.0 * self.joint_error() - float(np.linalg.norm(self.hand() - self.handle()))

    def success(self) -> bool:
        return bool((self.joint_errors() < TOLERANCE).all())

    def get_state(self) -> np.ndarray:
        # the robot turns velocities into positions from what it saw last, which it keeps in private
        return np.concatenate([self._get_physics(), self.robot._last_robot_qpos])

    def set_state(self, state: np.ndarray) -> np.ndarray:
        self._set_physics(state[:-9])
        self.robot._last_robot_qpos = state[-9:].copy()
        return self._read()

    def pose(self, qpos: np.ndarray) -> np.ndarray:
        self.data.qpos[:] = qpos
        return self._read()

    def solved_frame(
        self, seed: int, attempt: int = 0, cameras: Sequence[str] | None = None
    ) -> np.ndarray:
        """End of a shipped demonstration (number ``seed``, counted round), as ``look`` sees it."""
        solved = demonstrations(self.task)
        return self.last_look(solved[seed % len(solved)], cameras)


def _unit(
    position: tuple[float, ...], quaternion: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    return np.array(position), np.array(quaternion) / np.linalg.norm(quaternion)


def demonstrations(task: str, *, success: bool | None = True) -> list[Demonstration]:
    """The shipped episodes of a task: the successes, the failures (False) or all (None).

    They were planned on the true state; see ``torchrl_vip.demonstrations.plan``.

    Raises:
        ValueError: an unknown task.
    """
    return shipped("kitchen", list_tasks(), task, success)


SIMULATOR = KitchenSim
make_env = environment.for_suite(environment.make_env, SIMULATOR)
goal_image = environment.for_suite(environment.goal_image, SIMULATOR)
