"""Collectors of the reinforcement-learning examples: in this process, in several, on several machines."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import re
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
from terminal import deaf_to_ctrl_c, end_now
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
        "total_frames": -(-actions_left(cfg, step) // per_batch) * per_batch,
        "init_random_frames": max(0, cfg.warmup - step) // cfg.frame_skip,
    }
    makers = [partial(seeded, make_env, training_seed(cfg, i, step)) for i in range(workers)]
    if cfg.processes == 0:
        return Collector(makers[0], policy, **settings)
    settings["sync"] = not cfg.overlap
    if cfg.collector in BACKEND_OPTIONS:
        settings["backend_options"] = BACKEND_OPTIONS[cfg.collector]()
    with deaf_to_ctrl_c():
        collector = Collector(makers, policy, backend=cfg.collector, **settings)
    if cfg.collector == "ray":
        collector.update_policy_weights_()  # as it wants before its first batch
    # After an error Python would wait for the workers, and these for work, for ever.
    atexit.register(collector.shutdown)
    torch.set_num_threads(cfg.threads)  # TorchRL takes one away for every worker
    return collector


def actions_left(cfg: Config, step: int) -> int:
    """From environment step ``step`` to the run's end."""
    return -(-(cfg.steps - step) // cfg.frame_skip)


def seeded(make_env: Callable[[int], EnvBase], seed: int) -> EnvBase:
    """An environment; in a worker process that draws its actions by this seed too."""
    if multiprocessing.parent_process() is not None or in_ray_worker():
        torch.manual_seed(seed)
    return make_env(seed)


def in_ray_worker() -> bool:
    ray = sys.modules.get("ray")
    return (
        ray is not None and ray.is_initialized() and bool(ray.get_runtime_context().get_actor_id())
    )


def free_port() -> int:
    """A TCP port that nobody listens on, so that two runs on one machine do not meet."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


# A Ray worker prints itself before each of its lines, which takes forty; Ray keeps what workers print
# in its own folder, and their errors come by themselves.
BACKEND_OPTIONS = {
    "distributed": lambda: {"launcher": "mp", "tcp_port": free_port()},
    "ray": lambda: {"ray_init_config": {"log_to_driver": False, "logging_level": "error"}},
}


def batches(collector: BaseCollector, cfg: Config, step: int) -> Iterator[TensorDictBase]:
    """What the collector brings, each ``[steps]``, episodes one after the other, to exactly the end of a
    run that stands at ``step``.

    Several workers may bring more with the last batch: it is cut, and so is its last episode.

    Where a worker dies, the process ends within a second, with a message that names it. TorchRL
    0.14 notices that too, but may then wait for ever, or fail in an unrelated line.
    """
    workers = getattr(collector, "procs", None) or getattr(collector, "jobs", [])
    over = threading.Event()
    threading.Thread(target=_watch, args=(workers, over), daemon=True).start()
    try:
        left = actions_left(cfg, step)
        for batch in collector:
            batch = batch.reshape(-1)
            yield batch if len(batch) <= left else cut(batch, left)
            left -= len(batch)
            if left <= 0:
                break
    except Exception:
        # Often a dead worker's echo, seen before the watcher looked: it ends the process then. To go
        # on from here would be to shut the collector down, which may wait for that worker for ever.
        time.sleep(1)
        raise
    finally:
        over.set()


def cut(batch: TensorDictBase, length: int) -> TensorDictBase:
    """The first rows, of which the last one ends its episode: who continues the run begins another."""
    batch = batch[:length].clone()
    for key in ("truncated", "done"):
        batch["next", key][-1] = True
    return batch


def _watch(workers: list[BaseProcess], over: threading.Event) -> None:
    while not over.wait(0.2):
        if message := _death(workers):
            end_now(1, f"error: {message}")


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


def death_on_ray(error: BaseException | None) -> str | None:
    """What a Ray error says of a worker or machine that died; None for any other error, such as one that a
    worker's own code raised."""
    ray = sys.modules.get("ray")
    if ray is None or not isinstance(error, ray.exceptions.RayError):
        return None
    text = str(error)
    if isinstance(error, ray.exceptions.RayTaskError) or "creation task" in text:
        return None
    known = re.findall(r"\b(pid|ip|Worker exit type): (\w[\w.:]*)", text)
    return (
        f"a Ray worker died ({', '.join(' '.join(pair) for pair in known) or text.splitlines()[0]})"
    )
