"""What taking the robot out of the frames does to the distance, on FrankaKitchen.

For every task: its shipped demonstrations against the end of each other one (order, bumps), and a robot
that wanders without effect from the same start, whose decoy share is how much of a demonstration's way to the
goal it seems to make. Frames and goals are drawn with the robot, masked (torchrl_vip.MaskRobot does the same
in an environment), and by the camera that leaves the robot out, which no real camera can. Backgrounds are of
the start state: drawn without the robot, or what was seen behind one that wandered in another way before.

    python benchmarks/robot_mask.py                      # some minutes on one core
    python benchmarks/robot_mask.py --tasks sdoor_open micro_open
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from machine import about, in_words
from torch import Tensor
from tqdm import tqdm

from torchrl_vip import BehindRobot, FrozenEncoder, load_vip, mask_robot
from torchrl_vip.demonstrations.idle import wander
from torchrl_vip.envs.kitchen import CAMERAS, KitchenSim, demonstrations, list_tasks
from torchrl_vip.evaluation.metrics import bootstrap, bumps, decoy_share, smoothed, voc

ROOT = Path(__file__).parent
SMOOTHING = 0.5
WAYS = {
    "robot": ("with the robot", "with the robot"),
    "hand": ("with the robot", "without the robot"),
    "masked": ("masked, no background", "without the robot"),
    "masked_goal": ("masked, no background", "masked, no background"),
    "background": ("masked, background drawn", "without the robot"),
    "waved": ("masked, background seen while waving", "without the robot"),
    "waved_goal": ("masked, background seen while waving", "masked, that background"),
    "no_robot": ("without the robot (privileged)", "without the robot"),
}
"""Name: what frames show, what the goal shows."""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--tasks", nargs="+", choices=list_tasks(), default=list_tasks(), metavar="TASK")
    add("--camera", choices=CAMERAS, default="default", help="(%(default)s)")
    add("--stride", type=int, default=2, help="steps between frames (%(default)s)")
    add("--steps", type=int, default=200, help="that the robot wanders (%(default)s)")
    add("--image-size", type=int, default=128, help="pixels (%(default)s)")
    add("--seed", type=int, default=0, help="of the wandering (%(default)s)")
    add("--encoder", help="checkpoint's name or folder (the bundled one)")
    add("--out", type=Path, default=ROOT / "results", help="folder of the results")
    return parser.parse_args()


class Positions(KitchenSim):
    """Shows positions in place of pictures, so that one wandering can be drawn several times."""

    def render(self, camera: str | None = None) -> np.ndarray:
        return self.data.qpos


@dataclass
class Clip:
    """One episode: frames uint8 ``[T, H, W, 3]``, masks bool ``[T, H, W]``."""

    robot: Tensor
    mask: Tensor
    no_robot: Tensor

    def masked(self, background: Tensor | None = None) -> Tensor:
        behind = BehindRobot(background, warn=False)
        return torch.stack([behind.step(*seen) for seen in zip(self.robot, self.mask, strict=True)])


def draw(sim: KitchenSim, positions: np.ndarray, camera: str) -> Clip:
    """A clip of stored positions ``[T, Q]``."""
    robot, mask, no_robot = [], [], []
    for qpos in positions:
        sim.pose(qpos)
        robot.append(torch.from_numpy(sim.render(camera).copy()))
        mask.append(torch.from_numpy(sim.robot_mask(camera)))
        no_robot.append(torch.from_numpy(sim.render(f"{camera}/no-robot").copy()))
    return Clip(torch.stack(robot), torch.stack(mask), torch.stack(no_robot))


def wandering(task: str, seed: int, steps: int, stride: int) -> np.ndarray:
    """Positions ``[T, Q]`` of a robot that moves without effect from the task's start on."""
    sim = Positions(task, image_size=16)
    sim.reset(seed)
    actions = demonstrations(task)[0].actions
    near = lambda state, t: actions[min(t, len(actions) - 1)]  # noqa: E731
    positions = wander(sim, near, np.random.default_rng(seed), steps=steps, stride=stride)
    sim.close()
    assert positions is not None  # things of the kitchen stay as they are
    return positions


