"""Speed of VIPTransform, beside TorchRL's own transform and the bare network, and what it costs.

1. Images per second of the transforms and of the network alone, same ResNet-50.
2. Environment frames per second with two and with eight workers: one batched forward outside of them, or
   TorchRL's transform inside each.
3. Per-step reward S(o') - S(o) of each precision against float32's, on real roll-outs.
4. The checkpoints that come with the package, each as it is used.

Everything compared takes turns (A B C A B C ...) in one process and a ratio is the median over
turns, so that noise which lasts longer than a turn cancels.

    python benchmarks/throughput.py            # some 40 minutes on two cores, reckoned from parts
    python benchmarks/throughput.py --quick    # about 1 minute
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("MUJOCO_GL", "egl")

import torch
from machine import about, in_words
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.envs import EnvBase, ParallelEnv, TransformedEnv  # before the first rendering
from torchrl.envs.transforms import VIPTransform as BuiltInTransform
from tqdm import tqdm

from torchrl_vip import VIPEncoder, VIPTransform, load_vip
from torchrl_vip.data.video import read_frames
from torchrl_vip.evaluation.calibration import reward_correlation
from torchrl_vip.evaluation.clips import LabelledClip
from torchrl_vip.functional import preprocess
from torchrl_vip.weights import BUNDLED, DEFAULT

ROOT = Path(__file__).parent
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BUILT_IN = "TorchRL"
Times = dict[str, list[float]]


def main() -> None:
    args = parse_args()
    torch.manual_seed(args.seed)
    report = {"about": about()}
    if "images" in args.sections:
        report["images"] = [row for n in args.batches for row in image_speed(n, args)]
    if "env" in args.sections:
        report["env"] = env_speed(args)
    if "reward" in args.sections:
        report["reward"] = reward_fidelity(args)
    if "bundled" in args.sections:
        report["bundled"] = [row for n in args.batches for row in bundled_speed(n, args)]
    text = markdown(report)
    args.out.mkdir(parents=True, exist_ok=True)
    stem = args.name + ("-quick" if args.quick else "")
    (args.out / f"{stem}.json").write_text(json.dumps(report, indent=2) + "\n")
    (args.out / f"{stem}.md").write_text(text)
    print(text)
    print(f"written to {args.out / stem}.json and .md", file=sys.stderr)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small, nothing compiled, noisy")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--batches", type=int, nargs="+", help="images at once (1 8 64)")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[84, 224], help="input sides, pixels"
    )
    parser.add_argument("--device", default="cpu", help="of section images, e.g. cuda")
    parser.add_argument("--seconds", type=float, help="target time per batch size (45)")
    parser.add_argument("--task", help="of dm_control, e.g. cheetah-run, or of Meta-World")
    parser.add_argument("--workers", type=int, nargs="+", help="of section env (2 8)")
    parser.add_argument("--rounds", type=int, help="turns of the environments (8)")
    parser.add_argument("--steps", type=int, help="environment steps a turn (15)")
    parser.add_argument("--checkpoint", help="for the rewards; the bundled one by default")
    parser.add_argument(
        "--sections",
        nargs="+",
        default=(every := ["images", "env", "reward", "bundled"]),
        choices=every,
    )
    parser.add_argument("--name", default="throughput", help="of the result files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="folder of the results")
    args = parser.parse_args()
    quick = args.quick
    args.no_compile |= quick
    args.batches = args.batches or ([1, 4] if quick else [1, 8, 64])
    args.seconds = args.seconds or (6 if quick else 45)
    args.workers = args.workers or ([2] if quick else [2, 8])
    args.rounds = args.rounds or (2 if quick else 8)
    args.steps = args.steps or (5 if quick else 15)
    args.task = args.task or "cheetah-run"
    return args


def take_turns(cases: dict[str, Callable[[], object]], rounds: int, label: str) -> Times:
    """Seconds of every call, one list a case; the i-th entries were measured side by side."""
    times: Times = {name: [] for name in cases}
    print(f"measuring {label}", file=sys.stderr, flush=True)
    for _ in tqdm(range(rounds), desc=label, file=sys.stderr):
        for name, call in cases.items():
            start = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    print(f"measured {label}", file=sys.stderr, flush=True)
    return times


def ratio(times: Times, fast: str, slow: str) -> float:
    """How many times as fast ``fast`` is as ``slow``: the median over turns."""
    return statistics.median(s / f for f, s in zip(times[fast], times[slow], strict=True))


# -- 1. images per second --------------------------------------------------------------------------


def image_speed(batch: int, args: argparse.Namespace) -> list[dict]:
    """Rows for one batch size: who, input side, images per second, ratios."""
    torch._dynamo.reset()  # else the second batch size compiles for any size
    cases, twins = image_cases(batch, args)
    for name, call in tqdm(cases.items(), desc=f"compile, batch {batch}", file=sys.stderr):
        if "compiled" in name:
            call()
    once = sum(t[0] for t in take_turns(cases, 1, f"batch {batch}, trial").values())
    rounds = min(30, max(3, round(args.seconds / once)))
    times = take_turns(cases, rounds, f"batch {batch}")
    return [
        {
            "batch": batch,
            "case": name,
            "images_per_second": batch / statistics.median(t),
            "rounds": rounds,
            **{f"against_{what}": ratio(times, name, twin) for what, twin in twins[name].items()},
        }
        for name, t in times.items()
    ]


def image_cases(batch: int, args: argparse.Namespace) -> tuple[dict[str, Callable], dict]:
    """The calls to measure, and for each the names of those it is compared with."""
    encoder = VIPEncoder("resnet50", dim=1024).eval().to(args.device)
    generator = torch.Generator().manual_seed(args.seed)
    images = {
        side: torch.randint(
            0, 256, (batch, side, side, 3), dtype=torch.uint8, generator=generator
        ).to(args.device)
        for side in args.sizes
    }
    cases: dict[str, Callable] = {}
    twins: dict[str, dict[str, str]] = {}
    built_in = BuiltInTransform("resnet50").eval().to(args.device)
    for side in args.sizes:
        cases[f"{BUILT_IN}, {side}²"] = partial(run_transform, built_in, images[side])
    for name, dtype in PRECISIONS.items():
        bare = copy.deepcopy(encoder).to(dtype).to(memory_format=torch.channels_last)
        frames = preprocess(images[args.sizes[-1]]).to(dtype)
        frames = frames.contiguous(memory_format=torch.channels_last)
        cases[f"bare network, {name}"] = partial(run_network, bare.embed, frames)
        for compiled in (False, True)[: 1 if args.no_compile else 2]:
            transform = VIPTransform(encoder, dtype=dtype, compile=compiled)
            ours = name + (", compiled" if compiled else "")
            own = f"our network alone, {ours}"
            for side in args.sizes:
                call = f"VIPTransform {ours}, {side}²"
                cases[call] = partial(run_transform, transform, images[side])
                twins[call] = {
                    "torchrl": f"{BUILT_IN}, {side}²",
                    "bare": f"bare network, {name}",
                    "own": own,
                }
            cases[own] = partial(run_network, NetworkOf(transform), frames)
    return cases, {name: twins.get(name, {}) for name in cases}


class NetworkOf:
    """The network inside a VIPTransform, folded and perhaps compiled, without what surrounds it."""

    def __init__(self, transform: VIPTransform):
        self.encoder = transform.encoder

    def __call__(self, frames: Tensor) -> Tensor:
        return self.encoder.head(self.encoder._network(frames).float())


def run_transform(transform: nn.Module, images: Tensor) -> TensorDict:
    """As an environment calls it, on a fresh tensordict."""
    return transform._call(TensorDict({"pixels": images}, batch_size=images.shape[:1]))


@torch.no_grad()
def run_network(network: Callable[[Tensor], Tensor], frames: Tensor) -> Tensor:
    return network(frames)


# -- 2. environment frames per second --------------------------------------------------------------


def make_pixels(task: str, seed: int) -> EnvBase:
    """84² pixels: "cheetah-run" of dm_control or, with a version in its name, Meta-World's."""
    if task.endswith("-v3"):
        from torchrl_vip.envs.metaworld import make_env

        return make_env(task, image_size=84, seed=seed, max_steps=10_000)
    from dm_control import suite
    from torchrl.envs.libs.dm_control import DMControlWrapper  # DMControlEnv has no frame size

    env = suite.load(*task.split("-"), task_kwargs={"random": seed})
    size = {"width": 84, "height": 84, "camera_id": 0}
    return DMControlWrapper(env, from_pixels=True, pixels_only=True, render_kwargs=size)


