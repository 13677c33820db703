"""What the reinforcement-learning examples share: flags, the reward to learn from, scaling of the
inputs, collectors, evaluation, results and checkpoints.

Algorithms are not here: sac.py, drq.py and goal_switching.py each read from top to bottom.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

# Without it OpenMP's idle threads spin on the cores that the renderer needs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
import torchrl
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.collectors import BaseCollector, Collector
from torchrl.data import Composite, ReplayBuffer, Unbounded
from torchrl.envs import EnvBase, ObservationNorm, Transform, TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.record import CSVLogger, TensorboardLogger
from tqdm import tqdm

from torchrl_vip.data.video import write_video
from torchrl_vip.envs import SUITES, load_suite

torchrl.logger.setLevel("WARNING")  # its notes break the progress bar
warnings.filterwarnings("ignore", "The env passed to Collector is missing transforms")

# -- flags ------------------------------------------------------------------------------------------


def arg(default: Any, meaning: str, **options: Any) -> Any:
    """A field of a config that is a flag too; ``options`` go to ``ArgumentParser.add_argument``."""
    return field(default=default, metadata={"help": meaning, **options})


@dataclass(frozen=True)
class Config:
    """Flags of every example."""

    suite: str = arg("metaworld", "suite of torchrl_vip.envs", choices=SUITES)
    task: str = arg("coffee-button-v3", "one of the suite's list_tasks()")
    camera: str | None = arg(None, "camera, or several joined by + (the suite's own)")
    image_size: int = arg(128, "side of the rendered frames, pixels")
    max_steps: int = arg(100, "length of an episode, steps of the simulator, as all steps here")
    frame_skip: int = arg(2, "steps that an action is held; only the last one is rendered")
    encoder: str | None = arg(None, "checkpoint's name or folder (the bundled one)")
    blur: float = arg(0.0, "Gaussian over what the encoder sees, in its pixels")
    reward: str = arg("vip", "what to learn from", choices=("vip", "sparse", "dense", "vip+sparse"))
    seed: int = arg(0, "of networks, exploration and training starts")
    steps: int = arg(50_000, "environment steps in all")
    warmup: int = arg(1_000, "steps of random actions before the first update")
    batch_size: int = arg(256, "transitions an update")
    updates_per_step: float = arg(1.0, "updates per environment step")
    eval_every: int = arg(5_000, "steps between evaluations")
    eval_episodes: int = arg(10, "episodes of an evaluation, their starts never trained on")
    final_episodes: int = arg(50, "episodes of the last evaluation")
    checkpoint_every: int = arg(5_000, "steps between checkpoints")
    processes: int = arg(0, "worker processes that collect; 0 collects in this one")
    collector: str = arg(
        "process", "how workers run, with --processes", choices=("process", "distributed", "ray")
    )
    overlap: bool = arg(False, "with --collector process: collect during the updates")
    threads: int = arg(1, "torch threads of this process")
    out: str = arg("run", "folder of the results")
    resume: bool = arg(False, "continue the run in --out where its last checkpoint stands")
    smoke: bool = arg(False, "a run of seconds, to see that everything works")

    @property
    def cameras(self) -> str | list[str] | None:
        """What the suite's ``make_env`` takes."""
        names = (self.camera or "").split("+")
        return names if len(names) > 1 else self.camera

    @property
    def frame_keys(self) -> list[NestedKey]:
        """Where its environment writes frames."""
        several = isinstance(self.cameras, list)
        return [("pixels", name) for name in self.cameras] if several else ["pixels"]


# what may change between a run and its continuation
CHANGEABLE = {"steps", "processes", "collector", "overlap", "threads", "out", "resume"} | {
    name for name in Config.__annotations__ if name.startswith(("eval", "final", "checkpoint"))
}


def parse(config: type[Config], description: str, smoke: Mapping[str, Any]) -> Any:
    """Flags to a config. ``smoke``: other defaults with ``--smoke``.

    Every field is a flag: ``updates_per_step: float`` is ``--updates-per-step``.
    """
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    types_of = typing.get_type_hints(config)
    for entry in fields(config):
        options = dict(entry.metadata)
        options["help"] += "" if entry.default in (None, False) else " (%(default)s)"
        kind = types_of[entry.name]
        if kind is bool:
            options["action"] = "store_true"
        else:
            optional = isinstance(kind, types.UnionType)
            options["type"] = typing.get_args(kind)[0] if optional else kind
        parser.add_argument(f"--{entry.name.replace('_', '-')}", default=entry.default, **options)
    if "--smoke" in sys.argv:
        parser.set_defaults(**smoke)
    cfg = config(**vars(parser.parse_args()))
    torch.set_num_threads(cfg.threads)
    torch.manual_seed(cfg.seed)
    return cfg


