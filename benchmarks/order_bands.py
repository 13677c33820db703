"""How well scenes with a high, middle and low order tell successes from failures: what a value is good for.

Nothing is embedded: a scene's scores are those of benchmarks/results/reward_quality_*.json.
The goal is the last frame of another success.

    python benchmarks/order_bands.py
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
from machine import about, in_words
from scipy.stats import spearmanr

RESULTS = Path(__file__).parent / "results"
# Each set of clips with the file that has its scores; none was trained on.
SETS = {
    "metaworld": "metaworld",
    "kitchen": "kitchen",
    "dm_control": "rivals",
    "fetch": "rivals",
    "adroit": "adroit",
    "clips": "clips",
}
BANDS = {"order": ("voc", (-1, 0.3, 0.7, 1)), "bumps": ("bumps", (0, 0.4, 0.45, 1))}
TOLD_APART = 0.9  # auc


def read_scenes(results: Path, encoder: str) -> list[dict]:
    """Scores of every scene that has another success, by the encoder with this word in its name."""
    scenes = []
    for name, file in SETS.items():
        read = json.loads((results / f"reward_quality_{file}.json").read_text())
        groups = read["suites"][name]["groups"]
        found = next((scores for title, scores in groups.items() if encoder in title), None)
        if found is None:
            raise SystemExit(f"error: no {encoder!r} in {file}; it has {sorted(groups)}")
        scenes += [{**scores, "set": name} for scores in found.values()]
    return [scene for scene in scenes if not math.isnan(scene.get("voc", math.nan))]


def table(scenes: list[dict], value: str) -> list[str]:
    """Rows of a table: scenes by bands of order or of bumps."""
    key, edges = BANDS[value]
    told_apart = f"of them told apart (auc ≥ {TOLD_APART:g})"
    rows = [
        f"| {value} | scenes | mean bumps | with failures | {told_apart} | mean auc |",
        "|---|---|---|---|---|---|",
    ]
    for low, high in pairwise(edges):
        # A value of exactly 1 belongs to the last band.
        inside = [s for s in scenes if low <= s[key] < high or s[key] == high == edges[-1]]
        auc = np.array([s["auc"] for s in inside if not math.isnan(s.get("auc", math.nan))])
        sets = Counter(s["set"] for s in inside)
        rows.append(
            f"| {low:g} to {high:g} | {len(inside)} ({in_order(sets)}) "
            f"| {np.mean([s['bumps'] for s in inside]):.2f} | {len(auc)} "
            f"| {(auc >= TOLD_APART).sum()} | {auc.mean():.2f} |"
        )
    return rows


def in_order(counts: Counter) -> str:
    return ", ".join(f"{name} {counts[name]}" for name in SETS if counts[name])


def by_chance(frames: int, shares: Iterable[float] = (0.5, 0.95), draws: int = 10_000) -> str:
    """Between which orders these shares of clips lie whose frames are in random order."""
    random = np.random.default_rng(0)
    orders = [abs(spearmanr(range(frames), random.permutation(frames))[0]) for _ in range(draws)]
    return ", ".join(f"{share:.0%} within ±{np.quantile(orders, share):.2f}" for share in shares)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", default="bundled", help="or pixels, untrained")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder that is read")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of order_bands.md")
    args = parser.parse_args()
    scenes = read_scenes(args.results, args.encoder)
    text = [
        "# What an order, and a share of bumps, are good for\n",
        f"{in_words(about())}\n",
        f"Encoder: {args.encoder}. A scene is a task by one camera; its goal is another success's end.\n",
        *table(scenes, "order"),
        "",
        *table(scenes, "bumps"),
        "",
        f"Frames in random order, 50 of them: {by_chance(50)}.",
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "order_bands.md").write_text("\n".join(text) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main()
