"""The page's simulators: rendered examples, and episodes whose reward is seen as they go."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from torchrl_vip.curves import open_encoder
from torchrl_vip.demo.uploads import Refused

if TYPE_CHECKING:
    from torchrl.envs import EnvBase

    from torchrl_vip.encoders import FrozenEncoder

POLICIES = {"script": "script", "random": "random actions", "mppi": "MPPI on the distance"}
SIZE = 192
"""Height and width of an episode's frames, pixels."""
EXAMPLE_SIZE = 256
STEPS = 150
"""Of an episode, at most."""
SETTLE = 8
"""Steps after the first success."""
HORIZON, TRAJECTORIES = 10, 16
"""Of MPPI: what two cores plan in about a second a step."""


class Example(NamedTuple):
    """A clip that a simulator of the package renders.

    Attributes:
        kind: "success", or a way to fail of ``demonstrations.scripted.FAILURES``.
    """

    suite: str
    task: str
    kind: str
    seed: int


EXAMPLES = {
    "drawer opened from another start (Meta-World)": Example(
        "metaworld", "drawer-open-v3", "success", 11
    ),
    "drawer opened (Meta-World)": Example("metaworld", "drawer-open-v3", "success", 3),
    "drawer missed (Meta-World)": Example("metaworld", "drawer-open-v3", "misses", 3),
    "drawer half opened (Meta-World)": Example("metaworld", "drawer-open-v3", "stops", 3),
    "towel folded (tabletop)": Example("tabletop", "fold-towel", "success", 0),
}


NEEDS = {"metaworld": "metaworld", "dm_manipulation": "dm_control"}
"""Package of a suite; the others' is gymnasium_robotics."""


def installed() -> list[str]:
    """Suites whose packages are installed."""
    from torchrl_vip.envs import SUITES

    return [name for name in SUITES if find_spec(NEEDS.get(name, "gymnasium_robotics"))]


def tasks() -> dict[str, list[str]]:
    """Of each installed suite."""
    from torchrl_vip.envs import load_suite

    return {name: load_suite(name).list_tasks() for name in installed()}


def render_example(name: str, path: Path) -> Path:
    """Render one of EXAMPLES as a video.

    Raises:
        Refused: its suite is not installed.
    """
    from torchrl_vip.data.video import write_video
    from torchrl_vip.demonstrations.scripted import failing
    from torchrl_vip.envs import load_suite
    from torchrl_vip.envs.simulator import play

    example = EXAMPLES[name]
    try:
        sim = load_suite(example.suite).SIMULATOR(example.task, image_size=EXAMPLE_SIZE)
    except ImportError as error:
        raise Refused(f"This example needs a simulator: {error}") from error
    try:
        length = 120
        if example.kind == "success":
            act, settle = sim.script(), 10
        else:
            rng = np.random.default_rng(example.seed)
            act, settle = failing(sim, example.kind, length, rng), None
        played = play(sim, act, example.seed, steps=length, settle=settle, stride=2)
    finally:
        sim.close()
    return write_video(path, played.frames, fps=20)


# -- an episode -------------------------------------------------------------------------------------


def episode(
    suite: str, task: str, policy: str, encoder: str, seed: int, steps: int = STEPS
) -> Iterator[dict[str, Any]]:
    """Run an episode, and yield after each step what the page shows of it.

    Raises:
        Refused: the suite is not installed, has no script for the task, or no known solved state.
    """
    from torchrl.envs import Compose, TransformedEnv

    from torchrl_vip import VIPRewardTransform, VIPTransform
    from torchrl_vip.envs import load_suite

    yield _shown([], [], words="Making the goal image: the task solved from another start …")
    vip = open_encoder(encoder)
    try:
        module = load_suite(suite)
        goal = module.goal_image(task, seed=100_000 + seed, image_size=SIZE)
        base = module.make_env(task, seed=seed, image_size=SIZE)
    except (ImportError, NotImplementedError, RuntimeError, ValueError) as error:
        raise Refused(f"{task}: {error}") from error
    calibrated = vip.config.get("reward_scale") if vip.config else None
    scale = "auto" if calibrated else 1.0
    env = TransformedEnv(base, Compose(VIPTransform(vip, del_keys=False)))
    env.append_transform(VIPRewardTransform(goal=goal, scale=scale))
    try:
        act = _policy(policy, base, module.SIMULATOR, task, vip, goal, seed)
        yield from _steps(env, act, goal, steps)
    finally:
        env.close()


