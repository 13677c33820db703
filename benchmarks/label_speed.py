"""Speed and memory of labelling, beside the encoder alone on frames that are decoded already.

The clips go through the stream of torchrl_vip.label. After every block the encoder alone is timed on one
batch, in the same process, so that their ratio is free of what else the machine does. Decoding alone
is timed at the end. Memory is this process's resident set, after every block.

    python benchmarks/label_speed.py ../shared/data/droid --encoder tiny    # 130,000 frames, 15 minutes
    python benchmarks/label_speed.py ../shared/data/droid --frames 10000    # the default encoder
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from machine import about, in_words
from tqdm import tqdm

from torchrl_vip import FrozenEncoder, load_vip
from torchrl_vip.data.clip import Clip
from torchrl_vip.data.reading import read_frames
from torchrl_vip.data.sources import find_clips
from torchrl_vip.label.stream import End, Meter, decode, embed_stream

ROOT = Path(__file__).parent


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clips", type=Path, help="folder of clips")
    parser.add_argument("--encoder", help="(default: the bundled one)")
    parser.add_argument("--frames", type=int, default=1_000_000, help="stop after so many")
    parser.add_argument("--block", type=int, default=5000, help="frames between measurements")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "label_speed")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    clips = find_clips(args.clips)
    encoder = FrozenEncoder(load_vip(args.encoder))
    report = {"about": about(), "clips": len(clips)} | measure(clips, encoder, args)
    report["decode_alone"] = decoding_rate(clips, args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(markdown(report))
    draw(report, args.out.with_suffix(".png"))
    print(markdown(report))


def measure(clips: list[Clip], encoder: FrozenEncoder, args: argparse.Namespace) -> dict[str, Any]:
    """Labelling and the bare encoder in turn: a row a block."""
    frame = next(read_frames(clips[0].path, clips[0].span))
    bare = torch.stack([frame] * args.batch_size)
    encoder(bare, channel_dim=-3)  # lays the weights out
    meter, blocks = Meter(), []
    frames, seconds, waited = 0, 0.0, 0.0
    stream = embed_stream(
        clips,
        lambda batch: encoder(batch, channel_dim=-3),
        batch_size=args.batch_size,
        threads=args.threads,
        meter=meter,
    )
    with tqdm(total=min(args.frames, 1_000_000), unit="frame") as bar:
        for _ in stream:
            bar.update(meter.frames - bar.n)
            last = meter.frames >= args.frames
            if meter.frames - frames < args.block and not last:
                continue
            spent = meter.encoding + meter.waiting
            blocks.append(
                {
                    "frames": meter.frames,
                    "labelling": (meter.frames - frames) / (spent - seconds),
                    "waiting": (meter.waiting - waited) / (spent - seconds),
                    "encoder": bare_rate(encoder, bare, batches=max(args.block // 640, 2)),
                    "resident_mb": resident_mb(),
                }
            )
            frames, seconds, waited = meter.frames, spent, meter.waiting
            if last:
                break
    stream.close()
    return {"blocks": blocks}


def bare_rate(encoder: FrozenEncoder, batch: torch.Tensor, batches: int) -> float:
    """Frames a second of the encoder on one batch, again and again; decoding threads stand still by then."""
    time.sleep(1)  # they fill their queues
    began = time.perf_counter()
    for _ in range(batches):
        encoder(batch, channel_dim=-3)
    return batches * len(batch) / (time.perf_counter() - began)


def decoding_rate(clips: list[Clip], args: argparse.Namespace) -> float:
    """Frames a second of the decoding threads, with nothing else to do."""
    began = time.perf_counter()
    frames = (item for _, item in decode(clips, args.threads) if not isinstance(item, End))
    count = sum(1 for _ in itertools.islice(frames, min(args.frames, 3000)))
    return count / (time.perf_counter() - began)


def resident_mb() -> float:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def markdown(report: dict[str, Any]) -> str:
    blocks = report["blocks"]
    ratios = [block["labelling"] / block["encoder"] for block in blocks]
    low, high = min(ratios), max(ratios)
    rows = [
        "# Labelling: speed and memory",
        "",
        in_words(report["about"]),
        "",
        f"{report['clips']} clips, {blocks[-1]['frames']:,} frames, in {len(blocks)} blocks.",
        "",
        "| | frames a second, median over blocks |",
        "|---|---|",
        f"| labelling, decoding included | {_median(blocks, 'labelling'):.0f} |",
        f"| the encoder alone, on decoded frames | {_median(blocks, 'encoder'):.0f} |",
        f"| decoding alone | {report['decode_alone']:.0f} |",
        "",
        f"Labelling / encoder: {statistics.median(ratios):.2f} ({low:.2f} to {high:.2f} over blocks). "
        f"The encoder waited for frames {_median(blocks, 'waiting'):.0%} of the time.",
        "",
        "| frames | memory of the process, MB |",
        "|---|---|",
    ]
    shown = {block["frames"]: block["resident_mb"] for block in blocks[:2] + blocks[-1:]}
    shown |= {
        block["frames"]: block["resident_mb"]
        for mark in (10_000, 50_000, 100_000)
        for block in [min(blocks, key=lambda block: abs(block["frames"] - mark))]
        if abs(block["frames"] - mark) < 0.1 * mark
    }
    rows += [f"| {frames:,} | {shown[frames]:.0f} |" for frames in sorted(shown)]
    return "\n".join(rows) + "\n"


def _median(blocks: list[dict[str, float]], name: str) -> float:
    return statistics.median(block[name] for block in blocks)


def draw(report: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    blocks = report["blocks"]
    frames = [block["frames"] for block in blocks]
    figure, (speed, memory) = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
    speed.plot(frames, [block["labelling"] for block in blocks], label="labelling")
    speed.plot(frames, [block["encoder"] for block in blocks], label="the encoder alone")
    speed.set(xlabel="frames", ylabel="frames a second", ylim=(0, None))
    speed.legend()
    resident = [block["resident_mb"] for block in blocks]
    memory.plot(frames, resident)
    memory.set(xlabel="frames", ylabel="memory, MB", ylim=(0, 1.2 * max(resident)))
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
