"""What the tabletop's tasks cost and whether they hold: speed, scripted success, resets and random episodes.

    python benchmarks/tabletop.py               # about half an hour on two cores
    python benchmarks/tabletop.py --starts 2 --resets 5 --episodes 1 --out try

Speed first, one task after the other; then the counts, each in a process. A fifth of the starts are played
without habits, and by clumsy demonstrators. Writes OUT/tabletop.json and .md.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import torch
from machine import about, in_words
from tqdm import tqdm

from torchrl_vip.envs.tabletop import TabletopSim, list_tasks

SIZE = 224


def speed(task: str) -> dict[str, float]:
    """Steps a second and physics steps a second without drawing, during a scripted episode; ms a frame."""
    sim = TabletopSim(task, image_size=SIZE)
    seconds, frames = [], []
    act = sim.script(1.0, 0)
    sim.reset(0)
    for t in range(sim.MAX_STEPS):
        action = act(sim.full_state, t)
        begin = time.perf_counter()
        sim.step(action)
        between = time.perf_counter()
        sim.render()
        seconds.append(between - begin)
        frames.append(time.perf_counter() - between)
    sim.close()
    sim = TabletopSim(task, image_size=SIZE, render="faithful")
    sim.render()
    begin = time.perf_counter()
    for _ in range(10):
        sim.render()
    faithful = (time.perf_counter() - begin) / 10
    sim.close()
    return {
        "steps_per_second": 1 / np.mean(seconds),
        "ms_per_frame": 1000 * np.median(frames),
        "ms_per_frame_faithful": 1000 * faithful,
    }


def solved(sim: TabletopSim, starts: int, skill: float, habits: bool) -> dict[str, float]:
    """Of a script from so many starts: how many end solved, and the median step of the first success."""
    ends, first = [], []
    for seed in range(starts):
        act = sim.script(skill, seed if habits else None)
        sim.reset(seed)
        flags = [sim.step(act(sim.full_state, t))[2] for t in range(sim.MAX_STEPS)]
        ends.append(flags[-1])
        first += [flags.index(True)] if any(flags) else []
    return {
        "starts": starts,
        "solved": int(sum(ends)),
        "first": float(np.median(first)) if first else None,
    }


def memory() -> float:
    """Resident, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def endure(sim: TabletopSim, resets: int, episodes: int) -> dict[str, float]:
    """Resets and random episodes: steps that were taken back, states that are not finite, the fastest joint
    (m/s or rad/s), and how the process's memory (MB) grows between the first tenth and the end."""
    rng, wrong, fastest, early = np.random.default_rng(0), 0, 0.0, memory()
    sim.stops = 0
    for seed in range(resets):
        wrong += not np.isfinite(sim.reset(seed)).all()
        if seed == resets // 10:
            early = memory()
    for seed in range(episodes):
        sim.reset(seed)
        action = rng.uniform(-1, 1, 4)
        for t in range(sim.MAX_STEPS):
            if t % 5 == 0:  # held for a while: the hand gets somewhere
                action = rng.uniform(-1, 1, 4)
            state, _, _ = sim.step(action)
            wrong += not np.isfinite(state).all()
            fastest = max(fastest, float(np.abs(sim.data.qvel).max()))
    return {
        "not_finite": int(wrong),
        "stops": sim.stops,
        "fastest": fastest,
        "memory_growth_mb": memory() - early,
    }


def count(task: str, kind: str, args: argparse.Namespace) -> dict:
    torch.set_num_threads(1)
    sim = TabletopSim(task, image_size=16)
    few = -(-args.starts // 5)
    counts = {
        "habits": lambda: solved(sim, args.starts, 1.0, habits=True),
        "plain": lambda: solved(sim, few, 1.0, habits=False),
        "clumsy": lambda: solved(sim, few, 0.3, habits=True),
        "endurance": lambda: endure(sim, args.resets, args.episodes),
    }
    result = counts[kind]()
    sim.close()
    return result


KINDS = ("endurance", "habits", "plain", "clumsy")


def table(results: dict[str, dict], args: argparse.Namespace) -> str:
    head = (
        "| task | steps/s | ms a frame | faithful | skill 1 | first solved at | without habits | skill 0.3 | "
        "not finite | taken back | fastest joint | memory MB |"
    )
    lines = [head, "|---" * 12 + "|"]

    def share(counted: dict) -> str:
        return f"{counted['solved']} / {counted['starts']}"

    for task, r in results.items():
        s, e = r["speed"], r["endurance"]
        lines.append(
            f"| {task} | {s['steps_per_second']:.0f} | {s['ms_per_frame']:.1f} | "
            f"{s['ms_per_frame_faithful']:.1f} | {share(r['habits'])} | "
            f"{r['habits']['first']} | {share(r['plain'])} | {share(r['clumsy'])} | "
            f"{e['not_finite']} | {e['stops']} | "
            f"{e['fastest']:.1f} | {e['memory_growth_mb']:+.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--tasks", nargs="+", choices=list_tasks(), default=list_tasks(), help="(all)")
    add("--starts", type=int, default=100, help="of demonstrators of full skill (%(default)s)")
    add("--resets", type=int, default=1000, help="(%(default)s)")
    add("--episodes", type=int, default=200, help="of random actions (%(default)s)")
    add("--workers", type=int, default=2, help="processes (%(default)s)")
    add("--out", type=Path, default=Path(__file__).parent / "results", help="folder (%(default)s)")
    args = parser.parse_args()
    machine = about()
    results = {task: {"speed": speed(task)} for task in tqdm(args.tasks, desc="speed")}
    with ProcessPoolExecutor(args.workers) as pool:
        asked = {
            pool.submit(count, task, kind, args): (task, kind)
            for task in args.tasks
            for kind in KINDS
        }
        for future in tqdm(as_completed(asked), desc="counts", total=len(asked)):
            task, kind = asked[future]
            results[task][kind] = future.result()
            write(args, machine, {name: r for name, r in results.items() if {*KINDS} <= r.keys()})
    print(table(results, args))


def write(args: argparse.Namespace, machine: dict, results: dict[str, dict]) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    result = {"about": machine, "tasks": results}
    (args.out / "tabletop.json").write_text(json.dumps(result, indent=1) + "\n")
    text = [
        "# The tabletop",
        "",
        f"Frames of {SIZE} × {SIZE} pixels; steps are actions of 40 ms, without drawing. Endurance: "
        f"{args.resets} resets and {args.episodes} random episodes of 50 steps. The fastest joint is in "
        "m/s or rad/s, memory the growth of the process after the first tenth of the resets.",
        "",
        table(results, args),
        "",
        in_words(machine),
    ]
    (args.out / "tabletop.md").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
