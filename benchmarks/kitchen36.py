"""The 36 kitchen tasks: MPPI to a goal image, 12 tasks x 3 cameras, as in the VIP paper's Figure 4.

    python benchmarks/kitchen36.py                                  # bundled encoder, Easy, one seed
    python benchmarks/kitchen36.py --encoder state --encoder bundled --encoder imagenet --seeds 3
    python benchmarks/kitchen36.py --trajectories 8 32 128 512      # does more planning help?
    python benchmarks/kitchen36.py --cameras-summed --goals 3       # ablations

Every --encoder is NAME=WHAT, or WHAT alone: bundled (or nothing after "="), a checkpoint, official,
untrained, imagenet (EfficientNet-Lite0's features), head (ImageNet's weights below a random head), pixels,
or state: the task's true reward, a ceiling. The first one that is not state is compared with the others.
Finished episodes are in OUT/episodes.jsonl and are not played again; a killed run goes on, and --report
draws what is there.

Protocol (appendices E and V of arXiv 2210.00030; what is ours is marked *):

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
--score: minus the last distance, the last step's reward (what the distance fell by), or minus the sum of
all. --blur is FrozenEncoder's, for every network. --smoothness W takes W x mean squared change of the
action x the first distance from every score.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import closing
from functools import partial
from itertools import groupby, product
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads would take the workers' cores

import numpy as np
import torch
from machine import about, in_words
from reward_quality import imagenet, raw_pixels, untrained
from torch import Tensor
from tqdm import tqdm

from torchrl_vip import FrozenEncoder, VIPEncoder, load_vip
from torchrl_vip.encoders import native_bfloat16
from torchrl_vip.envs.kitchen import (
    CAMERAS,
    KitchenSim,
    demonstrations,
    list_tasks,
)
from torchrl_vip.evaluation.metrics import bootstrap, r_squared, voc
from torchrl_vip.planning import MPPI, Rollouts
from torchrl_vip.planning.demonstrate import PlanningSim
from torchrl_vip.weights import CheckpointError

ROOT = Path(__file__).parent
BUNDLED = "VIP (bundled)="
STATE = "state"
SUMMED = "summed"
STEPS = {"easy": 50, "hard": 100}
EASY_START = 20  # state of the demonstration, or 2/5 of it
HORIZON = 12
HOLD = 5  # steps that a solved state must last to end the episode
NOT_DRAWN = "none"
VIEWS = {**{camera: (camera,) for camera in CAMERAS}, SUMMED: CAMERAS, NOT_DRAWN: ()}
Embed = Callable[[Tensor], Tensor]


class Episode(NamedTuple):
    """What tells one episode from all others; ``row`` is the encoder's name."""

    row: str
    setting: str
    task: str
    camera: str
    seed: int
    trajectories: int
    score: str
    goals: int
    smoothness: float = 0.0
    image_size: int = 160
    blur: float = 0.0

    def variant(self) -> str:
        """The encoder's name, and what is not as in the paper."""
        scores = {"sum": ["sum of distances"], "difference": ["last reward"]}
        return ", ".join(
            [self.row]
            + scores.get(self.score, [])
            + [f"mean of {self.goals} goals"] * (self.goals != 1)
            + ["cameras summed"] * (self.camera == SUMMED)
            + [f"smoothness {self.smoothness:g}"] * (self.smoothness != 0)
            + [f"drawn at {self.image_size}²"] * (self.image_size != 160)
            + [f"blurred by {self.blur:g}"] * (self.blur != 0)
        )


class Encoder(NamedTuple):
    """An embedding, None for the true reward, and a digest of its weights."""

    embed: Embed | None
    weights: str = ""


# -- one episode -----------------------------------------------------------------------------------


class CandidateSim(PlanningSim):
    """Serves every camera without a new worker: two numbers stand before its state, the place in
    VIEWS of what is drawn, and the first step, from 1, after which it is."""

    def set_state(self, state: np.ndarray) -> np.ndarray:
        self.views = list(VIEWS.values())[int(state[0])]
        self.blind = int(state[1])
        return super().set_state(state[2:])

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        self.blind -= 1
        return super().step(action)


