"""Twenty demonstrations: reward-weighted regression against cloning on the tabletop, the VIP paper's Table 1.

    python benchmarks/offline_rl.py --work WORK                                 # hours on two cores
    python benchmarks/offline_rl.py --work WORK --tasks push-bottle --policies VIP-RWR VIP-BC --seeds 1
    python benchmarks/offline_rl.py --work WORK --report                        # tables of what is there

Records the demonstrations, labels them by the labelling command, trains, and plays from unseen starts. Each
cell (task, demonstrations, policy, seed, condition) is kept in WORK/cells, so that it goes on where it was
stopped, and several processes may share WORK. "mixed" demonstrations are 10 good and 10 fumbled ones (20 of
close-drawer, as in the paper), "good" ones 20 successes. A roll-out is solved when the state was solved for
ten steps in a row within 100.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import offline_rl_pixels as pixels
import torch
import torchrl
from machine import about, in_words
from offline_rl_report import CONDITIONS, TASKS, tables
from reward_quality import untrained
from scipy.stats import spearmanr
from tensordict import TensorDict
from torchrl.envs import EnvBase, RenameTransform, TransformedEnv
from tqdm import tqdm

from torchrl_vip import VIPEncoder, VIPTransform, load_vip
from torchrl_vip.backbones import load_imagenet
from torchrl_vip.data.video import write_video
from torchrl_vip.demonstrations.record import main as record
from torchrl_vip.envs import tabletop
from torchrl_vip.envs.looks import Randomization
from torchrl_vip.files import write_whole
from torchrl_vip.label.__main__ import main as label
from torchrl_vip.offline import (
    Learner,
    Settings,
    load_policy,
    read_steps,
    reward_to_come,
    save_policy,
    shifted_views,
)
from torchrl_vip.offline.rollouts import UNSEEN, roll_out
from torchrl_vip.weights import save_vip

torchrl.logger.setLevel("WARNING")
SIZE = 224  # pixels of a frame
FIRST = UNSEEN + 1000  # starts: settings were chosen on those before it
STATE = "observation.environment_state"


class Policy(NamedTuple):
    """One row of the table."""

    encoder: str | None  # None: it sees the simulator's state
    method: str
    reward: str = ""  # "": its encoder's; "true": the simulator's progress; else another encoder's


POLICIES = {
    "VIP-RWR": Policy("vip", "rwr"),
    "VIP-BC": Policy("vip", "bc"),
    "state-BC": Policy(None, "bc"),
    "state-RWR, true progress": Policy(None, "rwr", "true"),
    "VIP-RWR, true progress": Policy("vip", "rwr", "true"),
    "VIP-RWR, scene reward": Policy("vip", "rwr", "scene"),
    "VIP-IQL": Policy("vip", "iql"),
    "scene-RWR": Policy("scene", "rwr"),
    "scene-BC": Policy("scene", "bc"),
    "TCN-RWR": Policy("tcn", "rwr"),
    "TCN-BC": Policy("tcn", "bc"),
    "ImageNet-RWR": Policy("imagenet", "rwr"),
    "ImageNet-BC": Policy("imagenet", "bc"),
    "untrained-RWR": Policy("untrained", "rwr"),
    "untrained-BC": Policy("untrained", "bc"),
    "scratch-BC": Policy("scratch", "bc"),  # a network of its own, from pixels
}


@dataclass(frozen=True)
class Cell:
    """One number of the table."""

    task: str
    data: str
    policy: str
    seed: int
    condition: str = "plain"
    settings: str = ""  # "name=value, ..." of those that are not the default

    @property
    def name(self) -> str:
        parts = [str(value) for value in asdict(self).values() if value != ""]
        return "_".join(parts).replace(" ", "-").replace(",", "")


# --- what to learn from -----------------------------------------------------------------------------


class Workshop:
    """The folder of demonstrations, encoders, labels, policies and results."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.work = args, args.work
        self.encoders = dict(pair.split("=", 1) for pair in args.encoder)

    def demonstrations(self, task: str, data: str) -> Path:
        """A LeRobot dataset, recorded where it is missing."""
        folder = self.work / "demos" / data
        count = self.args.demonstrations
        bad = 0 if data == "good" else count if task == "close-drawer" else count // 2
        good = count if data == "good" else count // 2
        options = (
            f"--task {task} --successes {good} --failures {bad} --size {SIZE} --format lerobot"
        )
        if not (folder / task).exists():
            record([*options.split(), "--out", str(folder)])
        return folder / task

    def encoder(self, name: str, task: str) -> str | None:
        """What ``load_vip`` takes."""
        if name in ("vip", "scratch"):
            return None if name == "vip" else name
        if name in self.encoders:
            return self.encoders[name].format(task=task)
        folder = self.work / "encoders" / name
        if not folder.exists():
            reference = load_vip()
            torch.manual_seed(0)
            if name == "imagenet":  # the features below the bundled head, without any head
                network = VIPEncoder(reference.name, dim=None, image_size=reference.image_size)
                load_imagenet(network.backbone)
            elif name == "untrained":
                network = untrained(reference, 0)
            else:
                raise ValueError(f"--encoder {name}=FOLDER is wanted: nothing is known of {name}.")
            save_vip(network, folder)
        return str(folder)

    def labelled(self, task: str, data: str, encoder: str) -> Path:
        """The demonstrations, labelled by an encoder."""
        labelled = self.work / "labelled" / encoder / data / task
        if not labelled.exists():
            results = self.work / "labels" / encoder / data / task
            command = [str(self.demonstrations(task, data)), "--goal", "mean-last"]
            if path := self.encoder(encoder, task):
                command += ["--encoder", path, "--scale", "1"]
            label([*command, "--results", str(results), "--out", str(labelled)])
        return labelled

    def steps(self, task: str, data: str, policy: Policy) -> TensorDict:
        """Labelled steps, with "true_reward": how much nearer each came to what the simulator wants."""
        labels = "vip" if policy.encoder in (None, "scratch") else policy.encoder
        labelled = self.labelled(task, data, labels)
        if policy.encoder is None:
            steps = read_steps(labelled, columns={"state": STATE})
        elif policy.encoder == "scratch":
            steps = read_steps(labelled)
            steps["small"] = pixels.small_frames(labelled)
        else:
            store = self.work / "views" / policy.encoder / data / task
            encoder = self.encoder(policy.encoder, task)
            views = shifted_views(labelled, store, encoder=encoder) if self.args.views else None
            steps = read_steps(labelled, views=views)
        true = read_steps(labelled, columns={"reward": "next.task_reward"})["next", "reward"]
        first = steps["episode"] != steps["episode"].roll(1)
        first[0] = True
        steps["true_reward"] = torch.where(first[:, None], 0.0, true - true.roll(1, 0))
        if policy.reward == "true":
            steps["next", "reward"] = steps["true_reward"].clone()
        elif policy.reward:
            other = read_steps(self.labelled(task, data, policy.reward))
            steps["next", "reward"] = other["next", "reward"].clone()
        sees = policy.encoder not in (None, "scratch")
        return steps if sees else steps.exclude("vip_vec", ("next", "vip_vec"))

    def trained(self, cell: Cell) -> tuple[Any, dict[str, float]]:
        """The cell's policy, trained where it is missing, and what is known of its weights."""
        file = self.work / "policies" / replace(cell, condition="plain").name / "policy.pt"
        policy, args = POLICIES[cell.policy], self.args
        sees_pixels = policy.encoder == "scratch"
        if not file.exists():
            steps = self.steps(cell.task, cell.data, policy)
            chosen = Settings(policy.method, steps=args.steps, seed=cell.seed, **args.settings)
            if sees_pixels:  # nothing moves a frame along with the hand
                chosen = replace(chosen, correction=0.0)
            torch.manual_seed(cell.seed)
            learner = Learner(steps, chosen, pixels.make_actor(steps) if sees_pixels else None)
            for _ in tqdm(learner.learn(), cell.name, total=args.steps, leave=False):
                pass
            known = dict(learner.about)
            if learner.weights is not None:
                true = reward_to_come(
                    steps["true_reward"], steps["episode"], chosen.horizon or None
                )
                known["correlation"] = float(spearmanr(learner.weights, true[:, 0]).statistic)
            file.parent.mkdir(parents=True, exist_ok=True)
            save = pixels.save_policy if sees_pixels else save_policy
            save(learner.actor, steps, file, **known)
        return pixels.load_policy(file) if sees_pixels else load_policy(file)


