"""Adroit (a 24-joint hand: door, hammer, pen, relocate) as pixel environments.

Shapes, with A actions: pixels uint8 [H, W, 3]; state float32 [A] = the angles of hand and arm (rad;
positions in m); full_state float32 [F] = the environment's own observation; action float32 [A] in
[-1, 1] = wanted joint positions over their range. (A, F) is (28, 39) for the door, (26, 46) for the
hammer, (24, 45) for the pen, (30, 39) for relocate. There are no scripted policies: demonstrations are
planned and shipped, and a goal image shows the door open, the nail in, the pen turned, or ball and hand
at the target. Needs ``pip install "torchrl-vip[robotics]"``.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from torchrl_vip.envs import environment
from torchrl_vip.envs.planned import SEEDS, Demonstration, PlannedSim, shipped
from torchrl_vip.envs.simulator import Randomization, mujoco

# task: actions, full_state, and looks (90 looks along the forearm, 270 at the finger tips)
TASKS: dict[str, tuple[int, int, Randomization]] = {
    "adroit-door": (
        28,
        39,
        Randomization((0.05, 0.05, 0.25), (45.0, 135.0), (-50.0, -20.0), (1.1, 1.6)),
    ),
    "adroit-hammer": (
        26,
        46,
        Randomization((0.0, -0.15, 0.1), (10.0, 170.0), (-60.0, -30.0), (0.8, 1.2)),
    ),
    "adroit-pen": (
        24,
        45,
        Randomization((0.08, -0.2, 0.25), (-60.0, 240.0), (-70.0, -35.0), (0.5, 0.8)),
    ),
    "adroit-relocate": (
        30,
        39,
        Randomization((0.0, -0.05, 0.12), (10.0, 170.0), (-60.0, -30.0), (1.0, 1.4)),
    ),
}

SCRIPTED_TASKS: tuple[str, ...] = ()  # demonstrations are planned and shipped instead

CAMERAS = ("front", "fixed", "vil_camera")  # that every task has

_FRONT = {
    "adroit-door": ((0.05, 0.05, 0.22), 90.0, -40.0, 1.25),
    "adroit-hammer": ((0.0, -0.15, 0.12), 45.0, -40.0, 0.95),
    "adroit-pen": ((0.08, -0.2, 0.22), 135.0, -40.0, 0.65),
    "adroit-relocate": ((0.0, 0.0, 0.12), 50.0, -40.0, 1.15),
}


def list_tasks() -> list[str]:
    """Names of the tasks, e.g. ``"adroit-door"``."""
    return sorted(TASKS)


def _environment(task: str) -> Any:
    name = task.removeprefix("adroit-")
    try:
        module = importlib.import_module(f"gymnasium_robotics.envs.adroit_hand.adroit_{name}")
    except ImportError as error:
        raise ImportError(
            'gymnasium-robotics is not installed: pip install "torchrl-vip[robotics]"'
        ) from error
    return getattr(module, f"AdroitHand{name.capitalize()}Env")(reward_type="dense")


class AdroitSim(PlannedSim):
    """One Adroit task; a step's reward is its dense one, its success its own."""

    ROBOT = "forearm"
    CAMERA = "front"
    MAX_STEPS = 200
    SURFACES = ("groundplane", "marblecube", "wood")

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
        # of this task, so on the instance
        self.ACTION_SIZE, self.FULL_STATE_SIZE, self.WIDE = TASKS[task]
        self.STATE_SIZE, self.VIEWS = self.ACTION_SIZE, {"front": _FRONT[task]}
        _lookat, azimuth, elevation, distance = _FRONT[task]
        self.MILD = self.WIDE.mild(
            (azimuth - 15, azimuth + 15),
            (elevation - 5, elevation + 5),
            (0.95 * distance, 1.1 * distance),
        )
        super().__init__(task, camera=camera, image_size=image_size, render=render)
        self.env = _environment(task)
        self.bind(self.env.model, self.env.data)
        self.reset(0)

    def reset(self, seed: int) -> np.ndarray:
        self.seed = int(seed)
        return self._read(self.env.reset(seed=self.seed)[0])

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        observation, reward, _, _, info = self.env.step(np.asarray(action, np.float64))
        # a step leaves sites and geoms where they were before its last 2 ms
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)
        return self._read(observation), float(reward), bool(info["success"])

    def _read(self, observation: np.ndarray) -> np.ndarray:
        self.full_state = observation.astype(np.float32)
        return self.full_state

    def state(self) -> np.ndarray:
        return self.data.qpos[: self.STATE_SIZE].astype(np.float32)

    def get_state(self) -> np.ndarray:
        return np.concatenate([[self.seed], self.full_state, self._get_physics()])

    def set_state(self, state: np.ndarray) -> np.ndarray:
        if int(state[0]) != self.seed:  # what a reset draws is in the model
            self.reset(int(state[0]))
        self.full_state = state[1 : 1 + self.FULL_STATE_SIZE].astype(np.float32)
        self._settle_physics(state[1 + self.FULL_STATE_SIZE :])
        return self.full_state

    def start_of(self, seed: int) -> int:
        return seed // SEEDS  # a start has its own target: the end of another would be no goal

    def pose(self, qpos: np.ndarray) -> np.ndarray:
        self.data.qpos[:], self.data.qvel[:] = qpos, 0.0
        mujoco.mj_forward(self.model, self.data)
        return self._read(
            self.env._get_obs()
        )  # private: else it is only to be had from a step or reset

    def reward(self) -> float:
        """Paid are, bit by bit, latch and door; the hammer off the table, its head at the nail and the nail
        in; the pen's direction; the ball off the table and at the target. The hand's distance (m) to what it
        takes costs, and the pen's to where it is held, and its fall. (Up to gymnasium-robotics 1.4.2 the
        dense rewards of door, hammer and relocate, which :meth:`step` returns, pay the hand for staying
        away: https://github.com/Farama-Foundation/Gymnasium-Robotics/pull/220.)"""
        env, data, at = self.env, self.data, self.data.site_xpos
        if self.task == "adroit-pen":
            off, along = self._pen_error()
            return along - 5.0 * off - 5.0 * (data.xpos[env.obj_body_id][2] < 0.075)  # dropped
        if self.task == "adroit-door":
            hinge, latch = (data.joint(name).qpos[0] for name in ("door_hinge", "latch"))
            to_handle = np.linalg.norm(at[env.grasp_site_id] - at[env.handle_site_id])
            return float(3.0 * min(hinge, 1.45) + 0.5 * min(abs(latch) / 1.8, 1.0) - to_handle)
        thing = data.xpos[env.obj_body_id]
        to_thing = np.linalg.norm(at[env.S_grasp_site_id] - thing)
        if self.task == "adroit-hammer":
            head, nail = at[env.tool_site_id], at[env.target_obj_site_id]
            lifted = 0.5 * (min(thing[2], head[2]) > 0.04)
            return float(lifted - to_thing - np.linalg.norm(head - nail) - 10.0 * self._nail_left())
        to_target = np.linalg.norm(thing - at[env.target_obj_site_id])
        return float(5.0 * min(thing[2], 0.08) - 2.0 * to_thing - 2.0 * to_target)

    def success(self) -> bool:
        """As the environment has it."""
        env, data = self.env, self.data
        if self.task == "adroit-door":
            return bool(data.joint("door_hinge").qpos[0] >= 1.35)
        if self.task == "adroit-hammer":
            return bool(self._nail_left() < 0.01)
        if self.task == "adroit-pen":
            off, along = self._pen_error()
            return bool(off < 0.075 and along > 0.95)
        left = data.xpos[env.obj_body_id] - data.site_xpos[env.target_obj_site_id]
        return bool(np.linalg.norm(left) < 0.1)

    def _nail_left(self) -> float:
        """How far the nail is to go (m)."""
        at, env = self.data.site_xpos, self.env
        return float(np.linalg.norm(at[env.target_obj_site_id] - at[env.goal_site_id]))

    def _pen_error(self) -> tuple[float, float]:
        """How far the pen is from where it is held (m), and the cosine between it and its target."""
        env, at = self.env, self.data.site_xpos
        ends = (env.obj_t_site_id, env.obj_b_site_id), (env.tar_t_site_id, env.tar_b_site_id)
        axes = (at[top] - at[bottom] for top, bottom in ends)
        pen, target = (axis / np.linalg.norm(axis) for axis in axes)
        off = np.linalg.norm(self.data.xpos[env.obj_body_id] - at[env.eps_ball_site_id])
        return float(off), float(pen @ target)

    def put_solved(self) -> None:
        env, data = self.env, self.data
        if self.task == "adroit-door":
            data.joint("door_hinge").qpos[0] = self.model.joint("door_hinge").range[1]
        elif self.task == "adroit-hammer":
            nail, wanted = data.site(env.target_obj_site_id), data.site(env.goal_site_id)
            self._slide(wanted.xpos - nail.xpos, "nail_dir")
        elif self.task == "adroit-relocate":
            target = data.site(env.target_obj_site_id).xpos.copy()
            self._slide(target - data.xpos[env.obj_body_id], "OBJTx", "OBJTy", "OBJTz")
            palm = data.site(env.S_grasp_site_id).xpos
            self._slide(target - palm, "ARTx", "ARTy", "ARTz")  # the hand comes along
        else:
            self._turn_pen()
        mujoco.mj_forward(self.model, data)

    def _slide(self, offset: np.ndarray, *joints: str) -> None:
        """Move what slides along these joints by ``offset`` [3] (m), in the world."""
        for name in joints:
            joint, limits = self.data.joint(name), self.model.joint(name)
            joint.qpos[0] += offset @ joint.xaxis
            if limits.limited[0]:
                joint.qpos[0] = np.clip(joint.qpos[0], *limits.range)

    def _turn_pen(self) -> None:
        """Point the pen as its target points, by its joints about x, y and z in this order."""
        env, data = self.env, self.data
        ends = (env.obj_t_site_id, env.obj_b_site_id), (env.tar_t_site_id, env.tar_b_site_id)
        frame = data.xmat[env.obj_body_id].reshape(3, 3)  # not turned yet
        now, wanted = (frame.T @ (data.site(t).xpos - data.site(b).xpos) for t, b in ends)
        turns = np.empty((2, 4))
        for turn, axis in zip(turns, (now, wanted), strict=True):
            mujoco.mju_quatZ2Vec(turn, axis / np.linalg.norm(axis))
        mujoco.mju_negQuat(turns[0], turns[0].copy())
        mujoco.mju_mulQuat(both := np.empty(4), turns[1], turns[0])
        mujoco.mju_quat2Mat(matrix := np.empty(9), both)
        m = matrix.reshape(3, 3)
        angles = (
            np.arctan2(-m[1, 2], m[2, 2]),
            np.arcsin(np.clip(m[0, 2], -1, 1)),
            np.arctan2(-m[0, 1], m[0, 0]),
        )
        for axis, angle in zip("xyz", angles, strict=True):
            data.joint(f"OBJR{axis}").qpos[0] = angle

    def hold_still(self, action: np.ndarray) -> np.ndarray:
        return np.array(action)  # actions are positions: the same one stands still


def demonstrations(task: str, *, success: bool | None = True) -> list[Demonstration]:
    """The shipped episodes of a task: the successes, the failures (False) or all (None).

    They were planned on :meth:`AdroitSim.reward`, see ``torchrl_vip.demonstrations.plan``, and start
    from the reset of seed 0.

    Raises:
        ValueError: an unknown task.
    """
    return shipped("adroit", list_tasks(), task, success)


SIMULATOR = AdroitSim
make_env = environment.for_suite(environment.make_env, SIMULATOR)
goal_image = environment.for_suite(environment.goal_image, SIMULATOR)