def seen(sim: CandidateSim, _: float) -> np.ndarray:
    """Frames [C, H, W, 3], the true reward, and the seconds that drawing took, as one record."""
    start = time.perf_counter()
    shape = (len(sim.views), sim.image_size, sim.image_size, 3)
    record = np.zeros((), [("frames", np.uint8, shape), ("reward", float), ("seconds", float)])
    if sim.blind <= 0:
        for i, camera in enumerate(sim.views):
            record["frames"][i] = sim.render(camera)
    record["seconds"], record["reward"] = time.perf_counter() - start, sim.reward()
    return record


class Judge:
    """Minus the distance of frames [*N, C, H, W, 3] to the goal, [*N]. One camera's is in embedding
    units; several are averaged in parts of what each was at the start.

    Args:
        goals: frames [G, C, H, W, 3]; their embeddings are averaged.
        start: first frames [C, H, W, 3].
    """

    def __init__(self, embed: Embed, goals: np.ndarray, start: np.ndarray) -> None:
        self.embed, self.seconds, self.unit = embed, 0.0, 1.0
        self.z_goal = self.embedded(goals).mean(0)
        if len(start) > 1:
            self.unit = (self.embedded(start) - self.z_goal).norm(dim=-1) * len(start)
        self.first = -float(self(start))
        self.seconds = 0.0

    @torch.no_grad()
    def embedded(self, frames: np.ndarray) -> Tensor:
        """uint8 [*N, H, W, 3] to float32 [*N, D]."""
        images = torch.from_numpy(frames.reshape(-1, *frames.shape[-3:])).permute(0, 3, 1, 2)
        return self.embed(images).float().reshape(*frames.shape[:-3], -1)

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        began = time.perf_counter()
        distance = (self.embedded(frames) - self.z_goal).norm(dim=-1) / self.unit
        self.seconds += time.perf_counter() - began
        return -distance.sum(-1).numpy()


def pictures(sim: KitchenSim, qpos: np.ndarray, cameras: Iterable[str]) -> np.ndarray:
    """What each camera sees at positions [T, 30]: uint8 [T, C, H, W, 3]."""
    frames = []
    for camera in cameras:
        sim.camera = sim.find_camera(camera)
        frames.append(sim.replay(qpos).frames)
    return np.stack(frames, 1)


class Landmarks(NamedTuple):
    """What an episode's goal makes of states that are known beforehand.

    Attributes:
        near: distance at which other successes end.
        decoyed: share of the goal's own demonstration, from the start on, that looks farther from
            the goal than a decoy does: the arm as in the goal, all else as it was at the start.
    """

    near: float = np.nan
    decoyed: float = np.nan


def begin(sim: KitchenSim, episode: Episode, embed: Embed | None) -> tuple[Judge | None, Landmarks]:
    """Brings the simulator to the start; returns the judge of its goal, None for the true reward."""
    solved = demonstrations(episode.task)
    solved = solved[episode.seed % len(solved) :] + solved[: episode.seed % len(solved)]
    easy = min(EASY_START, round(0.4 * len(solved[0].actions)))
    first = easy if episode.setting == "easy" else 0
    sim.repeat(solved[0], first)
    if embed is None:
        return None, Landmarks()
    here, way = sim.data.qpos.copy(), solved[0].qpos[first:]
    arm_only = np.concatenate([way[-1][:9], here[9:]])  # the robot's nine joints come first
    positions = np.stack([here, arm_only, *(d.qpos[-1] for d in solved)])
    start, decoy, *ends = pictures(sim, positions, VIEWS[episode.camera])
    judge = Judge(embed, np.stack(ends[: episode.goals]), start)
    near = -float(judge(np.stack(ends[1:])).mean()) if len(ends) > 1 else np.nan
    values = judge(pictures(sim, way, VIEWS[episode.camera]))
    landmarks = Landmarks(near, float((values < judge(decoy)).mean()))
    judge.seconds = 0.0
    return judge, landmarks


def score(values: np.ndarray, form: str) -> np.ndarray:
    """Values of states, [N] after the last step or [N, H], to scores of trajectories [N]."""
    if form == "last":
        return values
    return values[:, -1] - values[:, -2] if form == "difference" else values.sum(1)