# --- playing ----------------------------------------------------------------------------------------


def other_look() -> Randomization:
    """The demonstrations' view under other lights, colours and textures."""
    lookat, azimuth, elevation, distance = tabletop.SIMULATOR.VIEWS["front"]
    view = ((angle, angle) for angle in (azimuth, elevation, distance))
    return Randomization(
        lookat, *view, target_jitter=0.0, fovy=(45.0, 45.0), colour=0.3, texture=1.0
    )


def make_env(task: str, encoder: str | None, sees: bool, condition: str, length: int) -> EnvBase:
    looks = other_look() if condition == "other look" else None
    base = tabletop.make_env(
        task, image_size=SIZE if sees else 16, max_steps=length + 1, randomize=looks
    )
    if encoder == "scratch":
        return TransformedEnv(base, pixels.transform())
    if sees:
        return TransformedEnv(base, VIPTransform(encoder, del_keys=False))
    base = TransformedEnv(base, RenameTransform(["state"], ["hand_state"]))
    return base.append_transform(RenameTransform(["full_state"], ["state"]))


def person(env: EnvBase, seed: int, moved: list[int]) -> Callable[[int], None]:
    """Puts the thing back once, when half of the way is done; says so in ``moved``."""
    sim, begun = env.base_env.sim, []

    def watch(t: int) -> None:
        begun.append(sim.thing.left())
        if not moved and sim.thing.left() < 0.5 * begun[0]:
            sim.displace(seed)
            moved.append(t)

    return watch


