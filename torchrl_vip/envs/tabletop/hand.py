"""The hand: where it is moved by inverse kinematics, and what it holds."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from torchrl_vip.envs.simulator import mujoco
from torchrl_vip.envs.tabletop.scene import ARM, HAND, PADS, PINCH, build_arm

_REST = np.array([0.0, 0.1, 0.0, -2.2, 0.0, 0.75, 0.0])  # rad: the elbow stays near this pose
_DAMPING = 0.02  # of the least squares
_MOST = 0.25  # rad that one joint's command moves in a step
_PULL = 0.02  # towards _REST, of what the hand's pose leaves free


class Kinematics:
    """Inverse kinematics of the arm with the hand pointing down, its fingers opening along ``yaw`` (rad)."""

    def __init__(self, yaw: float) -> None:
        self.model = _arm()
        self.data = mujoco.MjData(self.model)
        joints = [self.model.joint(name) for name in ARM]
        self.columns = np.array([joint.dofadr[0] for joint in joints])
        self.positions = np.array([joint.qposadr[0] for joint in joints])
        self.low, self.high = np.array([joint.range for joint in joints]).T
        self.site = self.model.site(PINCH).id
        self.quat = _pointing_down(yaw)
        self._jacobian = np.empty((6, self.model.nv))

    def position(self, joints: np.ndarray) -> np.ndarray:
        """Where the fingers' tips meet, [3] (m), at these joint angles [7] (rad)."""
        self.data.qpos[self.positions] = joints
        mujoco.mj_kinematics(self.model, self.data)
        return self.data.site_xpos[self.site].copy()

    def start(self, target: np.ndarray) -> np.ndarray:
        """Joint angles [7] with the tips at ``target`` [3] (m), the elbow as it is at rest."""
        return self.solve(_REST, target, iterations=100)

    def solve(self, joints: np.ndarray, target: np.ndarray, iterations: int = 2) -> np.ndarray:
        """Joint angles [7] that bring the tips nearer to ``target`` [3] (m), from ``joints`` [7].

        Damped least squares. A target out of reach leaves the hand short of it.
        """
        joints = joints.copy()
        for _ in range(iterations):
            error = self._error(joints, target)
            jacobian = self._jacobian[:, self.columns]
            square = jacobian @ jacobian.T + _DAMPING**2 * np.eye(6)
            inverse = jacobian.T @ np.linalg.inv(square)
            free = _PULL * (_REST - joints)
            move = inverse @ error + free - inverse @ (jacobian @ free)
            joints = np.clip(joints + np.clip(move, -_MOST, _MOST), self.low, self.high)
        return joints

    def _error(self, joints: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Offset (m) and rotation (rad) from here to the target, [6]; the Jacobian is that of here."""
        offset = target - self.position(joints)
        mujoco.mj_comPos(self.model, self.data)
        mujoco.mj_jacSite(self.model, self.data, self._jacobian[:3], self._jacobian[3:], self.site)
        mujoco.mju_mat2Quat(here := np.empty(4), self.data.site_xmat[self.site])
        mujoco.mju_subQuat(turn := np.empty(3), self.quat, here)
        frame = self.data.site_xmat[self.site].reshape(3, 3)  # the turn is in the hand's own axes
        return np.concatenate([offset, frame @ turn])


@lru_cache(maxsize=1)
def _arm() -> mujoco.MjModel:
    return build_arm()


def _pointing_down(yaw: float) -> np.ndarray:
    """z down, y (along which the fingers open) at ``yaw`` from the world's y."""
    frame = np.array(
        [[np.cos(yaw), np.sin(yaw), 0.0], [np.sin(yaw), -np.cos(yaw), 0.0], [0.0, 0.0, -1.0]]
    )
    mujoco.mju_mat2Quat(quat := np.empty(4), frame.ravel())
    return quat


class Grasp:
    """What closed fingers hold of a soft thing: its vertices between them, each tied to the hand by a ball
    joint (MuJoCo's "connect").

    Fingers take what is between their tips once they are told to close and touch the thing. They lose it when
    they are told to open, when no pad touches it any more, or when it pulls with more than ``strength``.

    Args:
        constraints: the equality constraint of each vertex.
        strength: N.
        reach: how far from the middle between the tips a vertex is held (m).
        pads: how many pads must touch the thing to take it.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        constraints: list[int],
        *,
        strength: float,
        reach: float,
        pads: int,
    ) -> None:
        self.model, self.data = model, data
        self.constraints = np.array(constraints, int)
        self.vertices = model.eq_obj2id[self.constraints]
        model.eq_data[self.constraints, :6] = 0.0  # the anchors: in the hand [3], in the vertex [3]
        self.hand, self.site = model.body(HAND).id, model.site(PINCH).id
        self.pads = [model.geom(name).id for name in PADS]
        self.strength, self.reach, self.enough = strength, reach, pads

    @property
    def holding(self) -> bool:
        return bool(self.data.eq_active[self.constraints].any())

    def update(self, closing: bool) -> None:
        """Take or lose, from the contacts and forces of the last ``mj_forward``."""
        if self.holding:
            if not closing or not self.touching() or self.pull() > self.strength:
                self.release()
        elif closing and self.touching() >= self.enough:
            self._take()

    def release(self) -> None:
        self.data.eq_active[self.constraints] = 0

    def touching(self) -> int:
        """How many of the two pads touch the thing."""
        contact = self.data.contact
        soft = (contact.flex >= 0).any(1)
        return sum((contact.geom[soft] == pad).any() for pad in self.pads)

    def pull(self) -> float:
        """The force on the hand by what it holds (N)."""
        data = self.data
        rows = data.efc_type == mujoco.mjtConstraint.mjCNSTR_EQUALITY
        rows &= np.isin(data.efc_id, self.constraints)
        return float(np.linalg.norm(data.efc_force[rows].reshape(-1, 3).sum(0)))

    def _take(self) -> None:
        data, model = self.data, self.model
        offset = data.xpos[self.vertices] - data.site_xpos[self.site]
        frame = data.xmat[self.hand].reshape(3, 3)
        for i in np.flatnonzero(np.linalg.norm(offset, axis=1) < self.reach):
            place = frame.T @ (data.xpos[self.vertices[i]] - data.xpos[self.hand])
            model.eq_data[self.constraints[i], :3] = place
            data.eq_active[self.constraints[i]] = 1

    def get_state(self) -> np.ndarray:
        """Where the vertices are held, which MuJoCo keeps with the model, [3 V]."""
        return self.model.eq_data[self.constraints, :3].ravel().copy()

    def set_state(self, state: np.ndarray) -> None:
        self.model.eq_data[self.constraints, :3] = state.reshape(-1, 3)
