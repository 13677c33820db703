"""Renders demonstrations: ``python -m torchrl_vip.demonstrations.render --suite metaworld --out DIR``.

``--split train``: successes of the scripted policies, each clip (or each ``--per-scene`` of them)
with its own camera, colours, lights, textures and things that lie about. ``--split heldout``: N
successes and N failures of each task, one scene (camera and colours) a task; a failure has exactly
its success's number of frames, so that length tells nothing. Of Meta-World's 50 tasks, 10 are in the
held-out split only; FrankaKitchen's and Adroit's clips are their shipped demonstrations. ``--split idle``:
the robot moving without effect in the scenes of ``heldout``, N clips with things as a task finds them
("idle_of": "start") and N with things as it leaves them ("goal", where they stay so); ``preset=scene`` of
pre-training reads them as ``data.idle``. Writes
DIR/<task>/<name>.mp4 and DIR/manifest.json, a list of {file, suite, task, success, kind, group, seed,
frames, size, stride, reward}, of scripted suites split, per_scene and distractors too; reward is the
task's own (Adroit's is that of its plans), one a frame after the first. Every clip is a function of
(--seed, task, number) and the options that its entry lists: a killed run continues where it stopped, and
what was rendered otherwise is rendered anew. ``--lerobot DIR`` writes all clips of the manifest as a LeRobot
dataset too, once they are rendered.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from tqdm import tqdm

from torchrl_vip.cli import program
from torchrl_vip.data.video import write_video
from torchrl_vip.demonstrations.idle import IdleJob, render_idle
from torchrl_vip.demonstrations.lerobot import write_lerobot
from torchrl_vip.demonstrations.manifest import (
    Entry,
    forget,
    is_there,
    read_manifest,
    write_manifest,
)
from torchrl_vip.demonstrations.scripted import (
    FAILURES,
    GOP,
    Job,
    clip_seed,
    failing,
    render_job,
)
from torchrl_vip.demonstrations.store import Demonstration, output_folder
from torchrl_vip.envs import SUITES, load_suite

__all__ = ["FAILURES", "clip_seed", "failing", "main", "read_manifest", "write_manifest"]


def render_jobs(
    jobs: list[Job] | list[IdleJob],
    render: Callable[[Any, Path], list[Entry]],
    out: Path,
    entries: dict[str, Entry],
    processes: int,
) -> None:
    """Renders what is not in ``entries`` yet, in processes of their own, and lists it there."""
    jobs = [job for job in jobs if not job.done(out, entries)]
    forget(out, entries, (file for job in jobs for file in job.files))
    with (
        ProcessPoolExecutor(
            processes, multiprocessing.get_context("spawn"), initializer=_start_worker
        ) as pool,
        tqdm(total=len(jobs), unit="episode") as progress,
    ):
        try:
            for future in as_completed([pool.submit(render, job, out) for job in jobs]):
                entries |= {entry["file"]: entry for entry in future.result()}
                write_manifest(out, entries)
                progress.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # else it renders all the others first
            raise


def _start_worker() -> None:
    torch.set_num_threads(1)

    def leave_with_parent() -> None:  # a killed run must not leave its workers waiting forever
        multiprocessing.parent_process().join()
        os._exit(1)  # nothing to tidy up, and a thread cannot end the process otherwise

    threading.Thread(target=leave_with_parent, daemon=True).start()


def render_stored(args: argparse.Namespace, entries: dict[str, Entry]) -> None:
    """A suite's shipped demonstrations from each of its cameras, as they are missing in ``entries``."""
    suite, (stride,) = load_suite(args.suite), args.stride
    views = [
        (task, camera)
        for task in args.tasks or suite.list_tasks()
        for camera in args.cameras or suite.CAMERAS
    ]

    def shows(entry: Entry | None, shown: Demonstration) -> bool:
        return (
            is_there(args.out, entry, args.size, stride)
            and (entry["kind"], entry["seed"]) == (shown.kind, shown.seed)
            and entry["frames"] == len(shown.qpos[::stride])
        )

    for task, camera in tqdm(views, unit="view"):
        wanted = _named(suite.demonstrations(task, success=None), f"{task}/{camera}")
        if all(shows(entries.get(file), shown) for file, shown in wanted.items()):
            continue
        forget(args.out, entries, wanted)
        sim = suite.SIMULATOR(task, camera=camera, image_size=args.size)
        (args.out / task / camera).mkdir(parents=True, exist_ok=True)
        for file, demonstration in wanted.items():
            played = sim.replay(demonstration, stride)
            write_video(args.out / file, played.frames, gop_size=GOP)
            entries[file] = {
                "file": file,
                "suite": args.suite,
                "task": task,
                "group": f"{task}/{camera}",
                "success": bool(demonstration.success),
                "kind": demonstration.kind,
                "seed": demonstration.seed,
                "frames": len(played.frames),
                "size": args.size,
                "stride": stride,
                "reward": [round(float(r), 4) for r in played.reward[1:]],
            }
        sim.close()
        write_manifest(args.out, entries)


