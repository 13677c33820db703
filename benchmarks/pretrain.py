"""Speed of the pre-training loop, beside the official way, and how it grows with the data.

1. Clips per second of our loop and of two rivals on the same real frames, network and batch: a loop
   that does it the way the official trainer is described (every sample globs its folder and reads
   four PNG images; float32; two persistent prefetching DataLoader workers), and that loop in bfloat16 and
   channels-last. Between them, our loop in float32 splits the gain into cache and precision.
   Beside them the share of the processor's bfloat16 peak (of a large matrix product, measured), and how
   many times the official way a loop would be that spends its time on nothing but the network, at peak.
   With --device cuda our loop alone, with ResNet-50 at 224² too.
2. Share of the time our loop waits for data, from the memory-map and decoding video at every draw.
3. Time to sample a batch, and the process's own memory, from a memory-map of 1k to 1M frames of
   random bytes, the largest bigger than the machine's memory.

Every case runs a block of steps in turn (A B C A B C ...); a ratio is the median over turns.

    python benchmarks/pretrain.py --clips ../shared/data/droid    # about 20 minutes on two cores
    python benchmarks/pretrain.py --clips CLIPS --quick           # about 2 minutes
    python benchmarks/pretrain.py --clips CLIPS --device cuda --sections speed --name pretrain_gpu
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import yaml
from machine import about, in_words
from tensordict import MemoryMappedTensor, TensorDict
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.flop_counter import FlopCounterMode
from torchrl.data import TensorStorage
from torchvision.io import read_image, write_png
from torchvision.transforms import v2
from tqdm import tqdm

from torchrl_vip import VIPEncoder, vip_loss
from torchrl_vip.data.sources import Clip, find_clips
from torchrl_vip.data.video import FrameTable, decode_lazily, decode_once, read_frames
from torchrl_vip.functional import IMAGENET_MEAN, IMAGENET_STD, resize_size
from torchrl_vip.pretrain.build import make_augment, make_buffer, make_objective
from torchrl_vip.pretrain.trainer import backward

ROOT = Path(__file__).parent
DEFAULTS = ROOT.parent / "torchrl_vip" / "pretrain" / "config.yaml"
SIDE = 128  # of the random frames, pixels
OFFICIAL, OFFICIAL_BFLOAT16 = "official way, float32", "official way, bfloat16"


def main() -> None:
    args = parse_args()
    report = {"about": about()}
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        folder = Path(scratch)
        need, free = 3 * SIDE**2 * args.largest, shutil.disk_usage(folder).free
        if "growth" in args.sections and need > 0.95 * free:
            sys.exit(f"{folder} has {free / 1e9:.0f} GB free, {need / 1e9:.0f} GB are wanted.")
        if "growth" in args.sections:  # first: the networks below would count as memory
            report["growth"] = growth(folder, args)
            (folder / "random.u8").unlink()
        clips = extract_frames(find_clips(args.clips), folder / "frames", args.clip_count)
        if "speed" in args.sections:
            report["peak"] = {
                name: peak(dtype, args.device)
                for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
            }
            report["speed"] = [
                row
                for network, size, batch in args.networks
                for row in speed(network, size, batch, clips, folder, args)
            ]
        if "waiting" in args.sections:
            report["waiting"] = waiting(find_clips(args.clips)[: args.clip_count], folder, args)
    text = markdown(report)
    args.out.mkdir(parents=True, exist_ok=True)
    stem = args.name or ("pretrain-quick" if args.quick else "pretrain")
    (args.out / f"{stem}.json").write_text(json.dumps(report, indent=2) + "\n")
    (args.out / f"{stem}.md").write_text(text)
    if "growth" in report:
        plot_growth(report["growth"], args.out / f"{stem}_growth.png")
    print(text)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=Path, required=True, help="folder of real videos")
    parser.add_argument("--clip-count", type=int, help="clips of it to use (60)")
    parser.add_argument("--quick", action="store_true", help="small and noisy")
    parser.add_argument("--rounds", type=int, help="turns of every case (3)")
    parser.add_argument("--steps", type=int, help="steps a turn (4)")
    parser.add_argument("--largest", type=int, help="frames of the largest memory-map (1000000)")
    parser.add_argument("--scratch", type=Path, help="folder for frames and maps (a temporary one)")
    parser.add_argument(
        "--sections",
        nargs="+",
        default=["speed", "waiting", "growth"],
        choices=["speed", "waiting", "growth"],
    )
    parser.add_argument("--device", type=torch.device, default="cpu", help="of our loop (cpu)")
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="folder of the results")
    parser.add_argument("--name", help="of the results' files (pretrain)")
    args = parser.parse_args()
    quick = args.quick
    args.clip_count = args.clip_count or (6 if quick else 60)
    args.rounds = args.rounds or (1 if quick else 3)
    args.steps = args.steps or (2 if quick else 4)
    args.largest = args.largest or (10_000 if quick else 1_000_000)
    large = 8 if args.device.type == "cpu" else 128  # clips a step of ResNet-50
    args.networks = (
        [("resnet18", 32, 4)] if quick else [("resnet18", 112, 32), ("resnet50", 224, large)]
    )
    return args


def extract_frames(clips: list[Clip], folder: Path, count: int) -> list[Clip]:
    """The official layout, a folder of numbered PNG files a clip, at the video's own size."""
    for i, clip in enumerate(tqdm(clips[:count], desc="extracting", file=sys.stderr)):
        (folder / str(i)).mkdir(parents=True)
        for t, frame in enumerate(read_frames(clip.path, clip.span)):
            write_png(frame, str(folder / str(i) / f"{t}.png"))
    return find_clips(folder)


