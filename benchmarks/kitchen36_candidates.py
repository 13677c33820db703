"""How well an encoder ranks what a planner tries, without planning: a quick look ahead at kitchen36.py.

    python benchmarks/kitchen36_candidates.py             # bundled and its rivals, some 20 minutes
    python benchmarks/kitchen36_candidates.py --encoder new=RUN/final --encoder bundled

From nine states of each kitchen task's three demonstrations, between the start of kitchen36.py's Easy and
three quarters of the rest, 32 sequences of MPPI's noise run 12 steps ahead. Each camera draws the last
frames, which are scored by minus their distance to the goal, the demonstration's own end.

- gain: what MPPI's weights (temperature 5) raise the task's true reward by, in standard deviations of the
  candidates' rewards: 0 is chance, the true reward itself reaches the first row.
- object: the same of the task's joint alone, where some candidate moves it at all. The true reward also
  counts the hand's way to the handle, which is easily seen.
- rank: Spearman correlation of the score with the true reward.
- plan: by how much the true reward is higher after the weighted mean of the candidates, which is what MPPI
  does, than after standing still.

Each --encoder is as in kitchen36.py. Every one is scored by one goal and one camera, and as in that script's
ablations: by the mean of three goals, also by frames without the robot, by all cameras summed.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("MUJOCO_GL", "egl")

import numpy as np
from kitchen36 import BUNDLED, STATE, open_encoders
from kitchen36_episode import HORIZON, Embed, easy_start, embedded, pictures, scale_of
from machine import about, in_words
from scipy.stats import spearmanr
from tqdm import tqdm

from torchrl_vip.demonstrations.plan import PlanningSim, state_reward
from torchrl_vip.envs.kitchen import CAMERAS, KitchenSim, demonstrations, list_tasks
from torchrl_vip.envs.simulator import WITHOUT_ROBOT
from torchrl_vip.evaluation.metrics import bootstrap
from torchrl_vip.planning import filtered_noise, mppi_weights, rollout

KAPPA = 5.0
CANDIDATES = 32
RIVALS = ["tiny", "head", "block10", "imagenet", "untrained", "pixels"]
ALL_CAMERAS = [*CAMERAS, *(camera + WITHOUT_ROBOT for camera in CAMERAS)]
FORMS = {  # goals, and the places in ALL_CAMERAS of those whose distances are added
    "one goal": (1, [[0], [1], [2]]),
    "mean of 3 goals": (3, [[0], [1], [2]]),
    "one goal, with and without the robot": (1, [[0, 3], [1, 4], [2, 5]]),
    "mean of 3 goals, cameras summed": (3, [[0, 1, 2]]),
    "all of it": (3, [[0, 1, 2, 3, 4, 5]]),
}


class Decision(NamedTuple):
    """N candidates from one state, and where they end in V views.

    Attributes:
        frames: uint8 [N, V, H, W, 3].
        goals: the demonstrations' ends, this state's own first: uint8 [G, V, H, W, 3].
        start: the state itself: uint8 [V, H, W, 3].
        reward: the true one, [N].
        joint_error: of the task's joint, [N], in parts of its range.
        actions: [N, H, 9].
        outcome: the true reward after actions [H, 9], above that of standing still.
    """

    frames: np.ndarray
    goals: np.ndarray
    start: np.ndarray
    reward: np.ndarray
    joint_error: np.ndarray
    actions: np.ndarray
    outcome: Callable[[np.ndarray], float]


def decisions(task: str, image_size: int) -> Iterator[Decision]:
    """Nine of a task: three of each of its demonstrations."""
    solved = demonstrations(task)
    with (
        closing(KitchenSim(task, image_size=image_size)) as sim,
        closing(PlanningSim(task, image_size=image_size)) as ahead,
    ):
        ends = pictures(sim, np.stack([d.qpos[-1] for d in solved]), ALL_CAMERAS)
        for number, demonstration in enumerate(solved):
            first, last = easy_start(demonstration), len(demonstration.actions)
            for step in np.linspace(first, first + 0.75 * (last - first), 3).round().astype(int):
                sim.repeat(demonstration, int(step))
                state = sim.get_state()
                rng = np.random.default_rng([number, step])
                noise = filtered_noise(rng, (CANDIDATES, HORIZON, 9))
                noise[0] = 0.0  # as MPPI's: what is already planned competes too
                tried = np.clip(noise, -1, 1)
                ends_of = rollout(ahead, state, tried, end)
                reached = np.concatenate([sim.data.qpos[None], ends_of["qpos"]])
                frames = pictures(sim, reached, ALL_CAMERAS)
                yield Decision(
                    frames=frames[1:],
                    goals=np.roll(ends, -number, axis=0),
                    start=frames[0],
                    reward=ends_of["reward"],
                    joint_error=ends_of["joint_error"],
                    actions=tried,
                    outcome=partial(outcome, ahead, state, ends_of["reward"][0]),
                )


def end(sim: PlanningSim, _: float) -> np.ndarray:
    """Where a candidate ends, as one record."""
    record = np.zeros(
        (), [("qpos", float, len(sim.data.qpos)), ("reward", float), ("joint_error", float)]
    )
    record["qpos"], record["reward"], record["joint_error"] = (
        sim.data.qpos,
        sim.reward(),
        sim.joint_error(),
    )
    return record


def outcome(sim: PlanningSim, state: np.ndarray, at_rest: float, actions: np.ndarray) -> float:
    """The true reward after actions [H, 9], above ``at_rest``, that of standing still."""
    return float(rollout(sim, state, actions[None], state_reward)[0] - at_rest)


def gain(score: np.ndarray, reward: np.ndarray) -> float:
    """What MPPI's weights of ``score`` [N] raise the mean of ``reward`` [N] by, in its deviations."""
    chosen = mppi_weights(score, KAPPA) @ reward
    return float((chosen - reward.mean()) / max(reward.std(), 1e-12))


