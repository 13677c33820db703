"""Clips of scripted policies, and of plausible ways to fail a task."""

from __future__ import annotations

import zlib
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from torchrl_vip.data.video import write_video
from torchrl_vip.demonstrations.manifest import Entry, is_there
from torchrl_vip.envs import load_suite
from torchrl_vip.envs.simulator import Act, Episode, Simulator, ends_solved, play

MAX_STEPS, SETTLE, ATTEMPTS = 200, 10, 30  # environment steps; tries before a clip is given up
FAILURES = ("stops", "misses", "random", "still")
SCENES = ("split", "per_scene", "distractors")  # options that change how a clip looks
GOP = 10  # random access decodes at most so many frames


def clip_seed(*names: Any) -> int:
    """A seed that depends on the names only, not on the process or the order of the work."""
    return zlib.crc32("/".join(map(str, names)).encode()) & 0x7FFFFFFF


class Job(NamedTuple):
    """A success of a task and, in the held-out split, its failure: all that their clips depend on."""

    suite: str
    task: str
    number: int
    split: str
    seed: int
    size: int
    strides: tuple[int, ...]
    per_scene: int
    distractors: int

    @property
    def heldout(self) -> bool:
        return self.split == "heldout"

    @property
    def files(self) -> list[str]:
        """Of its clips, by their names in the manifest."""
        names = ("success", "failure") if self.heldout else ("success",)
        return [self.file(name) for name in names]

    def file(self, name: str) -> str:
        return f"{self.task}/{name}_{self.number:04d}.mp4"

    @property
    def stride(self) -> int:
        """The speed of its clips."""
        drawn = clip_seed(self.seed, self.task, "stride", self.number)
        return self.strides[drawn % len(self.strides)]

    @property
    def scene(self) -> int:
        """Jobs of one task and scene look alike."""
        return 0 if self.heldout else self.number // self.per_scene

    @property
    def group(self) -> str:
        """Clips of one group can be each other's goal."""
        several_scenes = not self.heldout and self.per_scene > 1
        return f"{self.task}/{self.scene}" if several_scenes else self.task

    @property
    def looks(self) -> dict[str, Any]:
        """What the manifest keeps of the options that change how a clip looks."""
        return {name: getattr(self, name) for name in SCENES}

    def episode_seed(self, kind: str, attempt: int) -> int:
        return clip_seed(self.seed, self.task, kind, self.number, attempt)

    def looks_like(self, entry: Entry) -> bool:
        """Whether a clip of the manifest, of whichever task and number, has the options of this job."""
        number = int(Path(entry["file"]).stem.rpartition("_")[2])
        same = self._replace(task=entry["task"], number=number)
        return (
            entry["size"] == self.size
            and entry["seed"] == same.episode_seed(entry["kind"], entry["tries"] - 1)
            # manifests of before have no such entries
            and all(entry.get(name, value) == value for name, value in self.looks.items())
        )

    def done(self, out: Path, entries: dict[str, Entry]) -> bool:
        """Whether all its clips have been rendered."""
        clips = [entries.get(file) for file in self.files]
        return all(
            is_there(out, clip, self.size, self.stride) and self.looks_like(clip) for clip in clips
        )


def failing(sim: Simulator, kind: str, steps: int, rng: np.random.Generator) -> Act:
    """A plausible way to fail the task within ``steps``: see FAILURES."""
    if kind == "still":
        return lambda state, t: np.zeros(sim.ACTION_SIZE)
    if kind == "stops":  # does the first part well, then stays where it is
        act, stop, last = sim.script(), int(steps * rng.uniform(0.2, 0.6)), {}

        def policy(state: np.ndarray, t: int) -> np.ndarray:
            if t < stop:
                last["action"] = act(state, t)
                return last["action"]
            return sim.hold_still(last.get("action", np.zeros(sim.ACTION_SIZE)))

    elif kind == "misses":  # believes its hand elsewhere, so all it does is off by 8-18 cm
        act, angle, radius = sim.script(), rng.uniform(0, 2 * np.pi), rng.uniform(0.08, 0.18)
        offset = -radius * np.array([np.cos(angle), np.sin(angle), 0.0])
        policy = lambda state, t: act(sim.displaced(state, offset), t)  # noqa: E731

    else:  # smooth motion to nowhere
        size = sim.ACTION_SIZE
        frequency, phase = rng.uniform(0.005, 0.03, (size, 1)), rng.uniform(0, 2 * np.pi, (size, 2))
        amplitude = rng.uniform(0.3, 1.0, size)

        def policy(state: np.ndarray, t: int) -> np.ndarray:
            waves = np.sin(2 * np.pi * frequency * [1.0, 2.3] * t + phase)
            return amplitude * waves.sum(1)

    return policy


@lru_cache(maxsize=1)
def simulator(suite: str, task: str, size: int) -> Simulator:
    """One simulator a process, kept while its task lasts."""
    return load_suite(suite).SIMULATOR(task, image_size=size)


def render_job(job: Job, out: Path) -> list[Entry]:
    """Renders a success and, for the held-out split, its failure; returns manifest entries."""
    sim = simulator(job.suite, job.task, job.size)
    looks = sim.MILD if job.heldout else replace(sim.WIDE, distractors=job.distractors)
    sim.randomize(looks, clip_seed(job.seed, job.task, "looks", job.scene))
    found = play_success(sim, job)
    if found is None:
        return []
    played, labels = found
    entries = [write_clip(job, out, "success", played, labels)]
    if job.heldout and (found := play_failure(sim, job, steps=len(played.success))):
        entries.append(write_clip(job, out, "failure", *found))
    return entries


def play_success(sim: Simulator, job: Job) -> tuple[Episode, Entry] | None:
    """An episode that ends solved, with its labels; None where the script fails from ATTEMPTS starts."""
    for attempt in range(ATTEMPTS):
        seed = job.episode_seed("success", attempt)
        played = play(
            sim,
            sim.script(),
            seed,
            steps=MAX_STEPS,
            settle=SETTLE,
            stride=job.stride,
            hold=attempt % 2 == 1,  # the script as it is first, standing still if that fails
        )
        # an episode that took all its steps may have no settled end
        if ends_solved(played.success, attempt) and len(played.success) < MAX_STEPS:
            return played, {"success": True, "kind": "success", "seed": seed, "tries": attempt + 1}
    return None


def play_failure(sim: Simulator, job: Job, steps: int) -> tuple[Episode, Entry] | None:
    """An episode of ``steps`` that is at no step solved, with its labels; None where all ATTEMPTS are."""
    kind = FAILURES[job.number % len(FAILURES)]
    for attempt in range(ATTEMPTS):
        seed = job.episode_seed(kind, attempt)
        act = failing(sim, kind, steps, np.random.default_rng(seed))
        played = play(sim, act, seed, steps=steps, settle=None, stride=job.stride)
        if not played.success.any():
            return played, {"success": False, "kind": kind, "seed": seed, "tries": attempt + 1}
    return None


def write_clip(job: Job, out: Path, name: str, played: Episode, labels: Entry) -> Entry:
    """Writes an episode as a video; returns its entry in the manifest."""
    file, frames, stride = job.file(name), played.frames, job.stride
    write_video(out / file, frames, gop_size=GOP)
    reward = played.reward[stride - 1 :: stride][: len(frames) - 1]
    return {
        "file": file,
        "suite": job.suite,
        "task": job.task,
        "group": job.group,
        **labels,
        "frames": len(frames),
        "size": job.size,
        "stride": stride,
        **job.looks,
        "reward": [round(float(r), 4) for r in reward],
    }
