"""Renders demonstrations: ``python -m torchrl_vip.demonstrations.render --suite metaworld --out DIR``.

``--split train``: successes of the scripted policies, each clip (or each ``--per-scene`` of them)
with its own camera, colours, lights, textures and things that lie about. ``--split heldout``: N
successes and N failures of each task, one scene (camera and colours) a task; a failure has exactly
its success's number of frames, so that length tells nothing. Of Meta-World's 50 tasks, 10 are in the
held-out split only; FrankaKitchen's and Adroit's clips are their shipped demonstrations. Writes
DIR/<task>/<name>.mp4 and DIR/manifest.json, a list of {file, suite, task, success, kind, group, seed,
frames, size, stride, reward}, of scripted suites split, per_scene and distractors too; reward is the
task's own (Adroit's is that of its plans), one a frame after the first. Every clip is a function of
(--seed, task, number) and the options that its entry lists: a killed run continues where it stopped, and
what was rendered otherwise is rendered anew.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import threading
import zlib
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from torchrl_vip.data.video import write_video
from torchrl_vip.envs import SUITES, load_suite
from torchrl_vip.envs.simulator import Act, Episode, Simulator, ends_solved, play

MAX_STEPS, SETTLE, ATTEMPTS = 200, 10, 30  # environment steps; tries before a clip is given up
FAILURES = ("stops", "misses", "random", "still")
SCENES = ("split", "per_scene", "distractors")  # options that change how a clip looks
GOP = 10  # random access decodes at most so many frames


Entry = dict[str, Any]
"""What the manifest says of a clip."""


def read_manifest(out: Path) -> dict[str, Entry]:
    """Entries by file."""
    manifest = out / "manifest.json"
    try:
        listed = json.loads(manifest.read_text()) if manifest.exists() else []
        return {entry["file"]: entry for entry in listed}
    except (ValueError, TypeError, KeyError) as error:
        raise SystemExit(f"error: {manifest} is damaged ({error}): give another --out") from error


def write_manifest(out: Path, entries: dict[str, Entry]) -> None:
    """In one atomic step; a clip counts once it is listed here, and it is listed once it is whole."""
    part = out / ".manifest.json.part"
    part.write_text(json.dumps([entries[file] for file in sorted(entries)], indent=1) + "\n")
    part.replace(out / "manifest.json")


def forget(out: Path, entries: dict[str, Entry], files: Iterable[str]) -> None:
    """Takes clips that are about to be rendered anew out of the manifest: a kill meanwhile would leave the
    old entry beside the new clip."""
    if there := [file for file in files if entries.pop(file, None)]:
        write_manifest(out, entries)
        for file in there:
            (out / file).unlink(missing_ok=True)


def _is_there(args: argparse.Namespace, entry: Entry | None, stride: int) -> bool:
    """Whether a clip has been rendered as it is wanted."""
    return (
        entry is not None
        and (args.out / entry["file"]).exists()
        and (entry["size"], entry["stride"]) == (args.size, stride)
    )


def clip_seed(*names: Any) -> int:
    """A seed that depends on the names only, not on the process or the order of the work."""
    return zlib.crc32("/".join(map(str, names)).encode()) & 0x7FFFFFFF


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
            return sim.still(last.get("action", np.zeros(sim.ACTION_SIZE)))

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


def drawn_stride(seed: int, task: str, number: int, strides: list[int]) -> int:
    """The speed of a clip."""
    return strides[clip_seed(seed, task, "stride", number) % len(strides)]


def render_pair(job: dict[str, Any]) -> list[Entry]:
    """Renders a success and, for the held-out split, its failure; returns manifest entries."""
    task, number, heldout = job["task"], job["number"], job["split"] == "heldout"
    sim, out = simulator(job["suite"], task, job["size"]), Path(job["out"])
    stride = drawn_stride(job["seed"], task, number, job["strides"])
    scene = 0 if heldout else number // job["per_scene"]
    group = f"{task}/{scene}" if not heldout and job["per_scene"] > 1 else task

    def entry(name: str, played: Episode, **values: Any) -> Entry:
        file, frames = f"{task}/{name}_{number:04d}.mp4", played.frames
        write_video(out / file, frames, gop_size=GOP)
        reward = played.reward[stride - 1 :: stride][: len(frames) - 1]
        return {
            "file": file, "suite": job["suite"], "task": task, "group": group, **values,
            "frames": len(frames), "size": job["size"], "stride": stride,
            **{key: job[key] for key in SCENES},
            "reward": [round(float(r), 4) for r in reward],
        }  # fmt: skip

    looks = sim.MILD if heldout else replace(sim.WIDE, distractors=job["distractors"])
    sim.randomize(looks, clip_seed(job["seed"], task, "looks", scene))
    for attempt in range(ATTEMPTS):
        seed = clip_seed(job["seed"], task, "success", number, attempt)
        played = play(
            sim,
            sim.script(),
            seed,
            steps=MAX_STEPS,
            settle=SETTLE,
            stride=stride,
            hold=attempt % 2 == 1,  # the script as it is first, standing still if that fails
        )
        # an episode that took all its steps may have no settled end
        steps = len(played.success)
        if ends_solved(played.success, attempt) and steps < MAX_STEPS:
            break
    else:
        return []
    entries = [entry("success", played, success=True, kind="success", seed=seed, tries=attempt + 1)]
    if heldout:
        kind = FAILURES[number % len(FAILURES)]
        for attempt in range(ATTEMPTS):
            seed = clip_seed(job["seed"], task, kind, number, attempt)
            act = failing(sim, kind, steps, np.random.default_rng(seed))
            played = play(sim, act, seed, steps=steps, settle=None, stride=stride)
            if not played.success.any():
                labels = {"success": False, "kind": kind, "seed": seed, "tries": attempt + 1}
                entries.append(entry("failure", played, **labels))
                break
    return entries


def render_stored(args: argparse.Namespace, entries: dict[str, Entry]) -> None:
    """A suite's shipped demonstrations from each of its cameras, as they are missing in ``entries``."""
    suite, (stride,) = load_suite(args.suite), args.stride
    views = [
        (task, camera) for task in args.tasks or suite.list_tasks() for camera in suite.CAMERAS
    ]
    for task, camera in tqdm(views, unit="view"):
        stored, wanted, number = suite.demonstrations(task, success=None), {}, Counter()
        for demonstration in stored:
            name = "success" if demonstration.success else "failure"
            wanted[f"{task}/{camera}/{name}_{number[name]:04d}.mp4"] = demonstration
            number[name] += 1
        if all(
            _is_there(args, entries.get(file), stride)
            and (entries[file]["kind"], entries[file]["seed"]) == (shown.kind, shown.seed)
            and entries[file]["frames"] == len(shown.qpos[::stride])
            for file, shown in wanted.items()
        ):
            continue
        forget(args.out, entries, wanted)
        sim = suite.SIMULATOR(task, camera=camera, image_size=args.size)
        (args.out / task / camera).mkdir(parents=True, exist_ok=True)
        for file, demonstration in wanted.items():
            played = sim.replay(demonstration, stride)
            write_video(args.out / file, played.frames, gop_size=GOP)
            entries[file] = {
                "file": file, "suite": args.suite, "task": task, "group": f"{task}/{camera}",
                "success": bool(demonstration.success), "kind": demonstration.kind,
                "seed": demonstration.seed, "frames": len(played.frames), "size": args.size,
                "stride": stride, "reward": [round(float(r), 4) for r in played.reward[1:]],
            }  # fmt: skip
        sim.close()
        write_manifest(args.out, entries)


