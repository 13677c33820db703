"""The thing of each task: where it starts, what is read of it, when it is where it should be.

Positions in the data and the model's names are those of :mod:`torchrl_vip.envs.tabletop.scene`.

Lengths in metres, angles in radians, speeds in metres a second.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from torchrl_vip.envs.simulator import mujoco
from torchrl_vip.envs.tabletop.scene import DRAWER_TRAVEL, ZONE, ZONE_RADIUS

SHUT = 0.01  # a drawer that is open by less is shut
UPRIGHT = np.cos(np.radians(10.0))  # a bottle whose axis leans less stands
IN_BOWL = 0.05  # between the melon's middle and the bowl's, seen from above
LOW = 0.075  # above the table: a melon whose middle is higher is not in the bowl yet
FOLDED = 0.05  # between the towel's corner and its partner
AT_REST = 0.05  # a soft thing's mean speed


class Thing(ABC):
    """One task's thing in its model."""

    HAND: ClassVar[tuple[float, float, float]]  # about where the hand starts
    SPREAD: ClassVar[tuple[float, float, float]] = (0.03, 0.03, 0.02)  # at most so far from there
    YAW: ClassVar[float] = 0.0  # of the fingers
    OPENING: ClassVar[float] = 0.0  # of each finger at the start
    SETTLE: ClassVar[int] = 0  # physics steps before an episode begins
    STRENGTH: ClassVar[float] = 0.0  # N: the hand loses what pulls harder
    REACH: ClassVar[float] = 0.0  # m from the middle between the tips, within which it holds
    PADS: ClassVar[int] = 1  # that must touch it

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        self.model, self.data = model, data

    @abstractmethod
    def place(self, rng: np.random.Generator) -> None:
        """Draws where it starts, into the data's positions."""

    @abstractmethod
    def move(self, rng: np.random.Generator) -> np.ndarray:
        """Puts it back to where it might have started, its target left where it is; returns how far it takes
        the hand along, ``[3]``."""

    @abstractmethod
    def seen(self) -> np.ndarray:
        """What scripts read, ``[<= 13]``; the place to put the hand at comes first, ``[3]``."""

    @abstractmethod
    def left(self) -> float:
        """How far it is from where it should be (m)."""

    @abstractmethod
    def done(self, held: bool) -> bool:
        """Whether it is where it should be, for all to see: let go of, and at rest where it is soft."""


class Drawer(Thing):
    """A drawer that is open by 10 to 18 cm."""

    HAND, SPREAD = (0.67, -0.14, 0.2), (0.02, 0.03, 0.02)

    def place(self, rng: np.random.Generator) -> None:
        cabinet = self.model.body("cabinet").mocapid[0]
        yaw = rng.uniform(-0.12, 0.12)
        self.data.mocap_pos[cabinet] = [rng.uniform(0.28, 0.31), rng.uniform(-0.17, -0.11), 0.0]
        self.data.mocap_quat[cabinet] = [np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)]
        self._open(rng)

    def _open(self, rng: np.random.Generator) -> None:
        self.data.joint("drawer").qpos[0] = rng.uniform(0.1, DRAWER_TRAVEL - 0.02)

    def move(self, rng: np.random.Generator) -> np.ndarray:
        before, along = self.left(), self.data.site("front").xmat[[0, 3]]
        self._open(rng)
        return (self.left() - before) * np.array([*along, 0.0])

    def seen(self) -> np.ndarray:
        """Upper middle of the front [3]; how far it is open; the direction in which it opens [2]."""
        site = self.data.site("front")
        return np.concatenate([site.xpos, [self.left()], site.xmat[[0, 3]]])

    def left(self) -> float:
        return float(self.data.joint("drawer").qpos[0])

    def done(self, held: bool) -> bool:
        return self.left() < SHUT


class Bottle(Thing):
    """A bottle of water that stands about 18 cm from the zone."""

    HAND, OPENING = (0.33, -0.08, 0.13), 0.02

    def place(self, rng: np.random.Generator) -> None:
        yaw = rng.uniform(-np.pi, np.pi)
        at = [rng.uniform(0.42, 0.46), rng.uniform(-0.17, -0.03), 0.0]
        self.data.joint("bottle").qpos[:] = [*at, np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)]

    def move(self, rng: np.random.Generator) -> np.ndarray:
        before = self.data.body("bottle").xpos.copy()
        self.place(rng)
        pushed = self.data.joint("bottle").qpos[:3] - before
        # with the hand, which else would stand before it; but not straight back
        return np.array(
            [pushed[0] - rng.uniform(0.0, 0.03), pushed[1] + rng.uniform(-0.02, 0.02), 0.0]
        )

    def seen(self) -> np.ndarray:
        """Where it stands [3], its axis [3], its velocity [3], the zone's middle [2]."""
        body = self.data.body("bottle")
        velocity = self.data.joint("bottle").qvel[:3]
        return np.concatenate([body.xpos, body.xmat[[2, 5, 8]], velocity, ZONE])

    def left(self) -> float:
        return float(np.linalg.norm(self.data.body("bottle").xpos[:2] - ZONE))

    def done(self, held: bool) -> bool:
        upright = self.data.body("bottle").xmat[8] > UPRIGHT
        return bool(upright and self.left() < ZONE_RADIUS)


