"""A goal image becomes a reward: a scripted success against a failure, on a task never trained on.

    python examples/demo.py                                      # Meta-World, ten seeds
    python examples/demo.py --video clip.mp4 --goal goal.png     # your video, your goal image
    python examples/demo.py --video clip.mp4                     # its own last frame as the goal

The first one writes demo.png and demo.mp4: the goal image is the last frame of another episode, with the
objects elsewhere. With --video it is a picture of the distance to the goal image along your video.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import terminal
import figures
import numpy as np
import torch
from figures import Episode
from tensordict import TensorDict
from torchrl.envs import Compose, EnvBase, TransformedEnv
from tqdm import tqdm

from torchrl_vip import VIPRewardTransform, VIPTransform, goal_distance
from torchrl_vip.curves import Thumbnails, draw_curve, measure
from torchrl_vip.curves.curve import small
from torchrl_vip.curves.figures import save
from torchrl_vip.data.video import read_frames
from torchrl_vip.evaluation.metrics import voc
from torchrl_vip.goals import read_image

SETTLE = 10  # steps after the success


# -- episodes of the simulator ----------------------------------------------------------------------


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


def as_shown(td: TensorDict) -> Episode:
    """What the pictures need of an episode ``[T]``."""
    z = torch.cat([td["vip_vec"][:1], td["next", "vip_vec"]])
    success = td["next", "success"].flatten()
    return Episode(
        frames=torch.cat([td["pixels"][:1], td["next", "pixels"]]).numpy(),
        distances=goal_distance(z, td["goal_embedding"][0]).numpy(),
        rewards=td["next", "reward"].flatten().numpy(),
        solved=int(success.nonzero()[0]) + 1 if success.any() else None,
    )


def play(args: argparse.Namespace) -> tuple[list[dict[str, Episode]], np.ndarray]:
    """A success and a failure from the same start for every seed, and the goal image."""
    # Here, as a video needs no simulator
    from torchrl_vip.demonstrations.render import failing
    from torchrl_vip.envs import metaworld

    base = metaworld.make_env(
        args.task, image_size=args.image_size, seed=args.seed, max_steps=10_000
    )
    goal = metaworld.goal_image(args.task, seed=100_000 + args.seed, image_size=args.image_size)
    env = TransformedEnv(base, Compose(VIPTransform(args.encoder, del_keys=False)))
    env.append_transform(VIPRewardTransform(goal=goal, scale="auto"))
    pairs = []
    for seed in tqdm(range(args.seed, args.seed + args.seeds), desc="seeds", unit="seed"):
        # The same object and target positions for both; other ones for every seed.
        env.set_seed(seed)
        success = run_episode(env, base.sim.script(), args.steps, SETTLE)
        env.set_seed(seed)
        rng = np.random.default_rng(seed)
        act = failing(base.sim, "stops" if seed % 2 else "misses", len(success), rng)
        failure = run_episode(env, act, len(success), None)
        pairs.append({"success": as_shown(success), "failure": as_shown(failure)})
    env.close()
    return pairs, goal


def print_table(pairs: list[dict[str, Episode]], first_seed: int) -> None:
    print("\n               success                failure")
    print("seed   solved  return  order   solved  return  order")
    for seed, pair in enumerate(pairs, first_seed):
        row = f"{seed:4d}"
        for episode in pair.values():
            solved = "no" if episode.solved is None else "yes"
            row += f"   {solved:>6}  {episode.rewards.sum():6.2f}  {voc(episode.distances):5.2f}"
        print(row)
    print(
        "\nsolved: whether the simulator says so; the reward never saw it.\n"
        "return: sum of the rewards. A reward is how much nearer to the goal image a step came, in\n"
        "        parts of what a clip covers to its own last frame; another episode's is not as near.\n"
        "order:  rank correlation of time with minus the distance to the goal image, 1 is best."
    )


def simulated(args: argparse.Namespace) -> None:
    """Successes against failures in Meta-World, in the environment with both transforms."""
    from torchrl_vip.envs import metaworld

    held_out = ", never trained on" if args.task in metaworld.HELD_OUT_TASKS else ""
    print(f"{args.task}{held_out}: {args.seeds} seeds, goal image from another episode")
    pairs, goal = play(args)
    print_table(pairs, args.seed)
    margins = np.array([p["success"].rewards.sum() - p["failure"].rewards.sum() for p in pairs])
    clean = np.array(
        [p["success"].solved is not None and p["failure"].solved is None for p in pairs]
    )
    won = f"{(margins[clean] > 0).sum()} of {clean.sum()} seeds"
    print(f"\nThe success out-returned the failure in {won}.")
    if not clean.all():
        print(f"({(~clean).sum()} left out: the script failed, or the failure solved the task)")

    median = int(np.argsort(margins)[len(margins) // 2])
    pair, seed = pairs[median], args.seed + median
    title = f"Success against failure in the eyes of one goal image: {args.task}{held_out}"
    totals = {name: f"{episode.rewards.sum():.2f}" for name, episode in pair.items()}
    sentences = [
        "Both episodes have the same start. Each step is rewarded by how much nearer it came to the "
        "goal image, the end of another episode with the objects elsewhere.",
        f"The rewards of the success add up to {totals['success']}, those of the failure to "
        f"{totals['failure']} (seed {seed}, the median margin). "
        f"The success had the higher sum in {won}.",
    ]
    figures.draw_episodes(pair, goal, args.out / "demo.png", title=title, sentences=sentences)
    title = f"{args.task}{held_out}: distance to one goal image"
    figures.film_episodes(pair, goal, args.out / "demo.mp4", title=title)
    print(f"\nwrote {args.out / 'demo.png'} and {args.out / 'demo.mp4'}")


# -- a video ----------------------------------------------------------------------------------------


def moments(video: str) -> np.ndarray | None:
    """Seconds of each frame of a video file, ``[T]``; None of a folder of frames."""
    from torchrl_vip.data.video_file import probe

    return None if Path(video).is_dir() else probe(Path(video)).seconds


def filmed(args: argparse.Namespace) -> None:
    """Distance along a video, towards its own last frame or a given goal image."""
    picture = read_image(args.goal) if args.goal else None  # before the minutes of a long video
    shown = Thumbnails(tqdm(read_frames(args.video), desc="frames", unit="frame"))
    try:
        curve = measure(shown, picture, args.encoder)
    except ValueError as error:
        raise ValueError(f"{args.video}: {str(error).removeprefix(f'{args.video}: ')}") from error

    name = Path(args.video).resolve().name
    goal_name = Path(args.goal).name if args.goal else "its own last frame"
    sentences = curve.sentences()
    if not args.goal:
        sentences.append(
            "Against its own last frame almost any embedding orders a clip well, even raw pixels: "
            "--goal with the end of another episode says more."
        )
    print(f"{name}: {len(curve)} frames, goal image: {goal_name}")
    print("\n".join(sentences))
    figure = draw_curve(
        curve,
        shown.images,
        shown.images[len(curve) - 1] if picture is None else small(picture),
        times=moments(args.video),
        title=f"How far is {name} from {f'the goal image {goal_name}' if args.goal else goal_name}?",
        goal_name=goal_name,
        sentences=sentences,
    )
    path = save(figure, args.out / f"{Path(args.video).resolve().stem}.png")
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
    for name in ("seeds", "steps", "image_size"):
        if (value := getattr(args, name)) < 1:
            parser.error(f"--{name.replace('_', '-')} {value}: wanted 1 or more")
    terminal.make_folder(args.out)
    start = time.time()
    try:
        filmed(args) if args.video else simulated(args)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        terminal.fail(error)
    print(f"{time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
