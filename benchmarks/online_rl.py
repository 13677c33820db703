"""SAC from a goal image: learning curves of examples/sac.py by task, reward and seed.

Every run is `examples/sac.py` in a process of its own and a folder under --runs; a run that is there is
continued where its last checkpoint stands, a complete one is only read. The rewards: VIP alone (no
reward of the environment), the same with hindsight goals (`examples/goal_switching.py`), sparse success
alone, VIP and it together, the task's own dense reward. Random
actions, a new one every step, are evaluated from the 50 starts that the runs' last evaluation draws. Rows of
other tasks and rewards that the results have already stay; each seed has the command that repeats its run
and the machine on which that began.

    python benchmarks/online_rl.py                   # about 25 minutes a run on one core
    python benchmarks/online_rl.py --tasks coffee-button-v3 --camera corner4 --seeds 0 --runs OTHER
    python benchmarks/online_rl.py --tasks reach-v3 --rewards hindsight
    python benchmarks/online_rl.py --steps 0 --rewards vip sparse     # read what is there
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from itertools import product
from pathlib import Path

import numpy as np
from machine import about, in_words

ROOT = Path(__file__).parent
EXAMPLES = ROOT.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

from common import EVALUATION_SEED, Config
from goal_switching import GoalConfig
from sac import SACConfig

from torchrl_vip.envs.metaworld import HELD_OUT_TASKS, MetaWorldSim

REWARDS = {
    "vip": "VIP alone",
    "hindsight": "VIP alone, hindsight goals",
    "sparse": "sparse alone",
    "vip+sparse": "VIP + sparse",
    "dense": "the task's dense reward",
}

WANTED = 0.8  # success at the last step
MACHINE = "machine.json"  # in a run's folder, beside what the example writes

OURS = {  # flags of the examples that have one here, beside --rewards
    "task": "--tasks",
    "camera": "--camera",
    "steps": "--steps",
    "max_steps": "--max-steps",
    "final_episodes": "--episodes",
}


def example(reward: str) -> tuple[str, type[Config], list[str]]:
    """The script that learns from it, its config, and the flags that choose the reward."""
    if reward == "hindsight":
        return "goal_switching.py", GoalConfig, ["--reward", "vip"]
    return "sac.py", SACConfig, ["--reward", reward, "--goals", "0"]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--tasks", nargs="+", default=["button-press-v3", "coffee-button-v3"], help="of Meta-World")
    add("--rewards", nargs="+", default=["vip", "sparse"], choices=REWARDS)
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add(
        "--camera",
        default="behindGripper",
        help="of all runs; the examples tell what it can be",
    )
    add("--steps", type=int, default=30_000, help="environment steps a run; 0 runs nothing")
    add("--max-steps", type=int, default=100, help="environment steps an episode")
    add("--episodes", type=int, default=50, help="of the last evaluation")
    add("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="runs at once (one a core)")
    add("--runs", type=Path, default=Path("online_rl_runs"), help="folder of the runs")
    add("--out", type=Path, default=ROOT / "results", help="folder of the results")
    add("flags", nargs="*", help="after --: more flags of the example")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    chosen = list(product(args.seeds, args.tasks, args.rewards))  # first seeds come first
    if args.steps:
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(lambda which: play(args, *which), chosen))
    rows = [row for task in args.tasks for row in table(args, task)]
    args.out.mkdir(parents=True, exist_ok=True)
    rows = merged(args.out / "online_rl.json", rows)
    (args.out / "online_rl.json").write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    (args.out / "online_rl.md").write_text(text := markdown(rows))
    draw(rows, args.out / "online_rl.png")
    print(text)


# -- running ----------------------------------------------------------------------------------------


def folder(args: argparse.Namespace, seed: int, task: str, reward: str) -> Path:
    return args.runs / f"{task}_{args.camera.replace('/', '-')}_{reward}_{seed}"


def play(args: argparse.Namespace, seed: int, task: str, reward: str) -> None:
    out = folder(args, seed, task, reward)
    script, _, flags = example(reward)
    command = [
        sys.executable,
        str(EXAMPLES / script),
        "--task",
        task,
        *flags,
        "--seed",
        str(seed),
        "--steps",
        str(args.steps),
        "--camera",
        args.camera,
        "--max-steps",
        str(args.max_steps),
        "--final-episodes",
        str(args.episodes),
        "--out",
        str(out),
        *args.flags,
    ]
    command += ["--resume"] if (out / "checkpoint.pt").exists() else []
    out.mkdir(parents=True, exist_ok=True)
    if not (out / MACHINE).exists():
        (out / MACHINE).write_text(json.dumps(about()))
    print(f"{out.name}: {'goes on' if '--resume' in command else 'begins'}", flush=True)
    with (out / "output.txt").open("a") as log:
        result = subprocess.run(
            command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    tail = " ".join((out / "output.txt").read_text().splitlines()[-1:])
    # says the example as it exits, unless the flags are others; a killed one says nothing new
    complete = result.returncode == 1 and "the run has had its" in tail
    if result.returncode and not complete:
        raise RuntimeError(f"{out.name} failed ({out / 'output.txt'}): {tail}")
    print(f"{out.name}: {'complete' if complete else 'done'}", flush=True)


def random_success(task: str, episodes: int, steps: int) -> float:
    """Share of the evaluation's starts that uniform actions leave solved at the last step."""
    sim, rng, solved = MetaWorldSim(task, image_size=16), np.random.default_rng(0), 0
    for i in range(episodes):
        sim.reset(int(np.random.default_rng(EVALUATION_SEED + i).integers(2**31)))  # as the env
        for _ in range(steps):
            _, _, success = sim.step(rng.uniform(-1, 1, sim.ACTION_SIZE))
        solved += success
    sim.close()
    return solved / episodes


