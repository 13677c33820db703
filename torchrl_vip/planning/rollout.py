"""Runs candidate action sequences from one saved simulator state, here or in worker processes.

Shapes: actions [N, H, A]; what is observed is stacked to [N, ...] after each candidate's last step,
or to [N, L, ...] after each of its last L.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from torchrl_vip.envs.simulator import Simulator

Observe = Callable[[Simulator, float], Any]
"""``observe(sim, reward of the step) -> number or array``; a module's function, to be pickled."""


def last_reward(sim: Simulator, reward: float) -> float:
    """The task's own reward."""
    return reward


def last_frame(sim: Simulator, reward: float, cameras: Sequence[str] | None = None) -> np.ndarray:
    """The frame, uint8 [H, W, 3], or one of each of ``cameras``, [K, H, W, 3]: only what is scored is
    rendered."""
    return sim.look(cameras)


def rollout(
    sim: Simulator,
    state: np.ndarray,
    actions: np.ndarray,
    observe: Observe = last_reward,
    last: int = 1,
) -> np.ndarray:
    """Runs each of ``actions`` [N, H, A] from ``state`` and returns what ``observe`` saw.

    Args:
        last: after how many of the last steps to look.

    Returns:
        [N, ...] after the last step, or [N, last, ...] if there are several. ``sim`` is left where
        the last candidate ended.

    Raises:
        ValueError: ``last`` is not from 1 to H.
    """
    if not 1 <= last <= actions.shape[1]:
        raise ValueError(f"last is {last}; wanted 1 to {actions.shape[1]}, the candidates' steps")
    seen = []
    for sequence in actions:
        sim.set_state(state)
        steps = []
        for t, action in enumerate(sequence):
            _, reward, _ = sim.step(action)
            if t >= len(sequence) - last:
                steps.append(observe(sim, reward))
        seen.append(np.stack(steps) if last > 1 else np.asarray(steps[0]))
    return np.stack(seen)


class Rollouts:
    """:func:`rollout` on simulators of its own; equal results whatever the number of processes.

    Args:
        make_sim: makes a simulator; picklable if there are processes.
        observe: what to look at; picklable too.
        last: after how many of the last steps, see :func:`rollout`.
        processes: workers with one simulator each, kept until :meth:`close`; 0 runs here.

    Example:
        >>> with Rollouts(partial(KitchenSim, "sdoor_open")) as rollouts:  # doctest: +SKIP
        ...     action = planner.plan(lambda actions: rollouts(sim.get_state(), actions))
    """

    def __init__(
        self,
        make_sim: Callable[[], Simulator],
        observe: Observe = last_reward,
        *,
        last: int = 1,
        processes: int = 0,
    ) -> None:
        if processes < 0:
            raise ValueError(f"processes is {processes}; wanted 0 or more.")
        self.observe, self.last = observe, last
        self.sim = make_sim() if processes == 0 else None
        context = multiprocessing.get_context("spawn")  # a fork would share the renderer's context
        self._workers, self._pipes = [], []
        for _ in range(processes):
            pipe, other = context.Pipe()
            job = (other, make_sim, observe, last)
            worker = context.Process(target=_work, args=job, daemon=True)
            worker.start()
            other.close()  # so that a worker's death is the end of its pipe
            self._workers.append(worker)
            self._pipes.append(pipe)
        for pipe in self._pipes:
            self._receive(pipe)  # its simulator is up

    def __call__(self, state: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """What was seen, [N, ...] or [N, last, ...]; see :func:`rollout`.

        Raises:
            RuntimeError: a worker died, or they are closed, as they are after any exception or
                interruption; what a worker raised itself is raised here as it was.
        """
        if self.sim is not None:
            return rollout(self.sim, state, actions, self.observe, self.last)
        if not self._pipes:
            raise RuntimeError(
                "these rollouts are closed, by close() or after an error or interruption"
            )
        shares = np.array_split(actions, len(self._pipes))
        busy = [(pipe, s) for pipe, s in zip(self._pipes, shares, strict=True) if len(s)]
        try:
            for pipe, share in busy:
                self._talk(pipe.send, (state, share))
            return np.concatenate([self._receive(pipe) for pipe, _ in busy])
        except BaseException:
            # Answers that nobody has taken would be those of the next call.
            for worker in self._workers:
                worker.terminate()
            self.close()
            raise

    def _receive(self, pipe: Any) -> Any:
        result = self._talk(pipe.recv)
        if isinstance(result, Exception):
            self.close()
            raise result
        return result

    def _talk(self, call: Callable[..., Any], *message: Any) -> Any:
        try:
            return call(*message)
        except (EOFError, ConnectionError) as error:
            self.close()
            raise RuntimeError("a rollout worker died") from error

    def close(self) -> None:
        """Ends the workers and frees the simulators."""
        if self.sim is not None:
            self.sim.close()
        for pipe in self._pipes:
            pipe.close()  # the end of its work
        for worker in self._workers:
            worker.join()
        self._workers, self._pipes = [], []

    def __enter__(self) -> Rollouts:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _work(pipe: Any, make_sim: Callable[[], Simulator], observe: Observe, last: int) -> None:
    try:
        sim = make_sim()
        pipe.send(None)
        while True:
            pipe.send(rollout(sim, *pipe.recv(), observe, last))
    except (EOFError, ConnectionError, KeyboardInterrupt):
        pass  # no more work
    except Exception as error:  # goes to the caller, who raises it
        with contextlib.suppress(ConnectionError):  # who has closed after another's error
            pipe.send(error)
