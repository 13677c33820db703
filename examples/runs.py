"""A run of a reinforcement-learning example: evaluation, logs, checkpoints, and going on from them."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import terminal
import numpy as np
import torch
import workers
from common import CHANGEABLE, EVALUATION_SEED, Config
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torchrl.data import ReplayBuffer
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.record import CSVLogger, TensorboardLogger
from tqdm import tqdm

from torchrl_vip.data.video import write_video
from torchrl_vip.files import write_whole


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
                cameras = [pixels] if isinstance(pixels, Tensor) else list(pixels.values())
                frames = torch.cat(cameras, -2)
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
        if not cfg.resume:
            self._clear()
        try:
            (self.folder / "videos").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            sys.exit(f"error: --out {self.folder}: {error.strerror}")
        config = json.dumps(asdict(cfg), indent=2)
        write_whole(self.folder / "config.json", lambda part: part.write_text(config))
        tensorboard = TensorboardLogger("tensorboard", log_dir=str(self.folder))
        if cfg.resume:  # what it has after the checkpoint comes again
            tensorboard.experiment.close()
            tensorboard.experiment = SummaryWriter(
                tensorboard.experiment.log_dir, purge_step=self.step + 1
            )
        self._loggers = [CSVLogger("csv", log_dir=str(self.folder)), tensorboard]
        self._bar = tqdm(total=cfg.steps, initial=self.step, unit="step", smoothing=0.05)
        self._shown: dict[str, str] = {}
        self._last = self.step
        self._saved = self.step if cfg.resume else None
        self._clock = time.time()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Close; an interruption, and the death of a Ray worker, end in a line that says how to go on."""
        self.close()
        if terminal.was_interrupted(error):
            interruption = KeyboardInterrupt(self._how_to_go_on())
            if multiprocessing.active_children():  # a collector would wait for them
                terminal.end_for(interruption)
            raise interruption from None
        if death := workers.death_on_ray(error):
            terminal.fail(f"{death}; {self._how_to_go_on()}")

    def _how_to_go_on(self) -> str:
        if self._saved is None:
            return f"no checkpoint was written yet (--checkpoint-every {self.cfg.checkpoint_every})"
        return f"--resume continues from the last checkpoint, step {self._saved}"

    def _clear(self) -> None:
        """Delete the logs of a run that left no checkpoint, as loggers append; of nothing else."""
        logs = [self.folder / name for name in ("csv", "tensorboard")]
        config = self.folder / "config.json"
        if not any(path.exists() for path in (config, *logs)):
            return
        try:
            ours = {"task", "reward", "eval_every"} <= set(json.loads(config.read_text()))
        except (OSError, ValueError):
            ours = False
        if not ours:
            sys.exit(f"error: {self.folder} has files of something else: give another --out")
        for log in logs:
            shutil.rmtree(log, ignore_errors=True)

    def _restore(self) -> None:
        if not self._checkpoint.exists():
            sys.exit(f"error: --resume, but there is no {self._checkpoint}")
        config = self.folder / "config.json"
        try:
            began = dict(json.loads(config.read_text()))
        except (OSError, ValueError, TypeError) as error:
            sys.exit(f"error: --resume, but {config} cannot be read: {error}")
        if other := set(began) - set(asdict(self.cfg)):
            sys.exit(
                f"error: {self.folder} is of another script or version: its config.json has "
                f"{', '.join(sorted(other))}"
            )
        # a flag that is younger than the run had what is its default now
        began = asdict(type(self.cfg)()) | began
        changed = {
            name: (began[name], value)
            for name, value in asdict(self.cfg).items()
            if name not in CHANGEABLE and began[name] != value
        }
        if changed:
            sys.exit(f"error: the run began with other flags (then, now): {changed}")
        try:
            self.restored = torch.load(self._checkpoint, weights_only=True)
        except Exception as error:  # torch.load raises many types for a bad file
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            sys.exit(
                f"error: {self._checkpoint} is damaged ({reason}): begin anew in another --out"
            )
        self.step = self.restored["step"]
        if self.step >= self.cfg.steps:
            sys.exit(f"error: the run has had its {self.step} steps; --steps takes it further")
        for file in (self.folder / "csv").rglob("*.csv"):  # rows after the checkpoint come again
            rows = file.read_text().splitlines(keepends=True)
            kept = "".join(r for r in rows if int(r.split(",")[0]) <= self.step)
            write_whole(file, partial(Path.write_text, data=kept))

    def load(self, **parts: Any) -> None:
        """Give each part (module, optimizer, replay buffer) the state that :meth:`save` kept."""
        if self.restored:
            if missing := set(parts) - set(self.restored):
                sys.exit(
                    f"error: {self._checkpoint} has no {', '.join(sorted(missing))}: it is from "
                    "another version of this script; begin anew in another --out"
                )
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
        write_whole(self._checkpoint, partial(torch.save, state))
        self._saved = self.step

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
        self._loggers[-1].experiment.close()  # TensorBoard keeps its last lines in memory
