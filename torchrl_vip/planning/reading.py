"""What a goal image says: what has moved, how far, and where the robot touches it.

The distance to a goal image falls once the object moves. Which of all things that is, and where to take hold
of it, the distance does not tell, and a planner that looks a second ahead waits in front of it with the
robot's pose of the goal. Who plans on a simulator can move each thing in turn: the one whose move takes away
most of the distance to the goal image is what has moved, and the robot's part that is nearest to it there is
what touches it. A plan can then be judged by how far the thing is from there, and the robot from touching it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from torchrl_vip.envs.simulator import Simulator, mujoco
from torchrl_vip.planning.registration import FoundRobot, check_goal, place

Distance = Callable[[np.ndarray], np.ndarray]
"""Frames uint8 [N, H, W, 3] to distances [N] to the goal image."""


class GoalReading(NamedTuple):
    """What a goal image shows moved, and where a part of the robot belongs on it.

    Attributes:
        joint: name of the hinge or slide that the object moves by.
        value: where the goal image shows it, in radians or m.
        span: of the joint, likewise.
        body: number of the object's body.
        part: number of the robot's body that is nearest to it in the goal image.
        offset: that one's position in the object's frame, [3] (m).
    """

    joint: str
    value: float
    span: float
    body: int
    part: int
    offset: np.ndarray

    def joint_error(self, data: mujoco.MjData) -> float:
        """How far the object is from where the goal image shows it, in parts of the joint's span."""
        return abs(float(data.joint(self.joint).qpos[0]) - self.value) / self.span

    def touch(self, data: mujoco.MjData) -> float:
        """How far the robot's part is from where it belongs on the object, wherever that is (m)."""
        belongs = data.xpos[self.body] + data.xmat[self.body].reshape(3, 3) @ self.offset
        return float(np.linalg.norm(data.xpos[self.part] - belongs))

    def score(self, data: mujoco.MjData) -> float:
        """What a planner raises: -5 x :meth:`joint_error` - :meth:`touch`, weighed as FrankaKitchen's true
        reward (``KitchenSim.reward``)."""
        return -5.0 * self.joint_error(data) - self.touch(data)


def read_goal(
    sim: Simulator,
    goal: np.ndarray,
    camera: str,
    robot: FoundRobot,
    distance: Distance,
    *,
    values: int = 9,
) -> GoalReading | None:
    """Which hinge or slide a goal image shows moved, how far, and where the robot touches what it moves.

    Every object is drawn at ``values`` places over its joint's range, without the robot. The one that has
    moved is the one whose move takes away most of the distance to the goal image, compared where
    the move changes the picture and the goal image does not show the robot. It is then drawn at as many
    places between the neighbours of the nearest one. Joints that the model couples move together.

    Args:
        sim: at the start of the episode; it is left as it was.
        goal: uint8 ``[H, W, 3]``, as large as the simulator draws.
        camera: that took it, by its name in the simulator.
        robot: where the goal image shows it, from :func:`find_robot`.
        distance: of frames to the goal image.
        values: places of each thing that are drawn.

    Returns:
        None where no move brings the scene nearer to the goal image, or nothing in it has a hinge or slide.

    Raises:
        ValueError: a goal of another size or type; a suite that knows no robot; an unknown camera;
            ``values`` below 2.
    """
    check_goal(sim, goal)
    if values < 2:
        raise ValueError(f"values is {values}; wanted 2 or more")
    state, here, model = sim.get_state(), sim.data.qpos.copy(), sim.model

    def pictures(thing: list[int], places: np.ndarray) -> np.ndarray:
        """Of a thing moved to V places, [V, H, W, 3]."""
        frames = []
        for value in places:
            place(sim, _moved(model, here, thing, value))
            frames.append(sim.layer(camera, robot=False)[0])
        return np.stack(frames)

    try:
        place(sim, here)
        now = sim.layer(camera, robot=False)[0].copy()
        most, found = 0.0, None
        for thing in _things(sim):
            places = np.linspace(*model.jnt_range[thing[0]], values)
            frames = np.concatenate([now[None], pictures(thing, places)])
            compared = _grown((frames != now).any((0, -1))) & ~robot.pixels
            first, *away = distance(np.where(compared[..., None], frames, goal))
            # not its share: things that settle after a reset differ by a trace that a move takes away whole
            gain = first - min(away)
            if gain > most:
                most, found = gain, (thing, places[np.argmin(away)], compared)
        if found is None:
            return None
        thing, value, compared = found
        low, high = model.jnt_range[thing[0]]
        step = (high - low) / (values - 1)
        places = np.linspace(value - step, value + step, values).clip(low, high)
        frames = pictures(thing, places)
        value = places[distance(np.where(compared[..., None], frames, goal)).argmin()]
        place(sim, _moved(model, robot.qpos, thing, value))
        part, body = _nearest(sim, {int(model.jnt_bodyid[joint]) for joint in thing})
        frame = sim.data.xmat[body].reshape(3, 3)
        offset = frame.T @ (sim.data.xpos[part] - sim.data.xpos[body])
        name, span = model.joint(thing[0]).name, float(high - low)
        return GoalReading(name, float(value), span, body, part, offset)
    finally:
        sim.set_state(state)


