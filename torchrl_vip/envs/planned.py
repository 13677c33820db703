"""Planned episodes as they are stored and shipped, and simulators that show them again.

:mod:`torchrl_vip.demonstrations` plans, writes and renders them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from torchrl_vip.envs.simulator import Episode, Simulator

SHIPPED = Path(__file__).resolve().parents[1] / "assets"
"""SHIPPED/<suite>/<task>.npz."""
SEEDS = 1000  # demonstrations planned with --seed N have the seeds from N x 1000 on


class Demonstration(NamedTuple):
    """One planned episode of T steps, or one that fails.

    Attributes:
        qpos: float32 ``[T + 1, Q]``, MuJoCo's positions from the reset on.
        actions: float32 ``[T, A]``.
        seed: tells it from others of its task; where it starts is :meth:`PlannedSim.start_of`.
        success: whether the last state is solved.
        kind: ``"success"``, or how it fails.
    """

    qpos: np.ndarray
    actions: np.ndarray
    seed: int
    success: bool
    kind: str


def read_demonstrations(path: Path) -> list[Demonstration]:
    """The episodes of a file by :func:`torchrl_vip.demonstrations.store.write_demonstrations`."""
    with np.load(path) as stored:
        steps = stored["steps"]
        return [
            Demonstration(qpos, actions, int(seed), bool(success), str(kind))
            for qpos, actions, seed, success, kind in zip(
                np.split(stored["qpos"], np.cumsum(steps + 1)[:-1]),
                np.split(stored["actions"], np.cumsum(steps)[:-1]),
                *(stored[name] for name in ("seed", "success", "kind")),
                strict=True,
            )
        ]


def shipped(
    suite: str, tasks: Sequence[str], task: str, success: bool | None
) -> list[Demonstration]:
    """The shipped episodes of a task: the successes, the failures (False) or all (None).

    Raises:
        ValueError: ``task`` is not one of ``tasks``.
    """
    if task not in tasks:
        raise ValueError(f"unknown task {task!r}; choose from {list(tasks)}")
    stored = read_demonstrations(SHIPPED / suite / f"{task}.npz")
    return [d for d in stored if success is None or d.success == success]


class PlannedSim(Simulator):
    """A simulator whose demonstrations are planned, stored and shown again."""

    @abstractmethod
    def reward(self) -> float:
        """A dense reward of the current state, which plans are made by and clips are labelled with."""

    @abstractmethod
    def success(self) -> bool:
        """Whether the current state is solved."""

    @abstractmethod
    def pose(self, qpos: np.ndarray) -> np.ndarray:
        """Puts everything at stored positions [Q], to be looked at; returns full_state."""

    def start_of(self, seed: int) -> int:
        """The seed of the reset from which the demonstration of this seed starts."""
        return seed

    def repeat(self, demonstration: Demonstration, steps: int | None = None) -> np.ndarray:
        """Resets and repeats the first ``steps`` actions (None: all); returns full_state."""
        self.reset(self.start_of(demonstration.seed))
        for action in demonstration.actions[:steps]:
            self.step(action)
        return self.full_state

    def replay(self, demonstration: Demonstration, stride: int = 1) -> Episode:
        """Frame, success and reward of every ``stride``-th stored position; the state is as before."""
        frames, success, reward = [], [], []
        with self._at_start_of(demonstration):
            for position in demonstration.qpos[::stride]:
                self.pose(position)
                frames.append(self.render().copy())
                success.append(self.success())
                reward.append(self.reward())
        return Episode(np.stack(frames), np.array(success), np.array(reward, np.float32))

    def last_look(
        self, demonstration: Demonstration, cameras: Sequence[str] | None = None
    ) -> np.ndarray:
        """The end of a demonstration, as ``look`` sees it; the state is as before."""
        with self._at_start_of(demonstration):
            self.pose(demonstration.qpos[-1])
            return self.look(cameras)

    @contextmanager
    def _at_start_of(self, demonstration: Demonstration) -> Iterator[None]:
        state = self.get_state()
        try:
            self.reset(self.start_of(demonstration.seed))
            yield
        finally:
            self.set_state(state)
