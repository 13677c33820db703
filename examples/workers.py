"""Collectors of the reinforcement-learning examples: in this process, in several, on several machines."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from common import Config, training_seed
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import BaseCollector, Collector
from torchrl.envs import EnvBase


def make_collector(
    cfg: Config, make_env: Callable[[int], EnvBase], policy: TensorDictModuleBase, step: int
) -> BaseCollector:
    """TorchRL's collector of whole episodes, one of every worker in each batch.

    Whole episodes because n-step returns and hindsight goals need the steps of one episode in a
    row. ``make_env`` takes a seed. ``--collector ray`` uses the machines of a running Ray cluster;
    ``distributed`` runs on torch.distributed (gloo), here with local processes, and on many machines
    with ``launcher="submitit"``.
    """
    workers = max(1, cfg.processes)
    episodes = 1 if cfg.overlap else workers
    per_batch = -(-cfg.max_steps // cfg.frame_skip) * episodes  # actions, as below
    settings: dict[str, Any] = {
        "frames_per_batch": per_batch,
        "total_frames": -(-(cfg.steps - step) // (cfg.frame_skip * per_batch)) * per_batch,
        "init_random_frames": max(0, cfg.warmup - step) // cfg.frame_skip,
    }
    makers = [partial(seeded, make_env, training_seed(cfg, i, step)) for i in range(workers)]
    if cfg.processes == 0:
        return Collector(makers[0], policy, **settings)
    settings["sync"] = not cfg.overlap
    if cfg.collector == "distributed":
        settings["backend_options"] = {"launcher": "mp", "tcp_port": free_port()}
    collector = Collector(makers, policy, backend=cfg.collector, **settings)
    # After an error Python would wait for the workers, and these for work, for ever.
    atexit.register(collector.shutdown)
    torch.set_num_threads(cfg.threads)  # TorchRL takes one away for every worker
    return collector


def seeded(make_env: Callable[[int], EnvBase], seed: int) -> EnvBase:
    """An environment; in a worker process that draws its actions by this seed too."""
    if multiprocessing.parent_process() is not None:
        torch.manual_seed(seed)
    return make_env(seed)


def free_port() -> int:
    """A TCP port that nobody listens on, so that two runs on one machine do not meet."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def batches(collector: BaseCollector) -> Iterator[TensorDictBase]:
    """What the collector brings, each ``[steps]``, episodes one after the other.

    Where a worker dies, the process ends within a second, with a message that names it. TorchRL
    0.14 notices that too, but may then wait for ever, or fail in an unrelated line.
    """
    workers = getattr(collector, "procs", None) or getattr(collector, "jobs", [])
    over = threading.Event()
    threading.Thread(target=_watch, args=(workers, over), daemon=True).start()
    try:
        for batch in collector:
            yield batch.reshape(-1)
    except Exception:
        # Often a dead worker's echo, seen before the watcher looked: it ends the process then. To go
        # on from here would be to shut the collector down, which may wait for that worker for ever.
        time.sleep(1)
        raise
    finally:
        over.set()


def _watch(workers: list[BaseProcess], over: threading.Event) -> None:
    while not over.wait(0.2):
        if message := _death(workers):
            print(f"\nerror: {message}", file=sys.stderr, flush=True)
            for worker in workers:
                with contextlib.suppress(ValueError):  # closed already
                    worker.kill()
            # The main thread may be inside gloo, or in a queue whose lock died with the worker:
            # no exception gets there.
            os._exit(1)


def _death(workers: list[BaseProcess]) -> str | None:
    dead = []
    for i, worker in enumerate(workers):
        with contextlib.suppress(ValueError):  # closed: it ended as it should
            if worker.exitcode not in (None, 0):
                dead.append((worker.exitcode == -signal.SIGTERM, i, worker))
    if not dead:
        return None
    # TorchRL may have noticed first, and then terminates the others: they are not the cause
    _, i, worker = min(dead, key=lambda entry: entry[:2])
    return (
        f"collector worker {i} (process {worker.pid}) died with exit code "
        f"{worker.exitcode}; --resume continues from the last checkpoint"
    )