class Soft(Thing):
    """A flex whose vertices are bodies that slide along the world's axes."""

    NAME: ClassVar[str]

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        super().__init__(model, data)
        bodies = [model.body(i) for i in range(model.nbody)]
        vertices = [body for body in bodies if body.name.startswith(f"{self.NAME}_")]
        self.vertices = np.array([body.id for body in vertices])
        self.first = model.jnt_qposadr[vertices[0].jntadr[0]]
        self.rest = model.body_pos[self.vertices].copy()
        self.middle = self.rest.mean(0)
        self.slides = slice(self.first, self.first + 3 * len(vertices))
        first = model.jnt_dofadr[vertices[0].jntadr[0]]
        self.speeds = slice(first, first + 3 * len(vertices))

    def put(self, x: float, y: float, yaw: float) -> None:
        """Its undeformed shape, its middle at (x, y), turned by ``yaw``."""
        cos, sin = np.cos(yaw), np.sin(yaw)
        turn = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
        at = (self.rest - self.middle) @ turn.T + [x, y, self.middle[2]]
        self.data.qpos[self.slides] = (at - self.rest).ravel()

    def points(self) -> np.ndarray:
        """Where its vertices are, ``[V, 3]``."""
        return self.data.xpos[self.vertices]

    def velocity(self) -> np.ndarray:
        return self.data.qvel[self.speeds].reshape(-1, 3).mean(0)

    def speed(self) -> float:
        """The mean of its vertices' speeds."""
        return float(np.linalg.norm(self.data.qvel[self.speeds].reshape(-1, 3), axis=1).mean())


class Melon(Soft):
    """A soft slice of melon that stands on its flat side, and a bowl."""

    NAME = "melon"
    HAND, YAW, OPENING, SETTLE = (0.55, -0.05, 0.17), np.pi / 2, 0.04, 60
    STRENGTH, REACH, PADS = 30.0, 0.024, 2

    def place(self, rng: np.random.Generator) -> None:
        self.move(rng)
        bowl = self.model.body("bowl").mocapid[0]
        self.data.mocap_pos[bowl] = [rng.uniform(0.43, 0.47), rng.uniform(-0.31, -0.27), 0.0]

    def move(self, rng: np.random.Generator) -> np.ndarray:
        self.put(rng.uniform(0.51, 0.57), rng.uniform(-0.11, -0.03), rng.uniform(-0.25, 0.25))
        return np.zeros(3)

    def seen(self) -> np.ndarray:
        """Its middle [3], the bowl's [3], its mean velocity [3], its thickness between the pads [1]."""
        across = self.points()[:, 0]
        return np.concatenate(
            [self.points().mean(0), self._bowl(), self.velocity(), [np.ptp(across)]]
        )

    def _bowl(self) -> np.ndarray:
        return self.data.body("bowl").xpos

    def left(self) -> float:
        return float(np.linalg.norm(self.points().mean(0) - self._bowl() - [0.0, 0.0, 0.03]))

    def done(self, held: bool) -> bool:
        offset = self.points().mean(0) - self._bowl()
        inside = np.linalg.norm(offset[:2]) < IN_BOWL and offset[2] < LOW
        return bool(inside and not held and self.speed() < AT_REST)


class Towel(Soft):
    """A square towel that lies flat; its corner nearest to the camera goes to the one opposite."""

    NAME = "towel"
    HAND, OPENING, SETTLE = (0.6, 0.0, 0.12), 0.02, 20
    STRENGTH, REACH, PADS = 15.0, 0.02, 1

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        super().__init__(model, data)
        outwards = (self.rest - self.middle)[:, :2]
        # that moves, its partner, the other two: the crease runs along the diagonals of the grid's cells
        corners = [(1, -1), (-1, 1), (1, 1), (-1, -1)]
        self.corners = [int(np.argmax(outwards @ corner)) for corner in corners]

    def place(self, rng: np.random.Generator) -> None:
        turn = np.pi / 2 + rng.uniform(-0.35, 0.35)
        self.put(rng.uniform(0.50, 0.55), rng.uniform(-0.17, -0.09), turn)

    def move(self, rng: np.random.Generator) -> np.ndarray:
        self.place(rng)
        return np.zeros(3)

    def seen(self) -> np.ndarray:
        """The corner [3], its partner [3], the two others [3, 3], the mean speed [1]."""
        return np.append(self.points()[self.corners], self.speed())

    def left(self) -> float:
        corner, partner = self.points()[self.corners[:2]]
        return float(np.linalg.norm(corner - partner))

    def done(self, held: bool) -> bool:
        return bool(self.left() < FOLDED and not held and self.speed() < AT_REST)


THINGS: dict[str, type[Thing]] = {
    "close-drawer": Drawer,
    "push-bottle": Bottle,
    "pickplace-melon": Melon,
    "fold-towel": Towel,
}
