"""Embedding with many workers: a share of the episodes for each job of an array, or Ray.

Workers write into one results folder, which all of them and the head have to see. An episode is written once,
whole, by whoever had it; the head makes the tables when all are there.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from tqdm import tqdm

from torchrl_vip.label.job import Labeller, Settings
from torchrl_vip.label.stream import Embedded, End, Meter

BLOCK = 8
"""Episodes that a worker is given at a time: their frames share batches."""
ATTEMPTS = 3
"""Workers that may die on an episode before it is given up."""


def share(numbers: list[int], part: int, parts: int) -> list[int]:
    """The ``part``-th (from 0) of ``parts`` shares of the episodes: every ``parts``-th one."""
    return numbers[part::parts]


def parse_shard(text: str) -> tuple[int, int]:
    """``"3/8"`` to ``(3, 8)``: the first share is 0/8.

    Raises:
        ValueError: anything else.
    """
    part, _, parts = text.partition("/")
    if part.isdecimal() and parts.isdecimal() and int(part) < int(parts):
        return int(part), int(parts)
    raise ValueError(f"--shard {text}: wanted I/N with I from 0 to N - 1, such as 0/8.")


def embed_on_ray(
    labeller: Labeller, address: str | None, workers: int, *, gpus: float = 0.0, show: bool = True
) -> Meter:
    """Embed what is missing by Ray actors, each with an encoder of its own.

    A worker that dies is replaced, and its episodes are done again, one by one; on which :data:`ATTEMPTS`
    workers died counts as unreadable.

    Args:
        address: of a running cluster, ``"auto"`` for the one that this machine is part of; None starts Ray
            here.
        workers: number of actors.
        gpus: of each actor; a share of one is allowed.

    Raises:
        ImportError: Ray is not installed.
        ConnectionError: there is no cluster at this address.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError('--ray needs Ray: pip install "torchrl-vip[ray]"') from error
    ray.init(address=address, log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True)
    try:
        cpus = max((os.cpu_count() or 1) // workers, 1) if address is None else 1
        actor = ray.remote(num_cpus=cpus, num_gpus=gpus)(EncoderWorker)
        settings = replace(
            labeller.settings,
            source=labeller.settings.source.resolve(),
            results=labeller.settings.results.resolve(),
        )
        return _dispatch(ray, lambda: actor.remote(settings), workers, labeller, show)
    finally:
        ray.shutdown()


class EncoderWorker:
    """A Ray actor: the dataset and an encoder, as the head has them."""

    def __init__(self, settings: Settings):
        self.labeller = Labeller(settings)

    def embed(self, numbers: list[int]) -> Meter:
        """Embed what is missing of these episodes."""
        return self.labeller.embed(numbers, show=False)


def _dispatch(
    ray: Any, start: Callable[[], Any], workers: int, labeller: Labeller, show: bool
) -> Meter:
    """Give blocks of episodes to workers until none is missing."""
    todo = labeller.missing()
    blocks = deque(todo[i : i + BLOCK] for i in range(0, len(todo), BLOCK))
    running: dict[Any, tuple[Any, list[int]]] = {}
    deaths: Counter[int] = Counter()
    total = Meter()
    idle = [start() for _ in range(min(workers, len(blocks)))]
    with tqdm(total=len(todo), unit="episode", disable=not (show and todo)) as bar:
        while blocks or running:
            while blocks and idle:
                worker, block = idle.pop(), blocks.popleft()
                running[worker.embed.remote(block)] = (worker, block)
            (done,), _ = ray.wait(list(running))
            worker, block = running.pop(done)
            try:
                meter = ray.get(done)
            except ray.exceptions.RayActorError:
                _put_back(labeller, labeller.missing(block), deaths, blocks)
                worker, meter = start(), Meter()
            idle.append(worker)
            total.frames += meter.frames
            total.encoding += meter.encoding
            total.waiting += meter.waiting
            bar.update(sum(labeller.is_done(n) for n in block))
    return total


def _put_back(
    labeller: Labeller, left: list[int], deaths: Counter[int], blocks: deque[list[int]]
) -> None:
    """Put the episodes that a dead worker left back, one by one; give up those that killed too many."""
    for number in left:
        deaths[number] += 1
        if deaths[number] < ATTEMPTS:
            blocks.append([number])
            continue
        clip = labeller.clips[number]
        reason = f"{clip.path}: {ATTEMPTS} workers died while they read it"
        labeller.store.write(clip, Embedded(number, torch.zeros(0, 0), End(error=reason)))