def make_pixels_built_in(task: str, seed: int) -> EnvBase:
    return TransformedEnv(make_pixels(task, seed), BuiltInTransform("resnet50").eval())


class Stepper:
    """Random actions in an environment, a few steps at a time, with a given number of threads."""

    def __init__(self, env: EnvBase, threads: int):
        self.env, self.threads = env, threads
        self.tensordict = env.reset()

    def __call__(self, steps: int) -> None:
        torch.set_num_threads(self.threads)
        for _ in range(steps):
            step = self.env.rand_action(self.tensordict)
            _, self.tensordict = self.env.step_and_maybe_reset(step)


def env_speed(args: argparse.Namespace) -> list[dict]:
    """Rows: workers, where the transform sits, precision, torch threads of the main process, frames/s."""
    return [row for workers in args.workers for row in speed_of_workers(args, workers)]


def speed_of_workers(args: argparse.Namespace, workers: int) -> list[dict]:
    threads = torch.get_num_threads()
    encoder = VIPEncoder("resnet50", dim=1024).eval()
    torch._dynamo.reset()  # else the second number of workers compiles for any number

    def parallel(make: Callable[[str, int], EnvBase]) -> ParallelEnv:
        seeds = range(args.seed, args.seed + workers)
        return ParallelEnv(workers, [partial(make, args.task, seed) for seed in seeds])

    inside = f"{BUILT_IN} inside the workers"
    frames = parallel(make_pixels)  # the same workers for all transforms outside
    built_in = TransformedEnv(frames, BuiltInTransform("resnet50").eval())
    steppers = {
        inside: Stepper(parallel(make_pixels_built_in), 1),
        f"{BUILT_IN} outside, 1 thread": Stepper(built_in, 1),
    }
    for name, dtype in PRECISIONS.items():
        for compiled in (False, True)[: 1 if args.no_compile else 2]:
            ours = TransformedEnv(frames, VIPTransform(encoder, dtype=dtype, compile=compiled))
            for count in sorted({1, threads}):
                label = f"VIPTransform {name}{', compiled' * compiled} outside, "
                steppers[f"{label}{count} thread{'s' * (count > 1)}"] = Stepper(ours, count)
    steppers["no transform"] = Stepper(frames, 1)
    for stepper in steppers.values():
        stepper(2)
    cases = {name: partial(stepper, args.steps) for name, stepper in steppers.items()}
    times = take_turns(cases, args.rounds, f"{args.task}, {workers} workers")
    steppers[inside].env.close()
    frames.close()
    torch.set_num_threads(threads)
    return [
        {
            "task": args.task,
            "workers": workers,
            "case": name,
            "frames_per_second": workers * args.steps / statistics.median(t),
            "against_torchrl": ratio(times, name, inside),
        }
        for name, t in times.items()
    ]


