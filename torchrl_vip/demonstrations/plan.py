"""Plans demonstrations: ``python -m torchrl_vip.demonstrations.plan --suite kitchen --out DIR``.

Each episode is planned on the true state, step by step; it is a success if its last states are solved. In the
kitchen it starts from the reset pose of its own seed, and the first success, planned from nothing, guides the
later ones, which so search less and move alike; Adroit's all start from the reset of --seed. A failure
has its success's number of steps, so that length tells nothing: an episode whose plan did not get there, a
success's actions (in the kitchen from another start) up to some point and standing still from then on, or
smooth random motion. Writes DIR/<task>.npz after every episode
(:func:`torchrl_vip.demonstrations.store.read_demonstrations`): a killed run continues where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from torchrl_vip.demonstrations.store import (
    SEEDS,
    Demonstration,
    output_folder,
    read_demonstrations,
    write_demonstrations,
)
from torchrl_vip.envs import load_suite
from torchrl_vip.envs.kitchen import KitchenSim
from torchrl_vip.envs.planned import PlannedSim
from torchrl_vip.envs.simulator import mujoco
from torchrl_vip.planning.mppi import MPPI, Planner, filtered_noise
from torchrl_vip.planning.rollout import Rollouts

SETTLE = 5  # steps that are kept of a solved state
FINGERS = slice(7, 9)


class Recipe(NamedTuple):
    """How a task is planned; the defaults of MPPI are the VIP paper's."""

    grasp: float | None = None  # m to the handle at which the fingers close; None plans them too
    horizon: int = 12
    trajectories: int = 32
    sigma: float = 1.0
    steps: int = 100
    kappa: float = 5.0
    beta: tuple[float, float, float] = (0.25, 0.8, 0.0)
    every_step: bool = False  # a candidate is worth the sum of its steps' rewards, not the last one
    guided: bool = True  # later episodes are, by the first success
    lasting: int = SETTLE  # steps that a solved state must last


# a step is 10 ms here and 80 in the kitchen: a ball that flies past its target would do
_HAND = Recipe(horizon=16, sigma=0.5, every_step=True, guided=False, lasting=25)
RECIPES: dict[str, Recipe] = {
    "micro_open": Recipe(grasp=0.03),
    "adroit-door": _HAND,
    "adroit-hammer": _HAND,
    "adroit-relocate": _HAND,
    "adroit-pen": _HAND._replace(
        horizon=24, trajectories=64, sigma=0.4, kappa=15.0, beta=(0.6, 0.8, 0.0)
    ),
}
"""Tasks that are planned otherwise: the paper's settings do not open the microwave."""


def state_reward(sim: PlannedSim, _: float) -> float:
    """The true reward of the state."""
    return sim.reward()


def grip(sim: PlannedSim, action: np.ndarray, recipe: Recipe) -> np.ndarray:
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


def planning_sim(suite: str, task: str, recipe: Recipe) -> PlannedSim:
    """What candidates are tried on."""
    if suite == "kitchen":
        return PlanningSim(task, recipe)
    return load_suite(suite).SIMULATOR(task, image_size=32)


def make_planner(action_size: int, recipe: Recipe, guided: bool = False) -> Planner:
    """MPPI; near a guide a quarter of the search will do."""
    share = 4 if guided else 1
    return MPPI(
        action_size,
        horizon=recipe.horizon,
        trajectories=recipe.trajectories // share,
        sigma=recipe.sigma / share,
        kappa=recipe.kappa,
        beta=recipe.beta,
    )


