"""Tables and bars of what offline_rl.py played."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import binomtest

from torchrl_vip.evaluation.metrics import bootstrap

PAPER = {  # on a real robot, %: VIP-RWR, VIP-BC, R3M-RWR, R3M-BC, Scratch-BC
    "close-drawer": (100, 50, 80, 10, 30),
    "push-bottle": (90, 50, 70, 50, 40),
    "pickplace-melon": (60, 10, 0, 0, 0),
    "fold-towel": (90, 20, 0, 0, 0),
}
TASKS = tuple(PAPER)
CONDITIONS = ("plain", "displaced", "other look")


def wilson(used: list[bool]) -> tuple[float, float, float]:
    """Share of successes and its 95 % interval, %."""
    low, high = binomtest(sum(used), len(used)).proportion_ci(method="wilson")
    return 100 * float(np.mean(used)), 100 * low, 100 * high


def gather(rows: list[dict], settings: str = "", **chosen: Any) -> list[dict]:
    chosen["settings"] = settings
    found = [row for row in rows if all(row[k] == v for k, v in chosen.items())]
    return sorted(found, key=lambda row: row["seed"])


def outcomes(rows: list[dict], condition: str) -> list[bool]:
    """Of these cells' roll-outs; with a displaced thing, of those in which it was displaced."""
    return [
        solved
        for row in rows
        for solved, displaced in zip(row["solved"], row["displaced"], strict=True)
        if displaced or condition != "displaced"
    ]


