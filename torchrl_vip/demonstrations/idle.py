"""Clips of the robot moving without effect, in the start state of a task and in its solved state.

What an encoder should not mistake for progress: ``preset=scene`` of pre-training reads them as ``data.idle``.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from torchrl_vip.data.video import write_video
from torchrl_vip.demonstrations.manifest import Entry, is_there
from torchrl_vip.demonstrations.scripted import GOP, clip_seed
from torchrl_vip.envs import load_suite
from torchrl_vip.envs.planned import Demonstration, PlannedSim
from torchrl_vip.envs.simulator import Act, Simulator, mujoco, play

IDLE_OF = ("start", "goal")
STEPS = 200  # of an episode
EFFECT = 0.01  # m or rad: something that has moved so far has been touched
SETTLE = 10  # environment steps in which things that were put solved come to rest
BACK = 8  # steps that are taken back after an effect


class IdleJob(NamedTuple):
    """Two clips of one task, one in each state: all that they depend on.

    ``camera`` is None for suites with looks of their own a task, which the held-out split has too.
    """

    suite: str
    task: str
    camera: str | None
    number: int
    seed: int
    size: int
    stride: int

    @property
    def group(self) -> str:
        """That of the clips of the held-out split."""
        return f"{self.task}/{self.camera}" if self.camera else self.task

    @property
    def files(self) -> list[str]:
        return [f"{self.group}/idle_{state}_{self.number:04d}.mp4" for state in IDLE_OF]

    def done(self, out: Path, entries: dict[str, Entry]) -> bool:
        """Whether both have been rendered, or the one that can be."""
        there = [entries.get(file) for file in self.files]
        return any(there) and all(
            is_there(out, entry, self.size, self.stride) and entry["seed"] == self.seed
            for entry in there
            if entry
        )


def render_idle(job: IdleJob, out: Path) -> list[Entry]:
    """Renders the clips of a job; returns manifest entries. A solved state that does not stay as it is,
    such as a button that springs back, has no clip."""
    sim = _simulator(job.suite, job.task, job.camera, job.size)
    if job.camera is None:
        sim.randomize(sim.MILD, clip_seed(job.seed, job.task, "looks", 0))
    (out / job.group).mkdir(parents=True, exist_ok=True)
    entries = []
    for state, file in zip(IDLE_OF, job.files, strict=True):
        seed = clip_seed(job.seed, job.group, "idle", state, job.number)
        if state == "goal" and not put_things_solved(sim, seed):
            continue
        if state == "start":
            sim.reset(seed)
        frames = wander(sim, approach(sim, seed), np.random.default_rng(seed), stride=job.stride)
        if frames is None:
            continue
        write_video(out / file, frames, gop_size=GOP)
        entries.append(
            {
                "file": file,
                "suite": job.suite,
                "task": job.task,
                "group": job.group,
                "idle_of": state,
                "success": None,
                "kind": "idle",
                "seed": job.seed,
                "frames": len(frames),
                "size": job.size,
                "stride": job.stride,
            }
        )
    return entries


@lru_cache(maxsize=1)
def _simulator(suite: str, task: str, camera: str | None, size: int) -> Simulator:
    return load_suite(suite).SIMULATOR(task, camera=camera, image_size=size)


def put_things_solved(sim: Simulator, seed: int) -> bool:
    """Things as they are when the task is solved, the robot as it starts.

    Returns:
        Whether that counts as solved, and still does after a while.
    """
    things = sim.things()
    if isinstance(sim, PlannedSim):
        end = _planned(sim, seed).qpos[-1][things]
    else:
        play(sim, sim.script(), seed, stride=500)
        end = sim.data.qpos[things].copy()
    sim.reset(seed)
    sim.data.qpos[things] = end
    sim.data.qvel[:] = 0
    mujoco.mj_forward(sim.model, sim.data)
    solved = [sim.step(np.zeros(sim.ACTION_SIZE))[2] for _ in range(SETTLE)]
    return solved[-1]


def approach(sim: Simulator, seed: int) -> Act:
    """A policy that goes where the task is done."""
    if not isinstance(sim, PlannedSim):
        return sim.script()
    actions = _planned(sim, seed).actions
    return lambda state, t: actions[min(t, len(actions) - 1)]


def _planned(sim: PlannedSim, seed: int) -> Demonstration:
    """One of the successes that come with the package."""
    suite = type(sim).__module__.rpartition(".")[2]
    solved = load_suite(suite).demonstrations(sim.task)
    return solved[seed % len(solved)]


def waves(size: int, rng: np.random.Generator) -> Act:
    """Smooth motion about where it begins: the slower a wave, the weaker, so that none goes far."""
    frequency, phase = rng.uniform(0.005, 0.03, (size, 2)), rng.uniform(0, 2 * np.pi, (size, 2))
    amplitude = rng.uniform(0.3, 1.0, (size, 2)) * frequency / 0.03
    return lambda state, t: (amplitude * np.sin(2 * np.pi * frequency * t + phase)).sum(1)


def wander(
    sim: Simulator, near: Act, rng: np.random.Generator, *, steps: int = STEPS, stride: int = 2
) -> np.ndarray | None:
    """The robot moving from the current state on, without effect.

    It waves, then goes to where the task is done until it is about to move something, and waves there. A
    step that moves something is taken back, with some before it.

    Args:
        near: goes to where the task is done.

    Returns:
        uint8 ``[N, H, W, 3]``, a frame every ``stride`` steps, fewer where there is hardly a way that
        touches nothing; None where things do not stay as they are.
    """
    things = sim.things()
    reference = sim.data.qpos[things].copy()
    earlier = deque([sim.get_state()], maxlen=BACK)
    act, since, taken_back = waves(sim.ACTION_SIZE, rng), 0, 0
    state, frames, t = sim.full_state, [sim.render().copy()], 0
    while t < steps and taken_back < steps:
        if t == steps // 3:
            act, since = near, 0
        state, _, _ = sim.step(act(state, since))
        since += 1
        if np.abs(sim.data.qpos[things] - reference).max(initial=0) > EFFECT:
            state = sim.set_state(earlier[0])
            act, since, taken_back = waves(sim.ACTION_SIZE, rng), 0, taken_back + 1
            continue
        earlier.append(sim.get_state())
        t += 1
        if t % stride == 0:
            frames.append(sim.render().copy())
    return np.stack(frames) if len(frames) > 1 else None
