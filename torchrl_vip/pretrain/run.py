"""A run's folder: resumed or begun, logged, validated, saved, finished.

::

    out_dir/
      config.yaml, clips.json        what the run began with
      metrics.csv, curves.png, logs/ what it measured
      checkpoints/                   what it goes on from
      best/, final/                  encoders, for load_vip
"""

from __future__ import annotations

import fcntl
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tensordict import TensorDict
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from torchrl_vip.encoders import VIPEncoder
from torchrl_vip.files import write_whole
from torchrl_vip.pretrain import processes
from torchrl_vip.pretrain.clips import Split, check_split, write_split
from torchrl_vip.pretrain.config import check_resumed, read_settings
from torchrl_vip.pretrain.state import (
    CHECKPOINT,
    Best,
    Checkpoints,
    MetricsLog,
    plot_curves,
    verdict,
)
from torchrl_vip.pretrain.validation import best_metric, marks_best
from torchrl_vip.weights import save_vip

if TYPE_CHECKING:
    from torchrl_vip.pretrain.build import Parts


@dataclass
class Run:
    """The folder of a run, held while its ``with`` block lasts.

    Of several processes only the first one writes, logs and validates.

    Args:
        folder: where everything lies.
        settings: what config.yaml will have.
        split: clips to train and to validate on.
        total: steps.
        every: steps from one to the next of "log", "validate" and "checkpoint".
        metric: whose highest value marks the best.
        keep: checkpoints that stay.
        loggers: of TorchRL.
        resume: go on from the newest checkpoint.
        progress: show a bar.
        first_process: whether this is the one that writes.
        judged: whether something else says if it helped.

    Raises:
        ValueError: on entry, where another run writes to the folder, the folder is of something else, or
            the run in it began with other settings or clips.
    """

    folder: Path
    settings: str
    split: Split
    total: int
    every: dict[str, int]
    metric: str
    keep: int = 2
    loggers: Sequence[str] = ()
    resume: bool = True
    progress: bool = True
    first_process: bool = True
    judged: bool = False
    done: int = field(default=0, init=False)  # steps, the one that is being taken included

    def __enter__(self) -> Run:
        with ExitStack() as held:
            if self.first_process:
                held.enter_context(sole_run(self.folder))
            if self.resume and any((self.folder / "checkpoints").glob(CHECKPOINT)):
                check_resumed(self.settings, self.folder / "config.yaml")
                check_split(self.split, self.folder / "clips.json")
            elif self.first_process:
                check_new(self.folder, resume=self.resume)
            self.folder.mkdir(parents=True, exist_ok=True)
            self._held = held.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

    def begin(self, parts: Parts) -> None:
        """Restore ``parts`` from the newest checkpoint, or clear what an earlier run left.

        Raises:
            CheckpointError: the checkpoints are damaged or of another network.
            ValueError: the run is beyond its steps already; nothing measured is called as the best's metric.
        """
        self.parts, self.best = parts, Best()
        folder = self.folder / "checkpoints"
        self.checkpoints = Checkpoints(folder, self.keep, best=self.best, **parts.stored)
        self.done = self.checkpoints.load(parts.device) if self.resume else 0
        processes.wait()  # nobody deletes or writes before all have read
        if self.done > self.total:
            raise ValueError(
                f"steps={self.total}, but {self.folder} is at step {self.done} already: give more."
            )
        parts.buffer.sampler.step = self.done
        if not self.first_process:
            return
        metrics = {} if self.done else parts.measure(parts.encoder)
        if metrics:
            best_metric(metrics, self.metric)  # its name is refused before anything is cleared
        self._delete_leftovers()
        if self.done:
            newest = self.checkpoints.path(self.done)
            print(f"resumed from step {self.done} of {self.total} ({newest})")
        else:
            self.checkpoints.clear()
        # The settings first: by them a run that is killed here is known as one.
        config = self.folder / "config.yaml"
        write_whole(config, lambda part: part.write_text(self.settings))
        if not self.done:
            write_split(parts.tables.split, self.folder / "clips.json", parts.tables.skipped)
        self.metrics = MetricsLog(self.folder / "metrics.csv", self.done, self.loggers)
        self.metrics.write(0, metrics)

    def steps(self) -> Iterator[int]:
        """The steps that are left, with a bar."""
        self.bar = tqdm(
            range(self.done, self.total),
            initial=self.done,
            total=self.total,
            desc="training",
            disable=not (self.progress and self.first_process),
        )
        self._restart_clock()
        for step in self.bar:
            self.done = step + 1
            yield step

    def timed(self, sample: Callable[[], Any]) -> Any:
        """What ``sample`` returns; the time it takes counts as waiting for data."""
        asked = time.perf_counter()
        result = sample()
        self.waited += time.perf_counter() - asked
        return result

    def log(self, losses: TensorDict, gradient_norm: float) -> None:
        """Log a step's losses, where that is due.

        Args:
            losses: scalars; "loss" is their total.

        Raises:
            ValueError: the loss or the gradient is not finite.
        """
        loss, schedule = losses["loss"].item(), self.parts.schedule
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            raise ValueError(
                f"the loss is {loss} and its gradient's norm {gradient_norm} at step {self.done}: begin "
                f"anew (resume=false) with a lower lr than {schedule.base_lrs[0]}."
            )
        if not self.due("log"):
            return
        (rate,) = schedule.get_last_lr()
        row = {"loss": loss, "gradient_norm": gradient_norm, "lr": rate}
        row |= {name: value.item() for name, value in losses.items()}
        waiting = self.waited / (time.perf_counter() - self.since)
        self.metrics.write(self.done, row, timing={"waiting_share": waiting})
        self.bar.set_postfix(loss=f"{loss:.3f}", waiting=f"{waiting:.0%}")
        self._restart_clock()

    def due(self, what: str) -> bool:
        """Whether this step ends with "log", "validate" or "checkpoint"; the last one does with all."""
        last = self.done == self.total
        return self.first_process and (last or self.done % self.every[what] == 0)

    def validate(self, average: AveragedModel) -> None:
        """Measure the averaged encoder on validation clips; the best one so far is kept in best/."""
        encoder = cast(VIPEncoder, average.module)
        metrics = self.parts.measure(encoder)
        self.metrics.write(self.done, metrics)
        plot_curves(self.metrics.curves(), self.folder / "curves.png")
        if self.best.improved(marks_best(metrics, self.metric)):
            self._save_encoder(encoder, "best")

    def save(self) -> None:
        """Write a checkpoint; OSError where it cannot be written, and what was there before stays."""
        self.checkpoints.save(self.done)

    def finish(self, average: AveragedModel) -> Path:
        """Write the averaged encoder and say whether training helped.

        Returns:
            The folder of the final encoder.
        """
        if self.first_process:
            self._save_encoder(cast(VIPEncoder, average.module), "final")
            if math.isinf(self.best.value):
                # Nothing was validated: what is there is of a run before.
                shutil.rmtree(self.folder / "best", ignore_errors=True)
            if self.judged:
                return self.folder / "final"
            curves = self.metrics.curves()
            measured = [name for name in curves if name.startswith("validation/")]
            metric = best_metric(measured, self.metric) if measured else self.metric
            print(verdict(metric, curves.get(metric, [])))
        return self.folder / "final"

    def _save_encoder(self, encoder: VIPEncoder, name: str) -> None:
        encoder.eval()
        encoder.config = self.parts.describe(encoder)
        save_vip(encoder, self.folder / name)

    def _restart_clock(self) -> None:
        self.waited, self.since = 0.0, time.perf_counter()

    def _delete_leftovers(self) -> None:
        """Delete what kills have left of files that were being written; nobody else writes here."""
        for pattern in LEFTOVERS:
            for part in self.folder.glob(pattern):
                part.unlink(missing_ok=True)