def play(episode: Episode, encoder: Encoder, sim: KitchenSim, rollouts: Rollouts) -> dict:
    """One planned episode: whether it was solved, its curves and where the time went."""
    judge, landmarks = begin(sim, episode, encoder.embed)
    view = NOT_DRAWN if judge is None else episode.camera
    drawn = {"last": HORIZON, "difference": HORIZON - 1, "sum": 1}[episode.score]
    header = [list(VIEWS).index(view), drawn]
    unit = episode.smoothness * (abs(sim.reward()) if judge is None else judge.first)
    workers = max(1, len(rollouts._workers))
    clock = dict.fromkeys(("rollouts", "rendering"), 0.0)

    def evaluate(state: np.ndarray, actions: np.ndarray) -> np.ndarray:
        began = time.perf_counter()
        records = rollouts(np.concatenate([header, state]), actions)
        clock["rollouts"] += time.perf_counter() - began
        clock["rendering"] += records["seconds"].sum() / workers
        if episode.score == "difference":
            records = records[:, -2:]
        values = records["reward"] if judge is None else judge(records["frames"])
        jerks = np.square(np.diff(actions, axis=1)).mean((1, 2))
        return score(values, episode.score) - unit * jerks

    planner = MPPI(9, horizon=HORIZON, trajectories=episode.trajectories, seed=episode.seed)
    curve, rewards, solved, planning = [], [], [], 0.0
    while len(solved) < STEPS[episode.setting]:
        began = time.perf_counter()
        action = planner.plan(partial(evaluate, sim.get_state()))
        planning += time.perf_counter() - began
        _, reward, success = sim.step(action.astype(np.float32))
        rewards.append(reward)
        solved.append(success)
        if judge is not None:
            spent = judge.seconds
            frames = np.stack([sim.render(camera) for camera in VIEWS[view]])
            curve.append(-float(judge(frames)))
            judge.seconds = spent  # the curve is no part of planning
        if len(solved) >= HOLD and all(solved[-HOLD:]):
            break
    steps = len(solved)
    return episode._asdict() | {
        "weights": encoder.weights,
        "success": solved[-1],
        "touched": any(solved),
        "steps": steps,
        "joint_error": sim.joint_error(),
        "first_distance": None if judge is None else judge.first,
        **{name: None if np.isnan(v) else v for name, v in landmarks._asdict().items()},
        "distance": [round(d, 4) for d in curve],
        "reward": [round(r, 4) for r in rewards],
        "seconds_per_step": planning / steps,
        "split": {
            "physics": (clock["rollouts"] - clock["rendering"]) / steps,
            "rendering": clock["rendering"] / steps,
            "embedding": 0.0 if judge is None else judge.seconds / steps,
        },
    }


# -- all of them -----------------------------------------------------------------------------------


def open_encoders(entries: list[str], blur: float = 0.0) -> dict[str, Encoder]:
    """Name -> encoder, in the order given."""
    opened: dict[str, Encoder] = {}
    for entry in entries:
        name, given, what = entry.partition("=")
        what = (what or "bundled") if given else name
        if what == STATE:
            opened[STATE] = Encoder(None)
        elif what == "pixels":
            opened[name] = Encoder(raw_pixels)
        elif what == "imagenet":
            half = torch.bfloat16 if native_bfloat16(torch.device("cpu")) else None
            opened[name] = Encoder(imagenet(half, blur))
        else:
            try:
                embed = FrozenEncoder(open_network(what), blur=blur, chunk_size=16)
            except (CheckpointError, ValueError) as error:
                if what != "official":
                    sys.exit(f"--encoder {entry}: {error}")
                print(f"--encoder {entry} is left out: {error}", file=sys.stderr)
                continue
            opened[name] = Encoder(embed, digest(embed))
    return opened


def open_network(what: str) -> VIPEncoder:
    """A checkpoint, or the bundled architecture with other weights."""
    if what in ("untrained", "head"):
        return untrained(load_vip(), 0, imagenet=what == "head")
    if what == "official":
        return load_vip("resnet50", download=True)
    return load_vip(None if what == "bundled" else what)


def digest(network: torch.nn.Module) -> str:
    """Eight digits that change with the weights."""
    sha = hashlib.sha256()
    for weight in network.state_dict().values():
        sha.update(weight.float().numpy().tobytes())
    return sha.hexdigest()[:8]


def finished(path: Path) -> dict[Episode, dict]:
    """Episodes of a file of JSON lines; a last line that was cut short does not count."""
    done = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            result = json.loads(line)
        except json.JSONDecodeError:
            continue
        done[Episode(**{k: result[k] for k in Episode._fields if k in result})] = result
    return done


