"""What a success returns on real clips by scale="auto" and "auto-other", towards its own end and another's.

A difference reward adds up to how much nearer the last frame is than the first one.

    python benchmarks/return_scales.py --clips ../shared/data/clips
"""

from __future__ import annotations

import argparse
import json
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
from machine import about, in_words

from torchrl_vip import FrozenEncoder, load_vip
from torchrl_vip.data.sources import find_clips
from torchrl_vip.data.video import read_frames

ROOT = Path(__file__).parent
SCALES = {"auto": "reward_scale", "auto-other": "reward_scale_other"}


def approach(z: np.ndarray, goal: np.ndarray) -> float:
    """How much nearer a clip ``[T, D]`` comes to a goal ``[D]``, embedding units."""
    return float(np.linalg.norm(z[0] - goal) - np.linalg.norm(z[-1] - goal))


def approaches(encoder: FrozenEncoder, folder: Path) -> dict[str, list[float]]:
    """Of every success towards its own last frame, and towards the others' of its scene."""
    scenes: dict[str, list[np.ndarray]] = {}
    for clip in find_clips(folder):
        if clip.success and clip.scene:
            frames = list(read_frames(clip.path, clip.span))
            z = encoder(torch.stack([frames[0], frames[-1]])).float().numpy()
            scenes.setdefault(clip.scene, []).append(z)
    own = [approach(z, z[-1]) for clips in scenes.values() for z in clips]
    pairs = (pair for clips in scenes.values() for pair in permutations(clips, 2))
    return {"its own end": own, "another success's end": [approach(z, g[-1]) for z, g in pairs]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=Path, required=True, help="folder with manifest.json")
    parser.add_argument("--encoder", help="checkpoint's name or folder (the bundled one)")
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="folder of the results")
    args = parser.parse_args()
    made = about()
    encoder = FrozenEncoder(load_vip(args.encoder), dtype=torch.float32)
    rows = []
    for goal, found in approaches(encoder, args.clips).items():
        for scale, field in SCALES.items():
            returns = np.array(found) * encoder.config[field]
            low, middle, high = np.quantile(returns, [0.1, 0.5, 0.9])
            rows.append(
                {"goal": goal, "scale": scale, "clips": len(returns), "mean": returns.mean()}
                | {"p10": low, "median": middle, "p90": high}
            )
    text = "# What a success returns\n\nReturns of successes on real clips, by their goal.\n\n"
    text += "| goal image | scale | number | mean | median | 10 % to 90 % |\n|---|---|---|---|---|---|\n"
    for r in rows:
        text += (
            f"| {r['goal']} | {r['scale']} | {r['clips']} | {r['mean']:.2f} | {r['median']:.2f} "
        )
        text += f"| {r['p10']:.2f} to {r['p90']:.2f} |\n"
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "return_scales.md").write_text(f"{text}\n{in_words(made)}\n")
    result = {"about": made, "rows": [{k: _plain(v) for k, v in r.items()} for r in rows]}
    (args.out / "return_scales.json").write_text(json.dumps(result, indent=1) + "\n")
    print(text)


def _plain(value: object) -> object:
    return round(float(value), 4) if isinstance(value, float | np.floating) else value


if __name__ == "__main__":
    main()
