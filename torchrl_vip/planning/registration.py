"""Where the robot stands in a goal image, found by drawing it until it looks the same.

A goal image shows the robot as well as what it has done, and most of what changes in the picture on the
way is the robot. Who plans on a simulator can draw the scene with the robot anywhere: the pose whose
picture is nearest to the goal image tells which of its pixels are the robot's.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from torchrl_vip.envs.simulator import Simulator, mujoco
from torchrl_vip.planning.mppi import CEM

CELL = 4  # pixels: pictures are compared as means of such squares, so that near misses count
LARGEST = 60.0  # grey levels: more than that is another object, however large the difference
CLOSEST = 0.02  # of the reach: poses are spread by as much at least
MATCHES = 16  # iterations of the cross-entropy method
RIDGE = 0.01  # beside a kernel that is 1 at no distance


class FoundRobot(NamedTuple):
    """Where a goal image shows the robot.

    Attributes:
        pixels: those that show it, bool ``[H, W]``.
        qpos: MuJoCo's positions ``[nq]`` with the robot there and all else as it was.
    """

    pixels: np.ndarray
    qpos: np.ndarray


def find_robot(
    sim: Simulator,
    goal: np.ndarray,
    camera: str,
    *,
    candidates: int = 512,
    iterations: int = 6,
    sigma: float = 0.6,
    seed: int = 0,
    progress: bool = True,
) -> FoundRobot:
    """Where the robot stands in a goal image, and which of its pixels show it.

    The robot is drawn in random poses; a regression from their pictures to the poses tells where it stands
    in the goal image, and around that the next ones are drawn, spread by its error. Hardly any pose looks
    like the goal image, but many are right in part: the regression learns from all of them, where a search
    that keeps the best ones ends in the first pose that looks a little like it. The cross-entropy method
    then makes the best one match. Only pictures are looked at; all but the robot is drawn as it is now.

    Args:
        sim: at the start of the episode; it is left as it was.
        goal: uint8 ``[H, W, 3]``, as large as the simulator draws.
        camera: that took it, by its name in the simulator.
        candidates: poses drawn for each regression.
        iterations: regressions; the second half of them see finer pictures. With what is drawn to match
            the best one 4,096 pictures, some 40 s of one core in software.
        sigma: how far from where they are the hinges are first tried, as a standard deviation in
            radians; slides by up to 5 cm. Less where the robot hardly moves.
        seed: of the search.
        progress: show a bar.

    Raises:
        ValueError: a goal of another size; a suite that knows no robot; a camera that is unknown or
            rides on it; fewer than 8 candidates.
    """
    check_goal(sim, goal)
    if not sim.ROBOT:
        raise ValueError(f"{type(sim).__name__} knows no robot to look for")
    if candidates < 8:
        raise ValueError(f"candidates is {candidates}; wanted 8 at least to learn from")
    state = sim.get_state()
    matched = candidates // 8
    total = iterations * candidates + MATCHES * matched
    try:
        with tqdm(total=total, desc="finding the robot", unit="pose", disable=not progress) as bar:
            robot = _Robot(sim, camera, bar)
            pose = _regress(robot, _cells(goal), candidates, iterations, sigma, seed)
            pose = _match(robot, _cells(goal), matched, pose, seed)
        pixels = robot.draw(pose)[1]
        qpos = sim.data.qpos.copy()
    finally:
        sim.set_state(state)
    return FoundRobot(pixels, qpos)


def check_goal(sim: Simulator, goal: np.ndarray) -> None:
    """Raise ValueError unless a goal image is as large as what the simulator draws, and of its type."""
    size = (sim.image_size, sim.image_size, 3)
    if goal.shape != size or goal.dtype != np.uint8:
        raise ValueError(f"goal of shape {goal.shape}, {goal.dtype}; wanted uint8 {list(size)}")


def place(sim: Simulator, qpos: np.ndarray) -> None:
    """Puts everything at these positions [nq], to be looked at."""
    sim.data.qpos[:] = qpos
    for step in (mujoco.mj_kinematics, mujoco.mj_comPos, mujoco.mj_camlight):
        step(sim.model, sim.data)


class _Robot:
    """A simulator's robot, drawn in any pose over the scene as it stands.

    A pose [J] is of its hinges and slides, -1 to 1 over the range of each (of a hinge that turns for ever
    half a turn either way from where it is).

    Attributes:
        pose: the one it is in.
        reach: in the same units, [J]: a radian of a hinge, 5 cm of a slide or half of its range.
    """

    def __init__(self, sim: Simulator, camera: str, bar: tqdm) -> None:
        model, kind = sim.model, mujoco.mjtJoint
        root = model.body_rootid
        robot = root[model.body(sim.ROBOT).id]
        fixed = {model.cam(i).name: root[body] != robot for i, body in enumerate(model.cam_bodyid)}
        if not fixed.get(camera, True):
            others = [name for name, is_fixed in fixed.items() if is_fixed]
            raise ValueError(f"camera {camera!r} rides on the robot; choose one of {others}")
        mine = root[model.jnt_bodyid] == robot
        hinge, slide = model.jnt_type == kind.mjJNT_HINGE, model.jnt_type == kind.mjJNT_SLIDE
        limited = model.jnt_limited.astype(bool)
        chosen = np.flatnonzero(mine & (hinge | (slide & limited)))
        self.place = model.jnt_qposadr[chosen]
        now, hinge, limited = sim.data.qpos[self.place], hinge[chosen], limited[chosen, None]
        turn = now[:, None] + [-np.pi, np.pi]
        low, high = np.where(limited, model.jnt_range[chosen], turn).T
        # some robots start beyond their limits
        low, high = np.minimum(low, now - 1e-3), np.maximum(high, now + 1e-3)
        self.middle, self.half = (high + low) / 2, (high - low) / 2
        self.pose = (now - self.middle) / self.half
        self.reach = np.where(hinge, 1.0, np.minimum(0.05, self.half)) / self.half
        self.sim, self.camera, self.bar = sim, camera, bar
        self.behind, self.behind_depth = sim.layer(camera, robot=False)

    def draw(self, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The picture, uint8 [H, W, 3], and which of its pixels show the robot, [H, W]."""
        qpos = self.sim.data.qpos.copy()
        qpos[self.place] = self.middle + self.half * pose
        place(self.sim, qpos)
        frame, depth = self.sim.layer(self.camera, robot=True)
        shown = depth > self.behind_depth
        return np.where(shown[..., None], frame, self.behind), shown

    def pictures(self, poses: np.ndarray) -> np.ndarray:
        """Of poses [N, J], as cells [N, h, w, 3]."""
        self.bar.update(len(poses))
        return np.stack([_cells(self.draw(pose)[0]) for pose in poses])


