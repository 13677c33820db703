"""Planning in the kitchen by the distance, before and after preset=scene: what is solved, where the hand is.

    python benchmarks/scene_planning.py --clips CLIPS --idle IDLE      # 24 episodes, about 25 minutes a core

CLIPS are those of ``python -m torchrl_vip.demonstrations.render --suite kitchen --split heldout --cameras
default --stride 1 --size 160``, and IDLE of ``--split idle``. The twelve tasks of the default camera,
one episode each, by the protocol of kitchen36.py: MPPI with 32 trajectories, from two fifths of a
demonstration to its last frame. It is the third one's, and the encoder is tuned on the first two of each
task and on idle clips: one encoder for the tasks that open or turn on, one for those that close or turn
off. Idle clips that lead where the third demonstration goes are left out. In the kitchen what one task
leaves another one finds: an idle clip is of the start state of every task that begins so, and of the goal
state of the one that ends so.

Every episode is in OUT/episodes.jsonl as it ends and is not played again; --report writes the tables of what
is there.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from contextlib import closing
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("LP_NUM_THREADS", "1")  # a process draws with the core that it plans with

import numpy as np
import torch
from kitchen36_episode import Encoder, Episode, play
from machine import about, in_words
from PIL import Image
from scene import attempts, train, trained_on
from tqdm import tqdm

from torchrl_vip import FrozenEncoder, load_vip
from torchrl_vip.data.clip import Clip
from torchrl_vip.demonstrations.plan import PlanningSim
from torchrl_vip.demonstrations.scripted import clip_seed
from torchrl_vip.envs.kitchen import KitchenSim, demonstrations, list_tasks
from torchrl_vip.evaluation.metrics import bootstrap
from torchrl_vip.pretrain.build import Config
from torchrl_vip.pretrain.config import DEPTHS

ROOT = Path(__file__).parent
CAMERA = "default"
ROWS = ("before", "after")
PLAYED = 2
"""Number of the demonstration whose start and end are planned from and to."""
OTHER = {"open": "close", "close": "open", "on": "off", "off": "on"}


def opens(task: str) -> bool:
    return task.endswith(("_open", "_on"))


def opposite(task: str) -> str:
    """The task that begins as this one ends."""
    thing, _, done = task.rpartition("_")
    return f"{thing}_{OTHER[done]}"


# -- clips and training ----------------------------------------------------------------------------


def unseen_of(clip: Clip) -> bool:
    """Whether an idle clip was made by a demonstration that is trained on, so that it tells nothing of the
    one played."""
    labels = clip.labels
    number = int(Path(clip.name).stem.rpartition("_")[2])
    seed = clip_seed(labels["seed"], labels["group"], "idle", labels["idle_of"], number)
    return seed % len(demonstrations(labels["task"])) != PLAYED


def idle_for(clips: list[Clip], opening: bool) -> list[Clip]:
    """Idle clips as they are for the tasks that open, or for those that close: of which state of which task.

    All tasks that open begin alike, so what shows their start has no label.
    """
    found = []
    for clip in clips:
        task, camera = str(clip.labels["group"]).split("/")
        state = clip.idle_of
        if opens(task) != opening:  # its opposite begins as it ends
            task, state = opposite(task), "goal" if state == "start" else "start"
        group = None if opening and state == "start" else f"{task}/{camera}"
        found.append(replace(clip, labels={"idle_of": state, "group": group}))
    return found


def tuned(clips: list[Clip], idle: list[Clip], opening: bool, args: argparse.Namespace) -> Path:
    """Folder of the encoder for half of the tasks, which is trained where it is not there yet."""
    folder = args.out / f"{args.depth}-{'open' if opening else 'close'}"
    if not (folder / "final").exists():
        chosen = [c for c in trained_on(clips, 0, PLAYED) if opens(c.labels["task"]) == opening]
        moving = idle_for([c for c in idle if unseen_of(c)], opening)
        changes: Config = {"depth": args.depth} | ({"steps": 2} if args.smoke else {})
        train([*chosen, *moving], changes, folder)
    return folder / "final"


# -- an episode ------------------------------------------------------------------------------------


class Watched(KitchenSim):
    """Remembers of the state after each step: a frame, the hand's place, how far it is from what it is to
    move (m), and how far the task's joint is from its target, in parts of its range."""

    def __init__(self, task: str, **options) -> None:
        super().__init__(task, **options)
        self.seen: list[tuple[np.ndarray, np.ndarray, float, float]] = []

    def step(self, action: np.ndarray):
        told = super().step(action)
        reach = float(np.linalg.norm(self.hand() - self.handle()))
        self.seen.append((self.look([CAMERA])[0], self.hand(), reach, self.joint_error()))
        return told


def goal_hand(sim: KitchenSim, task: str) -> tuple[np.ndarray, np.ndarray]:
    """The goal image and where it has the hand."""
    state = sim.get_state()
    sim.pose(demonstrations(task)[PLAYED].qpos[-1])
    goal, hand = sim.look([CAMERA])[0], sim.hand()
    sim.set_state(state)
    return goal, hand