# -- environment ------------------------------------------------------------------------------------

# Factors that bring each reward to the order of .1 to 1 a step: a typical success returns 1 in VIP
# reward with scale="auto", and up to 10 a step in the suites' dense rewards.
REWARD_SCALES = {"vip": 10.0, "sparse": 1.0, "dense": 0.1}

EVALUATION_SEED = 2**40  # and following ones; training starts from smaller ones


def training_seed(cfg: Config, worker: int, step: int) -> int:
    """A seed of starts for each worker, and another one after ``--resume``."""
    return ((cfg.seed * 1_000 + worker) << 20) + step // cfg.max_steps


class TrainingReward(Transform):
    """The reward to learn from as "reward" ``[*B, 1]``; the environment's own as "dense_reward".

    Stands behind ``VIPRewardTransform(mode="keep", scale="auto")``. "sparse" is 1 where "success".

    Args:
        choice: names in REWARD_SCALES, joined by "+": their weighted sum.
        action_cost: what is taken off for an action of full size, in proportion to its mean square.
    """

    def __init__(self, choice: str, action_cost: float = 0.0) -> None:
        super().__init__(in_keys=["reward", "vip_reward"], out_keys=["reward", "dense_reward"])
        self.choice, self.action_cost = choice, action_cost

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        dense = next_tensordict["reward"]
        terms = {
            "vip": next_tensordict["vip_reward"],
            "sparse": next_tensordict["success"].to(dense.dtype),
            "dense": dense,
        }
        reward = sum(REWARD_SCALES[name] * terms[name] for name in self.choice.split("+"))
        if self.action_cost:
            effort = tensordict["action"].square().mean(-1, keepdim=True)
            reward = reward - self.action_cost * effort
        return next_tensordict.update({"reward": reward, "dense_reward": dense})

    def transform_reward_spec(self, reward_spec: Composite) -> Composite:
        reward_spec = reward_spec.clone()
        own = reward_spec["reward"]
        reward_spec["dense_reward"] = own.clone()
        reward_spec["reward"] = Unbounded(own.shape, device=own.device, dtype=own.dtype)
        return reward_spec


def suite_env(cfg: Config, seed: int, *, goal: str | None) -> EnvBase:
    """The task as its suite makes it; ``goal`` is None, or "solved" for each start's own."""
    return load_suite(cfg.suite).make_env(
        cfg.task,
        cameras=cfg.cameras,
        image_size=cfg.image_size,
        goal=goal,
        max_steps=cfg.max_steps,
        frame_skip=cfg.frame_skip,
        seed=seed,
    )


def goal_images(cfg: Config, count: int) -> list[np.ndarray | dict]:
    """The task solved in ``count`` other episodes, uint8 ``[H, W, 3]`` each, or by camera."""
    draw = partial(load_suite(cfg.suite).goal_image, cfg.task, image_size=cfg.image_size)
    seeds = [1_000 * (1 + i) for i in range(count)]  # as a script that fails tries the following
    if not isinstance(cfg.cameras, list):
        return [draw(camera=cfg.camera, seed=seed) for seed in seeds]
    return [{key: draw(camera=key[1], seed=seed) for key in cfg.frame_keys} for seed in seeds]


def input_statistics(env: EnvBase, steps: int) -> TensorDict:
    """Mean and scale of "vip_vec" and "state" over ``steps`` random ones, for :func:`scaled_inputs`."""
    seen = env.rollout(steps, break_when_any_done=False)
    z, state = seen["vip_vec"], seen["state"]
    # One scale for all of an embedding: distances keep their proportions, and the directions in
    # which random actions change little are not blown up. Its many numbers weigh as much together
    # as the few of the state, else these drown.
    spread = z.std(0).square().sum().sqrt() / state.shape[-1] ** 0.5
    return TensorDict(
        z_loc=z.mean(0),
        z_scale=spread.expand(z.shape[-1]).clone(),
        state_loc=state.mean(0),
        state_scale=state.std(0).clamp_min(1e-2),
    )