def plan_episode(
    sim: PlannedSim,
    rollouts: Rollouts,
    planner: Planner,
    recipe: Recipe,
    seed: int,
    guide: np.ndarray | None = None,
    progress: Any = None,
) -> Demonstration:
    """One planned episode of at most ``recipe.steps``; a success ends SETTLE steps after it is solved to
    last. ``"unsolved"`` is one that is at no step, ``"lost"`` one that was for a while.

    The actions of ``guide`` [T, A] are where each step of the plan is first looked for.
    """
    sim.reset(sim.start_of(seed))
    planner.reset(seed)
    horizon = recipe.horizon
    if guide is not None:
        rest = np.zeros((recipe.steps + recipe.lasting + horizon, sim.ACTION_SIZE))
        guide = np.concatenate([guide, rest])
        planner.mean = guide[:horizon]

    def evaluate(state: np.ndarray, actions: np.ndarray) -> np.ndarray:
        rewards = rollouts(state, actions)
        return rewards.sum(1) if recipe.every_step else rewards

    qpos, actions, lasted, ever = [sim.data.qpos.copy()], [], 0, False
    for t in range(recipe.steps + recipe.lasting - SETTLE):
        state = sim.get_state()
        action = grip(sim, planner.plan(partial(evaluate, state)), recipe).astype(np.float32)
        last = sim.hold_still(planner.mean[-2]) if guide is None else guide[t + horizon]
        planner.mean[-1] = last
        sim.step(action)
        solved = sim.success()
        qpos.append(sim.data.qpos.copy())
        actions.append(action)
        lasted, ever = (lasted + 1 if solved else 0), ever or solved
        if progress is not None:
            progress.set_postfix(task=sim.task, seed=seed, step=t + 1, reward=f"{sim.reward():.2f}")
        if lasted > recipe.lasting:
            break
    solved, more = lasted > recipe.lasting, recipe.lasting - SETTLE
    if more:
        qpos, actions = qpos[:-more], actions[:-more]
    kind = "success" if solved else "lost" if ever else "unsolved"
    return _demonstration(qpos, actions, seed, solved, kind)


def run_actions(sim: PlannedSim, actions: np.ndarray, seed: int) -> tuple[list[np.ndarray], bool]:
    """Positions from the reset on, and whether any of them was solved."""
    sim.reset(sim.start_of(seed))
    qpos, solved = [sim.data.qpos.copy()], False
    for action in actions:
        sim.step(action)
        solved |= sim.success()
        qpos.append(sim.data.qpos.copy())
    return qpos, solved


