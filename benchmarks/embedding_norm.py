"""Does the embedding grow without end? Its norm over training by the published form and by ours.

The published objective never draws the goal itself as current state, and has its negatives in a
log-mean-exp of their own: scaling the embedding up always pays, its norm grows as long as one trains.
A tenth of self-transitions bounds the first log-mean-exp from below, and the negatives inside of it
(negatives="joint", the default) bound all. A small network on small real frames, so that tens of
thousands of steps take minutes; no penalties, which would hide what the objective itself wants; and a
short horizon, as the bound takes hold at distances of a few 1 / (1 - gamma), which a small network
reaches late for .98.

Drawn beside the norm: the root mean square distance from the mean embedding. The objective sees
differences only, so the mean itself is free to wander; this is the part that it moves.

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
    "published: no self-transitions": {"self_transition": 0.0, "negatives": "separate"},
    "a tenth of self-transitions": {"self_transition": 0.1, "negatives": "separate"},
    "default: and negatives inside": {"self_transition": 0.1, "negatives": "joint"},
}


def network() -> nn.Module:
    sizes, layers = (3 * SIDE**2, 512, 512), [nn.Flatten()]
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], 128))


def norms(table: FrameTable, args: argparse.Namespace, *, self_transition: float, negatives: str):
    """(step, mean norm, spread) of the embeddings of 512 frames of all clips, over training."""
    steps, seed = args.steps, args.seed
    chosen = torch.linspace(0, len(table.storage) - 1, 512).long()
    frames = table.storage.get(chosen)["pixels"]
    torch.manual_seed(seed)
    objective = VIPLoss(
        VIPEncoder(network(), image_size=SIDE),
        negatives=negatives,
        num_negatives=3,
        gamma=args.gamma,
        l1=args.penalty,
        l2=args.penalty,
    )
    optimizer = torch.optim.Adam(objective.encoder.parameters(), lr=args.lr)
    buffer = TensorDictReplayBuffer(
        storage=table.storage,
        sampler=VIPSampler(table.start, table.length, seed=seed, self_transition=self_transition),
        batch_size=32,
        prefetch=1,
    )
    curve = []
    for step in trange(1, steps + 1, file=sys.stderr):
        batch = buffer.sample().reshape(-1, 4)
        batch = batch.select("reward")[:, 0].set("pixels", batch["pixels"])
        losses = objective(batch)
        optimizer.zero_grad()
        sum(value for key, value in losses.items() if key.startswith("loss_")).backward()
        optimizer.step()
        if step % max(steps // 100, 1) == 0:
            with torch.no_grad():
                embedding = objective.encoder(frames)
            spread = (embedding - embedding.mean(0)).pow(2).sum(-1).mean().sqrt()
            curve.append((step, embedding.norm(dim=-1).mean().item(), spread.item()))
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--clip-count", type=int, default=40)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--gamma", type=float, default=0.9, help="discount")
    parser.add_argument("--lr", type=float, default=1e-4, help="of Adam; the trainer's")
    parser.add_argument("--penalty", type=float, default=0.0, help="weight of L1 and L2 each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "results")
    args = parser.parse_args()
    machine = about()  # with the load before
    with tempfile.TemporaryDirectory() as folder:
        clips = find_clips(args.clips)[: args.clip_count]
        table = decode_once(clips, resize_size(SIDE), folder)
        curves = {name: norms(table, args, **options) for name, options in VARIANTS.items()}
    args.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"about": machine, "curves": curves}, indent=1)
    (args.out / "embedding_norm.json").write_text(text + "\n")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6))
    labels = "mean norm of the embedding", "distance from the mean embedding (RMS)"
    for column, (axis, label) in enumerate(zip(axes, labels, strict=True), 1):
        for name, curve in curves.items():
            axis.plot([point[0] for point in curve], [point[column] for point in curve], label=name)
        axis.set(xlabel="step", ylabel=label, ylim=(0, None))
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(args.out / "embedding_norm.png", dpi=100)
    for name, curve in curves.items():
        print(name, end=": ")
        for part in (4, 2, 1):
            step, norm, spread = curve[len(curve) // part - 1]
            print(
                f"step {step}: norm {norm:.1f}, spread {spread:.1f}", end="; " if part > 1 else "\n"
            )


if __name__ == "__main__":
    main()