def _steps(env: EnvBase, act: Callable, goal: np.ndarray, steps: int) -> Iterator[dict[str, Any]]:
    from torchrl_vip import goal_distance

    td = env.reset()
    z_goal = td["goal_embedding"]
    distances = [float(goal_distance(td["vip_vec"], z_goal))]
    rewards: list[float] = []
    solved = 0
    yield _shown(distances, rewards, td["pixels"], goal, words="The episode begins.")
    for t in range(steps):
        td["action"] = torch.as_tensor(act(td, t), dtype=torch.float32)
        td, following = env.step_and_maybe_reset(td)
        distances.append(float(goal_distance(td["next", "vip_vec"], z_goal)))
        rewards.append(float(td["next", "reward"]))
        solved += bool(td["next", "success"]) or solved > 0
        ends = solved > SETTLE or t == steps - 1
        frame, td = td["next", "pixels"], following
        yield _shown(distances, rewards, frame, words=_said(distances, rewards, solved, ends))
        if ends:
            return


def _policy(
    name: str, base: Any, simulator: Any, task: str, vip: FrozenEncoder, goal: np.ndarray, seed: int
) -> Callable:
    """``act(td, t) -> action``."""
    if name == "random":
        torch.manual_seed(seed)
        return lambda td, t: base.action_spec.rand()
    if name == "script":
        try:
            script = base.sim.script()
        except NotImplementedError as error:
            raise Refused(f"{task} has no script: choose random actions or MPPI.") from error
        return lambda td, t: np.clip(script(td["full_state"].numpy().astype(np.float64), t), -1, 1)
    return _mppi(base, partial(simulator, task, image_size=SIZE), vip, goal, seed)


def _mppi(
    base: Any, make_sim: Callable, vip: FrozenEncoder, goal: np.ndarray, seed: int
) -> Callable:
    """Plans on the distance of the last frame that each candidate leads to, in a simulator of its own."""
    from torchrl_vip import goal_distance
    from torchrl_vip.envs.planned import PlannedSim
    from torchrl_vip.planning import MPPI, Rollouts, last_frame

    rollouts = Rollouts(make_sim, last_frame, processes=0)
    planner = MPPI(base.sim.ACTION_SIZE, horizon=HORIZON, trajectories=TRAJECTORIES, seed=seed)
    z_goal = vip(torch.from_numpy(goal))

    def score(frames: np.ndarray) -> np.ndarray:
        return -goal_distance(vip(torch.from_numpy(frames)), z_goal).numpy()

    def act(td: Any, t: int) -> np.ndarray:
        state = base.sim.get_state()
        action = planner.plan(lambda tried: score(rollouts(state, tried)))
        if isinstance(base.sim, PlannedSim):
            planner.rest = base.sim.hold_still(action)  # Adroit's actions are positions
        return action

    return act


def _shown(
    distances: list[float],
    rewards: list[float],
    frame: Any = None,
    goal: Any = None,
    words: str = "",
) -> dict[str, Any]:
    """What the page draws of an episode so far."""
    t = len(rewards)
    return {
        "frame": None if frame is None else _picture(np.asarray(frame)),
        "goal": None if goal is None else _picture(goal),
        "distance": [round(d, 4) for d in distances],
        "reward": [round(r, 5) for r in rewards],
        "steps": max(t, 20),
        "said": f"step {t}, distance {distances[-1]:.2f}" if distances else "",
        "words": words,
    }


def _said(distances: list[float], rewards: list[float], solved: int, ends: bool) -> str:
    state = "solved" if solved else "not solved"
    when = f"ended after {len(rewards)} steps" if ends else f"step {len(rewards)}"
    return f"{when}, {state}; the rewards add up to {sum(rewards):.2f}"


def _picture(image: np.ndarray) -> str:
    """An image ``[H, W, 3]`` as a data address."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