def embedded(clip: Clip, encoder: FrozenEncoder, other: Clip) -> dict[str, tuple[Tensor, Tensor]]:
    """Embeddings ``[T, D]`` of what frames show, and ``[D]`` of their ends as goals, by WAYS.

    ``other`` is of a robot that has wandered before.
    """
    drawn, waved = other.no_robot[-1], other.masked()[-1]
    ends = [mask_robot(clip.robot[-1], clip.mask[-1], behind) for behind in (None, waved)]
    goal, goal_waved = encoder(torch.stack(ends))
    robot, no_robot = encoder(clip.robot), encoder(clip.no_robot)
    end, masked, seen = no_robot[-1], encoder(clip.masked()), encoder(clip.masked(waved))
    return {
        "robot": (robot, robot[-1]),
        "hand": (robot, end),
        "masked": (masked, end),
        "masked_goal": (masked, goal),
        "background": (encoder(clip.masked(drawn)), end),
        "waved": (seen, end),
        "waved_goal": (seen, goal_waved),
        "no_robot": (no_robot, end),
    }


def score(solved: list[tuple[Tensor, Tensor]], idle: Tensor) -> dict[str, float]:
    """Of one task seen in one way: demonstrations' frames and goals, and the wandering's frames."""
    rows = []
    for i, (z, _) in enumerate(solved):
        for goal in (goal for j, (_, goal) in enumerate(solved) if j != i):
            curve, decoy = ((z - goal).norm(dim=-1).numpy() for z in (z, idle))
            average = smoothed(curve, SMOOTHING)
            rows.append(
                {
                    "decoy_share": decoy_share(decoy, curve[0], curve[-1]),
                    "decoy_share_smoothed": decoy_share(
                        smoothed(decoy, SMOOTHING), average[0], average[-1]
                    ),
                    "order": voc(curve),
                    "bumps": bumps(curve),
                    "order_smoothed": voc(average),
                    "bumps_smoothed": bumps(average),
                }
            )
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


@torch.no_grad()
def main() -> None:
    args = parse_args()
    machine = about()
    encoder = FrozenEncoder(load_vip(args.encoder))
    scores: dict[str, dict[str, dict[str, float]]] = {way: {} for way in WAYS}
    covered = []
    for task in tqdm(args.tasks, desc="tasks", mininterval=5):
        sim = KitchenSim(task, image_size=args.image_size)
        episodes = [
            d.qpos[:: -args.stride][::-1] for d in demonstrations(task)
        ]  # with its last frame
        episodes += [wandering(task, args.seed + i, args.steps, args.stride) for i in range(2)]
        *clips, other = [draw(sim, positions, args.camera) for positions in episodes]
        sim.close()
        covered += [float(clip.mask.float().mean()) for clip in clips]
        seen = [embedded(clip, encoder, other) for clip in clips]
        for way in WAYS:
            scores[way][task] = score([one[way] for one in seen[:-1]], seen[-1][way][0])
    write(args, machine, scores, float(np.mean(covered)))


def write(args: argparse.Namespace, machine: dict, scores: dict[str, dict], covered: float) -> None:
    """The result as JSON and as tables."""
    metrics = list(next(iter(scores["robot"].values())))
    mean = {
        way: {m: bootstrap([of[m] for of in tasks.values()]) for m in metrics}
        for way, tasks in scores.items()
    }
    text = ["# Frames without the robot, FrankaKitchen", "", in_words(machine), ""]
    text += [f"The robot covers {covered:.0%} of a picture. Mean over tasks [95 % interval].", ""]
    text += [
        "| frames | goal | decoy share | order | bumps | with smoothing .5: decoy share | order | bumps |",
        "|---|---|---|---|---|---|---|---|",
    ]
    columns = ["decoy_share", "order", "bumps"]
    for way, (frames, goal) in WAYS.items():
        cells = [_cell(mean[way][m]) for m in columns]
        cells += [f"{mean[way][f'{m}_smoothed'][0]:.2f}" for m in columns]
        text.append(f"| {' | '.join([frames, goal, *cells])} |")
    for name in ("decoy_share", "order"):
        text += ["", f"## {name.replace('_', ' ').capitalize()} of each task", ""]
        text += ["Columns in the order of the rows above.", ""]
        text += ["| task | " + " | ".join(WAYS) + " |", "|---" * (len(WAYS) + 1) + "|"]
        for task in args.tasks:
            values = " | ".join(f"{scores[way][task][name]:.2f}" for way in WAYS)
            text.append(f"| {task} | {values} |")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "robot_mask.md").write_text("\n".join(text) + "\n")
    result = {"about": machine, "covered": covered, "mean": mean, "tasks": scores}
    (args.out / "robot_mask.json").write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(text))


def _cell(interval: tuple[float, float, float]) -> str:
    return f"{interval[0]:.2f} [{interval[1]:.2f}, {interval[2]:.2f}]"


if __name__ == "__main__":
    main()
