"""Behaviour cloning of the tabletop's state, from 20 demonstrations: are the tasks what they should be?

What a policy can learn that sees the full state is the ceiling of every policy that sees pictures.

    python benchmarks/tabletop_bc.py                                   # all tasks; the towel takes most of it
    python benchmarks/tabletop_bc.py --tasks close-drawer --rollouts 5 --steps 200 --out try
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from machine import about, in_words
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.modules import MLP
from torchrl.objectives import BCLoss
from tqdm import tqdm

from torchrl_vip.demonstrations.record import record
from torchrl_vip.envs.tabletop import TabletopSim, list_tasks

FIRST_START = 1_000_000  # seeds of the roll-outs, far from the demonstrations'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--tasks", nargs="+", choices=list_tasks(), default=list_tasks())
    add("--demonstrations", type=int, default=20)
    add("--seeds", type=int, default=2)
    add("--steps", type=int, default=6000, help="of training, batches of 128 (default: 6000)")
    add("--rollouts", type=int, default=50, help="of 100 steps, for each seed (default: 50)")
    add("--out", type=Path, default=Path(__file__).parent / "results" / "tabletop_bc")
    return parser.parse_args()


def train(steps: TensorDict, seed: int, args: argparse.Namespace) -> TensorDictModule:
    """A policy from "full_state" to "action"."""
    torch.manual_seed(seed)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(len(steps)), batch_size=128)
    buffer.extend(steps.select("full_state", "action"))
    x = steps["full_state"]
    network = nn.Sequential(
        Standardized(x.mean(0), x.std(0) + 0.01),
        MLP(x.shape[-1], steps["action"].shape[-1], num_cells=[256, 256], activation_class=nn.ReLU),
    )
    policy = TensorDictModule(network, in_keys=["full_state"], out_keys=["action"])
    loss = BCLoss(policy, loss_function="l2")
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    for _ in range(args.steps):
        optimizer.zero_grad()
        loss(buffer.sample())["loss_bc"].backward()
        optimizer.step()
    return policy.requires_grad_(False)


class Standardized(nn.Module):
    """Numbers ``[*B, D]`` of mean 0 and deviation 1."""

    def __init__(self, mean: torch.Tensor, deviation: torch.Tensor):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / self.deviation


def solved(sim: TabletopSim, policy: TensorDictModule, start: int) -> tuple[bool, bool]:
    """Whether the task is solved after 50 steps, and after 100."""
    sim.reset(start)
    ends = []
    for _ in range(100):
        state = TensorDict({"full_state": torch.from_numpy(sim.full_state.copy())[None]}, [1])
        ends.append(bool(sim.step(policy(state)["action"][0].clamp(-1, 1).numpy())[2]))
    return ends[49], ends[99]


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    rows = []
    for task in args.tasks:
        steps = torch.cat(list(record(task, args.demonstrations, 0, image_size=16)))
        sim = TabletopSim(task, image_size=16)
        for seed in range(args.seeds):
            policy = train(steps, seed, args)
            starts = tqdm(range(args.rollouts), desc=f"{task}, seed {seed}")
            ends = [solved(sim, policy, FIRST_START + start) for start in starts]
            at_50, at_100 = (sum(end) for end in zip(*ends, strict=True))
            rows.append({"task": task, "seed": seed, "after_50": at_50, "after_100": at_100})
            write(rows, args)
        sim.close()
    print(args.out.with_suffix(".md").read_text())


def write(rows: list[dict], args: argparse.Namespace) -> None:
    report = {"about": about(), "rollouts": args.rollouts, "rows": rows}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    lines = [
        f"# Behaviour cloning of the state, {args.demonstrations} demonstrations",
        "",
        in_words(report["about"]),
        "",
        f"Solved of {args.rollouts} unseen starts, after 50 steps (an episode) and after 100.",
        "",
        "| task | seed | after 50 steps | after 100 |",
        "|---|---|---|---|",
        *(f"| {r['task']} | {r['seed']} | {r['after_50']} | {r['after_100']} |" for r in rows),
    ]
    args.out.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
