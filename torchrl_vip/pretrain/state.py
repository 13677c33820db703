"""What a run keeps on disk so that it can be killed at any moment: its checkpoints and its log."""

from __future__ import annotations

import csv
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torchrl.record.loggers import get_logger

from torchrl_vip.weights import CheckpointError

CHECKPOINT = f"step_{'[0-9]' * 8}.pt"
"""What a checkpoint is called, and no other project's."""


@contextmanager
def sole_run(folder: Path) -> Iterator[None]:
    """Holds ``folder`` while a run writes there, as two would mix their files.

    Raises:
        ValueError: another one does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # gone with its process, killed or not
        except BlockingIOError as error:
            raise ValueError(
                f"another run writes to {folder}: wait for it, stop it, or give another out_dir."
            ) from error
        yield


class Checkpoints:
    """``folder/step_<n>.pt``, the newest ``keep`` of them; each appears whole or not at all.

    Args:
        folder: made if need be.
        keep: how many stay, at least 1.
        parts: what is saved and restored, by its state_dict.
    """

    def __init__(self, folder: Path, keep: int, **parts: Any):
        self.folder, self.keep, self.parts = folder, keep, parts

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, the newest first."""
        stems = [path.stem.removeprefix("step_") for path in self.folder.glob(CHECKPOINT)]
        return sorted(map(int, stems), reverse=True)

    def path(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}.pt"

    def save(self, step: int) -> None:
        """Write a checkpoint, then delete the oldest.

        Raises:
            OSError: the disk is full or the folder not writable; what was there before stays.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.path(step).with_suffix(".tmp")
        try:
            with open(temporary, "wb") as file:
                state = {name: part.state_dict() for name, part in self.parts.items()}
                torch.save({"step": step, **state}, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:  # torch's writer has its own type
            temporary.unlink(missing_ok=True)
            older = self.steps()
            kept = f"the checkpoint of step {older[0]} is kept" if older else "there is none yet"
            raise OSError(
                f"the checkpoint of step {step} could not be written to {self.folder} ({error}); "
                f"{kept}. Make room, then run the same command again."
            ) from error
        os.replace(temporary, self.path(step))
        for old in self.steps()[self.keep :]:
            self.path(old).unlink(missing_ok=True)

    def load(self, device: torch.device) -> int:
        """Restore the newest checkpoint that can be read; returns its step, 0 where there is none.

        Raises:
            CheckpointError: all are damaged, or the newest is of another network.
        """
        for leftover in self.folder.glob("*.tmp"):
            leftover.unlink(missing_ok=True)
        remedy = "Delete it, or pass resume=false, to start from step 0."
        damaged = []
        for step in self.steps():
            path = self.path(step)
            try:
                states = torch.load(path, map_location=device, weights_only=True)
                missing = set(self.parts) - states.keys()
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # torch.load raises many types for a bad file
                damaged.append(path)
                print(f"{path} is damaged ({type(error).__name__}): skipped", file=sys.stderr)
                continue
            if missing:
                raise CheckpointError(
                    f"{path} has no {', '.join(sorted(missing))}: it is from another version of "
                    f"this package. {remedy}"
                )
            try:
                for name, part in self.parts.items():
                    part.load_state_dict(states[name])
            except (RuntimeError, ValueError) as error:
                raise CheckpointError(
                    f"{path} is of another network than encoder, dim and image_size say. {remedy}"
                ) from error
            return step
        if damaged:
            raise CheckpointError(
                f"{damaged[0]} is no readable training checkpoint (damaged?), and there is no older "
                f"one. {remedy}"
            )
        return 0

    def clear(self) -> None:
        """Delete all: a run that starts anew is never resumed from them by accident."""
        for path in self.folder.glob(CHECKPOINT.removesuffix("pt") + "*"):
            path.unlink()


class Best:
    """The highest value of the validation metric so far, kept through a resume."""

    def __init__(self):
        self.value = float("-inf")

    def improved(self, value: float | None) -> bool:
        """Whether ``value`` is above all before it; it is remembered."""
        if value is None or not value > self.value:
            return False
        self.value = value
        return True

    def state_dict(self) -> dict:
        return {"value": self.value}

    def load_state_dict(self, state: dict) -> None:
        self.value = state["value"]


class MetricsLog:
    """metrics.csv in long form (step, metric, value), and TorchRL's loggers beside it.

    Args:
        path: of metrics.csv; rows after ``first`` are dropped, as they will be written again.
        first: the step that the run goes on from.
        loggers: of "csv", "tensorboard", "wandb" and TorchRL's others; they write to logs/.
    """

    def __init__(self, path: Path, first: int, loggers: Sequence[str] = ()):
        rows = []
        if path.exists() and first:
            with open(path, newline="") as file:
                rows = [row for row in csv.reader(file) if len(row) == 3 and row[0].isdigit()]
        temporary = path.with_suffix(".tmp")  # a kill here must not cost the log
        with open(temporary, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["step", "metric", "value"])
            writer.writerows(row for row in rows if int(row[0]) <= first)
        os.replace(temporary, path)
        self.file = open(path, "a", newline="", buffering=1)
        self.writer = csv.writer(self.file)
        folder, name = path.parent / "logs", path.parent.resolve().name
        if first == 0:  # loggers append
            shutil.rmtree(folder, ignore_errors=True)
        for file in folder.rglob("scalars/**/*.csv"):  # "validation/voc" is a folder deeper
            rows = [row for row in file.read_text().splitlines(True) if row.endswith("\n")]
            file.write_text("".join(row for row in rows if int(row.split(",")[0]) <= first))
        self.loggers = [get_logger(kind, str(folder / kind), name) for kind in loggers]
        for kind, logger in zip(loggers, self.loggers, strict=True):
            if kind == "tensorboard" and first:  # what it has after ``first`` comes again
                from torch.utils.tensorboard import SummaryWriter

                logger.experiment.close()
                logger.experiment = SummaryWriter(logger.log_dir, purge_step=first + 1)

    def write(
        self, step: int, metrics: dict[str, float], timing: dict[str, float] | None = None
    ) -> None:
        """Log scalars; ``timing`` goes to the loggers alone, so that metrics.csv is reproducible."""
        self.writer.writerows([step, key, f"{value:.6g}"] for key, value in metrics.items())
        for logger in self.loggers:
            for key, value in {**metrics, **(timing or {})}.items():
                logger.log_scalar(key, value, step=step)