# -- reading ----------------------------------------------------------------------------------------


def read(path: Path) -> list[tuple[int, float]]:
    if not path.exists():
        return []
    with path.open() as file:
        return [(int(step), float(value)) for step, value in csv.reader(file)]


def table(args: argparse.Namespace, task: str) -> list[dict]:
    """A row for the random policy, and one for every reward that has runs."""
    rows = [
        {
            "task": task,
            "reward": "random policy",
            "seeds": {
                "0": {
                    "about": about(),
                    "final": {
                        "step": 0,
                        "success_last": random_success(task, args.episodes, args.max_steps),
                    },
                }
            },
        }
    ]
    for reward in args.rewards:
        seeds = {}
        for seed in args.seeds:
            scalars = (out := folder(args, seed, task, reward)) / "csv/scalars"
            evaluated = read(scalars / "eval/success_last.csv")
            final = read(scalars / "final/success_last.csv")
            if not evaluated and not final:
                continue
            curve = sorted((dict(evaluated) | dict(final)).items())
            config = json.loads((out / "config.json").read_text())
            machine = (
                json.loads((out / MACHINE).read_text()) if (out / MACHINE).exists() else about()
            )
            shares = config.get("camera_shares")
            seeds[str(seed)] = {
                "about": machine | {"command": command_of(reward, config)},
                "camera": f"{config['camera']} ({shares})" if shares else config["camera"],
                "action_cost": config.get("action_cost", 0.0),
                "curve": curve,
                "return": read(scalars / "eval/vip_return.csv"),
                "steps_per_second": float(
                    np.median([v for _, v in read(scalars / "train/steps_per_second.csv")])
                ),
            }
            if final and final[-1] == curve[-1]:  # else it went on since
                (step, last), (_, some) = final[-1], read(scalars / "final/success_any.csv")[-1]
                ends = {"step": step, "success_last": last, "success_any": some}
                seeds[str(seed)]["final"] = ends
        if seeds:
            rows.append({"task": task, "reward": reward, "seeds": seeds})
    return rows


def command_of(reward: str, config: dict) -> str:
    """What repeats a run with this config of its example."""
    words = [
        "python",
        "benchmarks/online_rl.py",
        "--seeds",
        str(config["seed"]),
        "--rewards",
        reward,
    ]
    words += [word for key, flag in OURS.items() for word in (flag, str(config[key]))]
    more = []
    for entry in fields(example(reward)[1]):
        value = config.get(entry.name, entry.default)
        if value != entry.default and entry.name not in {*OURS, "reward", "seed", "out", "resume"}:
            flag = f"--{entry.name.replace('_', '-')}"
            more += [flag] if value is True else [flag, str(value)]
    return shlex.join([*words, *(["--", *more] if more else [])])


def cameras_of(row: dict) -> str:
    return ", ".join(sorted({seed.get("camera") or "" for seed in row["seeds"].values()}))


def steps_of(seed: dict) -> int:
    """How far it went."""
    return (seed.get("final") or {"step": seed["curve"][-1][0] if seed["curve"] else 0})["step"]