LEFTOVERS = (
    *(".*.part", "best/.*.part", "final/.*.part", "logs/**/.*.part"),
    # of the version before
    *("config.tmp", "clips.tmp", "metrics.tmp"),
    *("best/.model.safetensors.????????", "best/.config.json.????????"),
    *("final/.model.safetensors.????????", "final/.config.json.????????"),
)

WRITTEN = ("config.yaml", "clips.json", "metrics.csv", "curves.png", "logs", "best", "final")
"""What a run writes into its folder, beside its checkpoints."""


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


def check_new(out: Path, *, resume: bool) -> None:
    """Refuse to begin a run in a folder with files that it would take for an earlier run's, and replace:
    ValueError names them. So too, unless ``resume`` is false, where a finished run has lost its checkpoints.
    """
    began = out / "config.yaml"
    checkpoints = any((out / "checkpoints").glob(CHECKPOINT))
    if read_settings(began) is not None:
        if resume and not checkpoints and (out / "final").exists():
            raise ValueError(
                f"{out} holds a finished run (final) without its checkpoints, so it cannot go on: give "
                "another out_dir, or resume=false to begin anew and replace it."
            )
        return
    if checkpoints and not began.exists():
        return  # lost, or of a version that wrote none
    taken = [name for name in WRITTEN if (out / name).exists()]
    if taken:
        raise ValueError(
            f"{out} holds {', '.join(taken)} of no pre-training run: give another out_dir."
        )