def _named(stored: list[Demonstration], folder: str) -> dict[str, Demonstration]:
    """Stored demonstrations by the file of their clip: successes and failures are numbered apart."""
    named, number = {}, Counter()
    for demonstration in stored:
        name = "success" if demonstration.success else "failure"
        named[f"{folder}/{name}_{number[name]:04d}.mp4"] = demonstration
        number[name] += 1
    return named


# --- command line ---------------------------------------------------------------------------------


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("render", "demonstrations.render"),
        description=__doc__.replace(
            "python -m torchrl_vip.demonstrations.render",
            program("render", "demonstrations.render"),
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=output_folder, required=True, help="folder of the clips")
    add("--suite", choices=SUITES, default="metaworld", help="simulator (%(default)s)")
    splits = (
        "successes in many scenes; successes and failures of one scene a task; or the robot moving "
    )
    splits += "without effect in those scenes"
    add(
        "--split",
        choices=("train", "heldout", "idle"),
        default="train",
        help=f"{splits} (%(default)s)",
    )
    add("--tasks", nargs="+", help="only these tasks (default: all of the split)")
    add("--cameras", nargs="+", help="only these cameras of a suite with fixed ones (default: all)")
    episodes = (
        "successes a task (of suites with stored ones always all), or idle clips a task and state"
    )
    add("--episodes", type=int, default=10, help=f"{episodes} (%(default)s)")
    scenes = "successes that share a scene in the train split, and so can be each other's goal"
    add("--per-scene", type=int, default=1, help=f"{scenes} (%(default)s)")
    add("--size", type=int, default=128, help="pixels; an even number (%(default)s)")
    strides = "environment steps between frames; of several, each clip draws its own speed"
    add("--stride", type=int, nargs="+", default=[2], help=f"{strides} (2)")
    things = "at most so many things lie about in a clip of the train split"
    add("--distractors", type=int, default=6, help=f"{things} (%(default)s)")
    add("--seed", type=int, default=0, help="of starts and looks (%(default)s)")
    dataset = "folder, not there yet, of a LeRobot v3.0 dataset of all clips in --out"
    add("--lerobot", type=output_folder, metavar="DIR", help=dataset)
    cores = len(os.sched_getaffinity(0))
    add("--workers", type=int, default=cores, help="processes (one a core)")
    return parser


def choose_tasks(suite: ModuleType, args: argparse.Namespace) -> list[str]:
    """The tasks to render.

    Raises:
        ValueError: one that the suite has no script and no stored demonstration of.
    """
    held_out = getattr(suite, "HELD_OUT_TASKS", ())
    scripted = getattr(suite, "SCRIPTED_TASKS", None)
    scripted = suite.list_tasks() if scripted is None else scripted
    known = suite.list_tasks() if hasattr(suite, "demonstrations") else scripted
    train = [task for task in scripted if task not in held_out]
    if not train and args.split == "train":
        raise ValueError(f"--suite {args.suite} is never trained on; wanted --split heldout")
    tasks = args.tasks or (train if args.split == "train" else list(held_out or scripted or known))
    if unknown := sorted(set(tasks) - set(known)):
        raise ValueError(
            f"nothing to render for {unknown} of {args.suite}; there is {', '.join(known)}"
        )
    return tasks


