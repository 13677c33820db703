"""Plans the kitchen's demonstrations: ``python -m torchrl_vip.planning.demonstrate --out DIR``.

Each episode starts from the reset pose of its own seed and is planned on the true state, step by
step; it is a success if its last states are solved. The first success is planned from nothing and
guides the later ones, which so search less and move alike. A failure has its success's number of
steps, so that length tells nothing: an episode whose plan did not get there, a success's actions from
another start up to some point and standing still from then on, or smooth random motion. Writes
DIR/<task>.npz (:func:`torchrl_vip.envs.kitchen.read_demonstrations`) after every episode: a killed
run continues where it stopped.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from torchrl_vip.envs.kitchen import (
    Demonstration,
    KitchenSim,
    list_tasks,
    read_demonstrations,
    write_demonstrations,
)
from torchrl_vip.envs.simulator import mujoco
from torchrl_vip.planning.mppi import MPPI, Planner, filtered_noise
from torchrl_vip.planning.rollout import Rollouts

SETTLE = 5  # steps that a solved state must last
FINGERS = slice(7, 9)


class Recipe(NamedTuple):
    """How one task is planned."""

    grasp: float | None = None  # m to the handle at which the fingers close; None plans them too
    horizon: int = 12
    trajectories: int = 32
    sigma: float = 1.0
    steps: int = 100


RECIPES: dict[str, Recipe] = {"micro_open": Recipe(grasp=0.03)}
"""Tasks that the paper's settings do not solve."""


def state_reward(sim: KitchenSim, _: float) -> float:
    """The true reward of the state, which :class:`PlanningSim` leaves out of its steps."""
    return sim.reward()


def grip(sim: KitchenSim, action: np.ndarray, recipe: Recipe) -> np.ndarray:
    """The action with its fingers set by ``recipe.grasp``: noise never holds them long enough."""
    if recipe.grasp is None:
        return action
    near = np.linalg.norm(sim.hand() - sim.handle()) < recipe.grasp
    action = np.array(action)
    action[FINGERS] = -1.0 if near else 1.0
    return action


class PlanningSim(KitchenSim):
    """Physics at 8 ms instead of 2: a third of the time, and the hand is within a millimetre after
    30 steps. What a plan says is then done at 2 ms."""

    def __init__(self, task: str, recipe: Recipe = Recipe(), **options: Any) -> None:  # noqa: B008
        super().__init__(task, **{"image_size": 32, **options})
        self.recipe = recipe
        self.model.opt.timestep *= 4
        self.robot.frame_skip //= 4

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        """Without reward and success: :func:`state_reward` looks at the last step only."""
        self.robot.step(np.asarray(grip(self, action, self.recipe), np.float64))
        mujoco.mj_kinematics(self.model, self.data)
        return self.full_state, 0.0, False


def make_planner(recipe: Recipe, guided: bool = False) -> Planner:
    """MPPI with the paper's filter and temperature; near a guide a quarter of the search will do."""
    share = 4 if guided else 1
    return MPPI(
        9,
        horizon=recipe.horizon,
        trajectories=recipe.trajectories // share,
        sigma=recipe.sigma / share,
    )


def plan_episode(
    sim: KitchenSim,
    rollouts: Rollouts,
    planner: Planner,
    recipe: Recipe,
    seed: int,
    guide: np.ndarray | None = None,
    progress: Any = None,
) -> Demonstration:
    """One planned episode, until it has been solved for SETTLE steps or after ``recipe.steps``.

    The actions of ``guide`` [T, 9] are where each step of the plan is first looked for.
    """
    sim.reset(seed)
    planner.reset(seed)
    horizon = len(planner.mean)
    guide = np.zeros((0, 9)) if guide is None else guide
    guide = np.concatenate([guide, np.zeros((recipe.steps + horizon, 9))])
    planner.mean = guide[:horizon]
    qpos, actions, lasted = [sim.data.qpos.copy()], [], 0
    for t in range(recipe.steps):
        state = sim.get_state()
        action = grip(sim, planner.plan(partial(rollouts, state)), recipe).astype(np.float32)
        planner.mean[-1] = guide[t + horizon]
        _, _, solved = sim.step(action)
        qpos.append(sim.data.qpos.copy())
        actions.append(action)
        lasted = lasted + 1 if solved else 0
        if progress is not None:
            progress.set_postfix(
                task=sim.task, seed=seed, step=t + 1, error=f"{sim.joint_error():.2f}"
            )
        if lasted > SETTLE:
            break
    solved = lasted > SETTLE
    return _demonstration(qpos, actions, seed, solved, "success" if solved else "unsolved")


