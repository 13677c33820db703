"""Where the robot stands in a goal image, found by drawing it until it looks the same.

A goal image shows the robot as well as what it has done, and most of what changes in the picture on the
way is the robot. Who plans on a simulator can draw the scene with the robot anywhere: the pose whose
picture is nearest to the goal image tells which of its pixels are the robot's.
"""

from __future__ import annotations

import mujoco
import numpy as np
import torch
import torch.nn.functional as F

from torchrl_vip.envs.simulator import WITHOUT_ROBOT, Simulator
from torchrl_vip.planning.mppi import CEM

CELL = 4  # pixels: pictures are compared as means of such squares, so that near misses count
LARGEST = 60.0  # grey levels: more than that is another object, however large the difference


def find_robot(
    sim: Simulator,
    goal: np.ndarray,
    camera: str,
    *,
    candidates: int = 64,
    iterations: int = 16,
    sigma: float = 0.4,
    margin: int = 0,
    seed: int = 0,
) -> np.ndarray:
    """The pixels of a goal image that show the robot.

    The cross-entropy method moves the joints of the robot, from where they are and within their ranges;
    all else is drawn as it stands now. Only pictures are looked at.

    Args:
        sim: at the start of the episode; it is left as it was.
        goal: uint8 ``[H, W, 3]``, as large as the simulator draws.
        camera: that took it, by its name in the simulator.
        candidates: poses drawn in an iteration.
        iterations: of the search; with the candidates 1,024 pictures, some 15 s in software.
        sigma: how far from where they are the hinges are first tried, as a standard deviation in
            radians; slides are within 2 cm. Less where the robot hardly moves.
        margin: so many pixels around what was found count as the robot too: a rim of it that was missed
            is an edge to a network, however narrow.
        seed: of the search.

    Returns:
        bool ``[H, W]``.

    Raises:
        ValueError: a goal of another size; a suite that knows no robot.
        NotImplementedError: a suite that cannot save its state.
    """
    size = (sim.image_size, sim.image_size, 3)
    if goal.shape != size or goal.dtype != np.uint8:
        raise ValueError(f"goal of shape {goal.shape}, {goal.dtype}; wanted uint8 {list(size)}")
    if not sim.ROBOT:
        raise ValueError(f"{type(sim).__name__} knows no robot to look for")
    place, hinge, middle, half = _joints(sim)
    state, wanted = sim.get_state(), _cells(goal)

    def draw(pose: np.ndarray, camera: str) -> np.ndarray:
        sim.data.qpos[place] = middle + half * pose
        mujoco.mj_forward(sim.model, sim.data)
        return sim.render(camera).copy()

    def likeness(poses: np.ndarray) -> np.ndarray:
        return np.array([-_difference(_cells(draw(pose, camera)), wanted) for pose in poses[:, 0]])

    search = CEM(
        len(place),
        horizon=1,
        trajectories=candidates,
        elites=max(1, candidates // 8),
        iterations=iterations,
        sigma=np.where(hinge, sigma, np.minimum(0.02, half / 2)) / half,
        floor=0.004,
        seed=seed,
    )
    search.mean = ((sim.data.qpos[place] - middle) / half)[None]
    try:
        (pose,) = search.improve(likeness)
        with_robot, without = draw(pose, camera), draw(pose, camera + WITHOUT_ROBOT)
    finally:
        sim.set_state(state)
    found = torch.from_numpy((with_robot != without).any(-1)).float()[None]
    return F.max_pool2d(found, 2 * margin + 1, stride=1, padding=margin)[0].bool().numpy()


def _joints(sim: Simulator) -> tuple[np.ndarray, ...]:
    """Of the robot's hinges and slides: places in qpos, which are hinges, the middle and half of their
    ranges (of a hinge that turns for ever half a turn either way from where it is)."""
    model, kind = sim.model, mujoco.mjtJoint
    root = model.body_rootid
    mine = root[model.jnt_bodyid] == root[model.body(sim.ROBOT).id]
    hinge, slide = model.jnt_type == kind.mjJNT_HINGE, model.jnt_type == kind.mjJNT_SLIDE
    limited = model.jnt_limited.astype(bool)
    chosen = np.flatnonzero(mine & (hinge | (slide & limited)))
    place = model.jnt_qposadr[chosen]
    now, hinge, limited = sim.data.qpos[place], hinge[chosen], limited[chosen, None]
    turn = now[:, None] + [-np.pi, np.pi]
    low, high = np.where(limited, model.jnt_range[chosen], turn).T
    # some robots start beyond their limits
    low, high = np.minimum(low, now - 1e-3), np.maximum(high, now + 1e-3)
    return place, hinge, (high + low) / 2, (high - low) / 2


def _cells(frame: np.ndarray) -> np.ndarray:
    """[H, W, 3] to the means of squares; a rest at the right and lower edge is left out."""
    h, w = (side // CELL for side in frame.shape[:2])
    squares = frame[: h * CELL, : w * CELL].astype(np.float32).reshape(h, CELL, w, CELL, 3)
    return squares.mean((1, 3))


def _difference(cells: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.minimum(np.abs(cells - wanted), LARGEST).mean())
