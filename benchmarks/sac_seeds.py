"""Success of examples/sac_minimal.py by task, reward and seed, and what the sparse reward reaches there.

Each run is the example in a process of its own, in a folder under --runs; a finished one is only read.
Rows of other tasks, cameras and lengths that the results have already stay.

    python benchmarks/sac_seeds.py --runs RUNS
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
from itertools import product
from pathlib import Path

from machine import about, in_words

ROOT = Path(__file__).parent
EXAMPLE = "examples/sac_minimal.py"
EPISODES = 50  # of every evaluation, as the example has it


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--task", default="button-press-v3", help="of Meta-World (%(default)s)")
    add("--camera", default="behindGripper", help="the only one (%(default)s)")
    add("--steps", type=int, default=20_000, help="environment steps a run (%(default)s)")
    add("--rewards", nargs="+", default=["vip", "sparse"], choices=("vip", "sparse"))
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="runs at once")
    add("--runs", type=Path, default=Path("sac_minimal_runs"), help="folder of the runs")
    add("--out", type=Path, default=ROOT / "results", help="folder of the results")
    add("--smoke", action="store_true", help="runs of seconds")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with ThreadPoolExecutor(args.jobs) as pool:
        chosen = product(args.seeds, args.rewards)  # first seeds come first
        new = list(pool.map(lambda which: play(args, *which), chosen))
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "sac_minimal.json"
    rows = {key(row): row for row in (json.loads(path.read_text()) if path.exists() else [])}
    rows |= {key(row): row for row in new}
    kept = [rows[k] for k in sorted(rows)]
    path.write_text(json.dumps(kept, indent=1) + "\n")
    path.with_suffix(".md").write_text(text := markdown(kept))
    print(text)


def play(args: argparse.Namespace, seed: int, reward: str) -> dict:
    """Run the example unless its folder holds a finished run, and return its row."""
    row = {"task": args.task, "camera": args.camera, "steps": args.steps}
    row |= {"reward": reward, "seed": seed}
    out = args.runs / "_".join(map(str, row.values()))
    flags = [word for name, value in row.items() for word in (f"--{name}", str(value))]
    flags += ["--smoke"] if args.smoke else []
    if not (out / "finished.json").exists():
        out.mkdir(parents=True, exist_ok=True)
        machine = about() | {"command": shlex.join(["python", EXAMPLE, *flags])}
        command = [sys.executable, str(ROOT.parent / EXAMPLE), *flags, "--out", str(out)]
        with (out / "output.txt").open("w") as log:
            subprocess.run(command, check=True, stdout=log, stderr=log)
        (out / "finished.json").write_text(json.dumps(machine))
    with (out / "success.csv").open() as file:
        curve = [[int(line["step"]), float(line["success"])] for line in csv.DictReader(file)]
    return row | {"curve": curve, "about": json.loads((out / "finished.json").read_text())}


def key(row: dict) -> tuple:
    return row["task"], row["camera"], row["steps"], row["reward"] == "sparse", row["seed"]


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share of ``n`` (Wilson, 1927)."""
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return middle - half, middle + half


def markdown(rows: list[dict]) -> str:
    lines = [
        "# SAC in 120 lines",
        "",
        f"Success of [sac_minimal.py](../../{EXAMPLE}) at the last step of {EPISODES} episodes from starts "
        "that no training saw. The goal is an image of each start's own solved state. The last evaluation "
        "has its 95 % Wilson interval.",
        "",
        "| task | camera | reward | seed | success after environment steps | at the end |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        step, last = row["curve"][-1]
        low, high = wilson(last, EPISODES)
        earlier = ", ".join(f"{share:.2f} ({at:,})" for at, share in row["curve"][:-1])
        lines.append(
            f"| {row['task']} | {row['camera']} | {row['reward']} | {row['seed']} | {earlier} "
            f"| {round(last * EPISODES)}/{EPISODES} = {last:.2f} [{low:.2f}, {high:.2f}] ({step:,}) |"
        )
    lines.append("")
    for row in rows:
        run = f"{row['task']}, {row['reward']}, seed {row['seed']}, {row['steps']:,} steps"
        lines.append(f"- {run}: {in_words(row['about'])}")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