def scaled_inputs(env: TransformedEnv, statistics: TensorDict, *goals: str) -> TransformedEnv:
    """Append what the networks read: "z" and "s", centred "vip_vec" and "state" of order 1.

    Raw embeddings share a mean that is far larger than what tells two frames of a task apart.
    ``goals``: "goal_embedding" comes out as "z_goal".
    """
    loc, scale = statistics["z_loc"], statistics["z_scale"]
    in_keys, out_keys = ["vip_vec", *goals], ["z", *["z_goal"] * len(goals)]
    env.append_transform(ObservationNorm(loc, scale, in_keys, out_keys, standard_normal=True))
    loc, scale = statistics["state_loc"], statistics["state_scale"]
    env.append_transform(ObservationNorm(loc, scale, ["state"], ["s"], standard_normal=True))
    return env


# -- collecting -------------------------------------------------------------------------------------


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
    makers = [partial(make_env, training_seed(cfg, i, step)) for i in range(workers)]
    if cfg.processes == 0:
        return Collector(makers[0], policy, **settings)
    settings["sync"] = not cfg.overlap
    if cfg.collector == "distributed":
        settings["backend_options"] = {"launcher": "mp", "tcp_port": free_port()}
    return Collector(makers, policy, backend=cfg.collector, **settings)


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
    except Exception as error:
        if message := _death(workers):
            raise RuntimeError(message) from error
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


# -- evaluation -------------------------------------------------------------------------------------


def evaluate(
    env: EnvBase, policy: TensorDictModuleBase, episodes: int
) -> tuple[dict[str, float], Tensor]:
    """Play the policy without noise from starts that training never saw, the same at every call.

    Returns:
        metrics: success at the last step and at any step (fractions), "return" (of what is learned
        from), "vip_return" and "dense_return" (unscaled), means over the episodes.
        frames: of the first episode, uint8 ``[T, H, W, 3]``, cameras side by side; ``env`` keeps
        "pixels" for it.
    """
    totals: list[dict[str, float]] = []
    frames = None
    with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
        for i in range(episodes):
            env.set_seed(EVALUATION_SEED + i)
            episode = env.rollout(100_000, policy)["next"]  # to its truncation
            if frames is None:
                pixels = episode["pixels"]
                views = [pixels] if isinstance(pixels, Tensor) else list(pixels.values())
                frames = torch.cat(views, -2)
            success = episode["success"].float()
            totals.append(
                {
                    "success_last": success[-1].item(),
                    "success_any": success.max().item(),
                    "return": episode["reward"].sum().item(),
                    "vip_return": episode["vip_reward"].sum().item(),
                    "dense_return": episode["dense_reward"].sum().item(),
                }
            )
    return {name: float(np.mean([t[name] for t in totals])) for name in totals[0]}, frames


# -- results and checkpoints ------------------------------------------------------------------------


def rows_of(buffer: ReplayBuffer) -> dict[str, Any]:
    """State of a buffer: its filled rows only, where ``state_dict`` has the whole storage."""
    rows = buffer.storage[:]
    if len(rows) < buffer.storage.max_size:
        rows = rows.clone()  # else torch.save writes all that lies behind the view
    return {"rows": rows.to_dict(), "count": len(rows), "writer": buffer.writer.state_dict()}


def fill(buffer: ReplayBuffer, state: Mapping[str, Any]) -> None:
    """The inverse of :func:`rows_of`; past the buffer's transforms, which the rows went through."""
    count = state["count"]
    buffer.storage.set(range(count), TensorDict(state["rows"], [count]))
    buffer.writer.load_state_dict(state["writer"])


