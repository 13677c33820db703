"""dm_control's manipulation tasks (a Jaco arm with three fingers) as pixel environments.

Shapes: pixels uint8 [H, W, 3]; state float32 [12] = hand xyz (m) and the angles of the arm's 6
joints and the 3 fingers (rad); full_state float32 [68] = hand xyz, its rotation matrix (9), angles
(9), angular velocities (9), target xyz, and five times xyz and quaternion of a brick or box (0 for
those that are not there); action float32 [9] in [-1, 1] = joint velocities (1 = 0.63 or 0.84 rad/s
of the arm, 5 rad/s of a finger; positive closes). Needs ``pip install "torchrl-vip[dm]"``.

Success: reach = hand within 5 cm of the target; lift = raised by 25 cm; place = brick within 5 cm
of the target; stack and reassemble = a reward of 0.95 of 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from torchrl_vip.envs import environment
from torchrl_vip.envs.simulator import Act, Randomization, Simulator, mujoco

SCRIPTED_TASKS: tuple[str, ...] = (
    "reach_site_vision",
    "reach_duplo_vision",
    "lift_brick_vision",
    "place_brick_vision",
    "place_cradle_vision",
)
"""Tasks whose script solves them from at least half of the seeds."""

LIFTED = 0.25 / 0.3  # the lift reward is the height gained over 30 cm


def _dm_control() -> tuple[Any, Any, Any]:
    try:
        from dm_control import composer, manipulation, mjcf
    except ImportError as error:
        raise ImportError('dm_control is not installed: pip install "torchrl-vip[dm]"') from error
    return composer, manipulation, mjcf


def list_tasks() -> list[str]:
    """Names of the tasks, e.g. ``"lift_brick_vision"``."""
    return sorted(_dm_control()[1].get_environments_by_tag("vision"))


class ManipulationSim(Simulator):
    """One task of dm_control.manipulation; the reward is its own, 0 to 1."""

    # 90 faces the robot, 270 looks from behind it
    WIDE = Randomization((0.0, 0.0, 0.16), (-10.0, 190.0), (-60.0, -20.0), (0.85, 1.25))
    MILD = WIDE.mild((70, 110), (-55, -40), (0.8, 1.0))
    SURFACES = ("groundplane",)
    VIEWS = {
        "left": ((0.0, 0.0, 0.12), 20.0, -30.0, 1.0),
        "right": ((0.0, 0.0, 0.12), 160.0, -30.0, 1.0),
    }
    ROBOT = "jaco_arm/"
    CAMERA = "front_close"
    MAX_STEPS = 250
    ACTION_SIZE, STATE_SIZE, FULL_STATE_SIZE = 9, 12, 68

    def __init__(
        self,
        task: str,
        *,
        camera: str | None = None,
        image_size: int = 128,
        render: str = "fast",
    ) -> None:
        if task not in list_tasks():
            raise ValueError(f"unknown task {task!r}; choose from {list_tasks()}")
        super().__init__(task, camera=camera, image_size=image_size, render=render)
        self.kind = task.split("_")[0]
        composer, manipulation, _ = _dm_control()
        # the twin without cameras: nothing is drawn twice
        twin = manipulation.load(task.replace("_vision", "_features"))
        self.env = composer.Environment(
            twin.task,
            time_limit=np.inf,  # belongs to the caller
            max_reset_attempts=20,  # a prop may find no free place
            # a shuffled stack has another brick fixed to the table; the other models never change
            recompile_mjcf_every_episode="random_order" in task,
        )
        twin.close()
        self.reset(0)

    def bind(self, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        new = model is not self.model
        super().bind(model, data)
        if not new:
            return
        task = self.env.task
        self._hand = model.site(task.hand.tool_center_point.full_identifier).id
        joints = [model.joint(j.full_identifier) for j in (*task.arm.joints, *task.hand.joints)]
        self._angles = np.array([j.qposadr[0] for j in joints])
        self._speeds = np.array([j.dofadr[0] for j in joints])
        self._fastest = np.copy(model.actuator_ctrlrange[:, 1])
        # private, here and below: a dm_control task has no public name for its props and where they belong
        prop = getattr(task, "_prop", None)
        things = getattr(task, "_bricks", [prop] if prop else [])
        frame = _dm_control()[2].get_attachment_frame
        self._things = [model.body(frame(t.mjcf_model).full_identifier).id for t in things]
        self._target = None
        if self.kind == "place":
            self._target = model.site(task._pedestal.target_site.full_identifier).id
        elif self.kind == "reach" and not prop:
            self._target = model.site(task._target.full_identifier).id

    def reset(self, seed: int) -> np.ndarray:
        self.seed = int(seed)
        self.env.random_state.seed(self.seed)
        # dm_control moves the goal's bricks on from where they are and relies on a fresh compilation
        hints = () if self.model is None else getattr(self.env.task, "_goal_hint_bricks", ())
        for brick in hints:
            frame = self.env.physics.bind(_dm_control()[2].get_attachment_frame(brick.mjcf_model))
            frame.pos, frame.quat = 0.0, [1.0, 0.0, 0.0, 0.0]
        order = getattr(self.env.task, "_initial_order", None)
        if order is not None:
            order.sort()  # it is shuffled in place: else the last episode would matter
        self.env.reset()
        self.bind(self.env.physics.model.ptr, self.env.physics.data.ptr)
        self._start = np.copy(self.data.xpos[self._things[0]]) if self._things else np.zeros(3)
        return self._read()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        action = np.clip(np.asarray(action, np.float64), -1.0, 1.0)
        reward = float(self.env.step(action * self._fastest).reward)
        state = self._read()
        hand, target, thing = state[:3], state[30:33], state[33:36]
        if self.kind == "reach":
            success = np.linalg.norm(hand - target) <= 0.05
        elif self.kind == "place":
            success = np.linalg.norm(thing - target) <= 0.05
        else:
            success = reward >= (LIFTED if self.kind == "lift" else 0.95)
        return state, reward, bool(success)

    def get_state(self) -> np.ndarray:
        return np.concatenate([[self.seed], self._get_physics()])

    def set_state(self, state: np.ndarray) -> np.ndarray:
        # what a reset draws is in the model, which it may compile anew
        if int(state[0]) != self.seed:
            self.reset(int(state[0]))
        self._settle_physics(state[1:])
        return self._read()

    def _read(self) -> np.ndarray:
        data, poses = self.data, np.zeros((5, 7))
        for pose, body in zip(poses, self._things, strict=False):
            pose[:3], pose[3:] = data.xpos[body], data.xquat[body]
        if self._target is not None:
            target = data.site_xpos[self._target]
        elif self.kind == "reach":
            target = poses[0, :3]
        else:
            target = self._start + [0, 0, 0.3] if self.kind == "lift" else np.zeros(3)
        hand = (data.site_xpos[self._hand], data.site_xmat[self._hand])
        joints = (data.qpos[self._angles], data.qvel[self._speeds])
        self.full_state = np.concatenate([*hand, *joints, target, poses.ravel()]).astype(np.float32)
        return self.full_state

    def state(self) -> np.ndarray:
        return np.concatenate([self.full_state[:3], self.full_state[12:21]])

    def script(self) -> Act:
        """A fresh hand-written controller; it needs this simulator's Jacobian as it runs.

        Raises:
            NotImplementedError: for a task that is not in SCRIPTED_TASKS.
        """
        if self.task not in SCRIPTED_TASKS:
            raise NotImplementedError(
                f"no script solves {self.task!r}; there is one for {', '.join(SCRIPTED_TASKS)}"
            )
        return _Reach(self) if self.kind == "reach" else _Grasp(self)

    def put_solved(self) -> None:
        task, physics = self.env.task, self.env.physics
        if self.kind == "lift":
            task._prop.set_pose(physics, position=self._start + [0.0, 0.0, 0.3])
        else:  # on its lowest brick, as the translucent ones in the background stand
            bottom, *others = task._desired_order
            where, turned = task._bricks[bottom].get_pose(physics)
            hint, hint_turned = task._goal_hint_bricks[bottom].get_pose(physics)
            turn, there = np.empty(4), np.empty(3)
            mujoco.mju_negQuat(turn, hint_turned)
            mujoco.mju_mulQuat(turn, turned, turn.copy())
            for i in others:
                position, quaternion = task._goal_hint_bricks[i].get_pose(physics)
                mujoco.mju_rotVecQuat(there, position - hint, turn)
                mujoco.mju_mulQuat(pose := np.empty(4), turn, quaternion)
                task._bricks[i].set_pose(physics, where + there, pose)
        mujoco.mj_forward(self.model, self.data)

    def hold_still(self, action: np.ndarray) -> np.ndarray:
        return np.append(np.zeros(6), action[6:])  # the fingers go on pressing

    def displaced(self, full_state: np.ndarray, offset: np.ndarray) -> np.ndarray:
        state = full_state.copy()
        state[:3] += offset
        return state

    def close(self) -> None:
        """Frees the rendering context."""
        super().close()
        if self.env is not None:
            self.env.close()
            self.env = None

    def toward(
        self, state: np.ndarray, position: np.ndarray, closing: np.ndarray, speed: float = 0.25
    ) -> np.ndarray:
        """Arm velocities [6] that bring the hand to a pose, by damped least squares.

        Args:
            state: full_state; where the hand believes itself.
            position: of the point between the finger tips, m.
            closing: horizontal direction in which the fingers close; they point down.
            speed: at most so much, m/s.
        """
        hand, axes = state[:3].astype(float), state[3:12].astype(float).reshape(3, 3)
        linear = 4.0 * (position - hand)
        linear *= min(1.0, speed / max(np.linalg.norm(linear), 1e-9))
        down = np.array([0.0, 0.0, -1.0])
        wanted = np.stack([closing, np.cross(down, closing), down], 1)
        angular = 2.0 * np.cross(axes, wanted, axis=0).sum(1)  # 4 times half the sum of sines
        jacobian = np.zeros((6, self.model.nv))
        mujoco.mj_jacSite(self.model, self.data, jacobian[:3], jacobian[3:], self._hand)
        arm = jacobian[:, self._speeds[:6]]
        twist = np.concatenate([linear, angular])
        rate = arm.T @ np.linalg.solve(arm @ arm.T + 1e-3 * np.eye(6), twist)
        action = rate / self._fastest[:6]
        return action / max(1.0, np.abs(action).max())


# --- scripted policies ----------------------------------------------------------------------------

OPEN, CLOSE = -np.ones(3), np.ones(3)
Move = tuple[np.ndarray, np.ndarray, float]
"""Where to bring the hand [3] (m), the fingers' action [3], and the speed (m/s)."""