def success_table(
    rows: list[dict], policies: Sequence[str], data: str, condition: str
) -> list[str]:
    """Success of each policy, % with Wilson's 95 % interval; seeds and roll-outs pooled."""
    head = ["policy", *TASKS, "mean", "seeds × roll-outs"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for policy in policies:
        of_policy = gather(rows, data=data, condition=condition, policy=policy)
        texts, means, counts = [], [], set()
        for task in TASKS:
            found = gather(of_policy, task=task)
            used = outcomes(found, condition)
            texts.append("{:.0f} [{:.0f}, {:.0f}]".format(*wilson(used)) if used else "–")
            means += [np.mean(used)] if used else []
            counts |= {f"{len(found)} × {len(row['solved'])}" for row in found}
        if of_policy:
            mean = f"{100 * np.mean(means):.0f}" if len(means) == len(TASKS) else "–"
            lines.append(
                f"| {policy} | {' | '.join(texts)} | {mean} | {', '.join(sorted(counts))} |"
            )
    return lines


def at_the_same_starts(rows: list[dict], data: str) -> list[dict]:
    """Roll-outs of seed 0 whose start every policy has played."""
    first = [row for row in gather(rows, data=data, condition="plain") if row["seed"] == 0]
    starts = min((len(row["solved"]) for row in first), default=0)
    cut = ("solved", "displaced")
    return [{**row, **{key: row[key][:starts] for key in cut}} for row in first]


def paired(rows: list[dict], data: str, first: str, second: str, condition: str) -> list[str]:
    """Differences over the same seeds and starts, in points, with a bootstrap interval."""
    lines = ["| task | difference | 95 % |", "|---|---|---|"]
    for task in TASKS:
        of = [
            {
                r["seed"]: r["solved"]
                for r in gather(rows, task=task, data=data, policy=p, condition=condition)
            }
            for p in (first, second)
        ]
        both = of[0].keys() & of[1].keys()
        pairs = [
            100.0 * (int(a) - int(b))
            for seed in both
            for a, b in zip(of[0][seed], of[1][seed], strict=False)
        ]
        if pairs:
            mean, low, high = bootstrap(pairs)
            lines.append(f"| {task} | {mean:+.0f} | [{low:+.0f}, {high:+.0f}] |")
    return lines


def weights_table(rows: list[dict], policies: Sequence[str], data: str) -> list[str]:
    head = "| policy | task | effective sample size | largest weight | correlation with true progress |"
    lines = [head, "|---|---|---|---|---|"]
    for policy in policies:
        for task in TASKS:
            found = gather(rows, task=task, data=data, policy=policy, condition="plain", seed=0)
            for row in (row for row in found if "effective_sample_size" in row):
                lines.append(
                    f"| {policy} | {task} | {row['effective_sample_size']:.2f} | "
                    f"{row['largest_weight']:.1f} | {row['correlation']:.2f} |"
                )
    return lines


def settings_table(rows: list[dict]) -> list[str]:
    """Of cells with other settings than the defaults, and those with the defaults, from the same starts."""
    head = ["task", "data", "policy", "settings", "effective sample size", "solved", "roll-outs"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    of = ("task", "data", "policy", "seed", "condition")
    tried = {tuple(row[key] for key in of) for row in rows if row["settings"]}
    for cell in sorted(tried):
        group = [row for row in rows if tuple(row[key] for key in of) == cell]
        starts = min(len(row["solved"]) for row in group)
        for row in sorted(group, key=lambda row: row["settings"]):
            mean, low, high = wilson(row["solved"][:starts])
            size = row.get("effective_sample_size")
            lines.append(
                f"| {row['task']} | {row['data']} | {row['policy']} | {row['settings'] or 'default'} | "
                f"{'–' if size is None else f'{size:.2f}'} | {mean:.0f} [{low:.0f}, {high:.0f}] | "
                f"{starts} |"
            )
    return lines if tried else []


def draw(rows: list[dict], policies: Sequence[str], data: str, path: Path) -> None:
    """Bars of success with their intervals: a panel a task, a bar a policy, lighter once displaced."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    axes = figure.subplots(1, len(TASKS), sharey=True)
    policies = [
        name for name in policies if gather(rows, data=data, policy=name, condition="plain")
    ]
    for axis, task in zip(axes, TASKS, strict=True):
        for number, policy in enumerate(policies):
            for condition, alpha, beside in (("plain", 1.0, -0.2), ("displaced", 0.45, 0.2)):
                of = gather(rows, data=data, policy=policy, condition=condition, task=task)
                if used := outcomes(of, condition):
                    mean, low, high = wilson(used)
                    axis.bar(number + beside, mean, 0.4, color=f"C{number}", alpha=alpha)
                    error = [[mean - low], [high - mean]]
                    axis.errorbar(number + beside, mean, error, color="black", linewidth=1)
        axis.set_title(task, fontsize=10)
        axis.set_xticks(range(len(policies)), policies, rotation=45, ha="right", fontsize=8)
    axes[0].set(ylabel=f"solved, % ({data})", ylim=(0, 105))
    figure.suptitle("light bars: the thing was put back half-way", fontsize=9)
    figure.savefig(path, dpi=110)


def tables(rows: list[dict], policies: Sequence[str], out: Path) -> list[str]:
    """Lines of Markdown; the bars go to ``out``/offline_rl_<data>.png.

    Args:
        rows: of the cells.
        policies: in the order of the tables.
    """
    text = []
    for data in dict.fromkeys(row["data"] for row in rows):
        for condition in CONDITIONS:
            if gather(rows, data=data, condition=condition):
                text += [f"## {data} demonstrations, {condition}: solved, %", ""]
                text += [*success_table(rows, policies, data, condition), ""]
                for first in ("VIP", "scene"):
                    pair = f"{first}-RWR", f"{first}-BC"
                    lines = paired(rows, data, *pair, condition)
                    if len(lines) > 2:
                        text += [f"{pair[0]} minus {pair[1]}, the same starts:", "", *lines, ""]
        if first := at_the_same_starts(rows, data):
            text += [f"## {data} demonstrations, plain, the same starts for all: solved, %", ""]
            text += [*success_table(first, policies, data, "plain"), ""]
        text += [f"## {data} demonstrations: weights", "", *weights_table(rows, policies, data), ""]
        draw(rows, policies, data, out / f"offline_rl_{data}.png")
    if lines := settings_table(rows):
        text += ["## Other settings: solved, %", "", *lines, ""]
    columns = "| task | VIP-RWR | VIP-BC | R3M-RWR | R3M-BC | scratch-BC |"
    text += ["## The paper's, on a real robot, %", "", columns, "|---" * 6 + "|"]
    return text + [f"| {task} | {' | '.join(map(str, shares))} |" for task, shares in PAPER.items()]
