"""The 36 kitchen tasks: MPPI to a goal image, 12 tasks x 3 cameras, as in the VIP paper's Figure 4.

    python benchmarks/kitchen36.py                                  # bundled encoder, Easy, one seed
    python benchmarks/kitchen36.py --row state --row "VIP (bundled)=" --row imagenet --seeds 3
    python benchmarks/kitchen36.py --trajectories 8 32 128          # does more planning help?

Every --row is NAME=CHECKPOINT (nothing after "=": the bundled one), or one of untrained, imagenet,
pixels, and state: the task's true reward, a ceiling. Finished episodes are in OUT/episodes.jsonl and are
not played again; a killed run goes on, and --report draws what is there.

Protocol (appendices E and V of arXiv 2210.00030; what is ours is marked *):

- Goal: the last frame of a demonstration, by the episode's own camera; seed i has demonstration i.
- easy: from the demonstration's state 20, or from two fifths of it where that is earlier*, as some of
  ours have 30 steps where the paper's have 50; 50 steps. hard: from the reset pose; 100 steps.
- MPPI: horizon 12, 32 trajectories, temperature 5 on scores divided by their deviation*, noise filter
  (0.25, 0.8, 0), warm start. A trajectory's score is that of its last frame, so only it is drawn.
- Candidates run at 8 ms a physics step*, what is done at 2 ms.
- Success: the task's joint within 0.15 of its range of the target and nothing else disturbed, for five
  steps in a row*, which ends the episode, or at its last step.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads would take the workers' cores

import numpy as np
import torch
from machine import about, in_words
from reward_quality import imagenet, raw_pixels, untrained
from torch import Tensor
from tqdm import tqdm

from torchrl_vip import FrozenEncoder, load_vip
from torchrl_vip.envs.kitchen import (
    CAMERAS,
    KitchenSim,
    demonstrations,
    list_tasks,
)
from torchrl_vip.evaluation.metrics import bootstrap, r_squared, voc
from torchrl_vip.planning import MPPI, Rollouts
from torchrl_vip.planning.demonstrate import PlanningSim, state_reward

ROOT = Path(__file__).parent
BUNDLED = "VIP (bundled)="
STATE = "state"
STEPS = {"easy": 50, "hard": 100}
EASY_START = 20  # state of the demonstration, or 2/5 of it
HOLD = 5  # steps that a solved state must last to end the episode
Embed = Callable[[Tensor], Tensor]


class Episode(NamedTuple):
    """What tells one episode from all others."""

    row: str
    setting: str
    task: str
    camera: str
    seed: int
    trajectories: int
    score: str
    goals: int

    @property
    def cell(self) -> tuple[str, str]:
        return self.task, self.camera


# -- one episode -----------------------------------------------------------------------------------


def seen(sim: KitchenSim, reward: float) -> np.ndarray:
    """The frame and the seconds that drawing it took, as one record."""
    start = time.perf_counter()
    frame = sim.render()
    record = np.empty((), [("frame", np.uint8, frame.shape), ("seconds", float)])
    record["frame"], record["seconds"] = frame, time.perf_counter() - start
    return record


def make_scorer(
    embed: Embed | None, goals: list[np.ndarray], score: str, clock: dict[str, float]
) -> Callable[[np.ndarray], np.ndarray]:
    """What the roll-outs saw, [N] or [N, H], to scores [N]."""
    if embed is None:
        return lambda rewards: rewards if rewards.ndim == 1 else rewards.sum(1)
    goal = torch.stack([z for z in embed_frames(embed, np.stack(goals))]).mean(0)

    def distance(frames: np.ndarray) -> np.ndarray:
        start = time.perf_counter()
        z = embed_frames(embed, frames.reshape(-1, *frames.shape[-3:]))
        clock["embedding"] += time.perf_counter() - start
        return (z - goal).norm(dim=-1).numpy().reshape(frames.shape[:-3])

    def scores(records: np.ndarray) -> np.ndarray:
        clock["rendering"] += records["seconds"].sum()
        d = distance(records["frame"])
        if score == "last":
            return -d
        return d[:, -2] - d[:, -1] if score == "difference" else -d.sum(1)

    return scores


@torch.no_grad()
def embed_frames(embed: Embed, frames: np.ndarray) -> Tensor:
    """uint8 [N, H, W, 3] to float32 [N, D]."""
    return embed(torch.from_numpy(frames).permute(0, 3, 1, 2)).float()


def play(episode: Episode, embed: Embed | None, rollouts: Rollouts, image_size: int) -> dict:
    """One planned episode: whether it was solved, its curves and where the time went."""
    solved = demonstrations(episode.task)
    guide = solved[episode.seed % len(solved)]
    sim = KitchenSim(episode.task, camera=episode.camera, image_size=image_size)
    clock: dict[str, float] = defaultdict(float)
    try:
        first = min(EASY_START, round(0.4 * len(guide.actions)))
        sim.repeat(guide, first if episode.setting == "easy" else 0)
        goals = [sim.replay(d.qpos[-1:]).frames[0] for d in around(solved, guide, episode.goals)]
        scorer = make_scorer(embed, goals, episode.score, clock)
        watch = None if embed is None else make_scorer(embed, goals, "last", defaultdict(float))
        planner = MPPI(9, trajectories=episode.trajectories, seed=episode.seed)
        curve, rewards, lasted, start = [], [], 0, time.perf_counter()
        for _ in range(STEPS[episode.setting]):
            state = sim.get_state()

            def evaluate(actions: np.ndarray, state: np.ndarray = state) -> np.ndarray:
                began = time.perf_counter()
                records = rollouts(state, actions)
                clock["rollouts"] += time.perf_counter() - began
                return scorer(records)

            _, reward, success = sim.step(planner.plan(evaluate).astype(np.float32))
            rewards.append(reward)
            if watch is not None:
                curve.append(-float(watch(seen(sim, reward)[None])[0]))
            lasted = lasted + 1 if success else 0
            if lasted >= HOLD:
                break
        seconds = (time.perf_counter() - start) / len(rewards)
        workers = max(1, len(rollouts._workers))
        rendering = clock["rendering"] / workers
        return episode._asdict() | {
            "success": bool(lasted),
            "steps": len(rewards),
            "joint_error": sim.joint_error(),
            "distance": [round(d, 4) for d in curve],
            "reward": [round(r, 4) for r in rewards],
            "seconds_per_step": seconds,
            "split": {
                "physics": (clock["rollouts"] - rendering) / len(rewards),
                "rendering": rendering / len(rewards),
                "embedding": clock["embedding"] / len(rewards),
            },
        }
    finally:
        sim.close()


def around(solved: list, first: Any, count: int) -> list:
    """``count`` demonstrations: the first one and the next."""
    at = next(i for i, d in enumerate(solved) if d is first)
    return [solved[(at + i) % len(solved)] for i in range(min(count, len(solved)))]


# -- all of them -----------------------------------------------------------------------------------


def open_rows(names: list[str], chunk: int = 16) -> dict[str, Embed | None]:
    """Name of the row -> its embedding; None is the true reward."""
    rows: dict[str, Embed | None] = {}
    for entry in names:
        name, given, path = entry.partition("=")
        if given:
            rows[name] = FrozenEncoder(load_vip(path or None), chunk_size=chunk)
        elif name == STATE:
            rows[name] = None
        elif name == "untrained":
            rows[name] = FrozenEncoder(untrained(load_vip(), 0), chunk_size=chunk)
        elif name in ("imagenet", "pixels"):
            rows[name] = imagenet() if name == "imagenet" else raw_pixels
        else:
            sys.exit(f"--row {entry}: wanted NAME=CHECKPOINT, untrained, imagenet, pixels or state")
    return rows


def finished(path: Path) -> dict[Episode, dict]:
    """Episodes of a file of JSON lines; a last line that was cut short does not count."""
    done = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            result = json.loads(line)
        except json.JSONDecodeError:
            continue
        done[Episode(**{name: result[name] for name in Episode._fields})] = result
    return done


def run(args: argparse.Namespace) -> None:
    """Plays what is not finished yet; episodes of one task and camera share their simulators."""
    rows, path = open_rows(args.row), args.out / "episodes.jsonl"
    done = finished(path)
    wanted = [
        Episode(name, setting, task, camera, seed, count, args.score, args.goals)
        for seed in range(args.seeds)
        for setting in args.setting
        for count in args.trajectories
        for task in args.tasks
        for name, embed in rows.items()
        # the true reward sees no camera: one episode is all three
        for camera in (args.cameras if embed is not None else args.cameras[:1])
    ]
    todo = [episode for episode in wanted if episode not in done]
    if len(todo) < len(wanted):
        print(f"{len(wanted) - len(todo)} of {len(wanted)} episodes are in {path}", file=sys.stderr)
    if path.exists() and not path.read_text().endswith("\n"):
        path.write_text("".join(f"{json.dumps(r)}\n" for r in done.values()))
    with open(path, "a") as out, tqdm(total=len(todo), unit="episode") as bar:
        workers: Rollouts | None = None
        at: Any = None
        for episode in todo:
            embed = rows[episode.row]
            if at != (at := (episode.cell, embed is None)):
                if workers is not None:
                    workers.close()
                options = {"camera": episode.camera, "image_size": args.image_size}
                workers = Rollouts(
                    partial(PlanningSim, episode.task, **options),
                    state_reward if embed is None else seen,
                    every=args.score != "last",
                    processes=args.processes,
                )
            result = play(episode, embed, workers, args.image_size)
            out.write(json.dumps(result) + "\n")
            out.flush()
            bar.update()
            bar.set_postfix_str(
                f"{episode.row} {episode.task} {episode.camera}: "
                f"{'solved' if result['success'] else 'not solved'} in {result['steps']}"
            )
        if workers is not None:
            workers.close()


# -- report ----------------------------------------------------------------------------------------


def report(args: argparse.Namespace) -> None:
    """Table and picture of all finished episodes in OUT."""
    results = list(finished(args.out / "episodes.jsonl").values())
    if not results:
        sys.exit(f"{args.out}/episodes.jsonl has no finished episode")
    groups: dict[tuple, list[dict]] = defaultdict(list)
    for r in results:
        name = r["row"]
        name += "" if r["score"] == "last" else f", {r['score']} of distances"
        name += "" if r["goals"] == 1 else f", mean of {r['goals']} goals"
        groups[r["setting"], r["trajectories"], name].append(r)
    lines = [
        "# FrankaKitchen: 12 tasks x 3 cameras, planned to a goal image",
        "",
        "Success over tasks and cameras with its 95 % bootstrap interval over task and camera (the mean "
        "of seeds each); R² of the distance with the state's true reward along what was done; order, the "
        "rank correlation of time with minus the distance.",
        "",
        "| setting | trajectories | row | episodes | success | R² | order | s a step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (setting, count, name), group in sorted(groups.items()):
        mean, low, high = bootstrap(list(by_cell(group).values()))
        curves = [r for r in group if len(r["distance"]) > 2]
        fit = np.mean([r_squared(-np.array(r["distance"]), np.array(r["reward"])) for r in curves])
        order = np.mean([voc(np.array(r["distance"])) for r in curves])
        seconds = np.median([r["seconds_per_step"] for r in group])
        lines.append(
            f"| {setting} | {count} | {name} | {len(group)} | {mean:.0%} [{low:.0%}, {high:.0%}] | "
            + (f"{fit:.2f} | {order:.2f}" if curves else "– | –")
            + f" | {seconds:.2f} |"
        )
    main = [k for k in groups if k[2] != STATE and k[2].startswith(args.row[0].partition("=")[0])]
    for setting, count, name in sorted(main)[:4]:
        lines += ["", f"## {name}, {setting}, {count} trajectories", ""]
        lines += task_table(groups[setting, count, name])
    split = {
        part: np.median([r["split"][part] for r in results if r["row"] != STATE] or [0])
        for part in ("physics", "rendering", "embedding")
    }
    lines += [
        "",
        "Of a planning step (median): "
        + ", ".join(f"{part} {seconds:.2f} s" for part, seconds in split.items())
        + ".",
        "",
        in_words(about()),
        "",
    ]
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / f"{args.name}.md").write_text("\n".join(lines))
    (args.results / f"{args.name}.json").write_text(
        json.dumps({"about": about(), "episodes": results}) + "\n"
    )
    plot(groups, args.results / f"{args.name}.png")
    print("\n".join(lines))


def by_cell(group: list[dict]) -> dict[tuple[str, str], float]:
    """Success of each task and camera, mean over seeds."""
    cells = defaultdict(list)
    for r in group:
        cells[r["task"], r["camera"]].append(r["success"])
    return {cell: float(np.mean(values)) for cell, values in cells.items()}


def task_table(group: list[dict]) -> list[str]:
    """Success and R² of every task and camera."""
    cells = by_cell(group)
    cameras = [c for c in CAMERAS if any(camera == c for _, camera in cells)]
    lines = ["| task | " + " | ".join(cameras) + " |", "|---|" + "---|" * len(cameras)]
    for task in sorted({task for task, _ in cells}):
        texts = []
        for camera in cameras:
            played = [r for r in group if (r["task"], r["camera"]) == (task, camera)]
            fits = [r_squared(-np.array(r["distance"]), np.array(r["reward"])) for r in played]
            texts.append(f"{cells[task, camera]:.0%} (R² {np.mean(fits):.2f})" if played else "–")
        lines.append(f"| {task} | " + " | ".join(texts) + " |")
    return lines


def plot(groups: dict[tuple, list[dict]], path: Path) -> None:
    """Success of every row, one panel a setting; and against the number of trajectories."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    settings = sorted({setting for setting, _, _ in groups})
    names = sorted({name for _, _, name in groups})
    budgets = sorted({count for _, count, _ in groups})
    colours = dict(zip(names, plt.rcParams["axes.prop_cycle"].by_key()["color"] * 3, strict=False))
    panels = len(settings) + (len(budgets) > 1)
    figure, axes = plt.subplots(1, panels, figsize=(4.2 * panels, 3.4), squeeze=False)
    usual = 32 if 32 in budgets else budgets[0]
    for axis, setting in zip(axes[0], settings, strict=False):
        bars = [n for n in names if (setting, usual, n) in groups]
        for i, name in enumerate(bars):
            mean, low, high = bootstrap(list(by_cell(groups[setting, usual, name]).values()))
            axis.bar(i, mean, yerr=[[mean - low], [high - mean]], color=colours[name], capsize=3)
        axis.set_xticks(range(len(bars)), bars, rotation=20, fontsize=7, ha="right")
        axis.set(title=f"{setting}, {usual} trajectories", ylabel="success", ylim=(0, 1))
    if len(budgets) > 1:
        for name in names:
            points = [
                (count, float(np.mean(list(by_cell(groups[settings[0], count, name]).values()))))
                for count in budgets
                if (settings[0], count, name) in groups
            ]
            axes[0, -1].plot(
                *zip(*points, strict=True), marker="o", color=colours[name], label=name
            )
        axes[0, -1].set(
            xscale="log", xlabel="trajectories", title=f"{settings[0]}: success", ylim=(0, 1)
        )
        axes[0, -1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def parse_args(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--row", action="append", help=f"repeatable ({BUNDLED!r})")
    parser.add_argument("--setting", nargs="+", choices=list(STEPS), default=["easy"])
    parser.add_argument("--seeds", type=int, default=1, help="so many, from 0 (%(default)s)")
    parser.add_argument("--trajectories", type=int, nargs="+", default=[32], help="(32)")
    parser.add_argument(
        "--score", choices=("last", "sum", "difference"), default="last",
        help="of a trajectory: minus its last distance, the sum of all, its last reward",
    )  # fmt: skip
    parser.add_argument("--goals", type=int, default=1, help="goal images, averaged (%(default)s)")
    parser.add_argument("--tasks", nargs="+", default=list_tasks(), metavar="TASK")
    parser.add_argument("--cameras", nargs="+", default=list(CAMERAS), choices=CAMERAS)
    parser.add_argument("--image-size", type=int, default=160, help="pixels (%(default)s)")
    parser.add_argument(
        "--processes", type=int, default=len(os.sched_getaffinity(0)), help="(one a core)"
    )
    parser.add_argument("--report", action="store_true", help="play nothing")
    parser.add_argument("--out", type=Path, default=Path("kitchen36"), help="folder of episodes")
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="folder of tables")
    parser.add_argument("--name", default="kitchen36", help="name of the result files")
    args = parser.parse_args(arguments)
    args.row = args.row or [BUNDLED]
    if unknown := set(args.tasks) - set(list_tasks()):
        parser.error(f"unknown tasks {sorted(unknown)}; choose from {list_tasks()}")
    return args


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.report:
        run(args)
    report(args)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
