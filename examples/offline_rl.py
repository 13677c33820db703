"""Twenty labelled demonstrations become a policy: reward-weighted regression on frozen embeddings.

    python -m torchrl_vip.demonstrations.record --task push-bottle --successes 10 --failures 10 \\
        --size 224 --format lerobot --out DEMOS                                 # or your own dataset
    python -m torchrl_vip.label DEMOS/push-bottle --goal mean-last --out LABELLED
    python examples/offline_rl.py LABELLED --task push-bottle --out run         # policy.pt, film_0.mp4

LABELLED is a LeRobot dataset or a memory-mapped tensordict that the labelling command wrote. --embedding,
--state, --action and --reward name other columns of a LeRobot dataset. Without --task nothing is played:
policy.pt is for your own robot, by torchrl_vip.offline.load_policy.
"""

from __future__ import annotations

import argparse
import json
import statistics
from functools import partial
from pathlib import Path

import terminal
import torch
import torchrl
from tensordict.nn import TensorDictModule
from torchrl.envs import EnvBase, TransformedEnv
from torchrl.record import CSVLogger
from tqdm import tqdm

from torchrl_vip import VIPTransform
from torchrl_vip.data.reading import read_frames
from torchrl_vip.data.video import write_video
from torchrl_vip.envs import SUITES, load_suite
from torchrl_vip.files import write_whole
from torchrl_vip.label.job import episodes_of
from torchrl_vip.offline import (
    METHODS,
    Learner,
    Settings,
    read_steps,
    save_policy,
    shifted_views,
)
from torchrl_vip.offline.rollouts import UNSEEN, RollOut, roll_out
from torchrl_vip.offline.steps import COLUMNS, EPISODE

torchrl.logger.setLevel("WARNING")  # its notes break the progress bar
LOG_EVERY = 200  # updates, whose mean is logged


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, default = parser.add_argument, Settings()
    add("labelled", type=Path, help="folder that the labelling command wrote")
    add("--out", type=Path, default=Path("offline_run"), help="folder (%(default)s)")
    add("--method", choices=METHODS, default=default.method, help="(%(default)s)")
    add("--temperature", type=float, help="of RWR: weights exp(R / (temperature * std R)) (0.5)")
    add("--tau", type=float, help="of RWR: weights exp(tau * R), as in the paper, instead")
    add("--clip", type=float, help="of RWR: no weight above so many times their mean (none)")
    horizon = "of RWR: steps whose rewards make R; 0: to the end; episode: the whole episode's"
    add("--horizon", type=_horizon, default=default.horizon, help=f"{horizon} (%(default)s)")
    noise = "on the policy's inputs in training, in parts of their deviation"
    add("--noise", type=float, default=default.noise, help=f"{noise} (%(default)s)")
    add("--views", type=int, default=8, help="shifts of each frame; 0: none (%(default)s)")
    colour = (
        "of every second shift: change of brightness, contrast, saturation; a fifth of it, of hue"
    )
    add("--colour", type=float, default=0.5, help=f"{colour} (%(default)s)")
    correction = "noise on displacements and what undoes it, in parts of the largest; 0: none"
    add("--correction", type=float, default=default.correction, help=f"{correction} (%(default)s)")
    average = "decay of the mean of the policy's weights over updates"
    add("--average", type=float, default=default.average, help=f"{average} (%(default)s)")
    add("--gamma", type=float, default=default.gamma, help="of td3bc and iql (%(default)s)")
    add("--steps", type=int, default=default.steps, help="updates (%(default)s)")
    add("--batch-size", type=int, default=default.batch_size, help="(%(default)s)")
    add("--lr", type=float, default=default.lr, help="(%(default)s)")
    add("--seed", type=int, default=default.seed, help="of networks and batches (%(default)s)")
    for key, name in COLUMNS.items():
        add(f"--{key}", default=name, help="column of a LeRobot dataset (%(default)s)")
    add("--no-state", action="store_true", help="learn from the embedding alone")
    add("--suite", choices=SUITES, default="tabletop", help="of --task (%(default)s)")
    add("--task", help="play it after training")
    add("--encoder", help="that labelled the dataset (the bundled one)")
    add("--camera", help="of the demonstrations (the suite's own)")
    add("--image-size", type=int, help="of the rendered frames (the demonstrations')")
    add("--rollouts", type=int, default=50, help="from starts that no one has seen (%(default)s)")
    add("--length", type=int, default=100, help="of a roll-out at most, steps (%(default)s)")
    add("--checkpoint-every", type=int, default=2000, help="updates (%(default)s)")
    add("--resume", action="store_true", help="go on with the run in --out")
    add("--smoke", action="store_true", help="a run of seconds, to see that everything works")
    args = parser.parse_args()
    if args.smoke:
        args.steps, args.rollouts, args.length, args.checkpoint_every = 20, 2, 20, 10
    if args.views < 0:
        parser.error(f"--views {args.views}: wanted 0 or more")
    if not 0 <= args.colour <= 1:
        parser.error(f"--colour {args.colour:g}: wanted 0 to 1")
    for name in ("checkpoint_every", "rollouts", "length", "image_size"):
        if (value := getattr(args, name)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} {value}: wanted 1 or more")
    return args


