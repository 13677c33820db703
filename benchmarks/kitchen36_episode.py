"""One episode of kitchen36.py: its start and goal, the planner's judge, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchrl_vip.demonstrations.plan import PlanningSim
from torchrl_vip.envs.kitchen import CAMERAS, Demonstration, KitchenSim, demonstrations
from torchrl_vip.envs.simulator import WITHOUT_ROBOT
from torchrl_vip.files import write_whole
from torchrl_vip.planning import (
    CEM,
    MPPI,
    FoundRobot,
    GoalReading,
    Planner,
    find_robot,
    in_deviations,
    read_goal,
    rollout,
)

SUMMED = "summed"
STEPS = {"easy": 50, "hard": 100}
ARM = 9  # joints, which come first
EASY_START = 20  # state of the demonstration, or 2/5 of it
HORIZON = 12
SCORES = {"last": 1, "difference": 2, "sum": HORIZON}
"""What a trajectory is judged by, and how many of its last steps have to be drawn for that."""
COMBINE = ("start", "deviation")
"""What the distances of several views are divided by before they are added: what each was at the start, or
how much it differs between the candidates."""
PLANNERS = ("mppi", "cem")
CEM_ITERATIONS = 4
STILL = 1e-4  # radians or m: what moves by less looks the same
HOLD = 5  # steps that a solved state must last to end the episode
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
    max_steps: int = 0  # 0: the setting's
    without_robot: float = 0.0
    beside_robot: float = 0.0
    combine: str = "start"
    read_goal: bool = False
    planner: str = "mppi"

    def views(self) -> dict[str, float]:
        """The cameras that its candidates are drawn by, and the weight of each one's distance."""
        cameras = CAMERAS if self.camera == SUMMED else (self.camera,)
        if self.read_goal:
            return {camera + WITHOUT_ROBOT: 1.0 for camera in cameras}
        views = dict.fromkeys(cameras, 1.0)
        if weight := self.without_robot or self.beside_robot:
            views |= {camera + WITHOUT_ROBOT: weight for camera in cameras}
        return views

    def variant(self) -> str:
        """The encoder's name, and what is not as in the paper."""
        scores = {"sum": ["sum of distances"], "difference": ["last reward"]}
        return ", ".join(
            [self.row]
            + scores.get(self.score, [])
            + [f"mean of {self.goals} goals"] * (self.goals != 1)
            + ["cameras summed"] * (self.camera == SUMMED)
            + [f"{self.without_robot:g} x without the robot"] * (self.without_robot != 0)
            + [f"{self.beside_robot:g} x beside the robot"] * (self.beside_robot != 0)
            + ["goal read from the image"] * self.read_goal
            + ["in deviations"] * (self.combine == "deviation")
            + ["CEM"] * (self.planner == "cem")
            + [f"smoothness {self.smoothness:g}"] * (self.smoothness != 0)
            + [f"drawn at {self.image_size}²"] * (self.image_size != 160)
            + [f"blurred by {self.blur:g}"] * (self.blur != 0)
            + [f"{self.max_steps} steps at most"] * (self.max_steps != 0)
        )


class Encoder(NamedTuple):
    """An embedding, None for the true reward, and a digest of its weights."""

    embed: Embed | None
    weights: str = ""


@torch.no_grad()
def embedded(embed: Embed, frames: np.ndarray) -> Tensor:
    """uint8 [*N, H, W, 3] to float32 [*N, D]; frames that are the same are embedded once."""
    images, place = frames.reshape(-1, *frames.shape[-3:]), {}
    where = [place.setdefault(image.tobytes(), len(place)) for image in images]
    different = torch.from_numpy(images[np.unique(where, return_index=True)[1]])
    z = embed(different.permute(0, 3, 1, 2)).float()[where]
    return z.reshape(*frames.shape[:-3], -1)


