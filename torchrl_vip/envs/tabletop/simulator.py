"""The tabletop's simulator: see :mod:`torchrl_vip.envs.tabletop`."""

from __future__ import annotations

import numpy as np

from torchrl_vip.envs.simulator import Act, Randomization, Simulator, mujoco
from torchrl_vip.envs.tabletop.hand import Grasp, Kinematics
from torchrl_vip.envs.tabletop.scene import ARM, FINGER_RANGE, FINGERS, PINCH, TIMESTEP, build
from torchrl_vip.envs.tabletop.scripts import SCRIPTS
from torchrl_vip.envs.tabletop.things import THINGS

TASKS: tuple[str, ...] = tuple(THINGS)
FPS = 25  # actions a second
SUBSTEPS = round(1 / FPS / TIMESTEP)
STEP = 0.03  # m: what an action of 1 moves the hand's target
LEAD = 0.06  # m: the target is at most so far ahead of the hand
FINGER_STEP = 0.008  # m: what a finger's target moves in a step
FASTEST = 30.0  # m/s or rad/s: what moves faster has blown up
CLOSED = 0.01  # m: fingers that are told to open by less may hold
LOW, HIGH = np.array([0.28, -0.38, 0.008]), np.array([0.7, 0.2, 0.33])  # m: the target's box
REACH = 0.74  # m: and its greatest distance from the base's axis