def check_options(args: argparse.Namespace) -> None:
    """Raise ValueError for a number that no clip can have, or a dataset that is there."""
    for name, low in (("episodes", 0), ("per_scene", 1), ("workers", 1), ("distractors", 0)):
        if (value := getattr(args, name)) < low:
            raise ValueError(f"--{name.replace('_', '-')} {value}: wanted {low} or more")
    if args.size % 2 or args.size < 2:
        raise ValueError(f"--size {args.size}: mp4 wants an even number")
    if min(args.stride) < 1:
        raise ValueError(f"--stride {args.stride}: wanted 1 or more")
    if args.lerobot and args.lerobot.exists():
        raise ValueError(f"--lerobot {args.lerobot} exists: wanted a folder that does not")


def check_stored(suite: ModuleType, args: argparse.Namespace) -> bool:
    """Whether the suite's clips are its stored demonstrations.

    Raises:
        ValueError: options that these cannot have; cameras that the suite has not.
    """
    fixed = suite.CAMERAS if hasattr(suite, "demonstrations") else ()
    if unknown := sorted(set(args.cameras or ()) - set(fixed)):
        has = f"has {', '.join(fixed)}" if fixed else "draws a camera a clip"
        raise ValueError(f"--cameras {' '.join(unknown)}: --suite {args.suite} {has}")
    stored = hasattr(suite, "demonstrations") and args.split != "idle"
    if stored and args.split == "train":
        raise ValueError(f"--suite {args.suite} is never trained on; wanted --split heldout")
    if stored and len(args.stride) > 1:
        raise ValueError(f"--suite {args.suite} takes one --stride")
    return stored


def make_idle_jobs(args: argparse.Namespace, suite: ModuleType, tasks: list[str]) -> list[IdleJob]:
    """All idle clips that are asked for.

    Raises:
        ValueError: several strides.
    """
    if len(args.stride) > 1:
        raise ValueError("--split idle takes one --stride")
    cameras = args.cameras or (suite.CAMERAS if hasattr(suite, "demonstrations") else (None,))
    return [
        IdleJob(args.suite, task, camera, number, args.seed, args.size, args.stride[0])
        for task in tasks
        for camera in cameras
        for number in range(args.episodes)
    ]


def make_job(args: argparse.Namespace, task: str, number: int = 0) -> Job:
    return Job(
        suite=args.suite,
        task=task,
        number=number,
        split=args.split,
        seed=args.seed,
        size=args.size,
        strides=tuple(args.stride),
        per_scene=args.per_scene,
        distractors=args.distractors,
    )


def make_jobs(args: argparse.Namespace, tasks: list[str], entries: dict[str, Entry]) -> list[Job]:
    """All that is asked for, rendered already or not.

    Raises:
        ValueError: clips of other options would stay beside these.
    """
    jobs = [make_job(args, task, number) for task in tasks for number in range(args.episodes)]
    files = {file for job in jobs for file in job.files}
    options = make_job(args, tasks[0])
    others = [
        file
        for file, entry in entries.items()
        if entry["task"] in tasks and file not in files and not options.looks_like(entry)
    ]
    if others:
        raise ValueError(
            f"{args.out} has {len(others)} clips of these tasks by another --seed, --size, --split, "
            f"--per-scene or --distractors, which would be taken for the same scenes ({others[0]}): give "
            "another --out"
        )
    return jobs


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    suite = load_suite(args.suite)
    try:
        check_options(args)
        stored = check_stored(suite, args)
        tasks = choose_tasks(suite, args)
        entries = read_manifest(args.out)
        idle = make_idle_jobs(args, suite, tasks) if args.split == "idle" else []
        jobs = [] if stored or idle else make_jobs(args, tasks, entries)
    except ValueError as error:
        parser.error(str(error))
    if stored:
        render_stored(args, entries)
        print(f"{len(entries)} clips in {args.out}")
    else:
        for task in tasks:
            (args.out / task).mkdir(parents=True, exist_ok=True)
        work = render_idle if idle else render_job
        render_jobs(idle or jobs, work, args.out, entries, args.workers)
        wanted = sum(len(job.files) for job in idle or jobs)
        print(f"{len(entries)} clips in {args.out} ({wanted} asked for)")
    if args.lerobot:
        args.lerobot.parent.mkdir(parents=True, exist_ok=True)
        write_lerobot(args.lerobot, args.out, entries)
        print(f"LeRobot dataset in {args.lerobot}")


if __name__ == "__main__":
    main()
