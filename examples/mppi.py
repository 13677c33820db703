r"""Plan to a goal image with MPPI on the real simulator, and draw what the planner saw.

    python examples/mppi.py --task sdoor_open --out plan            # about a minute on two cores
    python examples/mppi.py --task light_on --camera right_cam --start 0 --steps 100
    python examples/mppi.py --task ldoor_close --read-goal
    python examples/mppi.py --suite fetch --task fetch-push
    python examples/mppi.py --suite adroit --task adroit-hammer --sigma 0.5
    python examples/mppi.py --suite metaworld --task door-close-v3 --frame-skip 2 \
        --camera corner4+corner4/no-robot

At every step 32 noisy action sequences run ahead from the saved state of the simulator, each is scored
by the embedding distance of its last frame to the goal, and their weighted mean gives the next
action (VIP, arXiv 2210.00030, appendix E). It stops once the task has been solved for five actions. In the
kitchen and Adroit it starts from state --start of a shipped demonstration, whose end is the goal; elsewhere
from the reset of --seed. Several cameras, joined by +, are embedded each by itself, and their distances
added in parts of what each was at the start; one whose name ends in "/no-robot" sees the scene, and the
goal, without the robot. --beside-robot needs no such goal: it finds the robot in the goal image, drawing it
until it looks the same, and also compares frames without the robot to the rest. --read-goal reads once what
the goal image shows moved, how far, and where the robot touches it, by moving each thing in the simulator
until the embedding is nearest; candidates are then judged by that, and none is drawn.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path

from terminal import deaf_to_ctrl_c, make_folder

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads would take the workers' cores

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from tqdm import tqdm

from torchrl_vip import FrozenEncoder, camera_weights, goal_distance, load_vip
from torchrl_vip.data.video import write_video
from torchrl_vip.envs import SUITES, load_suite
from torchrl_vip.envs.planned import PlannedSim
from torchrl_vip.envs.simulator import WITHOUT_ROBOT, Simulator
from torchrl_vip.planning import (
    MPPI,
    GoalReading,
    Rollouts,
    find_robot,
    in_deviations,
    last_frame,
    read_goal,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--suite", default="kitchen", choices=SUITES, help="(%(default)s)")
    add("--task", default="sdoor_open", help="one of the suite's (%(default)s)")
    add("--camera", help="its name, or several joined by + (the suite's own)")
    add("--beside-robot", action="store_true", help="also compare what is beside the robot")
    add(
        "--read-goal",
        action="store_true",
        help="read what moved in the goal image, and plan on that",
    )
    add("--start", type=int, default=15, help="state of the demonstration, if any (%(default)s)")
    add("--steps", type=int, default=50, help="actions at most (%(default)s)")
    add("--trajectories", type=int, default=32, help="candidates a step (%(default)s)")
    add("--horizon", type=int, default=12, help="actions a candidate looks ahead (%(default)s)")
    add("--frame-skip", type=int, default=1, help="steps that an action is held (%(default)s)")
    add("--sigma", type=float, default=1.0, help="of the noise, actions (%(default)s)")
    add("--encoder", help="checkpoint's name or folder (the bundled one)")
    add("--blur", type=float, default=0.0, help="before the encoder, pixels (%(default)s)")
    add("--image-size", type=int, default=160, help="pixels (%(default)s)")
    add("--processes", type=int, default=len(os.sched_getaffinity(0)), help="(one a core)")
    add("--seed", type=int, default=0, help="of start, goal and noise (%(default)s)")
    add("--out", type=Path, default=Path("plan"), help="folder of video and picture (%(default)s)")
    add("--smoke", action="store_true", help="seconds, to see that everything works")
    args = parser.parse_args()
    if args.task not in (tasks := load_suite(args.suite).list_tasks()):
        parser.error(f"unknown task {args.task!r}; {args.suite} has {', '.join(tasks)}")
    least = dict.fromkeys(("frame_skip", "steps", "trajectories", "horizon", "image_size"), 1)
    for name, low in {**least, "processes": 0, "seed": 0, "start": 0}.items():
        if (value := getattr(args, name)) < low:
            parser.error(f"--{name.replace('_', '-')} {value}: wanted {low} or more")
    for name in ("sigma", "blur"):
        if not 0 <= (value := getattr(args, name)) < np.inf:
            parser.error(f"--{name} {value}: wanted 0 or more")
    if args.beside_robot and args.read_goal:
        parser.error("--read-goal looks beside the robot anyway: no --beside-robot")
    if (args.beside_robot or args.read_goal) and {*"+/"} & {*(args.camera or "")}:
        parser.error(
            f"--beside-robot and --read-goal take one camera with the robot; got {args.camera}"
        )
    if args.smoke:
        args.steps, args.trajectories, args.horizon, args.processes = 2, 3, 2, 0
    return args


def main() -> None:
    args = parse_args()
    make_folder(args.out)
    suite = load_suite(args.suite)
    cameras = (args.camera or suite.SIMULATOR.CAMERA).split("+")
    shown = cameras[0]
    if args.beside_robot or args.read_goal:
        cameras = [shown] * args.beside_robot + [shown + WITHOUT_ROBOT]
    options = {"camera": shown, "image_size": args.image_size}
    sim = suite.SIMULATOR(args.task, **options)

    # -- the goal and the start ---------------------------------------------------------------------
    views, rest = [shown, *cameras], 0.0
    if isinstance(sim, PlannedSim):
        demonstrations = suite.demonstrations(args.task)
        demonstration = demonstrations[args.seed % len(demonstrations)]
        if args.start >= (steps := len(demonstration.actions)):
            sys.exit(
                f"error: --start {args.start}: the demonstration solves the task in {steps} steps"
            )
        goal = sim.last_look(demonstration, views)
        sim.repeat(demonstration, args.start)
        if args.start:
            rest = sim.hold_still(demonstration.actions[args.start - 1])
    else:
        goal = sim.solved_frame(args.seed, cameras=views)
        if goal is None:
            sys.exit(
                f"error: the script does not solve {args.task} from seed {args.seed}: try another"
            )
        sim.reset(args.seed)
    picture, goal = goal[0], goal[1:]
    robot = hidden = None
    if args.beside_robot or args.read_goal:
        goal[:] = picture  # one image, with the robot in it
        search = {"candidates": 8, "iterations": 1} if args.smoke else {}
        robot = find_robot(sim, picture, shown, seed=args.seed, **search)
        hidden = robot.pixels

    # -- the reward: minus the distance to the goal -------------------------------------------------
    encoder = FrozenEncoder(load_vip(args.encoder), blur=args.blur)

    def embedded(frames: np.ndarray) -> torch.Tensor:
        """uint8 [N, K, H, W, 3] to [N, K D], the cameras' embeddings one after another."""
        if hidden is not None:
            # Where the goal image shows the robot, the last camera's frame is not compared.
            frames = frames.copy()
            frames[:, -1, hidden] = picture[hidden]
        return encoder(torch.from_numpy(frames).flatten(0, 1)).reshape(len(frames), -1)

    z_goal, weights = embedded(goal[None])[0], None
    if len(cameras) > 1:
        weights = camera_weights(embedded(sim.look(cameras)[None]), z_goal, len(cameras))

    def distance(frames: np.ndarray) -> np.ndarray:
        """uint8 [N, K, H, W, 3] to [N]."""
        return goal_distance(embedded(frames), z_goal, weights).numpy()

    look = partial(last_frame, cameras=cameras)
    if args.read_goal:
        reading = read_goal(sim, picture, shown, robot, lambda frames: distance(frames[:, None]))
        if reading is None:
            sys.exit("error: the goal image shows nothing moved that has a hinge or slide")
        print(f"read: {reading.joint} is to be at {reading.value:.2f}")
        look = partial(read_score, reading=reading)

    def score(seen: np.ndarray) -> np.ndarray:
        """Of candidates [N], higher is better."""
        if args.read_goal:
            return seen
        if robot is None:
            return -distance(seen)
        parts = (embedded(seen) - z_goal).unflatten(-1, (len(cameras), -1)).norm(dim=-1)
        return -in_deviations(parts.numpy())

    # -- the plan -----------------------------------------------------------------------------------
    planner = MPPI(
        sim.ACTION_SIZE,
        horizon=args.horizon,
        trajectories=args.trajectories,
        sigma=args.sigma,
        rest=rest,
        seed=args.seed,
    )
    frames, film_of, solved = [sim.look(cameras)], [sim.look([shown])[0]], []
    make_sim = partial(suite.SIMULATOR, args.task, **options)
    with deaf_to_ctrl_c():
        rollouts = Rollouts(make_sim, look, processes=args.processes)
    with rollouts, tqdm(total=args.steps, unit="action") as bar:
        for _ in range(args.steps):
            state = sim.get_state()
            action = planner.plan(
                lambda tried, s=state: score(rollouts(s, tried.repeat(args.frame_skip, axis=1)))
            )
            for _ in range(args.frame_skip):
                _, _, success = sim.step(action)
            if isinstance(sim, PlannedSim):
                planner.rest = sim.hold_still(action)  # Adroit's actions are positions
            frames.append(sim.look(cameras))
            film_of.append(sim.look([shown])[0])
            solved.append(success)
            bar.update()
            bar.set_postfix(distance=f"{distance(frames[-1][None])[0]:.2f}", solved=success)
            if all(solved[-5:]) and len(solved) >= 5:
                break
    sim.close()

    # -- what came of it ----------------------------------------------------------------------------
    curve = distance(np.stack(frames))
    print(
        f"{args.task}: {'solved' if solved[-1] else 'not solved'} after {len(solved)} actions; "
        f"distance {curve[0]:.2f} -> {curve[-1]:.2f}"
    )
    if hidden is not None:
        picture[hidden] = picture[hidden] // 2 + np.array([0, 0, 127], np.uint8)  # not compared
    draw(film_of, picture, curve, args.out / f"{args.task}.png")
    film(film_of, picture, curve, args.out / f"{args.task}.mp4")
    print(f"wrote {args.out / args.task}.png and .mp4")


