"""The 36 kitchen tasks: MPPI to a goal image, 12 tasks x 3 cameras, as in the VIP paper's Figure 4.

    python benchmarks/kitchen36.py                                  # bundled encoder, Easy, one seed
    python benchmarks/kitchen36.py --encoder state --encoder bundled --encoder imagenet --seeds 3
    python benchmarks/kitchen36.py --trajectories 8 32 128 512      # does more planning help?
    python benchmarks/kitchen36.py --cameras-summed --goals 3       # ablations

Every --encoder is NAME=WHAT, or WHAT alone: bundled (or nothing after "="), a checkpoint, official,
untrained, imagenet (EfficientNet-Lite0's features), head (ImageNet's weights below a random head), block10
(one block of them alone), pixels, or state: the task's true reward, a ceiling. The first one that is not
state is compared with the others.
Every core plays one episode at a time. Finished ones are in OUT/episodes.jsonl and are not played again;
a killed run goes on, and --report draws what is there, into OUT too; the shipped tables are in
benchmarks/results.

Protocol (appendix E of arXiv 2210.00030 and facebookresearch/vip; what is ours is marked *):

- Goal: the last frame of a demonstration, by the episode's own camera; seed i has demonstration i.
- easy: from the demonstration's state 20, or from two fifths of it where that is earlier*, as some of
  ours have 30 steps where the paper's have 50; 50 steps. hard: from the reset pose; 100 steps.
- MPPI: horizon 12, 32 trajectories, temperature 5 on scores divided by their deviation*, noise filter
  (0.25, 0.8, 0), warm start. A trajectory's score is that of its last frame, so only it is drawn.
- Candidates run at 8 ms a physics step*, what is done at 2 ms.
- Frames are drawn at the bundled encoder's 160 pixels* (the paper: 256).
- Success: the task's joint within 0.15 of its range of the target and nothing else disturbed, for five
  steps in a row*, which ends the episode, or at its last step. "touched" counts a single such step too.

Ablations: --goals averages the embeddings of so many demonstrations' last frames. --cameras-summed adds
the distances of the three cameras, each in parts of its first one, as the value is a time to the goal.
--without-robot W adds W x the distance of frames without the robot, goal image included, in the same way.
--beside-robot W adds W x the distance of frames without the robot to the one goal image as it is, but for the
pixels in which that shows the robot: they are found by drawing the robot until it looks the same.
--read-goal reads once what the goal image shows moved, how far, and where the robot touches it: the robot is
found in it, then each thing is moved in the simulator until the embedding is nearest to the image beside the
robot. A trajectory's score is made of that, as the true reward is of the truth: -5 x how far the thing is
from there, in parts of its joint's range, - the distance (m) of the robot from touching it. The embedding
judges no candidate then.
--combine deviation adds distances in parts of their standard deviation over the candidates instead.
--score: minus the last distance, the last step's reward (what the distance fell by), or minus the sum of
all. --blur is FrozenEncoder's, for every network. --smoothness W takes W x mean squared change of the
action x the first distance from every score. --planner cem: a quarter of the trajectories in each of four
iterations, which refit to the best quarter of them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shlex
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from itertools import product
from pathlib import Path

os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("LP_NUM_THREADS", "1")  # a process draws with the core it plans with

import torch
from kitchen36_episode import (
    CEM_ITERATIONS,
    COMBINE,
    PLANNERS,
    SCORES,
    STEPS,
    SUMMED,
    Encoder,
    Episode,
    play,
)
from kitchen36_report import Groups, plot, table, task_table
from machine import about, in_words
from reward_quality import imagenet, raw_pixels, untrained
from tqdm import tqdm

from torchrl_vip import FrozenEncoder, VIPEncoder, load_vip
from torchrl_vip.backbones import EfficientNetLite0, load_imagenet
from torchrl_vip.demonstrations.plan import PlanningSim
from torchrl_vip.encoders import native_bfloat16
from torchrl_vip.envs.kitchen import CAMERAS, KitchenSim, list_tasks
from torchrl_vip.weights import CheckpointError, weights_digest

BUNDLED = "VIP (bundled)="
STATE = "state"

# -- encoders --------------------------------------------------------------------------------------


def open_encoders(entries: list[str], blur: float = 0.0) -> dict[str, Encoder]:
    """Name -> encoder, in the order given."""
    opened: dict[str, Encoder] = {}
    for entry in entries:
        name, what = split_entry(entry)
        if name in opened and what != STATE:
            sys.exit(f"--encoder {entry}: {name!r} is given twice; name one otherwise (NAME=WHAT)")
        if what == STATE:
            opened[STATE] = Encoder(None)
        elif what == "pixels":
            opened[name] = Encoder(raw_pixels)
        elif what == "imagenet":
            half = torch.bfloat16 if native_bfloat16(torch.device("cpu")) else None
            opened[name] = Encoder(imagenet(half, blur))
        else:
            try:
                embed = FrozenEncoder(open_network(what), blur=blur)
            except (CheckpointError, ValueError) as error:
                if what != "official":
                    sys.exit(f"--encoder {entry}: {error}")
                print(f"--encoder {entry} is left out: {error}", file=sys.stderr)
                continue
            opened[name] = Encoder(embed, weights_digest(embed)[:8])
    return opened


def split_entry(entry: str) -> tuple[str, str]:
    """Name and what it is, of --encoder; the true reward has one name."""
    name, given, what = entry.partition("=")
    what = (what or "bundled") if given else name
    return (STATE if what == STATE else name), what


def open_network(what: str) -> VIPEncoder:
    """A checkpoint, or the bundled architecture with other weights."""
    if what in ("untrained", "head"):
        return untrained(load_vip(), 0, imagenet=what == "head")
    if what == "official":
        return load_vip("resnet50", download=True)
    if (block := what.removeprefix("block")).isdigit():
        if not 1 <= int(block) <= 16:
            raise ValueError("Lite0 has the blocks 1 to 16")
        backbone = EfficientNetLite0(tapped=(int(block),))
        load_imagenet(backbone)
        return VIPEncoder(backbone, image_size=load_vip().image_size)
    return load_vip(None if what == "bundled" else what)


def finished(path: Path) -> dict[Episode, dict]:
    """Episodes of a file of JSON lines; one that was cut short does not count."""
    done = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            result = json.loads(line)
            episode = Episode(**{k: result[k] for k in Episode._fields if k in result})
        except (ValueError, TypeError):
            continue
        done[episode] = result
    return done


def wanted(args: argparse.Namespace, encoders: dict[str, Encoder]) -> list[Episode]:
    """All episodes; those of one seed and task follow each other and share their simulators."""
    cameras = [SUMMED] if args.cameras_summed else args.cameras
    episodes = []
    for seed, task, setting, count, (name, encoder) in product(
        range(args.seeds), args.tasks, args.setting, args.trajectories, encoders.items()
    ):
        played = Episode(name, setting, task, CAMERAS[0], seed, count, args.score, 1)
        played = played._replace(
            smoothness=args.smoothness, max_steps=args.max_steps, planner=args.planner
        )
        if encoder.embed is None:  # sees no camera: one episode is all three
            episodes.append(played)
        else:
            played = played._replace(
                goals=args.goals,
                image_size=args.image_size,
                without_robot=args.without_robot,
                beside_robot=args.beside_robot,
                combine=args.combine,
                read_goal=args.read_goal,
            )
            if isinstance(encoder.embed, FrozenEncoder):
                played = played._replace(blur=args.blur)
            episodes += [played._replace(camera=camera) for camera in cameras]
    return episodes


def check_weights(done: dict[Episode, dict], encoders: dict[str, Encoder], path: Path) -> None:
    """Two checkpoints under one name would be averaged without a word."""
    for episode, result in done.items():
        if episode.row not in encoders:
            continue
        now = encoders[episode.row].weights  # "" where there are none
        if result.get("weights", now) != now:
            sys.exit(
                f"{path} has episodes of {episode.row!r} with other weights: "
                "name this one otherwise (--encoder NAME=WHAT), or choose another --out"
            )


class Player:
    """Plays episodes in this process; those of one task after each other share their simulators."""

    def __init__(self, encoders: dict[str, Encoder], found: Path) -> None:
        self.encoders, self.found = encoders, found
        self.of: tuple[str, int] | None = None
        self.sims: tuple[KitchenSim, ...] = ()

    def __call__(self, episode: Episode) -> dict:
        if self.of != (episode.task, episode.image_size):
            self.close()
            self.of = episode.task, episode.image_size
            self.sims = tuple(
                sim(episode.task, image_size=episode.image_size)
                for sim in (KitchenSim, PlanningSim)
            )
        return play(episode, self.encoders[episode.row], *self.sims, self.found)

    def close(self) -> None:
        for sim in self.sims:
            sim.close()


_player: Player
"""Of a worker process."""


def _start_worker(entries: list[str], blur: float, found: Path) -> None:
    global _player
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)  # sums of other parts would round otherwise, and plans part over it
    _player = Player(open_encoders(entries, blur), found)


def _play(episode: Episode) -> dict:
    return _player(episode)


def results_of(
    todo: list[Episode], encoders: dict[str, Encoder], args: argparse.Namespace
) -> Iterator[dict]:
    """Plays episodes, so many at a time, and yields each as it ends."""
    found = args.out / "robots"
    if args.processes == 0:
        torch.set_num_threads(1)  # as in a worker
        with closing(Player(encoders, found)) as player:
            yield from map(player, todo)
        return
    entries = [entry for entry in args.encoder if split_entry(entry)[0] in encoders]
    with ProcessPoolExecutor(
        args.processes,
        multiprocessing.get_context("spawn"),  # a fork would share the renderer's context
        _start_worker,
        (entries, args.blur, found),
    ) as pool:
        try:
            for future in as_completed([pool.submit(_play, episode) for episode in todo]):
                yield future.result()
        finally:  # interrupted, or an episode failed: the others are not begun
            pool.shutdown(cancel_futures=True)


def run(args: argparse.Namespace) -> None:
    """Plays what is not finished yet."""
    encoders, path = open_encoders(args.encoder, args.blur), args.out / "episodes.jsonl"
    done = finished(path)
    check_weights(done, encoders, path)
    episodes = wanted(args, encoders)
    todo = [episode for episode in episodes if episode not in done]
    if len(todo) < len(episodes):
        print(f"{len(episodes) - len(todo)} of {len(episodes)} are in {path}", file=sys.stderr)
    if not todo:
        return
    if path.exists() and not path.read_text().endswith("\n"):
        path.write_text("".join(f"{json.dumps(r)}\n" for r in done.values()))
    played_by = {"command": args.command, "date": about()["date"]}
    with open(path, "a") as out, tqdm(total=len(todo), unit="episode") as bar:
        for result in results_of(todo, encoders, args):
            out.write(json.dumps(result | {"played_by": played_by}) + "\n")
            out.flush()
            bar.update()
            bar.set_postfix_str(
                f"{result['row']} {result['task']} {result['camera']}: "
                f"{'solved' if result['success'] else 'not solved'} in {result['steps']}"
            )


def report(args: argparse.Namespace) -> None:
    """Table and picture of all finished episodes in OUT."""
    done = finished(args.out / "episodes.jsonl")
    if not done:
        sys.exit(f"{args.out}/episodes.jsonl has no finished episode")
    results = [done[episode] for episode in sorted(done)]
    groups: Groups = defaultdict(list)
    for episode in sorted(done):
        groups[episode.setting, episode.trajectories, episode.variant()].append(done[episode])
    first = next((n for n, what in map(split_entry, args.encoder) if what != STATE), "")
    lines = [
        "# FrankaKitchen: 12 tasks x 3 cameras, planned to a goal image",
        "",
        *table(groups, first),
    ]
    for (setting, count, name), group in sorted(groups.items()):
        if first and f"{name},".startswith(f"{first},"):
            lines += ["", f"## {name}, {setting}, {count} trajectories", "", *task_table(group)]
    commands = sorted({(r["date"], r["command"]) for e in results if (r := e.get("played_by"))})
    lines += ["", f"![success]({args.name}.png)", "", "Played by", ""]
    lines += [f"- `{command}`, {date}" for date, command in commands]
    lines += ["", f"Drawn by {in_words(about())}", ""]
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / f"{args.name}.md").write_text("\n".join(lines))
    (args.results / f"{args.name}.json").write_text(
        json.dumps({"about": about(), "episodes": results}) + "\n"
    )
    plot(groups, args.results / f"{args.name}.png")
    print("\n".join(lines))


def command(arguments: list[str]) -> str:
    """As it was typed, but for where this machine keeps the results."""
    kept, skip = [], False
    for argument in arguments:
        place = argument.split("=")[0] in ("--out", "--results")
        if not place and not skip:
            kept.append(argument)
        skip = place and "=" not in argument
    return shlex.join(["python", "benchmarks/kitchen36.py", *kept])


def parse_args(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--encoder", action="append", metavar="NAME=WHAT", help=f"repeatable ({BUNDLED!r})"
    )
    parser.add_argument("--setting", nargs="+", choices=list(STEPS), default=["easy"])
    parser.add_argument("--seeds", type=int, default=1, help="so many, from 0 (%(default)s)")
    parser.add_argument(
        "--trajectories",
        "--budgets",
        type=int,
        nargs="+",
        default=[32],
        metavar="N",
        help="candidates a step; several are a sweep (32)",
    )
    parser.add_argument(
        "--score",
        choices=SCORES,
        default="last",
        help="of a trajectory: minus its last distance, minus the sum of all, its last reward",
    )
    parser.add_argument("--goals", type=int, default=1, help="goal images, averaged (%(default)s)")
    parser.add_argument(
        "--without-robot",
        type=float,
        default=0.0,
        metavar="W",
        help="weight of frames drawn without the robot, beside 1 of those with it (%(default)s)",
    )
    parser.add_argument(
        "--beside-robot",
        type=float,
        default=0.0,
        metavar="W",
        help="weight of frames drawn without the robot, compared where the goal image does not show "
        "it, beside 1 of those with it (%(default)s)",
    )
    parser.add_argument(
        "--read-goal",
        action="store_true",
        help="what the goal image shows moved, how far, and where the robot touches it, is read by the "
        "embedding's distance once; the planner's score is made of that, and no candidate is drawn",
    )
    parser.add_argument(
        "--combine",
        choices=COMBINE,
        default="start",
        help="several distances: each in parts of its first one, or of its standard deviation over "
        "the candidates (%(default)s)",
    )
    parser.add_argument(
        "--planner",
        choices=PLANNERS,
        default="mppi",
        help="of as many trajectories a step (%(default)s)",
    )
    parser.add_argument("--smoothness", type=float, default=0.0, metavar="W", help="(%(default)s)")
    parser.add_argument(
        "--blur", type=float, default=0.0, help="before the networks, pixels (%(default)s)"
    )
    parser.add_argument("--tasks", nargs="+", default=list_tasks(), metavar="TASK")
    parser.add_argument("--cameras", nargs="+", default=list(CAMERAS), choices=CAMERAS)
    parser.add_argument(
        "--cameras-summed", action="store_true", help="one episode a task that sees by all of them"
    )
    parser.add_argument("--image-size", type=int, default=160, help="pixels (%(default)s)")
    parser.add_argument(
        "--processes",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="episodes at a time, one a core; 0: one, in this process",
    )
    parser.add_argument("--max-steps", type=int, default=0, metavar="N", help="(50 easy, 100 hard)")
    parser.add_argument("--report", action="store_true", help="play nothing")
    parser.add_argument(
        "--out", type=Path, default=Path("kitchen36_runs"), help="folder of episodes"
    )
    parser.add_argument("--results", type=Path, help="folder of tables (OUT)")
    parser.add_argument("--name", default="kitchen36", help="name of the result files")
    args = parser.parse_args(arguments)
    args.command = command(sys.argv[1:] if arguments is None else arguments)
    args.encoder = args.encoder or [BUNDLED]
    args.results = args.results or args.out
    least = {"seeds": 1, "trajectories": 1, "processes": 0, "max_steps": 0, "image_size": 1}
    for name, low in least.items():
        value = getattr(args, name)
        lowest = min(value) if isinstance(value, list) else value
        if lowest < low:
            parser.error(f"--{name.replace('_', '-')} {lowest}: wanted {low} or more")
    if args.planner == "cem" and min(args.trajectories) < CEM_ITERATIONS:
        parser.error(
            f"--planner cem: --trajectories {min(args.trajectories)} are spread on "
            f"{CEM_ITERATIONS} iterations; wanted {CEM_ITERATIONS} or more"
        )
    if not 1 <= args.goals <= 3:
        parser.error(f"--goals {args.goals}: a task has three demonstrations; wanted 1 to 3")
    if args.beside_robot and (args.without_robot or args.goals > 1):
        parser.error(
            "--beside-robot takes one goal image with the robot: no --without-robot, --goals 1"
        )
    if args.read_goal and (
        args.beside_robot or args.without_robot or args.goals > 1 or args.cameras_summed
    ):
        parser.error(
            "--read-goal takes one goal image of one camera: no --beside-robot, --without-robot, "
            "--cameras-summed, --goals 1"
        )
    if args.smoothness and (args.combine == "deviation" or args.read_goal):
        parser.error(
            "--smoothness is in parts of the first distance: no --combine deviation, no --read-goal"
        )
    if unknown := set(args.tasks) - set(list_tasks()):
        parser.error(f"unknown tasks {sorted(unknown)}; choose from {list_tasks()}")
    return args


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.report:
        run(args)
    report(args)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