def _start_worker() -> None:
    torch.set_num_threads(1)

    def leave_with_parent() -> None:  # a killed run must not leave its workers waiting forever
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the clips")
    parser.add_argument("--suite", choices=SUITES, default="metaworld")
    parser.add_argument(
        "--split", choices=("train", "heldout"), default="train",
        help="successes in many scenes, or successes and failures of one scene a task",
    )  # fmt: skip
    parser.add_argument("--tasks", nargs="+", help="only these tasks (default: all of the split)")
    parser.add_argument(
        "--episodes", type=int, default=10, help="successes a task (stored ones: all)"
    )
    parser.add_argument(
        "--per-scene", type=int, default=1,
        help="successes that share a scene in the train split, and so can be each other's goal",
    )  # fmt: skip
    parser.add_argument("--size", type=int, default=128, help="pixels; an even number")
    parser.add_argument(
        "--stride", type=int, nargs="+", default=[2],
        help="environment steps between frames; of several, each clip draws its own speed",
    )  # fmt: skip
    parser.add_argument(
        "--distractors", type=int, default=6,
        help="at most so many things lie about in a clip of the train split",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (one a core)"
    )
    args = parser.parse_args(arguments)

    suite = load_suite(args.suite)
    held_out = getattr(suite, "HELD_OUT_TASKS", ())
    scripted = getattr(suite, "SCRIPTED_TASKS", None)
    scripted = suite.list_tasks() if scripted is None else scripted
    stored = hasattr(suite, "demonstrations")
    if stored and args.split == "train":
        parser.error(f"--suite {args.suite} is never trained on; wanted --split heldout")
    train = [task for task in scripted if task not in held_out]
    tasks = args.tasks or (train if args.split == "train" else list(held_out or scripted))
    for name, low in (("episodes", 0), ("per_scene", 1), ("workers", 1), ("distractors", 0)):
        if (value := getattr(args, name)) < low:
            parser.error(f"--{name.replace('_', '-')} {value}: wanted {low} or more")
    if args.size % 2 or args.size < 2:
        parser.error(f"--size {args.size}: mp4 wants an even number")
    if min(args.stride) < 1:
        parser.error(f"--stride {args.stride}: wanted 1 or more")
    known = suite.list_tasks() if stored else scripted
    if unknown := sorted(set(tasks) - set(known)):
        parser.error(
            f"nothing to render for {unknown} of {args.suite}; there is {', '.join(known)}"
        )
    if stored and len(args.stride) > 1:
        parser.error(f"--suite {args.suite} takes one --stride")
    entries = read_manifest(args.out)
    if stored:
        render_stored(args, entries)
        print(f"{len(entries)} clips in {args.out}")
        return
    for task in tasks:
        (args.out / task).mkdir(parents=True, exist_ok=True)

    names = ("success",) if args.split == "train" else ("success", "failure")
    options = {"out": str(args.out), "suite": args.suite, "split": args.split, "seed": args.seed}
    options |= {"size": args.size, "strides": args.stride, "per_scene": args.per_scene}
    options |= {"distractors": args.distractors}

    def drawn_seed(task: str, number: int, entry: dict[str, Any]) -> int:
        return clip_seed(args.seed, task, entry["kind"], number, entry["tries"] - 1)

    def finished(task: str, number: int) -> bool:
        clips = [entries.get(f"{task}/{name}_{number:04d}.mp4") for name in names]
        stride = drawn_stride(args.seed, task, number, args.stride)
        return all(_is_there(args, clip, stride) and rendered_so(clip) for clip in clips)

    def rendered_so(entry: Entry) -> bool:
        number = int(Path(entry["file"]).stem.rpartition("_")[2])
        return (
            entry["size"] == args.size
            and entry["seed"] == drawn_seed(entry["task"], number, entry)
            # manifests of before have no such entries
            and all(entry.get(key, options[key]) == options[key] for key in SCENES)
        )

    files = {
        f"{task}/{name}_{number:04d}.mp4"
        for task in tasks
        for number in range(args.episodes)
        for name in names
    }
    others = [
        entry["file"]
        for entry in entries.values()
        if entry["task"] in tasks and entry["file"] not in files and not rendered_so(entry)
    ]
    if others:
        parser.error(
            f"{args.out} has {len(others)} clips of these tasks by another --seed, --size, --split, "
            f"--per-scene or --distractors, which would be taken for the same scenes ({others[0]}): give "
            "another --out"
        )
    jobs = [
        {"task": task, "number": number, **options}
        for task in tasks
        for number in range(args.episodes)
        if not finished(task, number)
    ]
    again = (f"{job['task']}/{name}_{job['number']:04d}.mp4" for job in jobs for name in names)
    forget(args.out, entries, again)
    with (
        ProcessPoolExecutor(
            args.workers, multiprocessing.get_context("spawn"), initializer=_start_worker
        ) as pool,
        tqdm(total=len(jobs), unit="episode") as progress,
    ):
        try:
            for future in as_completed([pool.submit(render_pair, job) for job in jobs]):
                entries |= {entry["file"]: entry for entry in future.result()}
                write_manifest(args.out, entries)
                progress.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # else it renders all the others first
            raise
    wanted = len(tasks) * args.episodes * len(names)
    print(f"{len(entries)} clips in {args.out} ({wanted} asked for)")


if __name__ == "__main__":
    main()
