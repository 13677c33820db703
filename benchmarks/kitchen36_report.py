"""Tables and pictures of what kitchen36.py played."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np

from torchrl_vip.evaluation.metrics import bootstrap, r_squared, voc

Groups = dict[tuple[str, int, str], list[dict]]
"""(setting, trajectories, variant) -> results."""


def mean_by(group: list[dict], *keys: str, of: str = "success") -> dict[tuple, float]:
    """Mean of ``of`` over all results that agree in ``keys``."""
    cells = defaultdict(list)
    for result in group:
        cells[tuple(result[key] for key in keys)].append(result[of])
    return {cell: float(np.mean(values)) for cell, values in cells.items()}


def rate(group: list[dict]) -> tuple[float, float, float]:
    """Success over all tasks and its interval over tasks: three cameras of one are not independent."""
    return bootstrap(list(mean_by(group, "task").values()))


def percent(mean: float, low: float, high: float) -> str:
    return f"{mean:.0%} [{low:.0%}, {high:.0%}]"


def curves(group: list[dict]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Distance and true reward of each episode that is long enough to say something."""
    return [
        (np.array(r["distance"]), np.array(r["reward"])) for r in group if len(r["distance"]) > 2
    ]


def fit(group: list[dict]) -> float:
    return float(np.mean([r_squared(-d, reward) for d, reward in curves(group)] or [np.nan]))


def table(groups: Groups, first: str) -> list[str]:
    """All groups, what their columns mean, and how much more ``first`` solves than the others."""
    return [
        "Success with its 95 % bootstrap interval over tasks, the mean of cameras and seeds each. "
        "touched: solved at any step. joint error: of the task's joint at the end, in parts of its "
        "range. distance left: at the end, in parts of the first one. cheated: share of the failures "
        "that end nearer to the goal than other successes do. decoyed: share of the demonstration's way "
        "that looks farther from the goal than the arm at the goal with nothing else moved. R²: of the "
        "distance with the state's true reward along what was done. order: rank correlation of time with "
        "minus the distance. Seconds of a planning step are medians, of a process with a core to itself "
        "where episodes are played side by side.",
        "",
        *main_table(groups),
        "",
        *differences(groups, first),
    ]


