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

import numpy as np
import torch
import torchrl
from machine import about, in_words
from matplotlib.figure import Figure
from reward_quality import untrained
from scipy.stats import binomtest, spearmanr
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.envs import Compose, EnvBase, RenameTransform, Resize, ToTensorImage, TransformedEnv
from torchrl.modules import MLP, ConvNet
from tqdm import tqdm

from torchrl_vip import VIPEncoder, VIPTransform, load_vip
from torchrl_vip.backbones import load_imagenet
from torchrl_vip.data.reading import read_frames
from torchrl_vip.data.sources import find_clips
from torchrl_vip.data.video import write_video
from torchrl_vip.demonstrations.record import main as record
from torchrl_vip.envs import tabletop
from torchrl_vip.envs.looks import Randomization
from torchrl_vip.evaluation.metrics import bootstrap
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
from torchrl_vip.offline.policies import CELLS
from torchrl_vip.offline.rollouts import UNSEEN, roll_out
from torchrl_vip.weights import save_vip

torchrl.logger.setLevel("WARNING")
SIZE, SMALL = 224, 64
SHRINK = Resize(SMALL, SMALL, in_keys=["small"])
FIRST = UNSEEN + 1000  # starts: settings were chosen on those before it
STATE = "observation.environment_state"
PAPER = {  # on a real robot, %: VIP-RWR, VIP-BC, R3M-RWR, R3M-BC, Scratch-BC
    "close-drawer": (100, 50, 80, 10, 30),
    "push-bottle": (90, 50, 70, 50, 40),
    "pickplace-melon": (60, 10, 0, 0, 0),
    "fold-towel": (90, 20, 0, 0, 0),
}
TASKS = tuple(PAPER)
CONDITIONS = ("plain", "displaced", "other look")


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


# --- a policy that learns to see -------------------------------------------------------------------


class FromPixels(nn.Module):
    """DrQ's convolutions and the same MLP as the others, of small frames, which training shifts."""

    def __init__(self, state: int, action: int) -> None:
        super().__init__()
        channels = [32] * 4
        self.see = ConvNet(3, num_cells=channels, kernel_sizes=3, strides=[2, 2, 1, 1])
        size = self.see(torch.zeros(1, 3, SMALL, SMALL)).shape[1]
        self.trunk = nn.Sequential(nn.Linear(size, 64), nn.LayerNorm(64), nn.Tanh())
        self.act = MLP(64 + state, action, num_cells=list(CELLS), activation_class=nn.ReLU)

    def forward(self, small: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        batch = small.shape[:-3]
        frames = small.flatten(0, -4) if batch else small[None]
        if self.training:
            y, x = torch.randint(9, (2,)).tolist()
            frames = nn.functional.pad(frames.float(), [4] * 4, mode="replicate")
            frames = frames[..., y : y + SMALL, x : x + SMALL]
        seen = self.trunk(self.see(frames.float() - 0.5)).reshape(*batch, -1)
        return torch.tanh(self.act(torch.cat([seen, state], -1)))


def scratch_actor(state: int, action: int) -> TensorDictModule:
    return TensorDictModule(FromPixels(state, action), ["small", "state"], ["action"])


def small_frames(labelled: Path) -> torch.Tensor:
    """The frames of all steps, float16 ``[N, 3, SMALL, SMALL]`` in [0, 1]."""
    found = []
    for clip in find_clips(labelled):
        frames = torch.stack(list(read_frames(clip.path, clip.span))[:-1])
        seen = TensorDict({"small": frames.float() / 255}, [])
        found.append(SHRINK(seen)["small"].half())
    return torch.cat(found)


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
            steps["small"] = small_frames(labelled)
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
        if policy.encoder == "scratch":
            return self.trained_from_scratch(cell, file), {}
        if not file.exists():
            steps = self.steps(cell.task, cell.data, policy)
            chosen = Settings(policy.method, steps=args.steps, seed=cell.seed, **args.settings)
            learner = Learner(steps, chosen)
            for _ in tqdm(learner.learn(), cell.name, total=args.steps, leave=False):
                pass
            known = dict(learner.about)
            if learner.weights is not None:
                true = reward_to_come(
                    steps["true_reward"], steps["episode"], chosen.horizon or None
                )
                known["correlation"] = float(spearmanr(learner.weights, true[:, 0]).statistic)
            file.parent.mkdir(parents=True, exist_ok=True)
            save_policy(learner.actor, steps, file, **known)
        return load_policy(file)

    def trained_from_scratch(self, cell: Cell, file: Path) -> TensorDictModule:
        if file.exists():
            whole = torch.load(file, weights_only=True)
            actor = scratch_actor(whole["state"], whole["action"])
            actor.load_state_dict(whole["weights"])
            return actor.eval()
        steps = self.steps(cell.task, cell.data, POLICIES[cell.policy])
        sizes = {key: steps[key].shape[1] for key in ("state", "action")}
        torch.manual_seed(cell.seed)
        chosen = Settings("bc", steps=self.args.steps, seed=cell.seed, correction=0.0)
        learner = Learner(steps, chosen, scratch_actor(**sizes))
        for _ in tqdm(learner.learn(), cell.name, total=self.args.steps, leave=False):
            pass
        whole = {**sizes, "weights": learner.actor.state_dict()}
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, lambda part: torch.save(whole, part))
        return learner.actor


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
        small = ToTensorImage(in_keys=["pixels"], out_keys=["small"])
        return TransformedEnv(base, Compose(small, SHRINK.clone()))
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