# -- 3. what precision does to the reward ----------------------------------------------------------


def reward_fidelity(args: argparse.Namespace) -> list[dict]:
    clips = real_clips()
    encoder = open_checkpoint(args.checkpoint)
    if not clips or encoder is None:
        return []
    if args.quick:
        clips = clips[:1]
    rows = []
    for name, dtype in (PRECISIONS | {"float16": torch.float16}).items():
        for compiled in (False, True)[: 1 if args.no_compile or name == "float16" else 2]:
            ours = name + (", compiled" if compiled else "")
            print(f"rewards in {ours}", file=sys.stderr)
            correlation = partial(reward_correlation, encoder, dtype=dtype, compile=compiled)
            alone = {clip.name: correlation(clips=[clip]) for clip in clips}
            rows.append(
                {
                    "checkpoint": args.checkpoint or "bundled",
                    "case": ours,
                    "correlation": correlation(clips=clips),
                    "clips": alone,
                }
            )
    return rows


def real_clips() -> list[LabelledClip]:
    """The four real-robot clips; none, and a message, where absent."""
    folder = Path(os.environ.get("VIP_DATA", ROOT.parent / "../shared/data")) / "real_robot"
    files = sorted(folder.glob("*.mp4"))
    if not files:
        print(f"rewards: skipped, no clips in {folder} (set VIP_DATA)", file=sys.stderr)
        return []
    return [
        LabelledClip(torch.stack(list(read_frames(file))), file.stem, name=file.stem)
        for file in files
    ]


def open_checkpoint(source: str | None) -> VIPEncoder | None:
    try:
        return load_vip(source)
    except (RuntimeError, OSError, ValueError) as error:
        if source is not None:
            raise
        print(f"rewards: skipped, no bundled checkpoint ({error})", file=sys.stderr)
        return None


