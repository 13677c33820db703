"""One picture of a suite's goal images, a tile a task and camera, to be looked at.

python scripts/goal_sheet.py --suite metaworld --out docs/suites_metaworld.jpg
python scripts/goal_sheet.py --suite kitchen --columns 6 --cameras default left_cam right_cam \\
    --out docs/suites_kitchen.jpg
"""

from __future__ import annotations

import argparse
from pathlib import Path
from textwrap import wrap

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from torchrl_vip.envs import SUITES, load_suite

LINE, LETTER = 12, 6  # pixels


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", choices=SUITES, required=True)
    parser.add_argument("--out", type=Path, required=True, help="a .jpg or .png")
    parser.add_argument("--cameras", nargs="+", help="one below the other (the suite's own)")
    parser.add_argument("--columns", type=int, default=10, help="(%(default)s)")
    parser.add_argument("--size", type=int, default=128, help="of a tile, pixels (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the episodes (%(default)s)")
    args = parser.parse_args()
    suite = load_suite(args.suite)
    tasks, cameras, letters = suite.list_tasks(), args.cameras or [None], args.size // LETTER - 1
    names = [wrap(t.removesuffix("-v3").removesuffix("_vision"), letters) for t in tasks]
    label = LINE * max(map(len, names)) + 2
    height = label + len(cameras) * args.size
    rows = -(-len(tasks) // args.columns)
    sheet = Image.new("RGB", (args.columns * args.size, rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, task in enumerate(tqdm(tasks)):
        row, column = divmod(i, args.columns)
        left, top = column * args.size, row * height
        draw.text((left + 2, top), "\n".join(names[i]), fill="black", spacing=0)
        for number, camera in enumerate(cameras):
            below = top + label + number * args.size
            try:
                goal = suite.goal_image(task, camera=camera, seed=args.seed, image_size=args.size)
            except (NotImplementedError, RuntimeError) as error:  # no script, or it fails
                draw.text((left + 2, below + 2), type(error).__name__, fill="red")
            else:
                sheet.paste(Image.fromarray(np.asarray(goal)), (left, below))
    sheet.save(args.out, quality=88)


if __name__ == "__main__":
    main()