def config_for(network: str, size: int, batch: int) -> dict:
    config = yaml.safe_load(DEFAULTS.read_text())
    return config | {"encoder": network, "image_size": size, "batch_size": batch, "dim": 1024}


# -- 1. clips per second ---------------------------------------------------------------------------


def peak(dtype: torch.dtype, device: torch.device) -> float:
    """Floating-point operations a second of a large matrix product, the best of some; of a small one
    where that is slow: bfloat16 without instructions for it would take minutes."""
    for side in (256, 2048) if device.type == "cpu" else (8192,):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        seconds = min(_product_seconds(a, b) for _ in range(10))
        if seconds > 0.01:
            break
    return 2 * side**3 / seconds


def _product_seconds(a: torch.Tensor, b: torch.Tensor) -> float:
    start = time.perf_counter()
    (a @ b)[0, 0].item()  # waits for the device
    return time.perf_counter() - start


def operations(network: str, size: int) -> float:
    """Floating-point operations of an image forward and backward, two a multiply-add."""
    encoder = VIPEncoder(network, dim=1024, image_size=size)
    with FlopCounterMode(display=False) as counter:
        encoder.embed(torch.randn(2, 3, size, size)).sum().backward()
    return counter.get_total_flops() / 2


class OfficialSamples(IterableDataset):
    """Sub-clips the way the official trainer is described to read them.

    Every sample lists the videos and the frames of one, reads four images, crops all of them alike at
    random, resizes and cuts the centre.
    """

    def __init__(self, folder: Path, size: int):
        self.folder, self.size = folder, size

    def __iter__(self) -> Iterator[torch.Tensor]:
        crop = v2.RandomResizedCrop(self.size, scale=(0.2, 1.0), antialias=True)
        official = v2.Compose([v2.Resize(resize_size(self.size)), v2.CenterCrop(self.size)])
        while True:
            videos = list(self.folder.glob("[0-9]*"))
            video = videos[np.random.randint(len(videos))]
            length = len(list(video.glob("*.png")))
            first = np.random.randint(0, length - 2)
            last = np.random.randint(first + 1, length)
            now = np.random.randint(first, last)
            rows = (first, now, min(now + 1, last), last)
            images = torch.stack([read_image(str(video / f"{t}.png")) for t in rows])
            yield official(crop(images / 255.0))


