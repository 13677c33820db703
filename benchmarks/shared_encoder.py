"""Where the encoder of several environment workers should live: frames per second and memory.

1. In each worker: TransformedEnv(VIPTransform()) inside a ParallelEnv, one copy of the weights each.
2. Outside: one VIPTransform around the ParallelEnv, one batched forward for all.
3. Shared: workers send their frames to one EncoderServer, which batches what arrives together.

Every case is a ParallelEnv of the same environments with random actions; cases take turns, medians
over turns. Memory is the proportional set size of this process and all below it.

    python benchmarks/shared_encoder.py            # about 8 minutes on two cores
    python benchmarks/shared_encoder.py --quick    # about 1 minute
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

os.environ.setdefault("MUJOCO_GL", "egl")

import torch
from machine import about, in_words
from torchrl.envs import EnvBase, ParallelEnv, TransformedEnv
from tqdm import tqdm

from torchrl_vip import FrozenEncoder, VIPTransform, load_vip
from torchrl_vip.envs import load_suite
from torchrl_vip.serving import EncoderServer

ROOT = Path(__file__).parent


def main() -> None:
    args = parse_args()
    report = {"about": about()}  # with the load before
    report["rows"] = [row for workers in args.workers for row in measure(workers, args)]
    args.out.mkdir(parents=True, exist_ok=True)
    stem = "shared_encoder-quick" if args.quick else "shared_encoder"
    (args.out / f"{stem}.json").write_text(json.dumps(report, indent=2) + "\n")
    (args.out / f"{stem}.md").write_text(text := markdown(report, args))
    print(text)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", default="metaworld")
    parser.add_argument("--task", default="drawer-open-v3")
    parser.add_argument("--image-size", type=int, default=128, help="of the frames, pixels")
    parser.add_argument("--workers", type=int, nargs="+", help="processes (1 2 4 8)")
    parser.add_argument("--rounds", type=int, help="turns of every case (5)")
    parser.add_argument("--steps", type=int, help="environment steps a turn (20)")
    parser.add_argument("--quick", action="store_true", help="small and noisy")
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="folder of the results")
    args = parser.parse_args()
    args.workers = args.workers or ([1, 2] if args.quick else [1, 2, 4, 8])
    args.rounds = args.rounds or (2 if args.quick else 5)
    args.steps = args.steps or (5 if args.quick else 20)
    return args


def base(args: argparse.Namespace) -> EnvBase:
    return load_suite(args.suite).make_env(args.task, image_size=args.image_size)


def own(args: argparse.Namespace, encoder=None) -> EnvBase:
    return TransformedEnv(base(args), VIPTransform(encoder))


def measure(workers: int, args: argparse.Namespace) -> list[dict]:
    """Each case is built, measured and closed by itself, in every round."""
    rates: dict[str, list[float]] = {}
    memory: dict[str, float] = {}
    cases: dict[str, Callable] = {"in each worker": inside, "outside": outside, "shared": shared}
    for _ in tqdm(range(args.rounds), desc=f"{workers} workers", file=sys.stderr):
        for name, case in cases.items():
            rate, used = case(workers, args)
            rates.setdefault(name, []).append(rate)
            memory[name] = used
    return [
        {
            "workers": workers,
            "case": name,
            "frames_per_second": statistics.median(values),
            "against_worker": statistics.median(
                v / w for v, w in zip(values, rates["in each worker"], strict=True)
            ),
            "memory_mb": memory[name],
        }
        for name, values in rates.items()
    ]


def inside(workers: int, args: argparse.Namespace) -> tuple[float, float]:
    return speed(ParallelEnv(workers, partial(own, args)), workers, args)


def outside(workers: int, args: argparse.Namespace) -> tuple[float, float]:
    env = ParallelEnv(workers, partial(base, args))
    return speed(TransformedEnv(env, VIPTransform()), workers, args)


def shared(workers: int, args: argparse.Namespace) -> tuple[float, float]:
    with EncoderServer(FrozenEncoder(load_vip()), min_batch_size=workers) as server:
        makers = [partial(own, args, server.client()) for _ in range(workers)]
        return speed(ParallelEnv(workers, makers), workers, args)


def speed(env: EnvBase, workers: int, args: argparse.Namespace) -> tuple[float, float]:
    """Frames per second, and memory in MB."""
    try:
        td = env.reset()
        for _ in range(3):
            td = env.step_and_maybe_reset(env.rand_action(td))[1]
        # ParallelEnv leaves one thread here; where the encoder runs here it may have all of them.
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        start = time.perf_counter()
        for _ in range(args.steps):
            td = env.step_and_maybe_reset(env.rand_action(td))[1]
        return workers * args.steps / (time.perf_counter() - start), memory_mb()
    finally:
        env.close()


def memory_mb() -> float:
    """Proportional set size of this process and its descendants, MB."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    family, new = set(), {os.getpid()}
    while new:
        family |= new
        new = {pid for pid, parent in parents.items() if parent in new} - family
    total = 0
    for pid in family:
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += int(rollup.split("Pss:")[1].split()[0])
        except OSError:
            pass
    return total / 1e3


def markdown(report: dict, args: argparse.Namespace) -> str:
    return "\n".join(
        [
            "# One encoder for several workers",
            "",
            in_words(report["about"]),
            "",
            f"{args.suite}, {args.task}, {args.image_size}² frames, the bundled encoder; medians "
            f"over {args.rounds} turns.",
            "",
            "| workers | encoder | frames/s | × in each worker | memory, MB |",
            "|---|---|---|---|---|",
            *(
                f"| {r['workers']} | {r['case']} | {r['frames_per_second']:.1f} | "
                f"{r['against_worker']:.2f} | {r['memory_mb']:.0f} |"
                for r in report["rows"]
            ),
            "",
        ]
    )


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