def measures(score: np.ndarray, decision: Decision) -> dict[str, float]:
    """By name; object is NaN where no candidate moves the joint by a fiftieth of its range."""
    error, weights = decision.joint_error, mppi_weights(score, KAPPA)
    return {
        "gain": gain(score, decision.reward),
        "object": gain(score, -error) if np.ptp(error) > 0.02 else np.nan,
        "rank": float(spearmanr(score, decision.reward).statistic),
        "plan": decision.outcome(np.einsum("n,nha->ha", weights, decision.actions)),
    }


def scored(embed: Embed | None, decision: Decision) -> Iterator[tuple[str, dict[str, float]]]:
    """(form, measures) of every form and, where it looks by one camera, of each camera."""
    if embed is None:
        yield "", measures(decision.reward, decision)
        return
    z, z_goals, z_start = (
        embedded(embed, f) for f in (decision.frames, decision.goals, decision.start)
    )
    for form, (goals, added) in FORMS.items():
        for views in added:
            goal = z_goals[:goals, views].mean(0)
            distance = (z[:, views] - goal).norm(dim=-1) * scale_of(z_start[views], goal)
            yield form, measures(-distance.sum(-1).numpy(), decision)


def table(results: dict[tuple[str, str], dict[str, dict[str, list[float]]]]) -> list[str]:
    """Means over tasks, with intervals over tasks: (encoder, form) -> measure -> task -> values."""
    lines = ["| encoder | scored by | gain | object | rank | plan |", "|---" * 6 + "|"]
    for (name, form), found in results.items():
        cells = []
        for by_task in found.values():
            means = [np.nanmean(v) for v in by_task.values() if not np.isnan(v).all()]
            cells.append("{:.2f} [{:.2f}, {:.2f}]".format(*bootstrap(means)))
        lines.append(f"| {name} | {form or 'true reward'} | " + " | ".join(cells) + " |")
    return lines


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--encoder",
        action="append",
        metavar="NAME=WHAT",
        help=f"repeatable ({BUNDLED!r}, {RIVALS})",
    )
    parser.add_argument("--tasks", nargs="+", choices=list_tasks(), default=list_tasks())
    parser.add_argument("--image-size", type=int, default=160, help="pixels drawn (%(default)s)")
    parser.add_argument(
        "--results", type=Path, default=Path(__file__).parent / "results", help="folder of tables"
    )
    args = parser.parse_args(arguments)
    machine = about()  # with the load before
    encoders = open_encoders([STATE, *(args.encoder or [BUNDLED, *RIVALS])])
    results = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    with tqdm(total=9 * len(args.tasks), unit="decision") as bar:
        for task in args.tasks:
            for decision in decisions(task, args.image_size):
                for name, encoder in encoders.items():
                    for form, found in scored(encoder.embed, decision):
                        for measure, value in found.items():
                            results[name, form][measure][task].append(value)
                bar.update()
                bar.set_postfix_str(task)
    rows = [{"encoder": n, "form": f, "by task": found} for (n, f), found in results.items()]
    text = "\n".join(
        [
            "# How well encoders rank a planner's candidates in FrankaKitchen",
            "",
            "gain: what MPPI's weights raise the true reward by, in standard deviations of the "
            f"{CANDIDATES} candidates of a state. object: the same of the task's joint alone. rank: "
            "Spearman correlation with the true reward. plan: by how much the true reward is higher after "
            "the weighted mean of the candidates than after standing still. Means with 95 % bootstrap "
            f"intervals over {len(args.tasks)} tasks, of three demonstrations and three states each. head: "
            "ImageNet's weights below a random head. block10: ImageNet's block 10 alone, as 2 x 2 cells.",
            "",
            *table(results),
            "",
            in_words(machine),
            "",
        ]
    )
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / "kitchen36_candidates.md").write_text(text)
    (args.results / "kitchen36_candidates.json").write_text(
        json.dumps({"about": machine, "rows": rows}) + "\n"
    )
    print(text)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
