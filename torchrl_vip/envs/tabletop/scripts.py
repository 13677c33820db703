"""Scripted demonstrators: each reads full_state only and goes from waypoint to waypoint.

Seen by them, full_state [21]: hand [3], its target [3], the fingers' opening, what they are told, and what
``seen`` of the thing in :mod:`torchrl_vip.envs.tabletop.things` gives. Lengths in metres.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

Place = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""``place(seen, hand)``: where the hand is to go, [3], of what is seen of the thing and where it is."""

STEP = 0.03  # of the simulator: what an action of 1 moves the hand's target
CLOSE, HALF, OPEN = -1.0, 0.0, 1.0
PUSH = 0.085  # height of the tips that push the bottle: the hand is above its cap, the tips below its middle


class Waypoint(NamedTuple):
    """Where the hand goes next.

    Attributes:
        place: where to, [3]; asked at every step, as things move.
        gripper: what it does on the way.
        near: the next waypoint's turn comes when the hand is nearer than this.
        steps: or after so many.
        speed: at most so many steps' lengths a step.
        aimed: whether a bad aim shows here.
        until: ends it too, of what is seen of the thing.
    """

    place: Place
    gripper: float
    near: float = 0.015
    steps: int = 20
    speed: float = 0.9
    aimed: bool = True
    until: Callable[[np.ndarray], bool] | None = None


class Habits(NamedTuple):
    """How one demonstrator differs from the next. The defaults are those of a machine.

    Attributes:
        pace: times a waypoint's speed.
        pause: probability of a pause of one to three steps, at every step.
        bow: how far the path leads aside half-way, [3].
        aim: how far off the hand goes, [3].
        shake: standard deviation of what is added to actions.
        gives_up: the step from which on it does nothing more, the gripper opened.
    """

    pace: float = 1.0
    pause: float = 0.0
    bow: np.ndarray = np.zeros(3)
    aim: np.ndarray = np.zeros(3)
    shake: float = 0.0
    gives_up: float = np.inf


def draw_habits(skill: float, rng: np.random.Generator) -> Habits:
    """The habits of a person with this skill: 1 solves the task, 0 fumbles."""
    clumsy = 1.0 - skill
    angle, off = rng.uniform(0, 2 * np.pi), clumsy * rng.uniform(0.03, 0.09)
    fumble = rng.uniform() < clumsy
    return Habits(
        pace=rng.uniform(0.85, 1.0),
        pause=rng.uniform(0.0, 0.03),
        bow=np.array([*rng.uniform(-0.02, 0.02, 2), rng.uniform(0.0, 0.02)]),
        aim=off * np.array([np.cos(angle), np.sin(angle), 0.0]),
        shake=rng.uniform(0.0, 0.05) + 0.25 * clumsy * rng.uniform(),
        gives_up=rng.integers(8, 30) if fumble else np.inf,
    )


class Demonstrator:
    """Follows waypoints with its own habits.

    Args:
        plan: the waypoints.
        skill, seed: see ``TabletopSim.script``.

    Raises:
        ValueError: skill outside [0, 1].
    """

    def __init__(self, plan: list[Waypoint], skill: float = 1.0, seed: int | None = None) -> None:
        if not 0.0 <= skill <= 1.0:
            raise ValueError(f"skill is {skill}; wanted a number from 0 to 1")
        if skill < 1.0 and seed is None:
            raise ValueError(f"skill is {skill}: wanted a seed, which draws what goes wrong")
        self.plan, self.number, self.since, self.pausing = plan, 0, 0, 0
        self.rng = np.random.default_rng(seed)
        self.habits = Habits() if seed is None else draw_habits(skill, self.rng)
        self.begun_at: np.ndarray | None = None  # where the hand was when this waypoint's turn came

    def __call__(self, state: np.ndarray, t: int) -> np.ndarray:
        """The action [4] at step ``t``."""
        state = state.astype(float)
        hand, pulled, seen = state[:3], state[3:6], state[8:]
        if t >= self.habits.gives_up:
            return np.array([0.0, 0.0, 0.0, OPEN])
        waypoint = self.plan[self.number]
        place = waypoint.place(seen, hand) + waypoint.aimed * self.habits.aim
        if self.begun_at is None:
            self.begun_at = hand
        over = np.linalg.norm(place - hand) < waypoint.near or self.since >= waypoint.steps
        over = over or (waypoint.until is not None and waypoint.until(seen))
        if over and self.number + 1 < len(self.plan):
            self.number, self.since, self.begun_at = self.number + 1, 0, hand
            waypoint = self.plan[self.number]
            place = waypoint.place(seen, hand) + waypoint.aimed * self.habits.aim
        self.since += 1
        if self._pauses():
            return np.array([0.0, 0.0, 0.0, waypoint.gripper])
        return np.append(self._move(place, pulled, waypoint), waypoint.gripper)

    def _pauses(self) -> bool:
        if self.pausing:
            self.pausing -= 1
        elif self.rng.uniform() < self.habits.pause:
            self.pausing = int(self.rng.integers(1, 4))
        return self.pausing > 0

    def _move(self, place: np.ndarray, pulled: np.ndarray, waypoint: Waypoint) -> np.ndarray:
        way = place - pulled
        length, whole = np.linalg.norm(way), np.linalg.norm(place - self.begun_at)
        if whole > 0.1:  # a long way bows, and ends where it is to end
            part = np.clip(1.0 - length / whole, 0.0, 1.0)
            way = way + self.habits.bow * 4.0 * part * (1.0 - part)
        limit = waypoint.speed * self.habits.pace * STEP
        way = way * min(1.0, limit / max(np.linalg.norm(way), 1e-9))
        return way / STEP + self.rng.normal(0.0, self.habits.shake, 3) * (self.habits.shake > 0)