# --- the report -------------------------------------------------------------------------------------


def wilson(used: list[bool]) -> tuple[float, float, float]:
    """Share of successes and its 95 % interval, %."""
    low, high = binomtest(sum(used), len(used)).proportion_ci(method="wilson")
    return 100 * float(np.mean(used)), 100 * low, 100 * high


def gather(rows: list[dict], settings: str = "", **chosen: Any) -> list[dict]:
    chosen["settings"] = settings
    found = [row for row in rows if all(row[k] == v for k, v in chosen.items())]
    return sorted(found, key=lambda row: row["seed"])


def outcomes(rows: list[dict], condition: str) -> list[bool]:
    """Of these cells' roll-outs; with a displaced thing, of those in which it was displaced."""
    return [
        solved
        for row in rows
        for solved, displaced in zip(row["solved"], row["displaced"], strict=True)
        if displaced or condition != "displaced"
    ]


def success_table(rows: list[dict], data: str, condition: str) -> list[str]:
    """Success of each policy, % with Wilson's 95 % interval; seeds and roll-outs pooled."""
    head = ["policy", *TASKS, "mean", "seeds × roll-outs"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for policy in POLICIES:
        of_policy = gather(rows, data=data, condition=condition, policy=policy)
        texts, means, counts = [], [], set()
        for task in TASKS:
            found = gather(of_policy, task=task)
            used = outcomes(found, condition)
            texts.append("{:.0f} [{:.0f}, {:.0f}]".format(*wilson(used)) if used else "–")
            means += [np.mean(used)] if used else []
            counts |= {f"{len(found)} × {len(row['solved'])}" for row in found}
        if of_policy:
            mean = f"{100 * np.mean(means):.0f}" if len(means) == len(TASKS) else "–"
            lines.append(
                f"| {policy} | {' | '.join(texts)} | {mean} | {', '.join(sorted(counts))} |"
            )
    return lines


def paired(rows: list[dict], data: str, first: str, second: str, condition: str) -> list[str]:
    """Differences over the same seeds and starts, in points, with a bootstrap interval."""
    lines = ["| task | difference | 95 % |", "|---|---|---|"]
    for task in TASKS:
        of = [
            {
                r["seed"]: r["solved"]
                for r in gather(rows, task=task, data=data, policy=p, condition=condition)
            }
            for p in (first, second)
        ]
        both = of[0].keys() & of[1].keys()
        pairs = [
            100.0 * (int(a) - int(b))
            for seed in both
            for a, b in zip(of[0][seed], of[1][seed], strict=False)
        ]
        if pairs:
            mean, low, high = bootstrap(pairs)
            lines.append(f"| {task} | {mean:+.0f} | [{low:+.0f}, {high:+.0f}] |")
    return lines


def weights_table(rows: list[dict], data: str) -> list[str]:
    head = "| policy | task | effective sample size | largest weight | correlation with true progress |"
    lines = [head, "|---|---|---|---|---|"]
    for policy in POLICIES:
        for task in TASKS:
            found = gather(rows, task=task, data=data, policy=policy, condition="plain", seed=0)
            for row in (row for row in found if "effective_sample_size" in row):
                lines.append(
                    f"| {policy} | {task} | {row['effective_sample_size']:.2f} | "
                    f"{row['largest_weight']:.1f} | {row['correlation']:.2f} |"
                )
    return lines


def settings_table(rows: list[dict]) -> list[str]:
    """Of cells with other settings than the defaults, and beside them those with the defaults."""
    head = ["task", "data", "policy", "settings", "effective sample size", "solved", "roll-outs"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    of = ("task", "data", "policy", "seed", "condition")
    tried = {tuple(row[key] for key in of) for row in rows if row["settings"]}
    for row in sorted(rows, key=lambda row: (*(row[key] for key in of), row["settings"])):
        if tuple(row[key] for key in of) in tried:
            mean, low, high = wilson(row["solved"])
            size = row.get("effective_sample_size")
            lines.append(
                f"| {row['task']} | {row['data']} | {row['policy']} | {row['settings'] or 'default'} | "
                f"{'–' if size is None else f'{size:.2f}'} | {mean:.0f} [{low:.0f}, {high:.0f}] | "
                f"{len(row['solved'])} |"
            )
    return lines if len(lines) > 2 else []


def draw(rows: list[dict], data: str, path: Path) -> None:
    """Bars of success with their intervals: a panel a task, a bar a policy, lighter once displaced."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    axes = figure.subplots(1, len(TASKS), sharey=True)
    policies = [
        name for name in POLICIES if gather(rows, data=data, policy=name, condition="plain")
    ]
    for axis, task in zip(axes, TASKS, strict=True):
        for number, policy in enumerate(policies):
            for condition, alpha, beside in (("plain", 1.0, -0.2), ("displaced", 0.45, 0.2)):
                of = gather(rows, data=data, policy=policy, condition=condition, task=task)
                if used := outcomes(of, condition):
                    mean, low, high = wilson(used)
                    axis.bar(number + beside, mean, 0.4, color=f"C{number}", alpha=alpha)
                    error = [[mean - low], [high - mean]]
                    axis.errorbar(number + beside, mean, error, color="black", linewidth=1)
        axis.set_title(task, fontsize=10)
        axis.set_xticks(range(len(policies)), policies, rotation=45, ha="right", fontsize=8)
    axes[0].set(ylabel=f"solved, % ({data})", ylim=(0, 105))
    figure.suptitle("light bars: the thing was put back half-way", fontsize=9)
    figure.savefig(path, dpi=110)


def report(args: argparse.Namespace) -> str:
    rows = [json.loads(path.read_text()) for path in sorted((args.work / "cells").glob("*.json"))]
    columns = "| task | VIP-RWR | VIP-BC | R3M-RWR | R3M-BC | scratch-BC |"
    text = ["# Twenty demonstrations", "", in_words(about()), ""]
    args.out.mkdir(parents=True, exist_ok=True)
    for data in dict.fromkeys(row["data"] for row in rows):
        for condition in CONDITIONS:
            if gather(rows, data=data, condition=condition):
                text += [f"## {data} demonstrations, {condition}: solved, %", ""]
                text += [*success_table(rows, data, condition), ""]
                for first, second in (("VIP-RWR", "VIP-BC"), ("scene-RWR", "scene-BC")):
                    lines = paired(rows, data, first, second, condition)
                    if len(lines) > 2:
                        text += [f"{first} minus {second}, the same starts:", "", *lines, ""]
        text += [f"## {data} demonstrations: weights", "", *weights_table(rows, data), ""]
        draw(rows, data, args.out / f"offline_rl_{data}.png")
    if lines := settings_table(rows):
        text += ["## Other settings: solved, %", "", *lines, ""]
    text += ["## The paper's, on a real robot, %", "", columns, "|---" * 6 + "|"]
    text += [f"| {task} | {' | '.join(map(str, numbers))} |" for task, numbers in PAPER.items()]
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
