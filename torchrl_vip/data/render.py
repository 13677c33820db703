"""Renders demonstrations: ``python -m torchrl_vip.data.render --suite metaworld --out DIR``.

``--split train``: successes of the scripted policies, each clip (or each ``--per-scene`` of them)
with its own camera, colours, lights, textures and things that lie about. ``--split heldout``: N
successes and N failures of each task, one scene (camera and colours) a task; a failure has exactly
its success's number of frames, so that length tells nothing. Of Meta-World's 50 tasks, 10 are in the
held-out split only; FrankaKitchen's clips are its shipped demonstrations. Writes DIR/<task>/<name>.mp4
and DIR/manifest.json, a list of {file, suite, task, success, kind, group, seed, frames, size, stride,
reward}; reward is the task's own, one a frame after the first. Every clip is a function of (--seed,
task, number): a killed run continues where it stopped.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import threading
import zlib
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from torchrl_vip.envs import SUITES, load_suite
from torchrl_vip.envs.simulator import Act, Episode, Simulator, ends_solved, play

MAX_STEPS, SETTLE, ATTEMPTS = 200, 10, 30  # environment steps; tries before a clip is given up
FAILURES = ("stops", "misses", "random", "still")


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


def render_pair(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Renders a success and, for the held-out split, its failure; returns manifest entries."""
    task, number, heldout = job["task"], job["number"], job["split"] == "heldout"
    sim, out = simulator(job["suite"], task, job["size"]), Path(job["out"])
    strides = job["strides"]
    stride = strides[clip_seed(job["seed"], task, "stride", number) % len(strides)]
    scene = 0 if heldout else number // job["per_scene"]
    group = f"{task}/{scene}" if not heldout and job["per_scene"] > 1 else task

    def entry(name: str, played: Episode, **values: Any) -> dict[str, Any]:
        file, frames = f"{task}/{name}_{number:04d}.mp4", played.frames
        write_mp4(out / file, frames)
        reward = played.reward[stride - 1 :: stride][: len(frames) - 1]
        return {
            **{"file": file, "suite": job["suite"], "task": task, "group": group, **values},
            **{"frames": len(frames), "size": job["size"], "stride": stride},
            "reward": [round(float(r), 4) for r in reward],
        }

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


def render_stored(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The kitchen's shipped demonstrations from each of its cameras; returns manifest entries."""
    suite, entries = load_suite(args.suite), []
    views = [
        (task, camera) for task in args.tasks or suite.list_tasks() for camera in suite.CAMERAS
    ]
    for task, camera in tqdm(views, unit="view"):
        sim = suite.SIMULATOR(task, camera=camera, image_size=args.size)
        (args.out / task / camera).mkdir(parents=True, exist_ok=True)
        number = {True: 0, False: 0}
        for stored in suite.demonstrations(task, success=None):
            name = "success" if stored.success else "failure"
            file = f"{task}/{camera}/{name}_{number[stored.success]:04d}.mp4"
            number[stored.success] += 1
            stride = args.stride[0]
            played = sim.replay(stored.qpos[::stride])
            write_mp4(args.out / file, played.frames)
            entries.append(
                {
                    **{
                        "file": file,
                        "suite": args.suite,
                        "task": task,
                        "group": f"{task}/{camera}",
                    },
                    **{"success": bool(stored.success), "kind": stored.kind, "seed": stored.seed},
                    **{"frames": len(played.frames), "size": args.size, "stride": stride},
                    "reward": [round(float(r), 4) for r in played.reward[1:]],
                }
            )
        sim.close()
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
    parser.add_argument("--suite", choices=SUITES, default="metaworld")
    parser.add_argument("--split", choices=("train", "heldout"), default="train")
    parser.add_argument("--tasks", nargs="+", help="only these tasks (default: all of the split)")
    parser.add_argument("--episodes", type=int, default=10, help="successes a task")
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
    parser.add_argument("--workers", type=int, default=2, help="processes")
    args = parser.parse_args(arguments)

    suite = load_suite(args.suite)
    held_out = getattr(suite, "HELD_OUT_TASKS", ())
    scripted = getattr(suite, "SCRIPTED_TASKS", None)
    scripted = suite.list_tasks() if scripted is None else scripted
    stored = hasattr(suite, "demonstrations")
    if stored and args.split == "train":
        parser.error(f"--suite {args.suite} is never trained on; wanted --split heldout")
    if not stored and not scripted:
        parser.error(f"--suite {args.suite} has no scripted policy, so nothing to render")
    train = [task for task in scripted if task not in held_out]
    tasks = args.tasks or (train if args.split == "train" else list(held_out or scripted))
    if args.per_scene < 1:
        parser.error(f"--per-scene {args.per_scene}: wanted 1 or more")
    if args.size % 2 or args.size < 2:
        parser.error(f"--size {args.size}: mp4 wants an even number")
    if min(args.stride) < 1:
        parser.error(f"--stride {args.stride}: wanted 1 or more")
    if unknown := set(tasks) - set(suite.list_tasks() if stored else scripted):
        parser.error(f"no script for tasks {sorted(unknown)} of {args.suite}; there is {scripted}")
    if stored:
        entries = render_stored(args)
        write_json(args.out / "manifest.json", entries)
        print(f"{len(entries)} clips in {args.out}")
        return
    for task in tasks:
        (args.out / task).mkdir(parents=True, exist_ok=True)

    manifest = args.out / "manifest.json"
    entries = {e["file"]: e for e in json.loads(manifest.read_text())} if manifest.exists() else {}
    names = ("success",) if args.split == "train" else ("success", "failure")
    options = {"out": str(args.out), "suite": args.suite, "split": args.split, "seed": args.seed}
    options |= {"size": args.size, "strides": args.stride, "per_scene": args.per_scene}
    options |= {"distractors": args.distractors}

    def drawn_seed(task: str, number: int, entry: dict[str, Any]) -> int:
        return clip_seed(args.seed, task, entry["kind"], number, entry["tries"] - 1)

    def finished(task: str, number: int) -> bool:
        files = [f"{task}/{name}_{number:04d}.mp4" for name in names]
        return all(
            file in entries
            and (args.out / file).exists()
            and entries[file]["size"] == args.size
            and entries[file]["stride"] in args.stride
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