class Run:
    """A run's folder: config.json, csv/, tensorboard/, videos/ and checkpoint.pt.

    Args:
        cfg: with ``resume`` the checkpoint of ``cfg.out`` is read.

    Attributes:
        step: environment steps done.
        restored: the checkpoint, ``{}`` in a fresh run.

    Exits with a message where a fresh run would overwrite another, or a resumed one is complete or
    has other settings than it began with.
    """

    def __init__(self, cfg: Config) -> None:
        self.cfg, self.folder, self.step = cfg, Path(cfg.out), 0
        self._checkpoint = self.folder / "checkpoint.pt"
        self.restored: dict[str, Any] = {}
        if cfg.resume:
            self._restore()
        elif self._checkpoint.exists():
            sys.exit(
                f"error: {self.folder} has a run: --resume continues it, or give another --out"
            )
        (self.folder / "videos").mkdir(parents=True, exist_ok=True)
        (self.folder / "config.json").write_text(json.dumps(asdict(cfg), indent=2))
        self._loggers = [
            CSVLogger("csv", log_dir=str(self.folder)),
            TensorboardLogger("tensorboard", log_dir=str(self.folder)),
        ]
        self._bar = tqdm(total=cfg.steps, initial=self.step, unit="step", smoothing=0.05)
        self._shown: dict[str, str] = {}
        self._last = self.step
        self._clock = time.time()

    def _restore(self) -> None:
        if not self._checkpoint.exists():
            sys.exit(f"error: --resume, but there is no {self._checkpoint}")
        began = json.loads((self.folder / "config.json").read_text())
        changed = {
            name: (began[name], value)
            for name, value in asdict(self.cfg).items()
            # a flag that is younger than the run had what is its default now
            if name not in CHANGEABLE and began.get(name, getattr(type(self.cfg), name)) != value
        }
        if changed:
            sys.exit(f"error: the run began with other flags (then, now): {changed}")
        self.restored = torch.load(self._checkpoint, weights_only=True)
        self.step = self.restored["step"]
        if self.step >= self.cfg.steps:
            sys.exit(f"error: the run has had its {self.step} steps; --steps takes it further")
        for file in (self.folder / "csv").rglob("*.csv"):  # rows after the checkpoint come again
            rows = file.read_text().splitlines(keepends=True)
            file.write_text("".join(r for r in rows if int(r.split(",")[0]) <= self.step))

    def load(self, **parts: Any) -> None:
        """Give each part (module, optimizer, replay buffer) the state that :meth:`save` kept."""
        if self.restored:
            for name, part in parts.items():
                state = self.restored.pop(name)
                if isinstance(part, ReplayBuffer):
                    fill(part, state)
                else:
                    part.load_state_dict(state)
            torch.set_rng_state(self.restored["rng"])

    def save(self, *, statistics: TensorDict, **parts: Any) -> None:
        """Write checkpoint.pt: a run killed meanwhile finds the one before."""
        state = {
            name: rows_of(part) if isinstance(part, ReplayBuffer) else part.state_dict()
            for name, part in parts.items()
        }
        state |= {
            "step": self.step,
            "rng": torch.get_rng_state(),
            "statistics": statistics.to_dict(),
        }
        partial_file = self._checkpoint.with_suffix(".partial")
        torch.save(state, partial_file)
        os.replace(partial_file, self._checkpoint)

    @property
    def statistics(self) -> TensorDict | None:
        """Of the inputs, as the run began with; None in a fresh one."""
        kept = self.restored.get("statistics")
        return None if kept is None else TensorDict(kept)

    def advance(self, actions: int) -> int:
        """Count the environment steps of so many actions, and return them."""
        steps = actions * self.cfg.frame_skip
        self._last = self.step
        self.step += steps
        self._bar.update(steps)
        return steps

    def due(self, every: int) -> bool:
        """Whether a multiple of ``every`` lies in the steps since the last :meth:`advance`, or the end."""
        return self.step // every > self._last // every or self.step >= self.cfg.steps

    def log(self, group: str, metrics: Mapping[str, float]) -> None:
        """To CSV, TensorBoard and the progress bar, as ``group/name``."""
        for name, value in metrics.items():
            for logger in self._loggers:
                logger.log_scalar(f"{group}/{name}", float(value), step=self.step)
        for name in ("success_last", "return"):
            if name in metrics:
                self._shown[f"{group} {name}"] = f"{metrics[name]:.2f}"
        self._bar.set_postfix(self._shown)

    def log_training(self, batch: TensorDictBase, losses: Mapping[str, Tensor]) -> None:
        """Episodes of a batch of whole ones, losses, and environment steps a second."""
        ends = batch["next", "done"].squeeze(-1)
        episodes = max(1, int(ends.sum()))
        now = time.time()
        rate = (self.step - self._last) / (now - self._clock)
        self._clock = now
        self.log(
            "train",
            {
                "return": batch["next", "reward"].sum().item() / episodes,
                "success_last": batch["next", "success"][ends].float().sum().item() / episodes,
                "steps_per_second": rate,
                **losses,
            },
        )

    def evaluate(self, env: EnvBase, policy: TensorDictModuleBase) -> dict[str, float]:
        """:func:`evaluate`, logged, with a video; the last one with ``final_episodes``."""
        last = self.step >= self.cfg.steps
        episodes = self.cfg.final_episodes if last else self.cfg.eval_episodes
        with torch.random.fork_rng():
            metrics, frames = evaluate(env, policy, episodes)
        self.log("final" if last else "eval", metrics)
        write_video(self.folder / "videos" / f"step_{self.step:07d}.mp4", frames)
        text = ", ".join(f"{name} {value:.2f}" for name, value in metrics.items())
        tqdm.write(f"step {self.step}, {episodes} unseen starts: {text}")
        self._clock = time.time()
        return metrics

    def close(self) -> None:
        self._bar.close()