def wanted(args: argparse.Namespace, encoders: dict[str, Encoder]) -> list[Episode]:
    """All episodes; those of one seed and task follow each other and share their simulators."""
    cameras = [SUMMED] if args.cameras_summed else args.cameras
    episodes = []
    for seed, task, setting, count, (name, encoder) in product(
        range(args.seeds), args.tasks, args.setting, args.trajectories, encoders.items()
    ):
        played = Episode(name, setting, task, CAMERAS[0], seed, count, args.score, 1)
        played = played._replace(smoothness=args.smoothness)
        if encoder.embed is None:  # sees no camera: one episode is all three
            episodes.append(played)
        else:
            played = played._replace(goals=args.goals, image_size=args.image_size)
            if isinstance(encoder.embed, FrozenEncoder):
                played = played._replace(blur=args.blur)
            episodes += [played._replace(camera=camera) for camera in cameras]
    return episodes


def check_weights(done: dict[Episode, dict], encoders: dict[str, Encoder], path: Path) -> None:
    """Two checkpoints under one name would be averaged without a word."""
    for episode, result in done.items():
        now = encoders.get(episode.row, Encoder(None)).weights
        if now and result.get("weights", now) != now:
            sys.exit(
                f"{path} has episodes of {episode.row!r} with other weights: "
                "name this one otherwise (--encoder NAME=WHAT), or choose another --out"
            )


def run(args: argparse.Namespace) -> None:
    """Plays what is not finished yet."""
    encoders, path = open_encoders(args.encoder, args.blur), args.out / "episodes.jsonl"
    done = finished(path)
    check_weights(done, encoders, path)
    episodes = wanted(args, encoders)
    todo = [episode for episode in episodes if episode not in done]
    if len(todo) < len(episodes):
        print(f"{len(episodes) - len(todo)} of {len(episodes)} are in {path}", file=sys.stderr)
    if path.exists() and not path.read_text().endswith("\n"):
        path.write_text("".join(f"{json.dumps(r)}\n" for r in done.values()))
    by_task = [(task, list(group)) for task, group in groupby(todo, lambda episode: episode.task)]
    with open(path, "a") as out, tqdm(total=len(todo), unit="episode") as bar:
        for task, group in by_task:
            make_sim = partial(CandidateSim, task, image_size=args.image_size)
            every = args.score != "last"
            with (
                closing(KitchenSim(task, image_size=args.image_size)) as sim,
                Rollouts(make_sim, seen, every=every, processes=args.processes) as rollouts,
            ):
                for episode in group:
                    result = play(episode, encoders[episode.row], sim, rollouts)
                    out.write(json.dumps(result) + "\n")
                    out.flush()
                    bar.update()
                    bar.set_postfix_str(
                        f"{episode.row} {episode.task} {episode.camera}: "
                        f"{'solved' if result['success'] else 'not solved'} in {result['steps']}"
                    )


# -- report ----------------------------------------------------------------------------------------

Groups = dict[tuple[str, int, str], list[dict]]
"""(setting, trajectories, variant) -> results."""


def mean_by(group: list[dict], *keys: str, of: str = "success") -> dict[tuple, float]:
    """Mean of ``of`` over all results that agree in ``keys``."""
    cells = defaultdict(list)
    for result in group:
        cells[tuple(result[key] for key in keys)].append(result[of])
    return {cell: float(np.mean(values)) for cell, values in cells.items()}


def rate(group: list[dict]) -> tuple[float, float, float]:
    """Success over all tasks and its interval over tasks: three cameras of one are not independent."""
    return bootstrap(list(mean_by(group, "task").values()))


def percent(mean: float, low: float, high: float) -> str:
    return f"{mean:.0%} [{low:.0%}, {high:.0%}]"


