"""A goal image becomes a reward: a scripted success against a failure, on a task never trained on.

    python examples/demo.py                       # Meta-World, ten seeds, picture and video
    python examples/demo.py --video clip.mp4      # the distance curve of your own video

The goal image is the last frame of another episode, with the objects elsewhere.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import torch
from tensordict import TensorDict
from torchrl.envs import Compose, EnvBase, TransformedEnv
from torchvision.transforms.v2.functional import resize
from tqdm import tqdm

from torchrl_vip import (
    FrozenEncoder,
    VIPRewardTransform,
    VIPTransform,
    goal_distance,
    load_vip,
)
from torchrl_vip.data.video import read_frames, write_video
from torchrl_vip.evaluation.metrics import bumps, voc
from torchrl_vip.goals import read_image

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

COLOURS = {"success": "tab:green", "failure": "tab:red"}
SETTLE = 10  # steps after the success


def run_episode(
    env: EnvBase, act: Callable[[np.ndarray, int], np.ndarray], steps: int, settle: int | None
) -> TensorDict:
    """Roll out one episode of at most ``steps``, to ``settle`` steps after a success: ``[T]``."""
    td, transitions, solved = env.reset(), [], None
    for t in range(steps):
        action = np.clip(act(td["full_state"].numpy().astype(np.float64), t), -1, 1)
        td["action"] = torch.as_tensor(action, dtype=torch.float32)
        td, following = env.step_and_maybe_reset(td)
        transitions.append(td)
        if solved is None and td["next", "success"].item():
            solved = t
        if settle is not None and solved is not None and t >= solved + settle:
            break
        td = following
    return torch.stack(transitions)


def distances(episode: TensorDict) -> np.ndarray:
    """Distance to the goal of every frame, ``[T + 1]``, in embedding units."""
    z = torch.cat([episode["vip_vec"][:1], episode["next", "vip_vec"]])
    return (z - episode["goal_embedding"][0]).norm(dim=-1).numpy()


def frames(episode: TensorDict) -> np.ndarray:
    """uint8 ``[T + 1, H, W, 3]``."""
    return torch.cat([episode["pixels"][:1], episode["next", "pixels"]]).numpy()


def draw(episodes: dict[str, TensorDict], goal: np.ndarray, title: str, path: Path) -> None:
    """Frames along the top, distance to the goal and reward below."""
    columns = 7
    figure = plt.figure(figsize=(14, 9), layout="constrained")
    grid = figure.add_gridspec(4, columns + 1, height_ratios=[1, 1, 1.3, 1.0])
    figure.suptitle(title)
    axis = figure.add_subplot(grid[:2, 0])
    axis.imshow(goal)
    axis.set_title("goal\n(another episode)")
    axis.axis("off")
    for row, (name, episode) in enumerate(episodes.items()):
        images = frames(episode)
        for column, t in enumerate(np.linspace(0, len(images) - 1, columns).astype(int)):
            axis = figure.add_subplot(grid[row, column + 1])
            axis.imshow(images[t])
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_title(f"step {t}", fontsize=8)
            for side in axis.spines.values():
                side.set_color(COLOURS[name])
                side.set_linewidth(3)
    above, below = figure.add_subplot(grid[2, :]), figure.add_subplot(grid[3, :])
    for name, episode in episodes.items():
        total = episode["next", "reward"].sum().item()
        above.plot(distances(episode), color=COLOURS[name], label=f"{name} (return {total:.2f})")
        below.plot(
            np.arange(1, len(episode) + 1), episode["next", "reward"].flatten(), color=COLOURS[name]
        )
    above.set_ylabel("distance to the goal\n(embedding units)")
    above.legend()
    below.set_ylabel("reward of the step")
    below.set_xlabel("environment step")
    below.axhline(0, color="grey", linewidth=0.5)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def film(episodes: dict[str, TensorDict], goal: np.ndarray, path: Path, stride: int = 2) -> None:
    """Success and failure beside the goal, the distance curves growing below."""
    images = {name: frames(episode) for name, episode in episodes.items()}
    curves = {name: distances(episode) for name, episode in episodes.items()}
    figure, axes = plt.subplot_mosaic(
        [["goal", *images], ["curve"] * 3],
        figsize=(7.5, 5),
        height_ratios=[1.3, 1],
        layout="constrained",
    )
    axes["goal"].imshow(goal)
    shown = {name: axes[name].imshow(images[name][0]) for name in images}
    for name in ("goal", *images):
        axes[name].set_title(name)
        axes[name].axis("off")
    lines = {n: axes["curve"].plot(c, color=COLOURS[n], label=n)[0] for n, c in curves.items()}
    axes["curve"].set_ylabel("distance to the goal")
    axes["curve"].set_xlabel("environment step")
    axes["curve"].legend(loc="lower left")
    film_frames = []
    for t in range(0, max(map(len, curves.values())), stride):
        for name, line in lines.items():
            line.set_data(np.arange(t + 1)[: len(curves[name])], curves[name][: t + 1])
            shown[name].set_data(images[name][min(t, len(images[name]) - 1)])
        figure.canvas.draw()
        film_frames.append(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())
    plt.close(figure)
    write_video(path, np.stack(film_frames), fps=15)


def simulated(args: argparse.Namespace) -> None:
    """Successes against failures in Meta-World, in the environment with both transforms."""
    # Here, as a video needs no simulator
    from torchrl_vip.demonstrations.render import failing
    from torchrl_vip.envs import metaworld

    base = metaworld.make_env(
        args.task, image_size=args.image_size, seed=args.seed, max_steps=10_000
    )
    goal = metaworld.goal_image(args.task, seed=100_000 + args.seed, image_size=args.image_size)
    env = TransformedEnv(base, Compose(VIPTransform(args.encoder, del_keys=False)))
    env.append_transform(VIPRewardTransform(goal=goal, scale="auto"))
    held_out = " (never trained on)" if args.task in metaworld.HELD_OUT_TASKS else ""
    print(f"{args.task}{held_out}, {args.seeds} seeds, goal image from another episode")
    results = []
    for seed in tqdm(range(args.seed, args.seed + args.seeds), desc="seeds", unit="seed"):
        pair = {}
        # The same object and target positions for both; other ones for every seed.
        env.set_seed(seed)
        pair["success"] = run_episode(env, base.sim.script(), args.steps, SETTLE)
        env.set_seed(seed)
        rng = np.random.default_rng(seed)
        act = failing(base.sim, "stops" if seed % 2 else "misses", len(pair["success"]), rng)
        pair["failure"] = run_episode(env, act, len(pair["success"]), None)
        results.append(pair)
    env.close()

    print("\n seed  success: solved  return  order | failure: solved  return  order")
    margins = []
    for seed, pair in enumerate(results, args.seed):
        row = []
        for episode in pair.values():
            solved = bool(episode["next", "success"].any())
            row += [solved, episode["next", "reward"].sum().item(), voc(distances(episode))]
        margins.append(row[1] - row[4])
        print(
            f"{seed:5d} {row[0]!s:>16} {row[1]:7.2f} {row[2]:6.2f} | {row[3]!s:>15} "
            f"{row[4]:7.2f} {row[5]:6.2f}"
        )
    clean = [
        m
        for m, pair in zip(margins, results, strict=True)
        if pair["success"]["next", "success"].any() and not pair["failure"]["next", "success"].any()
    ]
    print(
        f"\nthe success out-returned the failure in {sum(m > 0 for m in clean)} of {len(clean)} seeds"
    )
    if len(clean) < len(results):
        print(
            f"({len(results) - len(clean)} seeds left out: the script failed, or the failure solved it)"
        )
    print("order: rank correlation of time with minus the distance to the goal, 1 is best")

    median = int(np.argsort(margins)[len(margins) // 2])
    title = f"{args.task}{held_out}, seed {args.seed + median} (median margin)"
    draw(results[median], goal, title, args.out / "demo.png")
    film(results[median], goal, args.out / "demo.mp4")
    print(f"\nwrote {args.out / 'demo.png'} and {args.out / 'demo.mp4'}")


def filmed(args: argparse.Namespace) -> None:
    """Distance and reward along a video, towards its own last frame or a given goal image."""
    encoder = FrozenEncoder(load_vip(args.encoder))
    z_goal = encoder(read_image(args.goal)) if args.goal else None
    z, images = [], []  # small ones: a minute of full size does not fit into memory
    for frame in tqdm(read_frames(args.video), desc="frames", unit="frame"):
        z.append(encoder(frame))
        images.append(resize(frame, [min(200, *frame.shape[1:])], antialias=True))
    if len(images) < 2:
        raise ValueError(f"{args.video}: {len(images)} frame(s); wanted a video of two or more.")
    curve = goal_distance(torch.stack(z), z[-1] if z_goal is None else z_goal).numpy()
    goal = "given goal" if args.goal else "own last frame"
    print(
        f"{args.video}: {len(images)} frames, {goal}: order {voc(curve):.2f}, bumps {bumps(curve):.2f}"
    )
    if not args.goal:
        print("(against its own last frame even raw pixels order a clip well: see the model card)")
    columns = 8
    figure = plt.figure(figsize=(14, 6), layout="constrained")
    grid = figure.add_gridspec(2, columns, height_ratios=[1, 1.6])
    for column, t in enumerate(np.linspace(0, len(images) - 1, columns).astype(int)):
        axis = figure.add_subplot(grid[0, column])
        axis.imshow(images[t].permute(1, 2, 0))
        axis.set_title(f"frame {t}", fontsize=8)
        axis.axis("off")
    axis = figure.add_subplot(grid[1, :])
    axis.plot(curve, color="tab:blue")
    axis.set_xlabel("frame")
    axis.set_ylabel(f"distance to the {goal}\n(embedding units)")
    path = args.out / f"{Path(args.video).stem}.png"
    figure.savefig(path, dpi=80)
    plt.close(figure)
    print(f"wrote {path}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="drawer-open-v3", help="Meta-World task (%(default)s)")
    parser.add_argument(
        "--seeds", type=int, default=10, help="number of episodes of each kind (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="first seed (%(default)s)")
    parser.add_argument(
        "--steps", type=int, default=150, help="longest episode, steps (%(default)s)"
    )
    parser.add_argument(
        "--image-size", type=int, default=128, help="frames' side, pixels (%(default)s)"
    )
    parser.add_argument(
        "--encoder", default=None, help="checkpoint name or folder (bundled default)"
    )
    parser.add_argument("--video", help="a video file or folder of frames instead of the simulator")
    parser.add_argument("--goal", help="with --video: goal image (the video's last frame)")
    parser.add_argument(
        "--out", type=Path, default=Path("demo_out"), help="output folder (%(default)s)"
    )
    args = parser.parse_args(arguments)
    if args.goal and not args.video:
        parser.error("--goal goes with --video")
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.time()
    try:
        filmed(args) if args.video else simulated(args)
    except (ValueError, FileNotFoundError, ImportError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    print(f"{time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
