"""Does the embedding grow without end? Its norm over training by the published form and by ours.

The published objective never draws the goal itself as current state, and has its negatives in a
log-mean-exp of their own: scaling the embedding up always pays, its norm grows as long as one trains.
A tenth of self-transitions bounds the first log-mean-exp from below, and the negatives inside of it
(negatives="paper", the default) bound all. A small network on small real frames, so that tens of
thousands of steps take minutes; no penalties, which would hide what the objective itself wants.

    python benchmarks/embedding_norm.py --clips ../shared/data/droid
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import torch
from machine import about
from torch import nn
from torchrl.data import TensorDictReplayBuffer
from tqdm import trange

from torchrl_vip import VIPEncoder, VIPLoss
from torchrl_vip.data.sampler import VIPSampler
from torchrl_vip.data.sources import find_clips
from torchrl_vip.data.video import FrameTable, decode_once
from torchrl_vip.functional import resize_size

ROOT = Path(__file__).parent
SIDE = 16
VARIANTS = {
    "published: no self-transitions": {"self_transition": 0.0, "negatives": "code"},
    "a tenth of self-transitions": {"self_transition": 0.1, "negatives": "code"},
    "default: and negatives inside": {"self_transition": 0.1, "negatives": "paper"},
}


def network() -> nn.Module:
    sizes, layers = (3 * SIDE**2, 512, 512), [nn.Flatten()]
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], 128))


def norms(table: FrameTable, args: argparse.Namespace, *, self_transition: float, negatives: str):
    """(step, mean norm of the embedding) over training."""
    steps, seed = args.steps, args.seed
    torch.manual_seed(seed)
    objective = VIPLoss(
        VIPEncoder(network(), image_size=SIDE),
        negatives=negatives,
        num_negatives=3,
        gamma=args.gamma,
        l1=args.penalty,
        l2=args.penalty,
    )
    optimizer = torch.optim.Adam(objective.encoder.parameters(), lr=1e-3)
    buffer = TensorDictReplayBuffer(
        storage=table.storage,
        sampler=VIPSampler(table.start, table.length, seed=seed, self_transition=self_transition),
        batch_size=32,
        prefetch=1,
    )
    curve, mean = [], 0.0
    for step in trange(1, steps + 1, file=sys.stderr):
        batch = buffer.sample().reshape(-1, 4)
        batch = batch.select("reward")[:, 0].set("pixels", batch["pixels"])
        losses = objective(batch)
        optimizer.zero_grad()
        sum(value for key, value in losses.items() if key.startswith("loss_")).backward()
        optimizer.step()
        mean += losses["embedding_norm"].item() / (steps // 100)
        if step % (steps // 100) == 0:
            curve.append((step, mean))
            mean = 0.0
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--clip-count", type=int, default=40)
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--gamma", type=float, default=0.98, help="discount")
    parser.add_argument("--penalty", type=float, default=0.0, help="weight of L1 and L2 each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "results")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clips = find_clips(args.clips)[: args.clip_count]
        table = decode_once(clips, resize_size(SIDE), folder)
        curves = {name: norms(table, args, **options) for name, options in VARIANTS.items()}
    args.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"about": about(), "curves": curves}, indent=1)
    (args.out / "embedding_norm.json").write_text(text + "\n")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6.5, 3.6))
    for name, curve in curves.items():
        axis.plot(*zip(*curve, strict=True), label=name)
    axis.set(xlabel="step", ylabel="mean norm of the embedding", ylim=(0, None))
    axis.legend()
    figure.tight_layout()
    figure.savefig(args.out / "embedding_norm.png", dpi=100)
    for name, curve in curves.items():
        half, end = curve[len(curve) // 2 - 1][1], curve[-1][1]
        print(f"{name}: {half:.1f} half way, {end:.1f} at the end")


if __name__ == "__main__":
    main()