def official_loop(
    network: str, size: int, batch: int, folder: Path, bfloat16: bool
) -> Callable[[int], float]:
    """``run(steps)`` trains and returns seconds a step, from the moment the first batch is there."""
    torch.manual_seed(0)
    encoder = VIPEncoder(network, dim=1024, image_size=size)
    if bfloat16:
        encoder = encoder.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-4)
    normalise = v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)

    def run(steps: int) -> float:
        encoder.train()
        loader = DataLoader(
            OfficialSamples(folder, size),
            batch_size=batch,
            num_workers=2,
            persistent_workers=True,
            prefetch_factor=2,
        )
        batches = iter(loader)
        frames = next(batches)
        start = time.perf_counter()
        for _ in range(steps):
            images = normalise(frames.flatten(0, 1))
            if bfloat16:
                images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                z = encoder.embed(images)
            z = z.float().unflatten(0, (-1, 4))
            loss, _ = vip_loss(*z.unbind(1), num_negatives=3)
            loss = loss + 0.001 * z.norm(dim=-1).mean() + 0.001 * z.abs().sum(-1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            frames = next(batches)
        return (time.perf_counter() - start) / steps

    return run


def our_loop(
    table: FrameTable, config: dict, dtype: torch.dtype, device: torch.device
) -> Callable[[int], float]:
    """The same for the loop of ``torchrl_vip.pretrain``; ``run.waiting`` is the share it waited."""
    torch.manual_seed(0)
    encoder = VIPEncoder(config["encoder"], dim=config["dim"], image_size=config["image_size"])
    encoder = encoder.to(device, memory_format=torch.channels_last).train()
    objective = make_objective(encoder, config, dtype)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=config["lr"])
    averaged = AveragedModel(encoder, multi_avg_fn=get_ema_multi_avg_fn(config["ema"]))
    buffer, augment = make_buffer(table, config), make_augment(config, device)

    def run(steps: int) -> float:
        batch = buffer.sample()
        start, waited = time.perf_counter(), 0.0
        for step in range(steps):
            losses = objective(augment(batch, step), step)
            backward(losses, optimizer, config["grad_clip"])
            optimizer.step()
            averaged.update_parameters(encoder)
            asked = time.perf_counter()
            batch = buffer.sample()
            waited += time.perf_counter() - asked
        total = time.perf_counter() - start
        run.waiting = waited / total
        return total / steps

    run.waiting = 0.0
    return run


def speed(
    network: str, size: int, batch: int, clips: list[Clip], folder: Path, args: argparse.Namespace
) -> list[dict]:
    config = config_for(network, size, batch)
    table = decode_once(clips, resize_size(size), folder / "cache", progress=False)
    frames = folder / "frames"
    cases = {
        "ours, float32": our_loop(table, config, torch.float32, args.device),
        "ours, bfloat16": our_loop(table, config, torch.bfloat16, args.device),
    }
    if not args.quick:
        compiled = config | {"compile": True}
        cases["ours, bfloat16, compiled"] = our_loop(table, compiled, torch.bfloat16, args.device)
    if args.device.type == "cpu":
        cases = {
            OFFICIAL: official_loop(network, size, batch, frames, False),
            OFFICIAL_BFLOAT16: official_loop(network, size, batch, frames, True),
        } | cases
    times: dict[str, list[float]] = {name: [] for name in cases}
    for run in cases.values():
        run(1)
    for _ in range(args.rounds):
        for name, run in tqdm(cases.items(), desc=f"{network} at {size}²", file=sys.stderr):
            times[name].append(run(args.steps))

    def ratio(fast: str, slow: str) -> float | None:
        if slow not in times:
            return None
        return statistics.median(s / f for f, s in zip(times[fast], times[slow], strict=True))

    flops = 4 * batch * operations(network, size)
    return [
        {
            "network": network,
            "size": size,
            "batch": batch,
            "case": name,
            "clips_per_second": batch / statistics.median(t),
            "flops": flops / statistics.median(t),
            "against_official": ratio(name, OFFICIAL),
            "against_bfloat16": ratio(name, OFFICIAL_BFLOAT16),
            "waiting": getattr(cases[name], "waiting", None),
        }
        for name, t in times.items()
    ]


# -- 2. waiting ------------------------------------------------------------------------------------


def waiting(clips: list[Clip], folder: Path, args: argparse.Namespace) -> list[dict]:
    network, size, batch = args.networks[0]
    config = config_for(network, size, batch)
    tables = {
        "memory-map": decode_once(clips, resize_size(size), folder / "cache", progress=False),
        "decoding at every draw": decode_lazily(clips, resize_size(size), progress=False),
    }
    rows = []
    for name, table in tables.items():
        run = our_loop(table, config, torch.bfloat16, args.device)
        run(2)
        seconds = run(args.steps * 2)
        rows.append({"storage": name, "waiting": run.waiting, "clips_per_second": batch / seconds})
    return rows


# -- 3. growth -------------------------------------------------------------------------------------