def scale_of(z_start: Tensor, z_goal: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """What the distances of V views, embeddings [V, D], are multiplied by before they are added, [V]: a
    single one by 1, several by their share of the weights over what each was at the start."""
    if len(z_start) == 1:
        return torch.ones(1)
    shares = torch.tensor(weights or [1.0] * len(z_start))
    # not camera_weights: late in a demonstration a camera may see no way to the goal any more
    return shares / shares.sum() / (z_start - z_goal).norm(dim=-1).clamp(min=1e-6)


class Judge:
    """Minus the distance of frames [*N, V, H, W, 3] to the goal, [*N]. One view's is in embedding
    units; of several each is in parts of what it was at the start, and their weighted mean is taken.

    Args:
        goals: frames [G, V, H, W, 3]; their embeddings are averaged.
        start: first frames [V, H, W, 3].
        weights: of the V views; equal if not given.
        hidden: bool [V, H, W], pixels that are not compared: frames show the first goal's there.
        combine: one of COMBINE, for :meth:`compare`.

    Attributes:
        reading: what the goal image says, where that is asked for and it says anything.
    """

    def __init__(
        self,
        embed: Embed,
        goals: np.ndarray,
        start: np.ndarray,
        weights: Sequence[float] | None = None,
        hidden: np.ndarray | None = None,
        combine: str = "start",
    ) -> None:
        self.embed, self.combine, self.seconds = embed, combine, 0.0
        self.hidden, self.goal = None if hidden is None else hidden[..., None], goals[0]
        self.weights = weights
        self.reading: GoalReading | None = None
        self.z_goal = embedded(embed, goals).mean(0)
        self.scale = scale_of(self._embed(start), self.z_goal, weights)
        self.first = -float(self(start))
        self.seconds = 0.0

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        return -(self.distances(frames) * self.scale.numpy()).sum(-1)

    def compare(self, frames: np.ndarray) -> np.ndarray:
        """The same for candidates that are chosen among, which combine="deviation" is of."""
        if self.combine == "start":
            return self(frames)
        return -in_deviations(self.distances(frames), self.weights)

    def distances(self, frames: np.ndarray) -> np.ndarray:
        """[*N, V] in embedding units."""
        began = time.perf_counter()
        distances = (self._embed(frames) - self.z_goal).norm(dim=-1).numpy()
        self.seconds += time.perf_counter() - began
        return distances

    def _embed(self, frames: np.ndarray) -> Tensor:
        if self.hidden is not None:
            frames = np.where(self.hidden, self.goal, frames)
        return embedded(self.embed, frames)


def pictures(sim: KitchenSim, qpos: np.ndarray, views: Sequence[str]) -> np.ndarray:
    """What each camera shows at positions [T, 30]: uint8 [T, V, H, W, 3]. The state is as before."""
    state, frames = sim.get_state(), []
    for position in qpos:
        sim.pose(position)
        frames.append(sim.look(views))
    sim.set_state(state)
    return np.stack(frames)


class Landmarks(NamedTuple):
    """What an episode's goal makes of states that are known beforehand.

    Attributes:
        near: distance at which other successes end.
        decoyed: share of the goal's own demonstration, from the start on, that looks farther from
            the goal than a decoy does: the arm as in the goal, all else as it was at the start.
    """

    near: float = np.nan
    decoyed: float = np.nan


def easy_start(demonstration: Demonstration) -> int:
    """The state that Easy starts from."""
    return min(EASY_START, round(0.4 * len(demonstration.actions)))


def begin(
    sim: KitchenSim, episode: Episode, embed: Embed | None, found: Path
) -> tuple[Judge | None, Landmarks]:
    """Brings the simulator to the start; returns the judge of its goal, None for the true reward."""
    solved = demonstrations(episode.task)
    number = episode.seed % len(solved)
    solved = solved[number:] + solved[:number]
    first = easy_start(solved[0]) if episode.setting == "easy" else 0
    sim.repeat(solved[0], first)
    if embed is None:
        return None, Landmarks()
    here, path = sim.data.qpos.copy(), solved[0].qpos[first:]
    arm_only = np.concatenate([path[-1][:ARM], here[ARM:]])
    positions = np.stack([here, arm_only, *(d.qpos[-1] for d in solved)])
    views, weights = zip(*episode.views().items(), strict=True)
    start, decoy, *ends = pictures(sim, positions, views)
    goals, hidden = np.stack(ends[: episode.goals]), None
    if episode.beside_robot or episode.read_goal:
        # There is one picture of the goal a camera, with the robot in it: frames without the robot are
        # compared with that one too, but for the pixels in which it shows the robot.
        cameras = [
            view.removesuffix(WITHOUT_ROBOT) for view in views if view.endswith(WITHOUT_ROBOT)
        ]
        with_robot = pictures(sim, path[-1:], cameras)[0]
        robots = [robot_in_goal(episode, number, first, camera, found) for camera in cameras]
        goals = np.concatenate([with_robot] * (len(views) // len(cameras)))[None]
        hidden = np.zeros((len(views), *goals.shape[2:4]), bool)
        hidden[-len(cameras) :] = [robot.pixels for robot in robots]
    judge = Judge(embed, goals, start, weights, hidden, episode.combine)
    if episode.read_goal:
        judge.reading = read_goal(
            sim,
            goals[0, 0],
            cameras[0],
            robots[0],
            lambda frames: judge.distances(frames[:, None])[:, 0],
        )
    near = -float(judge(np.stack(ends[1:])).mean()) if len(ends) > 1 else np.nan
    values = judge(pictures(sim, path, views))
    landmarks = Landmarks(near, float((values < judge(decoy)).mean()))
    judge.seconds = 0.0
    return judge, landmarks


def robot_in_goal(
    episode: Episode, number: int, first: int, camera: str, found: Path
) -> FoundRobot:
    """Where the last picture of a task's demonstration shows the robot, looked for from its state
    ``first``; kept in the folder ``found``, as the next encoder looks at the same ones."""
    task, size, seed = episode.task, episode.image_size, episode.seed
    path = found / f"{task}_{camera}_{number}_{first}_{size}_{seed}.npz"
    if path.exists():
        with np.load(path) as stored:
            return FoundRobot(stored["pixels"], stored["qpos"])
    demonstration = demonstrations(task)[number]
    with closing(KitchenSim(task, image_size=size)) as sim:
        sim.repeat(demonstration, first)
        ((goal,),) = pictures(sim, demonstration.qpos[-1:], [camera])
        robot = find_robot(sim, goal, camera, seed=seed, progress=False)
    found.mkdir(parents=True, exist_ok=True)

    def write(part: Path) -> None:
        with open(part, "wb") as file:  # by name it would append .npz
            np.savez_compressed(file, **robot._asdict())

    write_whole(path, write)
    return robot


def make_planner(episode: Episode) -> Planner:
    """MPPI with all trajectories at once, or CEM with as many over its iterations."""
    if episode.planner == "mppi":
        return MPPI(9, horizon=HORIZON, trajectories=episode.trajectories, seed=episode.seed)
    each = episode.trajectories // CEM_ITERATIONS
    return CEM(
        9,
        horizon=HORIZON,
        trajectories=each,
        iterations=CEM_ITERATIONS,
        elites=max(1, each // 4),
        seed=episode.seed,
    )


def score(values: np.ndarray, form: str) -> np.ndarray:
    """Values of states, [N] after the last step or [N, H], to scores of trajectories [N]."""
    if form == "last":
        return values
    return values[:, -1] - values[:, -2] if form == "difference" else values.sum(1)


def play(
    episode: Episode, encoder: Encoder, sim: KitchenSim, candidates: PlanningSim, found: Path
) -> dict:
    """One planned episode: whether it was solved, its curves and where the time went.

    Args:
        sim: what acts.
        candidates: where action sequences are tried.
        found: folder in which robots found in goal images are kept.
    """
    judge, landmarks = begin(sim, episode, encoder.embed, found)
    views = list(episode.views())
    unit = episode.smoothness * (abs(sim.reward()) if judge is None else judge.first)
    drawn = SCORES[episode.score]
    with_robot = [view for view in views if not view.endswith(WITHOUT_ROBOT)]
    now = frames_now = None  # the objects, and how the simulator that acts sees them
    reading = None if judge is None else judge.reading
    clock = dict.fromkeys(("rollouts", "rendering"), 0.0)

    def observe(candidate: PlanningSim, _: float) -> float | np.ndarray:
        if judge is None:
            return candidate.reward()
        if episode.read_goal:
            return 0.0 if reading is None else reading.score(candidate.data)
        began = time.perf_counter()
        moved = np.abs(candidate.data.qpos[ARM:] - now).max() > STILL
        frames = frames_now.copy()
        if with_robot:
            frames[: len(with_robot)] = candidate.look(with_robot)
        if moved and len(views) > len(with_robot):
            frames[len(with_robot) :] = candidate.look(views[len(with_robot) :])
        clock["rendering"] += time.perf_counter() - began
        return frames

    def evaluate(state: np.ndarray, actions: np.ndarray) -> np.ndarray:
        began = time.perf_counter()
        seen = rollout(candidates, state, actions, observe, last=drawn)
        clock["rollouts"] += time.perf_counter() - began
        jerks = np.square(np.diff(actions, axis=1)).mean((1, 2))
        judged = judge is not None and not episode.read_goal
        return score(judge.compare(seen) if judged else seen, episode.score) - unit * jerks

    planner = make_planner(episode)
    curve, rewards, solved, planning = [], [], [], 0.0
    if judge is not None:
        now, frames_now = sim.data.qpos[ARM:].copy(), sim.look(views)
    while len(solved) < (episode.max_steps or STEPS[episode.setting]):
        began = time.perf_counter()
        action = planner.plan(partial(evaluate, sim.get_state()))
        planning += time.perf_counter() - began
        _, reward, success = sim.step(action.astype(np.float32))
        rewards.append(reward)
        solved.append(success)
        if judge is not None:
            spent = judge.seconds
            now, frames_now = sim.data.qpos[ARM:].copy(), sim.look(views)
            curve.append(-float(judge(frames_now)))
            judge.seconds = spent  # the curve is no part of planning
        if len(solved) >= HOLD and all(solved[-HOLD:]):
            break
    taken = len(solved)
    return episode._asdict() | {
        "weights": encoder.weights,
        "read_joint": None if reading is None else reading.joint,
        "success": solved[-1],
        "touched": any(solved),
        "steps": taken,
        "joint_error": sim.joint_error(),
        "first_distance": None if judge is None else judge.first,
        **{name: None if np.isnan(v) else v for name, v in landmarks._asdict().items()},
        "distance": [round(d, 4) for d in curve],
        "reward": [round(r, 4) for r in rewards],
        "seconds_per_step": planning / taken,
        "split": {
            "physics": (clock["rollouts"] - clock["rendering"]) / taken,
            "rendering": clock["rendering"] / taken,
            "embedding": 0.0 if judge is None else judge.seconds / taken,
        },
    }