def _grown(pixels: np.ndarray, by: int = 4) -> np.ndarray:
    """Pixels [H, W] and those around them: a network sees an edge better than what is beside it."""
    size = 2 * by + 1
    grown = F.max_pool2d(torch.from_numpy(pixels).float()[None], size, stride=1, padding=by)
    return grown[0].bool().numpy()


def _things(sim: Simulator) -> list[list[int]]:
    """Hinges and slides of everything but the robot, each before those that follow it."""
    model, kind = sim.model, mujoco.mjtJoint
    root = model.body_rootid
    free = root[model.jnt_bodyid] != root[model.body(sim.ROBOT).id]
    one = (model.jnt_type == kind.mjJNT_HINGE) | (model.jnt_type == kind.mjJNT_SLIDE)
    chosen = np.flatnonzero(free & one & model.jnt_limited.astype(bool))
    followers = {int(second): int(first) for first, second, _ in _couplings(model)}
    return [
        [int(joint), *(f for f, leader in followers.items() if leader == joint)]
        for joint in chosen
        if int(joint) not in followers
    ]


def _couplings(model: mujoco.MjModel) -> list[tuple[int, int, np.ndarray]]:
    """Pairs of joints that move together, and the coefficients [2] of the first one's offset from its
    reference in that of the second one."""
    coupled = (model.eq_type == mujoco.mjtEq.mjEQ_JOINT) & (model.eq_obj2id >= 0)
    return [
        (model.eq_obj1id[i], model.eq_obj2id[i], model.eq_data[i, :2])
        for i in np.flatnonzero(coupled)
        if model.eq_data[i, 1] != 0
    ]


def _moved(model: mujoco.MjModel, qpos: np.ndarray, thing: list[int], value: float) -> np.ndarray:
    """Positions [nq] with a thing moved."""
    qpos, at, rest = qpos.copy(), model.jnt_qposadr, model.qpos0
    qpos[at[thing[0]]] = value
    for first, second, (bias, slope) in _couplings(model):
        if first == thing[0] and second in thing:
            qpos[at[second]] = rest[at[second]] + (value - rest[at[first]] - bias) / slope
    return qpos


def _nearest(sim: Simulator, bodies: set[int]) -> tuple[int, int]:
    """The robot's body and the one of these (or what they carry) that are nearest to each other."""
    model, root = sim.model, sim.model.body_rootid
    flat = np.isin(model.geom_type, [mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_HFIELD])
    carried = bodies.copy()
    for body in range(model.nbody):  # parents come first
        if int(model.body_parentid[body]) in carried:
            carried.add(body)
    mine = root[model.geom_bodyid] == root[model.body(sim.ROBOT).id]
    ours = np.flatnonzero(mine & ~flat)
    theirs = np.flatnonzero(np.isin(model.geom_bodyid, list(carried)) & ~flat)
    _, part, body = min(
        (mujoco.mj_geomDistance(model, sim.data, a, b, 10.0, None), a, b)
        for a in ours
        for b in theirs
    )
    return int(model.geom_bodyid[part]), int(model.geom_bodyid[body])
