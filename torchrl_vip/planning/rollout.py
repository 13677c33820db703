"""Runs candidate action sequences from one saved simulator state, here or in worker processes.

Shapes: actions [N, H, A]; what is observed is stacked to [N, ...] after each candidate's last step,
or to [N, H, ...] after every step. A simulator is a
:class:`~torchrl_vip.envs.simulator.Simulator` with ``get_state()`` and ``set_state(state)``.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import numpy as np

from torchrl_vip.envs.simulator import Simulator

Observe = Callable[[Simulator, float], Any]
"""``observe(sim, reward of the step) -> number or array``; a module's function, to be pickled."""


def last_reward(sim: Simulator, reward: float) -> float:
    """The task's own reward."""
    return reward


def last_frame(sim: Simulator, reward: float) -> np.ndarray:
    """The frame, uint8 [H, W, 3]: only what is scored is rendered."""
    return sim.render().copy()


def rollout(
    sim: Simulator,
    state: np.ndarray,
    actions: np.ndarray,
    observe: Observe = last_reward,
    every: bool = False,
) -> np.ndarray:
    """Runs each of ``actions`` [N, H, A] from ``state`` and returns what ``observe`` saw.

    Returns:
        [N, ...] after the last step, or [N, H, ...] with ``every``. ``sim`` is left where the last
        candidate ended.
    """
    seen = []
    for sequence in actions:
        sim.set_state(state)
        steps = []
        for t, action in enumerate(sequence):
            _, reward, _ = sim.step(action)
            if every or t == len(sequence) - 1:
                steps.append(observe(sim, reward))
        seen.append(np.stack(steps) if every else np.asarray(steps[0]))
    return np.stack(seen)


class Rollouts:
    """:func:`rollout` on simulators of its own; equal results whatever the number of processes.

    Args:
        make_sim: makes a simulator; picklable if there are processes.
        observe: what to look at; picklable too.
        every: after every step, not only the last.
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
        every: bool = False,
        processes: int = 0,
    ) -> None:
        self.observe, self.every = observe, every
        self.sim = make_sim() if processes == 0 else None
        context = multiprocessing.get_context("spawn")  # a fork would share the renderer's context
        self._workers, self._pipes = [], []
        for _ in range(processes):
            pipe, other = context.Pipe()
            job = (other, make_sim, observe, every)
            worker = context.Process(target=_work, args=job, daemon=True)
            worker.start()
            other.close()  # so that a worker's death is the end of its pipe
            self._workers.append(worker)
            self._pipes.append(pipe)
        for pipe in self._pipes:
            self._receive(pipe)  # its simulator is up

    def __call__(self, state: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """What was seen, [N, ...] or [N, H, ...]; see :func:`rollout`.

        Raises:
            RuntimeError: a worker died; what it raised itself is raised here as it was.
        """
        if self.sim is not None:
            return rollout(self.sim, state, actions, self.observe, self.every)
        shares = np.array_split(actions, len(self._pipes))
        busy = [(pipe, s) for pipe, s in zip(self._pipes, shares, strict=True) if len(s)]
        for pipe, share in busy:
            self._talk(pipe.send, (state, share))
        return np.concatenate([self._receive(pipe) for pipe, _ in busy])

    def _receive(self, pipe: Any) -> Any:
        result = self._talk(pipe.recv)
        if isinstance(result, Exception):
            self.close()
            raise result
        return result

    def _talk(self, call: Callable[..., Any], *message: Any) -> Any:
        try:
            return call(*message)
        except (EOFError, OSError) as error:  # OSError: its end of the pipe is broken
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


def _work(pipe: Any, make_sim: Callable[[], Simulator], observe: Observe, every: bool) -> None:
    try:
        sim = make_sim()
        pipe.send(None)
        while True:
            pipe.send(rollout(sim, *pipe.recv(), observe, every))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        pass  # no more work
    except Exception as error:  # goes to the caller, who raises it
        pipe.send(error)