def fail(
    sim: PlannedSim, success: Demonstration, kind: str, seed: int, sigma: float
) -> Demonstration:
    """An episode as long as ``success`` that is at no step solved: it ``"stops"`` or is ``"random"``,
    smooth noise from normal draws of deviation 3 ``sigma``.

    Raises:
        RuntimeError: 20 draws solved the task.
    """
    steps = len(success.actions)
    for attempt in range(20):
        rng = np.random.default_rng((seed, attempt))
        if kind == "stops":
            actions, stop = success.actions.copy(), max(1, int(steps * rng.uniform(0.2, 0.6)))
            actions[stop:] = sim.hold_still(actions[stop - 1])
        else:
            noise = filtered_noise(rng, (1, steps, sim.ACTION_SIZE), (0.15, 0.9, 0.0))[0]
            actions = np.clip(3.0 * sigma * noise, -1, 1).astype(np.float32)
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
    suite: str = "kitchen",
    episodes: int,
    attempts: int,
    seed: int = 0,
    processes: int = 0,
    progress: Any = None,
) -> list[Demonstration]:
    """Plans until ``path`` holds ``episodes`` successes and as many failures, or ``attempts`` ended: then
    it holds what was planned.

    Seeds are SEEDS x ``seed`` + the attempt's number, those of failures from SEEDS / 2 on.

    Raises:
        SystemExit: ``path`` has demonstrations of another ``seed``.
    """
    stored = _read(path, seed)
    planned = [d for d in stored if d.seed % SEEDS < SEEDS // 2]
    solved = [d for d in planned if d.success]
    if progress is not None:
        progress.update(min(len(solved), episodes))
    if len(solved) >= episodes and _has_failures(stored):
        return stored
    recipe = RECIPES.get(task, Recipe())
    with closing(load_suite(suite).SIMULATOR(task, image_size=32)) as sim:
        first = 1 + max((d.seed % SEEDS for d in planned), default=-1)
        if len(solved) < episodes and first < attempts:
            make_sim = partial(planning_sim, suite, task, recipe)
            last = recipe.horizon if recipe.every_step else 1
            with Rollouts(make_sim, state_reward, last=last, processes=processes) as rollouts:
                seeds = range(SEEDS * seed + first, SEEDS * seed + attempts)
                for episode in plan_episodes(sim, rollouts, recipe, seeds, solved, progress):
                    planned.append(episode)
                    write_demonstrations(path, planned)
                    if len(solved) >= episodes:
                        break
        if len(solved) >= episodes:
            unsolved = [d for d in planned if d.kind == "unsolved"][: max(1, episodes // 3)]
            failing_seed = SEEDS * seed + SEEDS // 2
            planned = solved + make_failures(sim, solved, unsolved, failing_seed, recipe.sigma)
            write_demonstrations(path, planned)
    return planned


def _read(path: Path, seed: int) -> list[Demonstration]:
    """What is stored already; exits where that is of another seed."""
    stored = read_demonstrations(path) if path.exists() else []
    if other := {d.seed // SEEDS for d in stored} - {seed}:
        raise SystemExit(
            f"error: {path} has demonstrations of seed {min(other)}: give another --out"
        )
    return stored


def _has_failures(stored: list[Demonstration]) -> bool:
    """Whether each success has its failure, as long as itself."""
    solved = [len(d.actions) for d in stored if d.success]
    return solved == [len(d.actions) for d in stored if not d.success]


def plan_episodes(
    sim: PlannedSim,
    rollouts: Rollouts,
    recipe: Recipe,
    seeds: Iterable[int],
    solved: list[Demonstration],
    progress: Any = None,
) -> Iterator[Demonstration]:
    """Plans an episode a seed; a success is added to ``solved``, whose first one guides the next."""
    for seed in seeds:
        guide = solved[0].actions if solved and recipe.guided else None
        planner = make_planner(sim.ACTION_SIZE, recipe, guide is not None)
        episode = plan_episode(sim, rollouts, planner, recipe, seed, guide, progress)
        if episode.success:
            solved.append(episode)
            if progress is not None:
                progress.update()
        yield episode


def make_failures(
    sim: PlannedSim,
    solved: list[Demonstration],
    unsolved: list[Demonstration],
    seed: int,
    sigma: float,
) -> list[Demonstration]:
    """A failure as long as each success: the unsolved plans first, then stopping and random ones in turn,
    with seeds from ``seed`` on."""
    failures = [
        shortened(plan, len(success.actions))
        for plan, success in zip(unsolved, solved, strict=False)
    ]
    for i, success in list(enumerate(solved))[len(failures) :]:
        failures.append(fail(sim, success, ("stops", "random")[i % 2], seed + i, sigma))
    return failures


def shortened(long: Demonstration, steps: int) -> Demonstration:
    """Its first ``steps``, or all where it has fewer."""
    return long._replace(qpos=long.qpos[: steps + 1], actions=long.actions[:steps])


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=output_folder, required=True, help="folder of the files")
    parser.add_argument("--suite", choices=("kitchen", "adroit"), default="kitchen")
    parser.add_argument("--tasks", nargs="+", help="only these (default: all)")
    parser.add_argument("--episodes", type=int, default=3, help="successes a task")
    parser.add_argument("--attempts", type=int, help="at most (default: 2 an episode)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=0, help="rollout workers; 0: none")
    args = parser.parse_args(arguments)
    known = load_suite(args.suite).list_tasks()
    tasks = args.tasks or known
    if unknown := set(tasks) - set(known):
        parser.error(f"unknown tasks {sorted(unknown)}; choose from {known}")
    attempts = 2 * args.episodes if args.attempts is None else args.attempts
    for name, low in {"episodes": 1, "seed": 0, "processes": 0}.items():
        if (value := getattr(args, name)) < low:
            parser.error(f"--{name} {value}: wanted {low} or more")
    if not args.episodes <= attempts <= SEEDS // 2:
        parser.error(f"--attempts {attempts}: wanted --episodes to {SEEDS // 2}")
    args.out.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(tasks) * args.episodes, unit="success") as progress:
        for task in tasks:
            episodes = demonstrate(
                task,
                args.out / f"{task}.npz",
                suite=args.suite,
                episodes=args.episodes,
                attempts=attempts,
                seed=args.seed,
                processes=args.processes,
                progress=progress,
            )
            steps = [len(d.actions) for d in episodes if d.success]
            progress.write(f"{task}: {len(steps)} of {args.episodes} solved, steps {steps}")


if __name__ == "__main__":
    main()
