"""Fetch (a 7-joint arm at a table: reach, push, slide, pick and place) as pixel environments.

Shapes: pixels uint8 [H, W, 3]; state float32 [4] = hand xyz and gripper opening (m); full_state
float32 [28] = the environment's own 25 observations (those of an object are 0 where there is
none) and the goal xyz (m); action float32 [4] in [-1, 1] = hand displacement (1 = 5 cm) and
gripper (-1 closes). The goal is the red ball. Besides gymnasium-robotics' four tasks there are
five more on the same models. Needs ``pip install "torchrl-vip[robotics]"``.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from torchrl_vip.envs import environment
from torchrl_vip.envs.simulator import Act, Randomization, Simulator, mujoco


class Task(NamedTuple):
    """Which environment, and where object and goal go if not where the environment puts them."""

    kind: str  # reach, push, slide or pick_and_place
    start: tuple[tuple[float, float], tuple[float, float]] | None = None  # object's x and y (m)
    shift: tuple[tuple[float, float], ...] | None = None  # object to goal: x, y and z (m)


# x points away from the robot, y to its left; the table spans x 1.05-1.55 and y 0.4-1.1
TASKS: dict[str, Task] = {
    "fetch-reach": Task("reach"),
    "fetch-push": Task("push"),
    "fetch-slide": Task("slide"),
    "fetch-pick-and-place": Task("pick_and_place"),
    "fetch-lift": Task("pick_and_place", shift=((0, 0), (0, 0), (0.15, 0.15))),
    "fetch-pull": Task(
        "push", ((1.32, 1.44), (0.62, 0.88)), ((-0.2, -0.12), (-0.04, 0.04), (0, 0))
    ),
    "fetch-push-away": Task(
        "push", ((1.2, 1.28), (0.62, 0.88)), ((0.12, 0.2), (-0.04, 0.04), (0, 0))
    ),
    "fetch-push-left": Task(
        "push", ((1.22, 1.42), (0.6, 0.72)), ((-0.04, 0.04), (0.12, 0.22), (0, 0))
    ),
    "fetch-push-right": Task(
        "push", ((1.22, 1.42), (0.78, 0.9)), ((-0.04, 0.04), (-0.22, -0.12), (0, 0))
    ),
}

SCRIPTED_TASKS: tuple[str, ...] = tuple(task for task in TASKS if task != "fetch-slide")
"""Tasks with a script: all but the slide, whose puck is thrown where no push follows it."""


def list_tasks() -> list[str]:
    """Names of the tasks, e.g. ``"fetch-push"``."""
    return sorted(TASKS)


def _environment(kind: str) -> Any:
    try:
        module = importlib.import_module(f"gymnasium_robotics.envs.fetch.{kind}")
    except ImportError as error:
        raise ImportError(
            'gymnasium-robotics is not installed: pip install "torchrl-vip[robotics]"'
        ) from error
    name = kind.title().replace("_", "")
    return getattr(module, f"MujocoFetch{name}Env")(reward_type="dense")


class FetchSim(Simulator):
    """One Fetch task. The reward is minus the distance (m) of object, or hand, to the goal;
    success is a distance below 5 cm."""

    # 180 faces the robot, 0 looks from behind it
    WIDE = Randomization((1.3, 0.75, 0.48), (85.0, 275.0), (-55.0, -15.0), (0.8, 1.25))
    MILD = WIDE.mild((120, 160), (-40, -25), (0.85, 1.05))
    VIEWS = {
        "front": ((1.3, 0.75, 0.48), 140.0, -30.0, 0.95),
        "side": ((1.3, 0.75, 0.5), 90.0, -25.0, 1.15),
        "wide": ((1.3, 0.75, 0.55), 132.0, -14.0, 2.5),  # the environment's own
    }
    ROBOT = "robot0:base_link"
    CAMERA = "front"
    MAX_STEPS = 100
    ACTION_SIZE, STATE_SIZE, FULL_STATE_SIZE = 4, 4, 28

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
        if task == "fetch-slide":  # its table is longer
            self.VIEWS = self.VIEWS | {"front": ((1.35, 0.75, 0.42), 140.0, -35.0, 1.25)}
            self.WIDE = replace(self.WIDE, lookat=(1.35, 0.75, 0.42), distance=(1.1, 1.5))
            self.MILD = replace(self.MILD, lookat=(1.35, 0.75, 0.42), distance=(1.15, 1.35))
        super().__init__(task, camera=camera, image_size=image_size, render=render)
        self.rule = TASKS[task]
        self.env = _environment(self.rule.kind)
        model = self.env.model
        marker = model.geom_bodyid == model.body("robot0:mocap").id
        model.geom_rgba[marker, 3] = 0.0  # the controller's cross-hairs are not of the scene
        self.bind(model, self.env.data)

    def reset(self, seed: int) -> np.ndarray:
        self.env.reset(seed=int(seed))
        if self.rule.start is not None:
            self._place_object(*np.array(self.rule.start).T)
        if self.rule.shift is not None:
            shift = self.env.np_random.uniform(*np.array(self.rule.shift, float).T)
            self.env.goal = self.data.site("object0").xpos + shift
        # private: gymnasium-robotics moves the ball and reads the observation in its own reset and step only
        self.env._render_callback()  # moves the red ball to the goal
        return self._read(self.env._get_obs())

    def _place_object(self, low: np.ndarray, high: np.ndarray) -> None:
        hand, rng = self.env.initial_gripper_xpos[:2], self.env.np_random
        position = rng.uniform(low, high)
        while np.linalg.norm(position - hand) < 0.1:  # the environment's own rule
            position = rng.uniform(low, high)
        self.data.joint("object0:joint").qpos[:2] = position
        mujoco.mj_forward(self.model, self.data)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        action = np.clip(np.asarray(action, np.float64), -1.0, 1.0)
        _, reward, _, _, info = self.env.step(action)
        # A step leaves bodies where they were before its last substep, and the next one's target is
        # computed from there: a restored state, which knows positions only, would go on from elsewhere.
        physics = self._get_physics()
        mujoco.mj_forward(self.model, self.data)
        self._set_physics(physics)  # forward overwrites the solver's warm start
        return self._read(self.env._get_obs()), float(reward), bool(info["is_success"])

    def get_state(self) -> np.ndarray:
        return np.concatenate([self._get_physics(), self.env.goal])

    def set_state(self, state: np.ndarray) -> np.ndarray:
        self._settle_physics(state[:-3])
        self.env.goal = state[-3:].copy()
        self.env._render_callback()
        self._set_physics(state[:-3])
        return self._read(self.env._get_obs())

    def _read(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        own = observation["observation"]
        if self.rule.kind == "reach":  # hand, fingers and their velocities only
            own = np.concatenate([own[:3], np.zeros(6), own[3:5], np.zeros(9), own[5:]])
        self.full_state = np.concatenate([own, self.env.goal]).astype(np.float32)
        return self.full_state

    def state(self) -> np.ndarray:
        return np.append(self.full_state[:3], self.full_state[9:11].sum()).astype(np.float32)

    def script(self) -> Act:
        """A fresh hand-written controller.

        Raises:
            NotImplementedError: for a task that is not in SCRIPTED_TASKS.
        """
        if self.task not in SCRIPTED_TASKS:
            raise NotImplementedError(
                f"no script solves {self.task!r}; there is one for {', '.join(SCRIPTED_TASKS)}"
            )
        return _SCRIPTS[self.rule.kind]()

    def put_solved(self) -> None:
        self.data.joint("object0:joint").qpos[:3] = self.env.goal
        mujoco.mj_forward(self.model, self.data)

    def hold_still(self, action: np.ndarray) -> np.ndarray:
        return np.array([0.0, 0.0, 0.0, action[3]])

    def displaced(self, full_state: np.ndarray, offset: np.ndarray) -> np.ndarray:
        state = full_state.copy()
        state[:3] += offset
        if self.rule.kind != "reach":
            state[6:9] -= offset  # hand to object
        return state


# --- scripted policies: each reads full_state only ------------------------------------------------

CLOSE, OPEN = -1.0, 1.0


def _toward(hand: np.ndarray, target: np.ndarray, speed: float, gripper: float) -> np.ndarray:
    """A proportional step of at most ``speed`` (1 = 5 cm), keeping its direction."""
    move = 8.0 * (target - hand)
    move *= min(1.0, speed / max(np.linalg.norm(move), 1e-9))
    return np.append(move, gripper)


class _Reach:
    def __call__(self, state: np.ndarray, t: int) -> np.ndarray:
        return _toward(state[:3], state[25:28], 0.3, CLOSE)


class _PickAndPlace:
    """Above the object, down, close, then to the goal, over the table until it is near."""

    def __init__(self) -> None:
        self.phase, self.closing = "above", 0

    def __call__(self, state: np.ndarray, t: int) -> np.ndarray:
        hand, thing, goal = (state[i : i + 3].astype(float) for i in (0, 3, 25))
        aside = np.linalg.norm((thing - hand)[:2])
        if self.phase == "above":
            if aside < 0.015 and hand[2] - thing[2] < 0.1:
                self.phase = "down"
            return _toward(hand, thing + [0, 0, 0.08], 0.7, OPEN)
        if self.phase == "down":
            if np.linalg.norm(thing - hand) < 0.012:
                self.phase = "close"
            return _toward(hand, thing, 0.5, OPEN)
        if self.phase == "close":
            self.closing += 1
            if self.closing >= 6:
                self.phase = "carry"
            return _toward(hand, hand, 0.0, CLOSE)
        if np.linalg.norm(thing - hand) > 0.06:  # lost it
            self.phase, self.closing = "above", 0
        far = np.linalg.norm((goal - thing)[:2]) > 0.03
        lift = np.array([0.0, 0.0, 0.06 if far and goal[2] - thing[2] < 0.06 else 0.0])
        return _toward(hand, goal + lift + (hand - thing), 0.5, CLOSE)


class _Push:
    """Behind the object, down, then towards the goal while steering onto their line."""

    def __init__(self) -> None:
        self.phase = "behind"

    def __call__(self, state: np.ndarray, t: int) -> np.ndarray:
        hand, thing, goal = (state[i : i + 3].astype(float) for i in (0, 3, 25))
        direction = np.append((goal - thing)[:2], 0.0)
        distance = np.linalg.norm(direction)
        if distance < 0.012:
            return np.array([0.0, 0.0, 0.0, CLOSE])
        direction /= distance
        along = (thing - hand) @ direction
        across = thing - hand - along * direction
        across[2] = 0.0
        behind = thing - 0.075 * direction
        if self.phase == "behind":
            away = np.linalg.norm((behind - hand)[:2])
            if away < 0.02:
                self.phase = "down"
            level = thing[2] + 0.09
            if hand[2] < level - 0.03 and away > 0.04:  # up first: the object is in the way
                return _toward(hand, np.append(hand[:2], level), 0.7, CLOSE)
            return _toward(hand, np.append(behind[:2], level), 0.7, CLOSE)
        if self.phase == "down":
            if hand[2] - thing[2] < 0.015:
                self.phase = "push"
            return _toward(hand, np.append(behind[:2], thing[2] + 0.005), 0.5, CLOSE)
        if along < 0.01 or np.linalg.norm(across) > 0.035:
            self.phase = "behind"
        forward = np.clip(4.0 * distance, 0.12, 0.4) * direction
        height = np.array([0.0, 0.0, 8.0 * (thing[2] + 0.005 - hand[2])])
        return np.append(forward + 8.0 * across + height, CLOSE)


_SCRIPTS = {"reach": _Reach, "push": _Push, "pick_and_place": _PickAndPlace}


SIMULATOR = FetchSim
make_env = environment.for_suite(environment.make_env, SIMULATOR)
goal_image = environment.for_suite(environment.goal_image, SIMULATOR)