class TabletopSim(Simulator):
    """One tabletop task. The reward is minus the distance that is left (m), and minus a fifth of the hand's
    distance (m) to the thing; what success is stands at the top of ``torchrl_vip.envs.tabletop``.

    Attributes:
        stops: steps that were taken back as the soft thing was crushed until its physics blew up: they leave
            everything where it was, at rest.
    """

    # 180 looks at the robot from in front of it
    WIDE = Randomization((0.5, -0.12, 0.08), (150.0, 250.0), (-50.0, -20.0), (0.9, 1.3))
    MILD = WIDE.mild((193, 213), (-36, -27), (0.95, 1.1))
    VIEWS = {
        "front": ((0.48, -0.12, 0.13), 212.0, -32.0, 0.76),  # near the real clips'
        "side": ((0.5, -0.12, 0.1), 265.0, -25.0, 1.0),
        "top": ((0.5, -0.12, 0.0), 180.0, -75.0, 1.0),
    }
    SURFACES = ("table", "wall")
    ROBOT = "panda0_link0"
    CAMERA = "front"
    MAX_STEPS = 50
    MESH_CELL = 0.005
    ACTION_SIZE, STATE_SIZE, FULL_STATE_SIZE = 4, 8, 21

    def __init__(
        self,
        task: str,
        *,
        camera: str | None = None,
        image_size: int = 128,
        render: str = "fast",
    ) -> None:
        if task not in THINGS:
            raise ValueError(f"unknown task {task!r}; choose from {sorted(TASKS)}")
        super().__init__(task, camera=camera, image_size=image_size, render=render)
        model, holds = build(task)
        self.bind(model, mujoco.MjData(model))
        model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)  # see _stop
        self.stops = 0
        self.thing = THINGS[task](model, self.data)
        self.kinematics = Kinematics(self.thing.YAW)
        self._site = model.site(PINCH).id
        self._joints = np.array([model.joint(name).qposadr[0] for name in ARM])
        self._fingers = np.array([model.joint(name).qposadr[0] for name in FINGERS])
        self.grasp = Grasp(
            model,
            self.data,
            holds,
            strength=self.thing.STRENGTH,
            reach=self.thing.REACH,
            pads=self.thing.PADS,
        )
        self.reset(0)

    def reset(self, seed: int) -> np.ndarray:
        rng, thing, data = np.random.default_rng(seed), self.thing, self.data
        mujoco.mj_resetData(self.model, data)
        self.grasp.set_state(np.zeros_like(self.grasp.get_state()))
        thing.place(rng)
        hand = np.array(thing.HAND) + rng.uniform(-1, 1, 3) * thing.SPREAD
        joints = self.kinematics.start(hand)
        data.qpos[self._joints], data.qpos[self._fingers] = joints, thing.OPENING
        data.ctrl[:7], data.ctrl[7:] = joints, thing.OPENING
        if thing.SETTLE:
            mujoco.mj_step(self.model, data, thing.SETTLE)
            data.qvel[:] = 0.0
            data.time = 0.0
        self._look_again()
        return self._read()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        # through float32, so that stored actions repeat an episode exactly
        action = np.clip(np.asarray(action, np.float32), -1.0, 1.0).astype(np.float64)
        begun = self._get_physics()
        before, after = self.data.ctrl.copy(), self._command(action)
        for part in np.arange(1, SUBSTEPS + 1) / SUBSTEPS:
            self.data.ctrl[:] = before + part * (after - before)
            mujoco.mj_step(self.model, self.data)
            if not np.abs(self.data.qvel).max() < FASTEST:
                self._stop(begun)
                break
        self._look_again()
        self.grasp.update(closing=after[7] < CLOSED)
        return self._read(), self.reward(), self.success()

    def _command(self, action: np.ndarray) -> np.ndarray:
        """What the joints and fingers are told, [9], at the end of this action."""
        command, hand = self.data.ctrl.copy(), self.hand()
        target = np.clip(self.target() + STEP * action[:3], LOW, HIGH)
        target[:2] *= min(1.0, REACH / np.linalg.norm(target[:2]))
        ahead = target - hand
        target = hand + ahead * min(1.0, LEAD / max(np.linalg.norm(ahead), 1e-9))
        command[:7] = self.kinematics.solve(command[:7], target)
        wanted = FINGER_RANGE * (action[3] + 1.0) / 2.0
        command[7:] += np.clip(wanted - command[7:], -FINGER_STEP, FINGER_STEP)
        return command

    def _stop(self, begun: np.ndarray) -> None:
        """Back to where the step began, everything at rest and the arm told to stay, as after a real arm's
        protective stop. MuJoCo 3.3.0's solid flex blows up now and then where it is crushed."""
        self.stops += 1
        self._set_physics(begun)
        self.data.qvel[:] = self.data.qacc_warmstart[:] = 0.0
        self.data.ctrl[:7] = self.data.qpos[self._joints]

    def _look_again(self) -> None:
        """Brings contacts, forces and places up to date: a step leaves them where they were before its last
        2 ms, and a restored state must go on from the same ones."""
        self._settle_physics(self._get_physics())

    def displace(self, seed: int) -> None:
        """What a person does who wants it done again, in mid-episode: the drawer is pulled open and the
        bottle pushed back, the hand with it; the melon is put, and the towel spread, where they might have
        started. What the hand held is taken from it. The zone, the bowl and the cabinet stay.

        Raises:
            RuntimeError: there is no such place that the arm leaves free.
        """
        rng, begun = np.random.default_rng(seed), self._get_physics()
        self.grasp.release()
        for _ in range(50):
            self._set_physics(begun)
            self.grasp.release()
            along = self.thing.move(rng)
            if along.any():
                self.data.qpos[self._joints] = self._moved(self.data.qpos[self._joints], along)
                self.data.ctrl[:7] = self._moved(self.data.ctrl[:7], along)
            self.data.qvel[:] = 0.0
            self._look_again()
            if not self._arm_is_in_the_way():
                self._read()
                return
        raise RuntimeError(f"{self.task}: the arm is everywhere in the way")

    def _moved(self, joints: np.ndarray, offset: np.ndarray) -> np.ndarray:
        target = self.kinematics.position(joints) + offset
        return self.kinematics.solve(joints, target, iterations=50)

    def _arm_is_in_the_way(self) -> bool:
        """Whether the robot touches anything but the table by more than a push does."""
        contact, body = self.data.contact, self.model.geom_bodyid
        deep = contact.dist < -0.004
        arm = self.model.body(self.ROBOT).id
        robot = [(g >= 0) & (self.model.body_rootid[body[g]] == arm) for g in contact.geom.T]
        world = [(g >= 0) & (body[g] == 0) for g in contact.geom.T]
        return bool((deep & (robot[0] ^ robot[1]) & ~(world[0] | world[1])).any())

    def hand(self) -> np.ndarray:
        """Where the fingers' tips meet, [3] (m)."""
        return self.data.site_xpos[self._site].copy()

    def target(self) -> np.ndarray:
        """Where the hand is pulled, [3] (m)."""
        return self.kinematics.position(self.data.ctrl[:7])

    def reward(self) -> float:
        to_thing = np.linalg.norm(self.hand() - self.thing.seen()[:3])
        return -self.thing.left() - 0.2 * float(to_thing)

    def success(self) -> bool:
        """Whether the current state is solved."""
        return self.thing.done(self.grasp.holding)

    def _read(self) -> np.ndarray:
        seen = self.thing.seen()
        self.full_state = np.zeros(self.FULL_STATE_SIZE, np.float32)
        self.full_state[:8] = self.state()
        self.full_state[8 : 8 + len(seen)] = seen
        return self.full_state

    def state(self) -> np.ndarray:
        opening, told = self.data.qpos[self._fingers].sum(), self.data.ctrl[7:].sum()
        return np.concatenate([self.hand(), self.target(), [opening, told]]).astype(np.float32)

    def get_state(self) -> np.ndarray:
        return np.concatenate([self._get_physics(), self.grasp.get_state()])

    def set_state(self, state: np.ndarray) -> np.ndarray:
        physics = len(state) - len(self.grasp.get_state())
        self.grasp.set_state(state[physics:])
        self._settle_physics(state[:physics])
        return self._read()

    def script(self, skill: float = 1.0, seed: int | None = None) -> Act:
        """A fresh scripted demonstrator.

        Args:
            skill: 1 solves the task; less aims less well, and below about 0.5 it fumbles.
            seed: of its habits: speed, pauses, path, aim. None has none of them.

        Raises:
            ValueError: skill outside [0, 1].
        """
        return SCRIPTS[self.task](skill, seed)

    def hold_still(self, action: np.ndarray) -> np.ndarray:
        return np.array([0.0, 0.0, 0.0, action[3]])

    def displaced(self, full_state: np.ndarray, offset: np.ndarray) -> np.ndarray:
        state = full_state.copy()
        state[:6] += np.tile(offset, 2)
        return state