def play(shop: Workshop, cell: Cell, rollouts: int) -> dict[str, Any]:
    policy, args = POLICIES[cell.policy], shop.args
    actor, known = shop.trained(cell)
    path = shop.encoder(policy.encoder, cell.task) if policy.encoder else None
    env = make_env(cell.task, path, bool(policy.encoder), cell.condition, args.length)
    solved, lengths, displaced = [], [], []
    for number in tqdm(range(rollouts), cell.name, leave=False):
        start, moved = FIRST + number, []
        watch = person(env, number, moved) if cell.condition == "displaced" else None
        keep = number < args.films and policy.encoder is not None
        one = roll_out(env, actor, start, steps=args.length, before_step=watch, keep_frames=keep)
        if one.frames is not None:
            films = args.work / "films"
            films.mkdir(exist_ok=True)
            write_video(films / f"{cell.name}_{number}.mp4", torch.from_numpy(one.frames))
        solved.append(one.solved)
        lengths.append(one.steps)
        displaced.append(bool(moved))
    env.close()
    numbers = {"solved": solved, "lengths": lengths, "displaced": displaced}
    return {**asdict(cell), **known, **numbers}


def cells(args: argparse.Namespace) -> Iterator[Cell]:
    settings = ", ".join(f"{name}={value}" for name, value in args.settings.items())
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for task in args.tasks:
            for data in args.data:
                for policy in args.policies:
                    for condition in args.conditions:
                        yield Cell(task, data, policy, seed, condition, settings)


# --- the command line -----------------------------------------------------------------------------


def report(args: argparse.Namespace) -> str:
    rows = [json.loads(path.read_text()) for path in sorted((args.work / "cells").glob("*.json"))]
    args.out.mkdir(parents=True, exist_ok=True)
    text = [
        "# Twenty demonstrations",
        "",
        in_words(about()),
        "",
        *tables(rows, list(POLICIES), args.out),
    ]
    result = {"about": about(), "rows": rows}
    (args.out / "offline_rl.json").write_text(json.dumps(result) + "\n")
    (args.out / "offline_rl.md").write_text("\n".join(text) + "\n")
    return "\n".join(text)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--work", type=Path, required=True, help="folder of everything that is made")
    add("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    add("--data", nargs="+", choices=("mixed", "good"), default=["mixed"])
    add("--policies", nargs="+", choices=POLICIES, default=["VIP-RWR", "VIP-BC", "state-BC"])
    add("--conditions", nargs="+", choices=CONDITIONS, default=["plain"])
    add("--encoder", nargs="+", default=[], help="scene=RUN/{task}/final tcn=RUN/final")
    add("--seeds", type=int, default=3, help="(%(default)s)")
    add("--first-seed", type=int, default=0, help="(%(default)s)")
    add("--rollouts", type=int, default=50, help="(%(default)s)")
    add("--length", type=int, default=100, help="of a roll-out, steps (%(default)s)")
    add("--demonstrations", type=int, default=20, help="good ones; half of them, if mixed")
    add("--steps", type=int, default=20_000, help="updates (%(default)s)")
    add("--no-views", dest="views", action="store_false", help="without shifted frames")
    add("--settings", type=json.loads, default={}, help='of torchrl_vip.offline: {"tau": 1}')
    add("--films", type=int, default=0, help="of each cell (%(default)s)")
    add("--report", action="store_true", help="only the tables of what is there")
    add("--out", type=Path, default=Path(__file__).parent / "results", help="folder (%(default)s)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    shop, folder = Workshop(args), args.work / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    for cell in () if args.report else tqdm(list(cells(args)), "cells"):
        file = folder / f"{cell.name}.json"
        if file.exists():
            continue
        text = json.dumps(play(shop, cell, args.rollouts))
        write_whole(file, lambda part, text=text: part.write_text(text))
    print(report(args))


if __name__ == "__main__":
    main()