def run_actions(sim: KitchenSim, actions: np.ndarray, seed: int) -> tuple[list[np.ndarray], bool]:
    """Positions from the reset on, and whether any of them was solved."""
    sim.reset(seed)
    qpos, solved = [sim.data.qpos.copy()], False
    for action in actions:
        solved |= sim.step(action)[2]
        qpos.append(sim.data.qpos.copy())
    return qpos, solved


def fail(sim: KitchenSim, success: Demonstration, kind: str, seed: int) -> Demonstration:
    """An episode as long as ``success`` that is at no step solved: it ``"stops"`` or is
    ``"random"``.

    Raises:
        RuntimeError: 20 draws solved the task.
    """
    steps = len(success.actions)
    for attempt in range(20):
        rng = np.random.default_rng((seed, attempt))
        if kind == "stops":
            actions = success.actions.copy()
            actions[int(steps * rng.uniform(0.2, 0.6)) :] = 0.0
        else:
            noise = 3.0 * filtered_noise(rng, (1, steps, 9), (0.15, 0.9, 0.0))[0]
            actions = np.clip(noise, -1, 1).astype(np.float32)
        qpos, solved = run_actions(sim, actions, seed)
        if not solved:
            return _demonstration(qpos, actions, seed, False, kind)
    raise RuntimeError(f"{kind} actions solved {sim.task!r} 20 times")


def _demonstration(qpos: Any, actions: Any, seed: int, success: bool, kind: str) -> Demonstration:
    return Demonstration(
        np.array(qpos, np.float32), np.array(actions, np.float32), seed, success, kind
    )


def demonstrate(
    task: str,
    path: Path,
    *,
    episodes: int,
    attempts: int,
    seed: int = 0,
    processes: int = 0,
    progress: Any = None,
) -> list[Demonstration]:
    """Plans until ``path`` holds ``episodes`` successes and as many failures, or ``attempts`` ended.

    Seeds are 1000 ``seed`` + the attempt's number.
    """
    stored = read_demonstrations(path) if path.exists() else []
    planned = [d for d in stored if d.kind in ("success", "unsolved")]
    solved = [d for d in planned if d.success]
    if progress is not None:
        progress.update(min(len(solved), episodes))
    if len(solved) >= episodes and len(stored) - len(solved) >= episodes:
        return stored
    recipe = RECIPES.get(task, Recipe())
    sim = KitchenSim(task, image_size=32)
    numbers = [d.seed - 1000 * seed for d in planned]  # of others where --seed was another
    number = 1 + max((n for n in numbers if 0 <= n < 500), default=-1)
    if len(solved) < episodes and number < attempts:
        make_sim = partial(PlanningSim, task, recipe)
        with Rollouts(make_sim, state_reward, processes=processes) as rollouts:
            while len(solved) < episodes and number < attempts:
                guide = solved[0].actions if solved else None
                planner = make_planner(recipe, guide is not None)
                episode = plan_episode(
                    sim, rollouts, planner, recipe, 1000 * seed + number, guide, progress
                )
                number += 1
                planned.append(episode)
                if episode.success:
                    solved.append(episode)
                    if progress is not None:
                        progress.update()
                write_demonstrations(path, planned)
    failures = [d for d in planned if not d.success][: max(1, episodes // 3) if solved else None]
    for i, success in enumerate(solved):
        if i < len(failures):  # as long as its success
            long = failures[i]
            steps = min(len(success.actions), len(long.actions))
            failures[i] = long._replace(qpos=long.qpos[: steps + 1], actions=long.actions[:steps])
        else:
            kind = ("stops", "random")[i % 2]
            failures.append(fail(sim, success, kind, 1000 * seed + 500 + i))
    sim.close()
    write_demonstrations(path, solved + failures)
    return solved + failures


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the files")
    parser.add_argument("--tasks", nargs="+", help="only these (default: all)")
    parser.add_argument("--episodes", type=int, default=3, help="successes a task")
    parser.add_argument("--attempts", type=int, help="at most (default: 2 an episode)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=0, help="rollout workers; 0: none")
    args = parser.parse_args(arguments)
    tasks = args.tasks or list_tasks()
    if unknown := set(tasks) - set(list_tasks()):
        parser.error(f"unknown tasks {sorted(unknown)}; choose from {list_tasks()}")
    args.out.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(tasks) * args.episodes, unit="success") as progress:
        for task in tasks:
            episodes = demonstrate(
                task,
                args.out / f"{task}.npz",
                episodes=args.episodes,
                attempts=args.attempts or 2 * args.episodes,
                seed=args.seed,
                processes=args.processes,
                progress=progress,
            )
            steps = [len(d.actions) for d in episodes if d.success]
            progress.write(f"{task}: {len(steps)} of {args.episodes} solved, steps {steps}")


if __name__ == "__main__":
    main()