def growth(folder: Path, args: argparse.Namespace) -> list[dict]:
    """One file of random bytes; each size uses its first so many frames."""
    side, block = SIDE, 1000
    path = folder / "random.u8"
    noise = np.random.default_rng(0).integers(0, 256, 3 * side * side * block, np.uint8).tobytes()
    with open(path, "wb") as file:
        for i in tqdm(range(0, args.largest, block), desc="writing", file=sys.stderr):
            file.write(noise[i % 977 :] + noise[: i % 977])  # no two blocks are alike
    config, rows = config_for("resnet18", 112, 32), []
    sizes = [n for n in (1_000, 10_000, 100_000, 1_000_000) if n < args.largest] + [args.largest]
    for frames in sizes:
        pixels = MemoryMappedTensor.from_filename(str(path), torch.uint8, (frames, 3, side, side))
        length = torch.full((frames // 100,), 100)
        table = FrameTable(
            storage=TensorStorage(TensorDict({"pixels": pixels}, [frames])),
            clips=[Clip(Path(str(i)), str(i)) for i in range(len(length))],
            start=length.cumsum(0) - length,
            length=length,
            skipped={},
        )
        buffer = make_buffer(table, config)
        draws, indices = [], []
        for _ in range(30):
            start = time.perf_counter()
            buffer.sampler.sample(table.storage, 32)
            indices.append(time.perf_counter() - start)
            start = time.perf_counter()
            buffer.sample()
            draws.append(time.perf_counter() - start)
        rows.append(
            {
                "frames": frames,
                "gigabytes": 3 * side * side * frames / 1e9,
                "sampler_ms": 1e3 * statistics.median(indices),
                "batch_ms": 1e3 * statistics.median(draws),
                "process_mb": anonymous_memory(),
            }
        )
    return rows


def anonymous_memory() -> float:
    """Memory of this process without the pages of mapped files, MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1e3
    return float("nan")


def plot_growth(rows: list[dict], picture: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    frames = [row["frames"] for row in rows]
    left.plot(frames, [row["batch_ms"] for row in rows], "o-", label="batch of 128 frames")
    left.plot(frames, [row["sampler_ms"] for row in rows], "o-", label="indices alone")
    right.plot(frames, [row["process_mb"] for row in rows], "o-")
    left.set(ylabel="milliseconds", xlabel="frames in the memory-map", yscale="log", xscale="log")
    right.set(ylabel="the process's own memory, MB", xlabel="frames in the memory-map")
    right.set(xscale="log", ylim=(0, 1.2 * max(row["process_mb"] for row in rows)))
    left.legend()
    figure.tight_layout()
    figure.savefig(picture, dpi=90)


def markdown(report: dict) -> str:
    lines = [
        "# Pre-training speed",
        "",
        in_words(report["about"]),
    ]
    if "speed" in report:
        lines += [
            *("", "## Clips per second (four frames each), real frames", ""),
            "| network | loop | clips/s | share of bfloat16's peak | × official way "
            "| × official way in bfloat16 | waiting |",
            "|---|---|---|---|---|---|---|",
        ]
        best = report["peak"]["bfloat16"]
        for r in report["speed"]:
            cells = [
                f"{r['network']}, {r['size']}², batch {r['batch']}",
                r["case"],
                f"{r['clips_per_second']:.2f}",
                f"{r['flops'] / best:.0%}",
                *(
                    "" if r[key] is None else f"{r[key]:.2f}"
                    for key in ("against_official", "against_bfloat16")
                ),
                "" if r["waiting"] is None else f"{r['waiting']:.1%}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines += [
            "",
            f"Peak of a large matrix product: {report['peak']['float32'] / 1e9:,.0f} GFLOP/s in float32, "
            f"{best / 1e9:,.0f} in bfloat16.",
        ]
        for r in report["speed"]:
            if r["case"] == OFFICIAL:
                lines.append(
                    f"A loop that did nothing but the network of {r['network']}, at that peak, would "
                    f"be {best / r['flops']:.1f} × the official way."
                )
        lines += [
            *("", "Official way: glob and four PNG reads a sample, two persistent prefetching"),
            "workers. Ours in float32 against it is what cache and loop bring; ours in bfloat16",
            "against ours in float32 is what precision brings.",
        ]
    if "waiting" in report:
        lines += ["", "## Waiting for data, first network in bfloat16", ""]
        lines += ["| storage | share of the time waiting | clips/s |", "|---|---|---|"]
        for r in report["waiting"]:
            lines.append(f"| {r['storage']} | {r['waiting']:.1%} | {r['clips_per_second']:.2f} |")
    if "growth" in report:
        lines += [
            "",
            "## Growth: a memory-map of random bytes, 128² frames, batch of 128 frames",
            "",
        ]
        lines += ["| frames | GB | indices, ms | batch, ms | process's own memory, MB |"]
        lines += ["|---|---|---|---|---|"]
        for r in report["growth"]:
            lines.append(
                f"| {r['frames']:,} | {r['gigabytes']:.1f} | {r['sampler_ms']:.2f} | "
                f"{r['batch_ms']:.1f} | {r['process_mb']:.0f} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