def _horizon(text: str) -> int | str:
    return text if text == EPISODE else int(text)


def train(args: argparse.Namespace, learner: Learner) -> None:
    """All updates, with a bar, a CSV log and checkpoints."""
    checkpoint, logger = args.out / "checkpoint.pt", CSVLogger("csv", log_dir=str(args.out))
    sums: dict[str, float] = {}
    bar = tqdm(initial=learner.step, total=learner.settings.steps, unit="update", desc="train")
    for losses in learner.learn():
        for name, value in losses.items():
            if value.numel() == 1:
                sums[name] = sums.get(name, 0.0) + value.item() / LOG_EVERY
        if learner.step % LOG_EVERY == 0:
            for name, value in sums.items():
                logger.log_scalar(name, value, step=learner.step)
            bar.set_postfix({n: f"{v:.3g}" for n, v in sums.items() if n.startswith("loss")})
            sums = {}
        if learner.step % args.checkpoint_every == 0 or learner.step == learner.settings.steps:
            learner.save(checkpoint)
        bar.update()
    bar.close()


def size_of_frames(args: argparse.Namespace) -> int:
    """Of the demonstrations: a policy that learned from frames of another size sees other embeddings."""
    clip = episodes_of(args.labelled, args.camera)[0]
    height, width = next(iter(read_frames(clip.path, clip.span))).shape[-2:]
    if height != width:
        raise ValueError(f"frames of {width} x {height} cannot be rendered: give --image-size.")
    return height


def make_env(args: argparse.Namespace) -> EnvBase:
    """The task, its frames embedded as the dataset's were."""
    env = load_suite(args.suite).make_env(
        args.task, cameras=args.camera, image_size=args.image_size, max_steps=args.length + 1
    )
    return TransformedEnv(env, VIPTransform(args.encoder, del_keys=False))


def play(args: argparse.Namespace, actor: TensorDictModule) -> list[RollOut]:
    """Roll-outs from unseen starts; the first four are filmed."""
    env, done = make_env(args), []
    bar = tqdm(range(args.rollouts), desc="play", unit="roll-out")
    for number in bar:
        one = roll_out(env, actor, UNSEEN + number, steps=args.length, keep_frames=number < 4)
        if one.frames is not None:
            write_video(args.out / f"film_{number}.mp4", torch.from_numpy(one.frames))
        done.append(one._replace(frames=None))
        bar.set_postfix(solved=f"{sum(r.solved for r in done)}/{len(done)}")
    env.close()
    return done


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    columns = {key: getattr(args, key) for key in COLUMNS}
    chosen = Settings(**{name: getattr(args, name) for name in Settings.__dataclass_fields__})
    read = partial(read_steps, args.labelled, columns=columns, state=not args.no_state)
    steps = read()
    episodes = len(steps["episode"].unique())
    print(f"{len(steps)} steps of {episodes} episodes")
    Learner(steps, chosen)  # refuses now what it would refuse after the embedding
    terminal.make_folder(args.out)
    if (checkpoint := args.out / "checkpoint.pt").exists() != args.resume:
        there = "has no run to go on with" if args.resume else "has a run: --resume goes on with it"
        terminal.fail(f"--out {args.out} {there}, or give another folder")
    if args.task and args.image_size is None:
        args.image_size = size_of_frames(args)
    if args.views:
        options = {name: getattr(args, name) for name in ("encoder", "views", "colour", "camera")}
        steps = read(views=shifted_views(args.labelled, args.out / "views", **options))
    learner = Learner(steps, chosen)
    if args.resume:
        learner.restore(checkpoint)
    moved = [n for n, yes in enumerate(learner.corrections.displacements) if yes]
    print(f"actions that are displacements: {moved or 'none'}")
    for name, value in learner.about.items():
        print(f"{name.replace('_', ' ')}: {value:.2g}")
    train(args, learner)
    about = {"encoder": args.encoder or "bundled", "method": args.method}
    save_policy(learner.actor, steps, args.out / "policy.pt", **about)
    result = {"settings": vars(args), "steps": len(steps), "episodes": episodes, **learner.about}
    if args.task:
        done = play(args, learner.actor)
        solved = [one.solved for one in done]
        result |= {"solved": sum(solved), "rollouts": len(solved)}
        print(f"solved {sum(solved)} of {len(solved)} unseen starts; {args.out}/film_0.mp4")
        if any(solved):
            median = statistics.median(one.steps for one in done if one.solved)
            print(f"the solved ones took {median:.0f} steps")
    text = json.dumps(result, indent=1, default=str)
    write_whole(args.out / "result.json", lambda part: part.write_text(text))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, ImportError) as error:
        terminal.fail(error)
    except KeyboardInterrupt as interruption:
        terminal.end_for(interruption)
