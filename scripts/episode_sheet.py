"""One picture of episodes: a row for each task, frames from the first to the last.

python scripts/episode_sheet.py --suite adroit --out docs/planned_adroit.jpg        # shipped demonstrations
python scripts/episode_sheet.py --suite fetch --frames 3 --looks 4 --out docs/looks_fetch.jpg

Suites with shipped demonstrations show each task's first one, the others their scripts' success. --looks
adds the last state in so many random looks. Tasks without either are left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from torchrl_vip.envs import SUITES, load_suite
from torchrl_vip.envs.simulator import Simulator, play


def film(suite, sim: Simulator, task: str, seed: int) -> np.ndarray:
    """Frames of a success, uint8 [T, H, W, 3]; the simulator is left in the last state."""
    if hasattr(suite, "demonstrations"):
        demonstration = suite.demonstrations(task)[0]
        frames = sim.replay(demonstration).frames
        sim.repeat(demonstration)
        return frames
    return play(sim, sim.script(), seed, stride=1, hold=True).frames


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", choices=SUITES, required=True)
    parser.add_argument("--out", type=Path, required=True, help="a .jpg or .png")
    parser.add_argument("--frames", type=int, default=8, help="of an episode (%(default)s)")
    parser.add_argument("--looks", type=int, default=0, help="random looks (%(default)s)")
    parser.add_argument("--size", type=int, default=128, help="of a tile, pixels (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of episodes and looks (%(default)s)")
    args = parser.parse_args()
    suite, rows = load_suite(args.suite), []
    for task in tqdm(suite.list_tasks()):
        sim = suite.SIMULATOR(task, image_size=args.size)
        try:
            frames = film(suite, sim, task, args.seed)
        except NotImplementedError:
            continue
        chosen = np.linspace(0, len(frames) - 1, args.frames).round().astype(int)
        tiles = list(frames[chosen])
        for look in range(args.looks):
            sim.randomize(sim.WIDE, args.seed + look)
            tiles.append(sim.look())
        rows.append(np.concatenate(tiles, axis=1))
        sim.close()
    Image.fromarray(np.concatenate(rows)).save(args.out, quality=88)


if __name__ == "__main__":
    main()