def merged(path: Path, rows: list[dict]) -> list[dict]:
    """With the rows of other tasks, rewards and cameras that ``path`` has, and its other seeds, those that
    went further than a new one too; tasks in the order of their names."""

    def key(row: dict) -> tuple:
        return row["task"], ["random policy", *REWARDS].index(row["reward"]), cameras_of(row)

    every = {
        key(row): row for row in (json.loads(path.read_text())["rows"] if path.exists() else [])
    }
    for row in rows:
        seeds = dict(every.get(key(row), row)["seeds"])
        for number, seed in row["seeds"].items():
            if number not in seeds or steps_of(seed) >= steps_of(seeds[number]):
                seeds[number] = seed
            else:
                print(f"{path} keeps a longer run of {key(row)}, seed {number}", file=sys.stderr)
        every[key(row)] = row | {
            "seeds": dict(sorted(seeds.items(), key=lambda seed: int(seed[0])))
        }
    return [every[k] for k in sorted(every)]


def markdown(rows: list[dict]) -> str:
    lines = [
        "# SAC from a goal image",
        "",
        "Success of complete runs in their last evaluation (of others in their latest), from starts that "
        "no training saw. The goal is an image of each start's own solved state. *Held out*: the task "
        "was never rendered for pre-training.",
        "",
        "| task | reward | camera | an action costs | seeds | environment steps "
        "| at the last step, each seed | mean | at any step |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ends = [
            seed.get("final")
            or {"step": seed["curve"][-1][0], "success_last": seed["curve"][-1][1]}
            for seed in row["seeds"].values()
        ]
        values = [end["success_last"] for end in ends]
        some = [end["success_any"] for end in ends if "success_any" in end]
        whole = all("final" in seed for seed in row["seeds"].values())
        costs = sorted({seed.get("action_cost", 0.0) for seed in row["seeds"].values()})
        steps = "–".join(f"{step:,}" for step in sorted({end["step"] for end in ends}))
        lines.append(
            f"| {row['task']}{' (held out)' if row['task'] in HELD_OUT_TASKS else ''} "
            f"| {REWARDS.get(row['reward'], row['reward'])} | {cameras_of(row)} "
            f"| {', '.join(f'{cost:g}' for cost in costs)} | {len(values)} "
            f"| {steps}{'' if whole else ' (not complete)'} "
            f"| {', '.join(f'{v:.2f}' for v in values)} | {np.mean(values):.2f} "
            f"| {', '.join(f'{v:.2f}' for v in some)} |"
        )
    lines += [
        "",
        *(
            f"- {row['task']}, {row['reward']}, seed {number}: {in_words(seed['about'])}"
            for row in rows
            for number, seed in row["seeds"].items()
        ),
    ]
    return "\n".join([*lines, ""])


def draw(rows: list[dict], path: Path) -> None:
    """Success over environment steps: every seed thin, their mean thick; a task's other cameras dashed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    columns = min(len(tasks), 3)
    lines = -(-len(tasks) // columns)
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(4.6 * columns, 3.2 * lines),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat[len(tasks) :]:
        axis.axis("off")
    colours = dict(zip(REWARDS, plt.rcParams["axes.prop_cycle"].by_key()["color"], strict=False))
    labels = {}
    for axis, task in zip(axes.flat, tasks, strict=False):
        axis.axhline(WANTED, color="0.7", ls=":", lw=1)
        shown = [r for r in rows if r["task"] == task and r["reward"] in REWARDS]
        for row in shown:
            twins = [other for other in shown if other["reward"] == row["reward"]]
            look = {
                "color": colours[row["reward"]],
                "ls": ("-", "--", ":", "-.")[twins.index(row) % 4],
            }
            curves = []
            for seed in row["seeds"].values():
                curve = dict(seed["curve"])
                if end := seed.get("final"):
                    curve[end["step"]] = end["success_last"]
                curves.append({step / 1000: success for step, success in curve.items()})
                axis.plot(*zip(*sorted(curves[-1].items()), strict=True), **look, lw=0.8, alpha=0.5)
            steps = sorted(set.intersection(*map(set, curves)))
            mean = [np.mean([curve[step] for curve in curves]) for step in steps]
            (line,) = axis.plot(steps, mean, **look, lw=2)
            labels.setdefault(REWARDS[row["reward"]], line)
            if len(twins) > 1:
                axis.plot([], [], **look, lw=2, label=cameras_of(row))
        if axis.get_legend_handles_labels()[1]:
            axis.legend(fontsize=6, loc="lower right", bbox_to_anchor=(1, 0.05), framealpha=0.6)
        axis.set(title=task, ylim=(-0.03, 1.03))
        axis.locator_params("x", nbins=5)
    figure.supylabel("success at the last step, unseen starts")
    figure.supxlabel("thousands of environment steps")
    labels[f"{WANTED:g}, what was wanted"] = axes[0][0].lines[0]
    figure.legend(labels.values(), labels, loc="outside upper center", ncols=len(labels))
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main()