def _horizontal(axis: np.ndarray) -> np.ndarray:
    flat = np.append(axis[:2], 0.0).astype(float)
    return flat / max(np.linalg.norm(flat), 1e-9)


class _Reach:
    def __init__(self, sim: ManipulationSim) -> None:
        self.sim = sim

    def __call__(self, state: np.ndarray, t: int) -> np.ndarray:
        above = 0.03 if "duplo" in self.sim.task else 0.0  # not into the brick
        closing = _horizontal(state[3:12].reshape(3, 3)[:, 0])
        arm = self.sim.toward(state, state[30:33] + [0, 0, above], closing)
        return np.append(arm, np.zeros(3))


class _Grasp:
    """Above the brick, across its short side, down, close, up; for place: over the target, down."""

    def __init__(self, sim: ManipulationSim) -> None:
        self.sim, self.phase, self.since, self.side = sim, "above", 0, 0

    def go(self, phase: str) -> None:
        self.phase, self.since = phase, 0

    def __call__(self, state: np.ndarray, t: int) -> np.ndarray:
        self.since += 1
        hand, target, thing = (state[i : i + 3].astype(float) for i in (0, 30, 33))
        closing = self.closing_direction(state)
        # the two fingers and the one opposite meet 1.5 cm beside the pinch site
        grip = thing + 0.015 * np.cross([0, 0, -1], closing) + [0, 0, 0.012]
        turned = closing @ state[3:12].reshape(3, 3)[:, 0]
        if self.phase in ("above", "down", "close"):
            move = self.take(hand, grip, turned)
        else:
            move = self.bring(hand, target, held=hand - thing)
        position, fingers, speed = move
        return np.append(self.sim.toward(state, position, closing, speed), fingers)

    def closing_direction(self, state: np.ndarray) -> np.ndarray:
        """Horizontal direction [3] in which the fingers close on the brick."""
        target, thing = state[30:33].astype(float), state[33:36].astype(float)
        axes = np.empty(9)
        mujoco.mju_quat2Mat(axes, state[36:40].astype(float))
        sides = [_horizontal(axis) for axis in axes.reshape(3, 3).T[:2]]  # across: 3.2 and 6.4 cm
        if self.phase == "above":
            pillar = _horizontal(target - thing) if self.sim.kind == "place" else np.zeros(3)
            near = np.linalg.norm((target - thing)[:2]) < 0.17
            # no finger fits between brick and pillar: then close across that direction
            self.side = int(near and abs(sides[0] @ pillar) > abs(sides[1] @ pillar))
        closing = sides[self.side]
        closing *= np.sign(closing @ state[3:12].reshape(3, 3)[:, 0]) or 1.0
        return closing

    def take(self, hand: np.ndarray, grip: np.ndarray, turned: float) -> Move:
        """Above the brick, down to the grip, close; ``turned`` is 1 where the hand is as it closes."""
        if self.phase == "above":
            aside = np.linalg.norm((grip - hand)[:2])
            if aside < 0.01 and turned > 0.99 and hand[2] < grip[2] + 0.12:
                self.go("down")
            return grip + [0, 0, 0.1], OPEN, 0.25
        if self.phase == "down":
            if np.linalg.norm(grip - hand) < 0.008 or self.since > 40:
                self.go("close")
                self.where = hand
            return grip, OPEN, 0.15
        if self.since > 25:
            self.go("up")
        return self.where, CLOSE, 0.25

    def bring(self, hand: np.ndarray, target: np.ndarray, held: np.ndarray) -> Move:
        """Up with the brick; for place over the target and down on it. ``held``: from brick to hand."""
        if np.linalg.norm(held) > 0.08:  # lost it
            self.go("above")
        if self.sim.kind == "lift":
            return self.where + [0, 0, 0.36], CLOSE, 0.2
        over = target + held + [0, 0, 0.09]
        if self.phase == "up":
            if hand[2] > over[2] - 0.02:
                self.go("over")
            return np.append(self.where[:2], over[2]), CLOSE, 0.2
        if self.phase == "over":
            if np.linalg.norm((over - hand)[:2]) < 0.01:
                self.go("lower")
            return over, CLOSE, 0.15
        return target + held + [0, 0, 0.02], CLOSE, 0.1


SIMULATOR = ManipulationSim
make_env = environment.for_suite(environment.make_env, SIMULATOR)
goal_image = environment.for_suite(environment.goal_image, SIMULATOR)