def curves(group: list[dict]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Distance and true reward of each episode that is long enough to say something."""
    return [
        (np.array(r["distance"]), np.array(r["reward"])) for r in group if len(r["distance"]) > 2
    ]


def fit(group: list[dict]) -> float:
    return float(np.mean([r_squared(-d, reward) for d, reward in curves(group)] or [np.nan]))


def main_table(groups: Groups) -> list[str]:
    columns = (
        "setting|trajectories|encoder|episodes|success|touched|joint error|distance left|cheated|"
        "decoyed|R²|order|s a step|physics|rendering|embedding"
    ).split("|")
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for (setting, count, name), group in sorted(groups.items()):
        left = [r["distance"][-1] / r["first_distance"] for r in group if r.get("first_distance")]
        lost = [r for r in group if not r["success"] and r.get("near")]
        order = [voc(d) for d, _ in curves(group)]
        decoyed = [r["decoyed"] for r in group if r.get("decoyed") is not None]
        cells = [
            setting, count, name, len(group), percent(*rate(group)),
            f"{np.mean([r.get('touched', r['success']) for r in group]):.0%}",
            f"{np.mean([r['joint_error'] for r in group]):.2f}",
            f"{np.mean(left):.2f}" if left else "–",
            f"{np.mean([r['distance'][-1] < r['near'] for r in lost]):.0%}" if lost else "–",
            f"{np.mean(decoyed):.0%}" if decoyed else "–",
            f"{fit(group):.2f}" if order else "–",
            f"{np.mean(order):.2f}" if order else "–",
            f"{np.median([r['seconds_per_step'] for r in group]):.2f}",
            *(f"{np.median([r['split'][part] for r in group]):.2f}" for part in columns[-3:]),
        ]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def task_table(group: list[dict]) -> list[str]:
    """Success and R² of every task and camera."""
    cells, cameras = mean_by(group, "task", "camera"), sorted({r["camera"] for r in group})
    lines = ["| task | " + " | ".join(cameras) + " |", "|---" * (1 + len(cameras)) + "|"]
    for task in sorted({r["task"] for r in group}):
        texts = []
        for camera in cameras:
            played = [r for r in group if (r["task"], r["camera"]) == (task, camera)]
            known = played and curves(played)
            r2 = f" (R² {fit(played):.2f})" if known else ""
            texts.append(f"{cells[task, camera]:.0%}{r2}" if played else "–")
        lines.append(f"| {task} | " + " | ".join(texts) + " |")
    means = mean_by(group, "camera")
    return [*lines, "| mean | " + " | ".join(f"{means[c,]:.0%}" for c in cameras) + " |"]


def differences(groups: Groups, first: str) -> list[str]:
    """What the first encoder solves more than each other, paired by task."""
    lines = []
    for (setting, count, name), group in sorted(groups.items()):
        ours = mean_by(groups.get((setting, count, first), []), "task")
        theirs = mean_by(group, "task")
        shared = sorted(ours.keys() & theirs.keys())
        if name != first and shared:
            gain = percent(*bootstrap([ours[t] - theirs[t] for t in shared]))
            lines.append(f"- {setting}, {count} trajectories, {first} minus {name}: {gain}")
    return lines


def report(args: argparse.Namespace) -> None:
    """Table and picture of all finished episodes in OUT."""
    done = finished(args.out / "episodes.jsonl")
    if not done:
        sys.exit(f"{args.out}/episodes.jsonl has no finished episode")
    groups: Groups = defaultdict(list)
    for episode, result in done.items():
        groups[episode.setting, episode.trajectories, episode.variant()].append(result)
    first = next((name for entry in args.encoder if (name := name_of(entry))), "")
    lines = [
        "# FrankaKitchen: 12 tasks x 3 cameras, planned to a goal image",
        "",
        "Success with its 95 % bootstrap interval over tasks, the mean of cameras and seeds each. "
        "touched: solved at any step. joint error: of the task's joint at the end, in parts of its "
        "range. distance left: at the end, in parts of the first one. cheated: share of the failures "
        "that end nearer to the goal than other successes do. decoyed: share of the demonstration's way "
        "that looks farther from the goal than the arm at the goal with nothing else moved. R²: of the "
        "distance with the state's true reward along what was done. order: rank correlation of time with "
        "minus the distance. "
        "Seconds of a planning step are medians.",
        "",
        *main_table(groups),
        "",
        *differences(groups, first),
    ]
    for (setting, count, name), group in sorted(groups.items()):
        if first and f"{name},".startswith(f"{first},"):
            lines += ["", f"## {name}, {setting}, {count} trajectories", "", *task_table(group)]
    lines += ["", f"![success]({args.name}.png)", "", in_words(about()), ""]
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / f"{args.name}.md").write_text("\n".join(lines))
    (args.results / f"{args.name}.json").write_text(
        json.dumps({"about": about(), "episodes": list(done.values())}) + "\n"
    )
    plot(groups, args.results / f"{args.name}.png")
    print("\n".join(lines))


def name_of(entry: str) -> str:
    """Of an --encoder that a report can be about; nothing for the true reward."""
    name, _, what = entry.partition("=")
    return "" if STATE in (name, what) else name


# -- picture ---------------------------------------------------------------------------------------


def plot(groups: Groups, path: Path) -> None:
    """Success overall, by camera and by task, as in the paper's Figure 4; and against the budget."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    settings = sorted({setting for setting, _, _ in groups})
    budgets = sorted({count for _, count, _ in groups})
    names = sorted({name for _, _, name in groups}, key=lambda n: (n != STATE, n))
    colours = dict(zip(names, (f"C{i % 10}" for i in range(len(names))), strict=True))
    usual = 32 if 32 in budgets else budgets[0]
    rows = len(settings) + (len(budgets) > 1)
    figure, axes = plt.subplots(
        rows, 2, figsize=(13, 3.6 * rows),
        width_ratios=[1, 1.8], squeeze=False, layout="constrained",
    )  # fmt: skip
    for (overall, tasks), setting in zip(axes, settings, strict=False):
        chosen = {n: groups[setting, usual, n] for n in names if (setting, usual, n) in groups}
        bars(overall, chosen, "camera", colours)
        bars(tasks, chosen, "task", colours)
        overall.set_title(f"{setting}, {usual} trajectories: all tasks, by camera")
        tasks.set_title("by task")
        tasks.legend(fontsize=7, loc="upper right")
    if len(budgets) > 1:
        against_budget(axes[-1], groups, budgets, names, colours)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def bars(axis, chosen: dict[str, list[dict]], key: str, colours: dict[str, str]) -> None:
    """A group of bars for all, if they are cameras, and one for each value of ``key``."""
    values = sorted({r[key] for n, group in chosen.items() for r in group if n != STATE})
    values = values or sorted({r[key] for group in chosen.values() for r in group})
    ticks = [*(["all"] if key == "camera" else []), *values]
    width = 0.8 / max(len(chosen), 1)
    for i, (name, group) in enumerate(chosen.items()):
        means = mean_by(group, key)
        for x, tick in enumerate(ticks):
            place = x - 0.4 + (i + 0.5) * width
            label = name if x == 0 else None
            if tick == "all":
                mean, low, high = rate(group)
                error = [[mean - low], [high - mean]]
                axis.bar(
                    place, mean, width, yerr=error, capsize=3, color=colours[name], label=label
                )
            elif (tick,) in means and not (name == STATE and key == "camera"):
                axis.bar(place, means[tick,], width, color=colours[name], label=label)
    axis.set_xticks(range(len(ticks)), ticks, rotation=20, fontsize=8)
    axis.set(ylabel="success", ylim=(0, 1.02))


def against_budget(
    axes, groups: Groups, budgets: list[int], names: list[str], colours: dict[str, str]
) -> None:
    """Success and distance left: where one falls and the other does not rise, the reward is cheated."""
    setting = min(setting for setting, _, _ in groups)
    for name in names:
        known = [c for c in budgets if (setting, c, name) in groups]
        played = [groups[setting, c, name] for c in known]
        if not played:
            continue
        look = {"marker": "o", "color": colours[name], "label": name}
        axes[0].plot(known, [rate(group)[0] for group in played], **look)
        left = [
            [r["distance"][-1] / r["first_distance"] for r in group if r.get("first_distance")]
            for group in played
        ]
        if all(left):
            axes[1].plot(known, [np.mean(values) for values in left], **look)
    axes[0].set(title=f"{setting}: success", ylim=(0, 1.02))
    axes[1].set(title="distance left at the end, in parts of the first", ylim=(0, None))
    for axis in axes:
        axis.set(xscale="log", xlabel="trajectories")
        axis.set_xticks(budgets, [str(c) for c in budgets])
    axes[0].legend(fontsize=7)


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
        "--trajectories", "--budgets", type=int, nargs="+", default=[32], metavar="N",
        help="candidates a step; several are a sweep (32)",
    )  # fmt: skip
    parser.add_argument(
        "--score", choices=("last", "sum", "difference"), default="last",
        help="of a trajectory: minus its last distance, minus the sum of all, its last reward",
    )  # fmt: skip
    parser.add_argument("--goals", type=int, default=1, help="goal images, averaged (%(default)s)")
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
        "--processes", type=int, default=len(os.sched_getaffinity(0)), help="(one a core)"
    )
    parser.add_argument("--report", action="store_true", help="play nothing")
    parser.add_argument("--out", type=Path, default=Path("kitchen36"), help="folder of episodes")
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="folder of tables")
    parser.add_argument("--name", default="kitchen36", help="name of the result files")
    args = parser.parse_args(arguments)
    args.encoder = args.encoder or [BUNDLED]
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