def episode(row: str, task: str, encoder: Encoder, args: argparse.Namespace) -> dict:
    """Plays one, and writes its strip of frames; the last one is the goal image."""
    wanted = Episode(row, "easy", task, CAMERA, PLAYED, args.trajectories, "last", 1)
    wanted = wanted._replace(max_steps=args.steps)
    with (
        closing(Watched(task, image_size=160)) as sim,
        closing(PlanningSim(task, image_size=160)) as candidates,
    ):
        found = play(wanted, encoder, sim, candidates, args.out)
        goal, hand = goal_hand(sim, task)
    # The demonstration was followed before, and ended where planning began.
    frames, hands, reach, error = zip(*sim.seen[-found["steps"] - 1 :], strict=True)
    shown = [frames[i] for i in np.linspace(0, len(frames) - 1, 6).astype(int)]
    strip = np.concatenate([*shown, goal], 1)
    Image.fromarray(strip).save(args.out / f"{row}_{task}.png")
    return {
        "row": row,
        "task": task,
        "success": found["success"],
        "steps": found["steps"],
        "joint": [round(e, 4) for e in error],
        "hand_to_object": [round(r, 4) for r in reach],
        "hand_to_goal_image": [round(float(np.linalg.norm(h - hand)), 4) for h in hands],
        "distance": [round(d, 4) for d in (found["first_distance"], *found["distance"])],
        "decoyed": found["decoyed"],
        "seconds_per_step": round(found["seconds_per_step"], 2),
    }


def play_all(clips: list[Clip], idle: list[Clip], args: argparse.Namespace) -> list[dict]:
    """All episodes; those that are written are read."""
    path = args.out / "episodes.jsonl"
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    played = {(e["row"], e["task"]) for e in done}
    todo = [(task, row) for row in ROWS for task in args.tasks if (row, task) not in played]
    if args.report:
        todo = []
    for task, row in tqdm(todo, unit="episode"):
        encoder = load_vip(tuned(clips, idle, opens(task), args) if row == "after" else None)
        found = episode(row, task, Encoder(FrozenEncoder(encoder)), args)
        done.append(found)
        with path.open("a") as out:
            out.write(json.dumps(found) + "\n")
    return done


# -- report ----------------------------------------------------------------------------------------


def moved(e: dict) -> float:
    """How much of its way the task's joint has made, at most 1; below 0 where it went back."""
    return 1 - e["joint"][-1] / e["joint"][0]


def table(done: list[dict]) -> list[str]:
    lines = [
        "| task | | solved | joint's way made | distance left | hand to object, m: start, nearest, end | "
        "hand to that of the goal image, m: start, end | decoyed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for e in sorted(done, key=lambda e: (e["task"], e["row"])):
        reach, hand, d = e["hand_to_object"], e["hand_to_goal_image"], e["distance"]
        lines.append(
            f"| {e['task']} | {e['row']} | {'yes' if e['success'] else 'no'} | {moved(e):.2f} | "
            f"{d[-1] / d[0]:.2f} | {reach[0]:.2f}, {min(reach):.2f}, {reach[-1]:.2f} | "
            f"{hand[0]:.2f}, {hand[-1]:.2f} | {e['decoyed']:.2f} |"
        )
    return lines


def summary(done: list[dict]) -> list[str]:
    lines = [
        "| | solved | joint's way made | distance left | hand to object at the end, m | "
        "hand to that of the goal image, m | decoyed |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in dict.fromkeys(e["row"] for e in done):
        of = [e for e in done if e["row"] == row]
        columns = (
            [moved(e) for e in of],
            [e["distance"][-1] / e["distance"][0] for e in of],
            [e["hand_to_object"][-1] for e in of],
            [e["hand_to_goal_image"][-1] for e in of],
            [e["decoyed"] for e in of],
        )
        cells = ["{:.2f} [{:.2f}, {:.2f}]".format(*bootstrap(c)) for c in columns]
        solved = sum(e["success"] for e in of)
        lines.append(f"| {row} | {solved} of {len(of)} | {' | '.join(cells)} |")
    return lines


def write(done: list[dict], args: argparse.Namespace, machine: dict) -> None:
    seconds = np.mean([e["seconds_per_step"] for e in done])
    lines = [
        "# Planning in the kitchen by the distance, before and after preset=scene",
        "",
        f"Tasks of the default camera, one episode each, at most {args.steps} steps of MPPI with "
        f"{args.trajectories} trajectories (Easy of kitchen36.py), towards the end of a demonstration that "
        f"was not trained on. After: depth={args.depth}, two demonstrations a task, idle clips. "
        f"{seconds:.1f} s a step beside other work.",
        "",
        *summary(done),
        "",
        "Mean, 95 % bootstrap interval over tasks. Decoyed: how much of the demonstration's way looks "
        "farther from the goal than the arm as in the goal image with nothing else moved.",
        "",
        *table(done),
        "",
        in_words(machine),
        "",
    ]
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / f"{args.name}.md").write_text("\n".join(lines))
    (args.results / f"{args.name}.json").write_text(
        json.dumps({"about": machine, "episodes": done}, indent=1) + "\n"
    )
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--clips", type=Path, required=True, help="the kitchen's demonstrations")
    add("--idle", type=Path, required=True, help="its idle clips")
    add("--depth", choices=DEPTHS, default="head", help="(%(default)s)")
    add("--tasks", nargs="+", choices=list_tasks(), default=list_tasks(), metavar="TASK")
    add("--trajectories", type=int, default=32, help="candidates a step (%(default)s)")
    add("--steps", type=int, default=50, help="at most (%(default)s)")
    add("--out", type=Path, default=Path("scene_planning_runs"), help="encoders, episodes, strips")
    add("--results", type=Path, default=ROOT / "results")
    add("--name", default="scene_planning", help="of the result files (%(default)s)")
    add("--report", action="store_true", help="play nothing; write what is there")
    add("--smoke", action="store_true", help="one task, to see that everything works")
    args = parser.parse_args()
    if args.smoke:
        args.tasks, args.trajectories, args.steps = args.tasks[:1], 3, 2
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    machine = about()
    only = [f"/{CAMERA}"]
    write(play_all(attempts(args.clips, only), attempts(args.idle, only), args), args, machine)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