def main_table(groups: Groups) -> list[str]:
    columns = (
        "setting|trajectories|encoder|episodes|success|touched|joint error|distance left|cheated|"
        "decoyed|R²|order|s a step|physics|rendering|embedding"
    ).split("|")
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for (setting, count, name), group in sorted(groups.items()):
        left = [r["distance"][-1] / r["first_distance"] for r in group if r.get("first_distance")]
        lost = [r for r in group if not r["success"] and r.get("near")]
        order = [voc(d) for d, _ in curves(group)]
        decoyed = [r["decoyed"] for r in group if r.get("decoyed") is not None]
        cells = [
            setting,
            count,
            name,
            len(group),
            percent(*rate(group)),
            f"{np.mean([r.get('touched', r['success']) for r in group]):.0%}",
            f"{np.mean([r['joint_error'] for r in group]):.2f}",
            f"{np.mean(left):.2f}" if left else "–",
            f"{np.mean([r['distance'][-1] < r['near'] for r in lost]):.0%}" if lost else "–",
            f"{np.mean(decoyed):.0%}" if decoyed else "–",
            f"{fit(group):.2f}" if order else "–",
            f"{np.mean(order):.2f}" if order else "–",
            f"{np.median([r['seconds_per_step'] for r in group]):.2f}",
            *(f"{np.median([r['split'][part] for r in group]):.2f}" for part in columns[-3:]),
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def task_table(group: list[dict]) -> list[str]:
    """Success and R² of every task and camera."""
    cells, cameras = mean_by(group, "task", "camera"), sorted({r["camera"] for r in group})
    lines = ["| task | " + " | ".join(cameras) + " |", "|---" * (1 + len(cameras)) + "|"]
    for task in sorted({r["task"] for r in group}):
        texts = []
        for camera in cameras:
            played = [r for r in group if (r["task"], r["camera"]) == (task, camera)]
            known = played and curves(played)
            r2 = f" (R² {fit(played):.2f})" if known else ""
            texts.append(f"{cells[task, camera]:.0%}{r2}" if played else "–")
        lines.append(f"| {task} | " + " | ".join(texts) + " |")
    means = mean_by(group, "camera")
    return [*lines, "| mean | " + " | ".join(f"{means[c,]:.0%}" for c in cameras) + " |"]


def differences(groups: Groups, first: str) -> list[str]:
    """What the first encoder solves more than each other, and how much farther from the goal its joint ends,
    on what both played, paired by task."""
    lines = []
    for (setting, count, name), group in sorted(groups.items()):
        pairs = shared(groups.get((setting, count, first), []), group)
        if name == first or not pairs[0]:
            continue
        success, error = (
            bootstrap([ours - theirs for ours, theirs in by_task(pairs, of).values()])
            for of in ("success", "joint_error")
        )
        lines.append(
            f"- {setting}, {count} trajectories, {first} minus {name}: {percent(*success)}, "
            "joint error {:+.2f} [{:+.2f}, {:+.2f}]".format(*error)
        )
    return lines


def shared(*groups: list[dict]) -> list[list[dict]]:
    """Of each group the episodes of tasks, seeds and cameras that all played; of any camera where none is
    everyone's."""
    cameras = set.intersection(*({r["camera"] for r in g if r["distance"]} for g in groups))
    keys = ("task", "seed", "camera") if cameras else ("task", "seed")
    played = [{tuple(r[key] for key in keys) for r in group} for group in groups]
    known = set.intersection(*played)
    return [[r for r in group if tuple(r[key] for key in keys) in known] for group in groups]


def by_task(pair: list[list[dict]], of: str) -> dict[tuple, tuple[float, float]]:
    """The mean of ``of`` in both, of every task."""
    ours, theirs = (mean_by(group, "task", of=of) for group in pair)
    return {task: (ours[task], theirs[task]) for task in sorted(ours)}


# -- picture ---------------------------------------------------------------------------------------


def plot(groups: Groups, path: Path) -> None:
    """Success of every row, as in the paper's Figure 4, and by task and camera; and by budget."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    budgets = sorted({count for _, count, _ in groups})
    usual = 32 if 32 in budgets else budgets[0]
    chosen: dict[str, dict[str, list[dict]]] = defaultdict(dict)
    for (setting, count, name), group in sorted(groups.items()):
        if count == usual:  # a setting that was not played with as many has no part
            chosen[setting][name] = group
    heights = [1.4 + 0.32 * len(rows) for rows in chosen.values()] + [3.6] * (len(budgets) > 1)
    figure = plt.figure(figsize=(13, sum(heights)), layout="constrained")
    parts = np.atleast_1d(figure.subfigures(len(heights), 1, height_ratios=heights))
    for part, (setting, rows) in zip(parts, chosen.items(), strict=False):
        bars, cells = part.subplots(1, 2, sharey=True, width_ratios=[1, 1.6])
        rows = dict(sorted(rows.items(), key=lambda row: -rate(row[1])[0]))  # the best on top
        success_bars(bars, rows)
        success_cells(cells, rows)
        bars.set_title(f"{setting}, {usual} trajectories: success")
    if len(budgets) > 1:
        against_budget(parts[-1].subplots(1, 2), groups, budgets)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def success_bars(axis, rows: dict[str, list[dict]]) -> None:
    """Over all tasks, with the interval."""
    means, lows, highs = np.array([rate(group) for group in rows.values()]).T
    places = range(len(rows))
    error = [means - lows, highs - means]
    axis.barh(places, means, xerr=error, capsize=3, color="0.7", ecolor="0.3")
    axis.set_yticks(places, rows, fontsize=8)
    axis.set_xlim(0, 1.15)
    for place, mean, high in zip(places, means, highs, strict=True):
        axis.text(high + 0.02, place, f"{mean:.0%}", va="center", fontsize=8)
    axis.set_yticklabels([f"{name}  ({len(group)})" for name, group in rows.items()])
    axis.set_xlabel("95 % intervals over tasks; in brackets how many episodes", fontsize=8)


def success_cells(axis, rows: dict[str, list[dict]]) -> None:
    """By task and by camera, in per cent; empty where nothing was played or no camera seen."""
    everything = [result for group in rows.values() for result in group]
    tasks = sorted({r["task"] for r in everything})
    cameras = sorted({r["camera"] for r in everything if r["distance"]})
    cells = np.full((len(rows), len(tasks) + len(cameras)), np.nan)
    for i, group in enumerate(rows.values()):
        by_task, by_camera = mean_by(group, "task"), mean_by(group, "camera")
        cells[i, : len(tasks)] = [by_task.get((task,), np.nan) for task in tasks]
        if any(r["distance"] for r in group):
            cells[i, len(tasks) :] = [by_camera.get((camera,), np.nan) for camera in cameras]
    axis.imshow(cells, cmap="YlGn", vmin=0, vmax=1.3, aspect="auto")
    for (i, j), value in np.ndenumerate(cells):
        if not np.isnan(value):
            axis.text(j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=7)
    axis.axvline(len(tasks) - 0.5, color="black", linewidth=1)
    axis.set_xticks(range(cells.shape[1]), [*tasks, *cameras], rotation=40, ha="right", fontsize=8)
    axis.set_title("by task, and by camera (%)")


def against_budget(axes, groups: Groups, budgets: list[int]) -> None:
    """Success and distance left: where one falls and the other does not rise, the reward is cheated."""
    setting = min(setting for setting, _, _ in groups)
    for i, name in enumerate(sorted({name for _, _, name in groups})):
        known = [c for c in budgets if (setting, c, name) in groups]
        if len(known) < 2:
            continue
        played = shared(*(groups[setting, c, name] for c in known))
        label = f"{name}: the same {len(played[0])} episodes"
        look = {"marker": "o", "color": f"C{i % 10}", "label": label}
        axes[0].plot(known, [rate(group)[0] for group in played], **look)
        left = [
            [r["distance"][-1] / r["first_distance"] for r in g if r["distance"]] for g in played
        ]
        if all(left):
            axes[1].plot(known, [np.mean(values) for values in left], **look)
    axes[0].set(title=f"{setting}: success", ylim=(0, 1.02))
    axes[1].set(title="distance left at the end, in parts of the first")
    axes[1].set_ylim(0, max(1.02, axes[1].get_ylim()[1]))
    for axis in axes:
        axis.set(xscale="log", xlabel="trajectories")
        axis.set_xticks(budgets, [str(c) for c in budgets])
        axis.minorticks_off()
    axes[0].legend(fontsize=7)
