"""One picture of a suite's goal images, a tile a task, to be looked at.

python scripts/goal_sheet.py --suite metaworld --out docs/suites_metaworld.jpg
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from torchrl_vip.envs import SUITES, load_suite

LABEL = 14  # pixels


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", choices=SUITES, required=True)
    parser.add_argument("--out", type=Path, required=True, help="a .jpg or .png")
    parser.add_argument("--columns", type=int, default=10, help="(%(default)s)")
    parser.add_argument("--size", type=int, default=128, help="of a tile, pixels (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the episodes (%(default)s)")
    args = parser.parse_args()
    suite = load_suite(args.suite)
    tasks = suite.list_tasks()
    rows = -(-len(tasks) // args.columns)
    sheet = Image.new("RGB", (args.columns * args.size, rows * (args.size + LABEL)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, task in enumerate(tqdm(tasks)):
        row, column = divmod(i, args.columns)
        corner = (column * args.size, row * (args.size + LABEL))
        try:
            goal = suite.goal_image(task, seed=args.seed, image_size=args.size)
        except (NotImplementedError, RuntimeError) as error:  # no script, or it fails
            draw.text((corner[0] + 2, corner[1] + LABEL + 2), type(error).__name__, fill="red")
        else:
            sheet.paste(Image.fromarray(np.asarray(goal)), (corner[0], corner[1] + LABEL))
        name = task.removesuffix("-v3").removesuffix("_vision")
        draw.text((corner[0] + 2, corner[1] + 1), name[: args.size // 6], fill="black")
    sheet.save(args.out, quality=88)


if __name__ == "__main__":
    main()