def _regress(
    robot: _Robot, goal: np.ndarray, candidates: int, iterations: int, sigma: float, seed: int
) -> np.ndarray:
    """The pose [J] most like a goal image's cells among those drawn, and those that were predicted of it."""
    rng, mean, spread = np.random.default_rng(seed), robot.pose, sigma * robot.reach
    tried, seen, best, likeness = [], [], mean, -np.inf
    for iteration in range(iterations):
        poses = mean + spread * rng.normal(size=(candidates, len(mean)))
        poses[:2] = mean, best
        poses = poses.clip(-1, 1)
        pictures = robot.pictures(poses)
        scores = _likeness(pictures, goal)
        if scores.max() > likeness:
            best, likeness = poses[scores.argmax()], scores.max()
        # older ones are too far off by now to tell small differences
        tried, seen = [*tried[-1:], poses], [*seen[-1:], pictures]
        inputs = np.concatenate([*seen, goal[None]])
        if iteration < iterations // 2:
            inputs = _cells(inputs, 2)
        mean, error = _kernel_ridge(inputs[:-1], np.concatenate(tried), inputs[-1])
        mean, spread = mean.clip(-1, 1), np.maximum(error, CLOSEST * robot.reach)
    return mean if _likeness(robot.pictures(mean[None]), goal).item() > likeness else best


def _match(
    robot: _Robot, goal: np.ndarray, candidates: int, pose: np.ndarray, seed: int
) -> np.ndarray:
    """A pose [J] near this one that looks more like a goal image's cells."""
    search = CEM(
        len(pose),
        horizon=1,
        trajectories=candidates,
        elites=max(1, candidates // 8),
        iterations=MATCHES,
        sigma=0.15 * robot.reach,
        floor=0.004,
        seed=seed,
    )
    search.mean = pose[None]
    (pose,) = search.improve(lambda poses: _likeness(robot.pictures(poses[:, 0]), goal))
    return pose


def _kernel_ridge(
    inputs: np.ndarray, outputs: np.ndarray, wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Regression from N inputs [N, *] to outputs [N, J] with a Gaussian kernel as wide as the median
    distance: the output [J] for the wanted input, and the standard deviation [J] of the leave-one-out
    errors."""
    # what no input shows is no robot: the object that the goal image shows moved
    wanted = wanted.clip(inputs.min(0), inputs.max(0)).reshape(1, -1)
    points = np.concatenate([inputs.reshape(len(inputs), -1), wanted]).astype(float)
    norms = np.square(points).sum(1)
    distances = np.maximum(norms[:, None] + norms - 2 * points @ points.T, 0)
    width = max(np.median(distances[:-1, :-1]), 1e-9)  # 0 where the camera does not see the robot
    kernel = np.exp(-distances / width)
    mean = outputs.mean(0)
    inverse = np.linalg.inv(kernel[:-1, :-1] + RIDGE * np.eye(len(inputs)))
    coefficients = inverse @ (outputs - mean)
    left_out = coefficients / np.diag(inverse)[:, None]
    return mean + kernel[-1, :-1] @ coefficients, left_out.std(0)


def _cells(pictures: np.ndarray, size: int = CELL) -> np.ndarray:
    """[*N, H, W, 3] to the means of squares; a rest at the right and lower edge is left out."""
    h, w = (side // size for side in pictures.shape[-3:-1])
    squares = pictures[..., : h * size, : w * size, :].astype(np.float32)
    return squares.reshape(*pictures.shape[:-3], h, size, w, size, 3).mean((-4, -2))


def _likeness(pictures: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Of cells [N, h, w, 3] to those of the goal image, [N], at most 0."""
    return -np.minimum(np.abs(pictures - goal), LARGEST).mean((1, 2, 3))