# -- 4. the bundled checkpoints --------------------------------------------------------------------


def bundled_speed(batch: int, args: argparse.Namespace) -> list[dict]:
    """Rows for one batch size: checkpoint, frames per second, times the default's."""
    images = torch.randint(0, 256, (batch, 128, 128, 3), dtype=torch.uint8)
    cases = {name: partial(run_transform, VIPTransform(name), images) for name in BUNDLED}
    for call in cases.values():
        call()  # folds its batch norm
    once = sum(t[0] for t in take_turns(cases, 1, f"bundled, batch {batch}, trial").values())
    rounds = min(200, max(3, round(args.seconds / 4 / once)))
    times = take_turns(cases, rounds, f"bundled, batch {batch}")
    return [
        {
            "batch": batch,
            "case": name,
            "frames_per_second": batch / statistics.median(t),
            "against_default": ratio(times, name, DEFAULT),
            "rounds": rounds,
        }
        for name, t in times.items()
    ]


# -- the report ------------------------------------------------------------------------------------


def markdown(report: dict) -> str:
    lines = [
        "# Throughput",
        "",
        in_words(report["about"]),
        "",
    ]
    if report.get("images"):
        lines += image_table(report["images"])
    if report.get("env"):
        rows = report["env"]
        for workers in dict.fromkeys(r["workers"] for r in rows):
            lines += [
                f"## Environment frames per second: {rows[0]['task']}, 84², {workers} workers, ResNet-50",
                "",
                "| | frames/s | × TorchRL inside the workers |",
                "|---|---|---|",
                *(
                    f"| {r['case']} | {r['frames_per_second']:.1f} | {r['against_torchrl']:.2f} |"
                    for r in rows
                    if r["workers"] == workers
                ),
                "",
            ]
        lines += [
            "Threads are torch's in the main process: ParallelEnv sets them to 1 here, and each "
            "worker has 1.",
            "",
        ]
    if report.get("reward"):
        rows = report["reward"]
        lines += [
            f"## Per-step reward against float32's, real roll-outs ({rows[0]['checkpoint']})",
            "",
            "| | Pearson r, all steps | worst clip |",
            "|---|---|---|",
            *(
                f"| {r['case']} | {r['correlation']:.5f} | {min(r['clips'].values()):.5f} |"
                for r in rows
            ),
            "",
        ]
    if report.get("bundled"):
        rows = report["bundled"]
        lines += [
            "## The bundled checkpoints, 128² frames, the precision that VIPTransform picks",
            "",
            "| | batch | frames/s | × the default |",
            "|---|---|---|---|",
            *(
                f"| {r['case']} | {r['batch']} | {r['frames_per_second']:.1f} | "
                f"{r['against_default']:.2f} |"
                for r in rows
            ),
            "",
        ]
    return "\n".join(lines)


def image_table(rows: list[dict]) -> list[str]:
    batches = list(dict.fromkeys(r["batch"] for r in rows))
    cells = {(r["case"], r["batch"]): r for r in rows}
    lines = [
        "## Images per second, ResNet-50 → 1024, uint8 frames",
        "",
        "| | " + " | ".join(f"batch {n}" for n in batches) + " |",
        "|---" * (len(batches) + 1) + "|",
    ]
    for case in dict.fromkeys(r["case"] for r in rows):
        cell = [f"{cells[case, n]['images_per_second']:.1f}" for n in batches]
        lines.append(f"| {case} | {' | '.join(cell)} |")
    lines += [
        "",
        "How many times as fast VIPTransform is (median over turns), at batch "
        + " / ".join(map(str, batches)),
        "",
        "| | as TorchRL's (244², float32) | as the bare network in the same precision "
        "| as its own network alone |",
        "|---|---|---|---|",
    ]
    for case in dict.fromkeys(r["case"] for r in rows if "against_torchrl" in r):
        cell = [
            " / ".join(f"{cells[case, n][f'against_{what}']:.2f}" for n in batches)
            for what in ("torchrl", "bare", "own")
        ]
        lines.append(f"| {case.removeprefix('VIPTransform ')} | {' | '.join(cell)} |")
    bare = "The bare network is torchvision's, channels-last and eager, with its batch norm."
    return [*lines, "", f"{bare} It is fed preprocessed 224² frames.", ""]


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
