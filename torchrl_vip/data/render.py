"""Renders Meta-World demonstrations: ``python -m torchrl_vip.data.render --out DIR``.

``--split train``: successes of the scripted policies on 40 tasks, each clip (or each ``--per-scene``
of them) with its own camera, colours and lights. ``--split heldout``: the other 10 tasks, N
successes and N failures each, one scene (camera and colours) a task; a failure has exactly its
success's number of frames, so that length tells nothing. Writes DIR/<task>/<name>.mp4 and
DIR/manifest.json, a list of {file, task, success, kind, group, seed, frames, size, stride}. Every
clip is a function of (--seed, task, number): a killed run continues where it stopped.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import threading
import zlib
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from torchrl_vip.envs.metaworld import (
    HELD_OUT_TASKS,
    MetaWorldSim,
    Randomization,
    ends_solved,
    list_tasks,
    play,
    scripted_policy,
)

MAX_STEPS, SETTLE, ATTEMPTS = 200, 10, 30  # environment steps; tries before a clip is given up
FAILURES = ("stops", "misses", "random")
Act = Any  # (full_state [39], t) -> action [4]


def write_mp4(path: Path, frames: np.ndarray, fps: int = 20) -> None:
    """Writes uint8 [N, H, W, 3] as yuv420p, in one atomic step. H and W are even."""
    import av

    names = av.codecs_available
    codec = "libx264" if "libx264" in names else "mpeg4"
    options = {"crf": "18", "preset": "medium"} if codec == "libx264" else {"qscale": "2"}
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with av.open(str(part), "w", format="mp4") as video:
        stream = video.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.gop_size = 10  # random access decodes at most 10 frames
        for frame in frames:
            video.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        video.mux(stream.encode())
    part.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON in one atomic step."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    part.replace(path)


def clip_seed(*names: Any) -> int:
    """A seed that depends on the names only, not on the process or the order of the work."""
    return zlib.crc32("/".join(map(str, names)).encode()) & 0x7FFFFFFF


def scripted(task: str) -> Act:
    """The scripted policy, fresh."""
    policy = scripted_policy(task)
    return lambda state, t: policy.get_action(state)


def failing(task: str, kind: str, steps: int, rng: np.random.Generator) -> Act:
    """A plausible way to fail the task within ``steps``: see FAILURES."""
    act = scripted(task)
    if kind == "stops":  # does the first part well, then stays where it is
        stop, held = int(steps * rng.uniform(0.2, 0.6)), {}

        def policy(state: np.ndarray, t: int) -> np.ndarray:
            if t < stop:
                held["gripper"] = act(state, t)[3]
            return act(state, t) if t < stop else np.array([0, 0, 0, held.get("gripper", 0)])

    elif kind == "misses":  # believes its hand elsewhere, so all it does is off by 8-18 cm
        angle, radius = rng.uniform(0, 2 * np.pi), rng.uniform(0.08, 0.18)
        offset = radius * np.array([np.cos(angle), np.sin(angle), 0.0])

        def policy(state: np.ndarray, t: int) -> np.ndarray:
            believed = state.copy()
            believed[:3] -= offset
            believed[18:21] -= offset  # the previous observation
            return act(believed, t)

    else:  # smooth motion to nowhere
        frequency, phase = rng.uniform(0.005, 0.03, (4, 1)), rng.uniform(0, 2 * np.pi, (4, 2))
        size = rng.uniform(0.3, 1.0, 4)

        def policy(state: np.ndarray, t: int) -> np.ndarray:
            waves = np.sin(2 * np.pi * frequency * [1.0, 2.3] * t + phase)
            return size * waves.sum(1)

    return policy


@lru_cache(maxsize=1)
def simulator(task: str, size: int) -> MetaWorldSim:
    """One simulator a process, kept while its task lasts."""
    return MetaWorldSim(task, image_size=size)


def render_pair(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Renders a success and, for the held-out split, its failure; returns manifest entries."""
    task, number, heldout = job["task"], job["number"], job["split"] == "heldout"
    sim, stride, out = simulator(task, job["size"]), job["stride"], Path(job["out"])
    shared = {"task": task, "group": task, "size": job["size"], "stride": stride}

    def entry(name: str, frames: np.ndarray, **values: Any) -> dict[str, Any]:
        file = f"{task}/{name}_{number:04d}.mp4"
        write_mp4(out / file, frames)
        return {"file": file, **values, "frames": len(frames), **shared}

    scene = 0 if heldout else number // job["per_scene"]
    looks = Randomization.mild() if heldout else Randomization()
    if not heldout and job["per_scene"] > 1:
        shared["group"] = f"{task}/{scene}"
    sim.randomize(looks, clip_seed(job["seed"], task, "looks", scene))
    for attempt in range(ATTEMPTS):
        seed = clip_seed(job["seed"], task, "success", number, attempt)
        frames, solved = play(
            sim,
            scripted(task),
            seed,
            steps=MAX_STEPS,
            settle=SETTLE,
            stride=stride,
            hold=attempt % 2 == 1,  # the script as it is first, standing still if that fails
        )
        # an episode that took all its steps may have no settled end
        if ends_solved(solved, attempt) and len(solved) < MAX_STEPS:
            break
    else:
        return []
    entries = [entry("success", frames, success=True, kind="success", seed=seed)]
    entries[0]["tries"] = attempt + 1
    if heldout:
        kind = FAILURES[number % len(FAILURES)]
        for attempt in range(ATTEMPTS):
            seed = clip_seed(job["seed"], task, kind, number, attempt)
            act = failing(task, kind, len(solved), np.random.default_rng(seed))
            frames, solved_too = play(sim, act, seed, steps=len(solved), settle=None, stride=stride)
            if not solved_too.any():
                entries.append(entry("failure", frames, success=False, kind=kind, seed=seed))
                entries[-1]["tries"] = attempt + 1
                break
    return entries


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
    parser.add_argument("--split", choices=("train", "heldout"), default="train")
    parser.add_argument("--tasks", nargs="+", help="only these tasks (default: all of the split)")
    parser.add_argument("--episodes", type=int, default=10, help="successes a task")
    parser.add_argument(
        "--per-scene", type=int, default=1,
        help="successes that share a scene in the train split, and so can be each other's goal",
    )  # fmt: skip
    parser.add_argument("--size", type=int, default=128, help="pixels; an even number")
    parser.add_argument("--stride", type=int, default=2, help="environment steps between frames")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes")
    args = parser.parse_args(arguments)

    train = [task for task in list_tasks() if task not in HELD_OUT_TASKS]
    tasks = args.tasks or (train if args.split == "train" else list(HELD_OUT_TASKS))
    if args.per_scene < 1:
        parser.error(f"--per-scene {args.per_scene}: wanted 1 or more")
    if args.size % 2 or args.size < 2:
        parser.error(f"--size {args.size}: mp4 wants an even number")
    if unknown := set(tasks) - set(train) - set(HELD_OUT_TASKS):
        parser.error(f"unknown tasks {sorted(unknown)}")
    for task in tasks:
        (args.out / task).mkdir(parents=True, exist_ok=True)

    manifest = args.out / "manifest.json"
    entries = {e["file"]: e for e in json.loads(manifest.read_text())} if manifest.exists() else {}
    names = ("success",) if args.split == "train" else ("success", "failure")
    options = {"out": str(args.out), "split": args.split, "seed": args.seed}
    options |= {"size": args.size, "stride": args.stride, "per_scene": args.per_scene}

    def drawn_seed(task: str, number: int, entry: dict[str, Any]) -> int:
        return clip_seed(args.seed, task, entry["kind"], number, entry["tries"] - 1)

    def finished(task: str, number: int) -> bool:
        files = [f"{task}/{name}_{number:04d}.mp4" for name in names]
        return all(
            file in entries
            and (args.out / file).exists()
            and all(entries[file][k] == options[k] for k in ("size", "stride"))
            and entries[file]["seed"] == drawn_seed(task, number, entries[file])
            for file in files
        )

    jobs = [
        {"task": task, "number": number, **options}
        for task in tasks
        for number in range(args.episodes)
        if not finished(task, number)
    ]
    with (
        ProcessPoolExecutor(
            args.workers, multiprocessing.get_context("spawn"), initializer=_start_worker
        ) as pool,
        tqdm(total=len(jobs), unit="episode") as progress,
    ):
        for future in as_completed([pool.submit(render_pair, job) for job in jobs]):
            for entry in future.result():
                entries[entry["file"]] = entry
            # a clip counts once it is listed here, and it is listed once it is whole
            write_json(manifest, [entries[file] for file in sorted(entries)])
            progress.update()
    wanted = len(tasks) * args.episodes * len(names)
    print(f"{len(entries)} clips in {args.out} ({wanted} asked for)")


if __name__ == "__main__":
    main()
