"""The distance to the goal image along scripted successes of Meta-World: where it rises, the reward
leads away.

Each start's own end is the goal. Several cameras' distances are added in parts of what each is where
the episode begins, as in the examples. hill: how far the distance rises above the least so far, at most.

    python benchmarks/success_curves.py                  # some minutes
    python benchmarks/success_curves.py --tasks door-open-v3 --cameras corner4 topview+corner4/no-robot
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from machine import about, in_words
from tqdm import tqdm

from torchrl_vip import FrozenEncoder, load_vip
from torchrl_vip.envs.metaworld import MetaWorldSim, list_tasks

ROOT = Path(__file__).parent
SOLVED = ["button-press-topdown-v3", "coffee-button-v3", "door-close-v3", "plate-slide-v3"]
LOST = ["drawer-open-v3", "window-close-v3", "faucet-open-v3", "lever-pull-v3"]
CAMERAS = ["corner4", "behindGripper+topview+corner4/no-robot"]
SETTLE, STEPS = 20, 200  # steps after the first success; most of an episode


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--tasks", nargs="+", choices=list_tasks(), default=SOLVED + LOST, metavar="TASK")
    add(
        "--cameras",
        nargs="+",
        default=CAMERAS,
        help="each one, or several joined by + (%(default)s)",
    )
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of starts (%(default)s)")
    add("--stride", type=int, default=4, help="steps between frames (%(default)s)")
    add("--encoder", help="checkpoint's name or folder (the bundled one)")
    add("--blur", type=float, default=1.5, help="of the encoder's frames, pixels (%(default)s)")
    add("--out", type=Path, default=ROOT / "results", help="folder of the results")
    return parser.parse_args()


def success(
    sim: MetaWorldSim, seed: int, names: list[str], stride: int
) -> tuple[dict[str, np.ndarray], int]:
    """Frames by camera, uint8 ``[T, H, W, 3]``, and the number of the first that shows the task solved."""
    act, state, solved = sim.script(), sim.reset(seed), []
    frames, action = {name: [sim.render(name)] for name in names}, np.zeros(sim.ACTION_SIZE)
    for t in range(STEPS):
        action = sim.hold_still(action) if any(solved) else act(state, t)  # nothing is pushed on
        state, _, now = sim.step(action)
        solved.append(now)
        if (t + 1) % stride == 0:
            for name in names:
                frames[name].append(sim.render(name))
        if any(solved[:-SETTLE]):
            break
    first = solved.index(True) if any(solved) else len(solved)
    return {name: np.stack(seen) for name, seen in frames.items()}, -(-(first + 1) // stride)


def hill(curve: np.ndarray) -> float:
    return float((curve - np.minimum.accumulate(curve)).max())


def main() -> None:
    args = parse_args()
    machine = about()
    encoder = FrozenEncoder(load_vip(args.encoder), blur=args.blur)
    names = list(dict.fromkeys(name for joined in args.cameras for name in joined.split("+")))
    rows = []
    for task in tqdm(args.tasks, unit="task"):
        sim = MetaWorldSim(task)
        for seed in args.seeds:
            frames, first = success(sim, seed, names, args.stride)
            z = {name: encoder(torch.from_numpy(seen)) for name, seen in frames.items()}
            left = {name: (e - e[-1]).norm(dim=-1).numpy() for name, e in z.items()}
            for joined in args.cameras:
                parts = [left[name] / left[name][0] for name in joined.split("+")]
                curve = np.mean(parts, 0)
                rows.append(
                    {
                        "task": task,
                        "cameras": joined,
                        "seed": seed,
                        "first_success": first,
                        "hill": hill(curve),
                        "curve": curve.round(4).tolist(),
                    }
                )
        sim.close()
    args.out.mkdir(parents=True, exist_ok=True)
    report = {"about": machine, "stride": args.stride, "rows": rows}
    (args.out / "success_curves.json").write_text(json.dumps(report) + "\n")
    (args.out / "success_curves.md").write_text(text := markdown(report, args))
    draw(report, args, args.out / "success_curves.png")
    print(text)


def markdown(report: dict, args: argparse.Namespace) -> str:
    lines = [
        "# The distance along scripted successes",
        "",
        f"Hills, in parts of the first distance: mean over {len(args.seeds)} starts.",
        "",
        "![curves](success_curves.png)",
        "",
        f"| task | {' | '.join(args.cameras)} |",
        "|---" * (1 + len(args.cameras)) + "|",
    ]
    for task in args.tasks:
        cells = [
            np.mean([r["hill"] for r in report["rows"] if (r["task"], r["cameras"]) == (task, c)])
            for c in args.cameras
        ]
        lines.append(f"| {task} | {' | '.join(f'{cell:.2f}' for cell in cells)} |")
    return "\n".join([*lines, "", in_words(report["about"]), ""])


def draw(report: dict, args: argparse.Namespace, path: Path) -> None:
    """A panel a task: the distance over steps, a line a start, a dot where it is solved."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(4, len(args.tasks))
    lines = -(-len(args.tasks) // columns)
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(3.4 * columns, 2.7 * lines),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for axis in axes.flat[len(args.tasks) :]:
        axis.axis("off")
    for axis, task in zip(axes.flat, args.tasks, strict=False):
        axis.set_title(task)
        for row in (r for r in report["rows"] if r["task"] == task):
            steps = report["stride"] * np.arange(len(row["curve"]))
            number = args.cameras.index(row["cameras"])
            label = row["cameras"] if row["seed"] == args.seeds[0] else None
            (line,) = axis.plot(steps, row["curve"], color=f"C{number}", lw=1, label=label)
            if (first := row["first_success"]) < len(steps):
                axis.plot(steps[first], row["curve"][first], "o", color=line.get_color(), ms=4)
    figure.supxlabel("environment steps")
    figure.supylabel("distance left, in parts of the first")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize=9)
    figure.savefig(path, dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    main()