def read_score(sim: Simulator, _: float, reading: GoalReading) -> float:
    """Of a candidate's last state."""
    return reading.score(sim.data)


def draw(frames: list[np.ndarray], goal: np.ndarray, curve: np.ndarray, path: Path) -> None:
    """Five frames and the goal above the distance."""
    shown = np.linspace(0, len(frames) - 1, 5).astype(int)
    names = [f"action {i}" for i in shown] + ["goal"]
    keys = [f"{column}" for column in range(6)]
    figure, axes = plt.subplot_mosaic(
        [keys, ["curve"] * 6], figsize=(12, 5), height_ratios=[1, 1.2], layout="constrained"
    )
    images = [frames[i] for i in shown] + [goal]
    for key, name, image in zip(keys, names, images, strict=True):
        axes[key].imshow(image)
        axes[key].set_title(name, fontsize=9)
        axes[key].axis("off")
    axes["curve"].plot(curve)
    axes["curve"].set(xlabel="action", ylabel="distance to the goal", ylim=(0, 1.05 * curve.max()))
    figure.savefig(path, dpi=80)
    plt.close(figure)


def film(frames: list[np.ndarray], goal: np.ndarray, curve: np.ndarray, path: Path) -> None:
    """The episode beside the goal, its distance growing below."""
    figure, axes = plt.subplot_mosaic(
        [["now", "goal"], ["curve", "curve"]],
        figsize=(6, 5),
        height_ratios=[1.6, 1],
        layout="constrained",
    )
    now = axes["now"].imshow(frames[0])
    axes["goal"].imshow(goal)
    for name in ("now", "goal"):
        axes[name].set_title(name)
        axes[name].axis("off")
    (line,) = axes["curve"].plot(curve)
    axes["curve"].set(xlabel="action", ylabel="distance to the goal", ylim=(0, 1.05 * curve.max()))
    pictures = []
    for t, frame in enumerate(frames):
        now.set_data(frame)
        line.set_data(np.arange(t + 1), curve[: t + 1])
        figure.canvas.draw()
        pictures.append(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())
    plt.close(figure)
    write_video(path, np.stack(pictures), fps=10)


if __name__ == "__main__":
    main()
