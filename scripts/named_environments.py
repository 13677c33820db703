"""Which environments torchrl_vip.envs.named opens: the table of docs/suites.md, from a try of each.

python scripts/named_environments.py > table.md
python scripts/named_environments.py Ant-v5 cheetah-run

An id works when it opens, steps, and shows the same first frame and state for the same seed again.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import sys
import warnings
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor

import torch
from tqdm import tqdm

from torchrl_vip.envs import named

# what an id is filed under: the first pattern that it begins with
FAMILIES = {
    r"phys2d/|tabular/": "phys2d, tabular",
    r"CartPole|MountainCar|Pendulum|Acrobot": "classic control",
    r"LunarLander|BipedalWalker|CarRacing": "Box2D",
    r"Blackjack|FrozenLake|CliffWalking|Taxi": "toy text",
    r"MiniGrid|BabyAI": "MiniGrid",
    r"Gym": "old Gym (shimmy)",
    r"Fetch": "Fetch",
    r"Hand": "Shadow hand",
    r"Adroit": "Adroit",
    r"FrankaKitchen": "FrankaKitchen",
    r"AntMaze": "AntMaze",
    r"PointMaze": "PointMaze",
    r"Meta-World/": "Meta-World",
    r"[A-Z].*-v\d+$": "MuJoCo",
    r"[a-z]": "dm_control",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tasks", nargs="*", help="ids (all that are installed)")
    tasks = parser.parse_args().tasks or named.list_tasks()
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    spawn = multiprocessing.get_context("spawn")
    for theirs in (False, True):  # dm_control wants a process without other renderers
        chosen = [task for task in tasks if (family(task) == "dm_control") is theirs]
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            for task, result in zip(
                chosen,
                tqdm(pool.map(attempt, chosen), total=len(chosen), file=sys.stderr),
                strict=True,
            ):
                found[family(task), result].append(task)
    print("| family | ids | such as | result |\n|---|---|---|---|")
    for (name, result), ids in sorted(found.items(), key=lambda row: (order(row[0][0]), row[1])):
        print(f"| {name} | {len(ids)} | `{ids[0]}` | {result} |")


def family(task: str) -> str:
    return next(name for start, name in FAMILIES.items() if re.match(start, task))


def order(name: str) -> int:
    return list(FAMILIES.values()).index(name)


def attempt(task: str) -> str:
    """ "works", or why not."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for size in (64, None):  # None for those that draw frames of their own size only
        try:
            env = named.make_env(task, seed=0, image_size=size)
            break
        except Exception as error:
            reason = str(error).replace(repr(task), "it")
            reason = re.sub(r"\s+", " ", re.sub(r" The newest version is .*", "", reason))
    else:
        return reason
    try:
        first = env.reset()
        step = env.rand_step(first)["next"]
        assert step["pixels"].shape == first["pixels"].shape == env.observation_spec["pixels"].shape
        assert step["state"].isfinite().all() and step["state"].ndim == 1
        env.set_seed(0)
        again = env.reset()
        if not torch.equal(first["state"], again["state"]):
            return "works; a seed does not repeat its start"
        if (first["pixels"].int() - again["pixels"].int()).abs().max() > 2:
            return "works; a seed does not repeat its first frame"
        return "works"
    finally:
        env.close()


if __name__ == "__main__":
    main()