# --- the four tasks ---------------------------------------------------------------------------------
# x leads away from the robot, z up; "seen" of each stands in things.py


def _before_drawer(seen: np.ndarray, hand: np.ndarray, distance: float) -> np.ndarray:
    """At the upper middle of its front, so far before it."""
    return seen[:3] + distance * np.array([*seen[4:6], 0.0])


def close_drawer() -> list[Waypoint]:
    return [
        Waypoint(partial(_before_drawer, distance=0.035), CLOSE, near=0.02),
        Waypoint(partial(_before_drawer, distance=-0.03), CLOSE, near=0.0, steps=100, speed=0.5),
    ]


def _behind_bottle(seen: np.ndarray, hand: np.ndarray, distance: float) -> np.ndarray:
    """On the robot's side of it, a little round to where it is to be pushed from."""
    way = seen[9:11] - seen[:2] + [0.1, 0.0]
    return np.append(seen[:2] - distance * way / max(np.linalg.norm(way), 0.01), PUSH)


def _along_with_bottle(seen: np.ndarray, hand: np.ndarray) -> np.ndarray:
    """As far from the hand as the zone is from the bottle, which the fingers have between them."""
    return np.append(hand[:2] + seen[9:11] - seen[:2], PUSH)


def _arrives(seen: np.ndarray) -> bool:
    return bool(np.linalg.norm(seen[9:11] - seen[:2]) < 0.02)


def push_bottle() -> list[Waypoint]:
    """Between two fingers it does not roll aside."""
    return [
        Waypoint(partial(_behind_bottle, distance=0.065), HALF, near=0.02),
        Waypoint(_along_with_bottle, HALF, near=0.0, steps=100, speed=0.35, until=_arrives),
        Waypoint(partial(_behind_bottle, distance=0.08), HALF, near=0.0, steps=100, speed=0.15),
    ]


def _at(
    seen: np.ndarray, hand: np.ndarray, first: int, height: float, inwards: float = 0.0
) -> np.ndarray:
    """Above the point that is seen at ``first``; so far from it towards the towel's middle."""
    point = seen[first : first + 3]
    if inwards:
        middle = seen[:12].reshape(4, 3).mean(0)
        point = point + inwards * (middle - point) / max(np.linalg.norm(middle - point), 1e-9)
    return np.array([*point[:2], height])


def pickplace_melon() -> list[Waypoint]:
    melon, bowl = partial(_at, first=0), partial(_at, first=3)
    return [
        Waypoint(partial(melon, height=0.13), OPEN, near=0.03),
        Waypoint(partial(melon, height=0.045), OPEN, near=0.01),
        Waypoint(partial(melon, height=0.045), CLOSE, near=0.0, steps=5),
        Waypoint(partial(melon, height=0.12), CLOSE, near=0.05, speed=1.2, aimed=False),
        Waypoint(partial(bowl, height=0.13), CLOSE, near=0.04, speed=1.2),
        Waypoint(partial(bowl, height=0.075), CLOSE, near=0.015),
        Waypoint(partial(bowl, height=0.075), OPEN, near=0.0, steps=4),
        Waypoint(partial(bowl, height=0.2), OPEN, near=0.0, steps=100),
    ]


def fold_towel() -> list[Waypoint]:
    corner, partner = partial(_at, first=0, inwards=0.012), partial(_at, first=3)
    return [
        Waypoint(partial(corner, height=0.05), HALF, near=0.025),
        Waypoint(partial(corner, height=0.012), HALF, near=0.008),
        Waypoint(partial(corner, height=0.012), CLOSE, near=0.0, steps=4),
        Waypoint(partial(_half_way, height=0.12), CLOSE, near=0.03, aimed=False),
        Waypoint(partial(partner, height=0.025, inwards=0.01), CLOSE, near=0.015),
        Waypoint(partial(partner, height=0.025, inwards=0.01), HALF, near=0.0, steps=3),
        Waypoint(partial(partner, height=0.2), HALF, near=0.0, steps=100),
    ]


def _half_way(seen: np.ndarray, hand: np.ndarray, height: float) -> np.ndarray:
    """Above the middle of the diagonal that the towel is folded at."""
    return np.append(seen[6:12].reshape(2, 3).mean(0)[:2], height)


_PLANS = {
    "close-drawer": close_drawer,
    "push-bottle": push_bottle,
    "pickplace-melon": pickplace_melon,
    "fold-towel": fold_towel,
}


def _demonstrate(task: str, skill: float, seed: int | None) -> Demonstrator:
    return Demonstrator(_PLANS[task](), skill, seed)


SCRIPTS = {task: partial(_demonstrate, task) for task in _PLANS}
