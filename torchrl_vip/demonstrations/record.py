"""Records scripted demonstrations of the tabletop: ``python -m torchrl_vip.demonstrations.record --out DIR``.

    ... --task fold-towel --successes 20 --out DEMOS                     # 20 good ones
    ... --task close-drawer --successes 10 --failures 20 --out DEMOS     # as in the VIP paper
    ... --task push-bottle --successes 10 --failures 10 --out MIXED      # half good, half fumbled

Writes DIR/<task>, a memory-mapped tensordict of all steps, one episode after another, in TorchRL's format::

    steps = TensorDict.load_memmap(DIR / "fold-towel")              # [steps]
    buffer = ReplayBuffer(storage=TensorStorage(steps), sampler=SliceSampler(traj_key="episode", ...))

With ``--format lerobot`` it is a LeRobot v3.0 dataset instead. There the task's own reward is
"next.task_reward", which leaves "next.reward" to the labelling command.

Keys: "pixels" uint8 [H, W, 3], "state", "full_state", "action", "episode" (int64, from 0), "good" (whether
the episode is a success), and under "next" the same observations with "reward", "success", "done",
"terminated" and "truncated". A success ends solved and does not begin so; a failure is at no step solved.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from tensordict import TensorDict
from tqdm import tqdm

from torchrl_vip.data.lerobot.writer import LeRobotWriter
from torchrl_vip.demonstrations.scripted import clip_seed
from torchrl_vip.demonstrations.store import output_folder
from torchrl_vip.envs import tabletop
from torchrl_vip.envs.simulator import Act
from torchrl_vip.envs.tabletop import TabletopSim
from torchrl_vip.envs.tabletop.simulator import FPS
from torchrl_vip.files import NewFolder

ATTEMPTS = 50  # starts that one episode may take
FUMBLING = (0.0, 0.6)  # skill of who fails


def record_episode(sim: TabletopSim, act: Act, seed: int, steps: int) -> TensorDict:
    """An episode of ``act(full_state, t)`` from the start of ``seed``, [steps], with the keys of an
    environment's rollout."""
    sim.reset(seed)
    seen, actions, rewards, success = [_observe(sim)], [], [], []
    for t in range(steps):
        actions.append(np.clip(act(sim.full_state, t), -1.0, 1.0).astype(np.float32))
        _, reward, solved = sim.step(actions[-1])
        rewards.append(reward)
        success.append(solved)
        seen.append(_observe(sim))
    over = torch.arange(1, steps + 1)[:, None] == steps
    now, then = torch.stack(seen[:-1]), torch.stack(seen[1:])
    outcome = {
        "reward": torch.tensor(rewards, dtype=torch.float32)[:, None],
        "success": torch.tensor(success)[:, None],
        "done": over,
        "truncated": over.clone(),
        "terminated": torch.zeros_like(over),
    }
    return now.update({"action": torch.from_numpy(np.stack(actions)), "next": then.update(outcome)})


def _observe(sim: TabletopSim) -> TensorDict:
    return TensorDict(
        {
            "pixels": torch.from_numpy(sim.render().copy()),
            "state": torch.from_numpy(sim.state()),
            "full_state": torch.from_numpy(sim.full_state.copy()),
        }
    )


def record_good_or_bad(sim: TabletopSim, number: int, good: bool, seed: int) -> TensorDict:
    """The episode of this number, a success or a failure, [MAX_STEPS].

    Raises:
        RuntimeError: none of ATTEMPTS starts gave one.
    """
    for attempt in range(ATTEMPTS):
        drawn = clip_seed(seed, sim.task, number, good, attempt)
        skill = 1.0 if good else float(np.random.default_rng(drawn).uniform(*FUMBLING))
        episode = record_episode(sim, sim.script(skill, drawn), drawn, sim.MAX_STEPS)
        solved = episode["next", "success"]
        if (solved[-1] and not solved[0]) if good else not solved.any():
            return episode
    raise RuntimeError(f"{sim.task}: {ATTEMPTS} starts gave no {'success' if good else 'failure'}")


def record(
    task: str, successes: int, failures: int, *, seed: int = 0, image_size: int = 128
) -> Iterator[TensorDict]:
    """Episodes of a task one after another, the successes first; "episode" and "good" are filled in."""
    sim = TabletopSim(task, image_size=image_size)
    try:
        for number in range(successes + failures):
            good = number < successes
            episode = record_good_or_bad(sim, number, good, seed)
            flag = torch.full((len(episode), 1), good)
            yield episode.update({"episode": torch.full((len(episode),), number), "good": flag})
    finally:
        sim.close()


def write_memmap(folder: Path, task: str, episodes: Iterator[TensorDict]) -> None:
    """All steps as a memory-mapped tensordict: ``TensorDict.load_memmap(folder)``."""
    with NewFolder(folder) as new:
        torch.cat(list(episodes)).memmap(new.part)


def write_lerobot(folder: Path, task: str, episodes: Iterator[TensorDict]) -> None:
    """A LeRobot v3.0 dataset of the frames before each action; what follows the last one is left out."""
    names = {
        "observation.state": "state",
        "observation.environment_state": "full_state",
        "action": "action",
        "next.task_reward": ("next", "reward"),
        "next.success": ("next", "success"),
        "next.done": ("next", "done"),
    }
    with LeRobotWriter(folder, FPS, robot_type="franka") as writer:
        for episode in episodes:
            columns = {name: episode[key].numpy() for name, key in names.items()}
            columns |= {name: columns[name][:, 0] for name in columns if name.startswith("next.")}
            writer.add_episode({"observation.images.front": episode["pixels"]}, columns, task)


FORMATS: dict[str, Callable[[Path, str, Iterator[TensorDict]], None]] = {
    "memmap": write_memmap,
    "lerobot": write_lerobot,
}
"""How episodes are stored: ``write(folder, task, episodes)``; the folder appears whole or not at all."""


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, tasks = parser.add_argument, tabletop.list_tasks()
    add("--task", nargs="+", choices=tasks, default=tasks, help="(all)")
    add("--successes", type=int, default=20, help="a task (%(default)s)")
    add("--failures", type=int, default=0, help="a task (%(default)s)")
    add("--size", type=int, default=128, help="pixels (%(default)s)")
    add("--seed", type=int, default=0, help="of starts and habits (%(default)s)")
    add("--format", choices=FORMATS, default="memmap", help="(%(default)s)")
    add(
        "--out",
        type=output_folder,
        required=True,
        help="folder; a task that is there is left alone",
    )
    args = parser.parse_args(arguments)
    for name, low in (("successes", 0), ("failures", 0), ("size", 1), ("seed", 0)):
        if (value := getattr(args, name)) < low:
            parser.error(f"--{name} {value}: wanted {low} or more")
    if not (count := args.successes + args.failures):
        parser.error("--successes 0 --failures 0: wanted 1 episode or more")
    args.out.mkdir(parents=True, exist_ok=True)
    for task in args.task:
        if (args.out / task).exists():
            print(f"{args.out / task} is there already: left alone")
            continue
        episodes = record(task, args.successes, args.failures, seed=args.seed, image_size=args.size)
        bar = tqdm(episodes, desc=task, total=count, unit="episode")
        FORMATS[args.format](args.out / task, task, bar)
        print(f"wrote {args.out / task}: {args.successes} successes, {args.failures} failures")


if __name__ == "__main__":
    main()
