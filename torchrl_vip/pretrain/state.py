"""What a run keeps on disk so that it can be killed at any moment: its checkpoints and its log."""

from __future__ import annotations

import csv
import shutil
import sys
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torchrl.record.loggers import get_logger

from torchrl_vip.files import write_whole
from torchrl_vip.weights import CheckpointError

CHECKPOINT = f"step_{'[0-9]' * 8}.pt"
"""What a checkpoint is called, and no other project's."""
LEFTOVERS = (".step_*.part", "step_*.tmp")
"""What a kill leaves of one that was being written; the second is of the version before."""


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
        state = {name: part.state_dict() for name, part in self.parts.items()}

        def write(path: Path) -> None:
            with open(path, "wb") as file:
                torch.save({"step": step, **state}, file)

        try:
            write_whole(self.path(step), write)
        except OSError as error:
            older = self.steps()
            kept = f"The checkpoint of step {older[0]} is kept" if older else "There is none yet"
            raise OSError(
                f"the checkpoint of step {step} could not be written: {error} {kept}. Make room, then "
                "run the same command again."
            ) from error
        for old in self.steps()[self.keep :]:
            self.path(old).unlink(missing_ok=True)

    def load(self, device: torch.device) -> int:
        """Restore the newest checkpoint that can be read; returns its step, 0 where there is none.

        Raises:
            CheckpointError: all are damaged, or the newest is of another network.
        """
        for pattern in LEFTOVERS:
            for leftover in self.folder.glob(pattern):
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

    def __init__(self) -> None:
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

        def write(part: Path) -> None:
            with open(part, "w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["step", "metric", "value"])
                writer.writerows(row for row in rows if int(row[0]) <= first)

        write_whole(path, write)  # a kill here must not cost the log
        self.path = path
        self.file = open(path, "a", newline="", buffering=1)  # noqa: SIM115  # open while the run lasts
        self.writer = csv.writer(self.file)
        folder, name = path.parent / "logs", path.parent.resolve().name
        if first == 0:  # loggers append
            shutil.rmtree(folder, ignore_errors=True)
        for file in folder.rglob("scalars/**/*.csv"):  # "validation/voc" is a folder deeper
            rows = [row for row in file.read_text().splitlines(True) if row.endswith("\n")]
            kept = "".join(row for row in rows if int(row.split(",")[0]) <= first)
            write_whole(file, partial(Path.write_text, data=kept))
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

    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """metric -> its (step, value), in order of time, those before a resume too."""
        curves = defaultdict(list)
        with open(self.path, newline="") as file:
            for row in csv.DictReader(file):
                curves[row["metric"]].append((int(row["step"]), float(row["value"])))
        return dict(curves)


def plot_curves(curves: dict[str, list[tuple[int, float]]], picture: Path) -> None:
    """Draw every metric of :meth:`MetricsLog.curves` against the step."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if not curves:
        return
    columns = 4
    figure, axes = plt.subplots(
        -(-len(curves) // columns),
        columns,
        figsize=(16, 3 * -(-len(curves) // columns)),
        squeeze=False,
    )
    for axis in axes.flat[len(curves) :]:
        axis.axis("off")
    for axis, (name, points) in zip(axes.flat, sorted(curves.items()), strict=False):
        steps, values = zip(*points, strict=True)
        axis.plot(steps, values, marker="o" if len(steps) < 30 else None, markersize=3)
        axis.set_title(name)
        axis.set_xlabel("step")
    figure.tight_layout()
    write_whole(picture, lambda part: figure.savefig(part, dpi=80, format="png"))
    plt.close(figure)


def verdict(metric: str, curve: list[tuple[int, float]]) -> str:
    """Whether training helped, in a sentence.

    Args:
        metric: that marks the best.
        curve: its (step, value), the first one before training.
    """
    if len(curve) < 2:
        return "whether training helped is not known: nothing was validated."
    (first, start), (last, end) = curve[0], curve[-1]
    best_step, best = max(curve[1:], key=lambda point: point[1])
    helped = "helped" if end > start else "did not help"
    if end <= start < best:
        helped = "helped at first and then hurt (take best/)"
    return (
        f"training {helped}: {metric} was {start:.3f} at step {first}, {end:.3f} at the end (step {last}) "
        f"and {best:.3f} at its best (step {best_step})."
    )
