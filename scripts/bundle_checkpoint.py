"""Make a bundled checkpoint of a training run: calibrate its reward, store it in half precision.

    python scripts/bundle_checkpoint.py RUN/final [RUN/final ...] torchrl_vip/assets/efficientnet_lite0 \
        --calibration CLIPS --rollouts VIDEOS --note training_data="..." --note licence="..."

Of several runs with one frozen backbone, such as seeds, the heads are merged to one. CLIPS holds
groups of successes and failures of tasks that are not for tests (``torchrl_vip.demonstrations.render --split
heldout --tasks ...``); VIDEOS holds real roll-outs, on which bfloat16's reward is compared with
float32's.

    python scripts/bundle_checkpoint.py --only-other-scale torchrl_vip/assets/tiny --calibration CLIPS

adds reward_scale_other to a bundled checkpoint, and leaves everything else as it is.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from torchrl_vip import FrozenEncoder, load_vip, save_vip
from torchrl_vip.data.sources import find_clips
from torchrl_vip.data.video import read_frames
from torchrl_vip.evaluation.calibration import (
    reward_correlation,
    success_threshold,
    typical_approach,
    typical_distance,
)
from torchrl_vip.evaluation.clips import LabelledClip, embed_clips
from torchrl_vip.merging import merge_heads


def read(folder: Path) -> list[LabelledClip]:
    return [
        LabelledClip(
            torch.stack(list(read_frames(clip.path, clip.span))),
            str(clip.labels.get("group", clip.name)),
            clip.success,
        )
        for clip in find_clips(folder)
    ]


def other_scale(z: Sequence[np.ndarray], clips: Sequence[LabelledClip]) -> float:
    approach = typical_approach(z, clips)
    if approach is None or not approach > 0:
        raise SystemExit(f"error: successes come nearer to each other's ends by {approach}")
    return 1 / approach


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="*", help="checkpoint folders, RUN/final")
    parser.add_argument("out", type=Path, help="folder under torchrl_vip/assets")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--rollouts", type=Path)
    parser.add_argument("--only-other-scale", action="store_true")
    parser.add_argument("--note", action="append", default=[], metavar="KEY=TEXT")
    args = parser.parse_args()
    clips = read(args.calibration)
    if args.only_other_scale:
        encoder = load_vip(args.out)
        z = embed_clips(FrozenEncoder(encoder, dtype=torch.float32), clips)
        encoder.config["reward_scale_other"] = other_scale(z, clips)
        save_vip(encoder, args.out, dtype=torch.float16)
        return
    if not args.runs or args.rollouts is None:
        parser.error("wanted RUN/final, and --rollouts VIDEOS")
    runs = [load_vip(run) for run in args.runs]
    encoder = merge_heads(runs) if runs[1:] else runs[0]
    # What is measured below is what is shipped: the weights rounded to half precision.
    with TemporaryDirectory() as rounded:
        encoder = load_vip(save_vip(encoder, rounded, dtype=torch.float16))
    z = embed_clips(FrozenEncoder(encoder, dtype=torch.float32), clips)
    distance = typical_distance(z, clips)
    threshold, accuracy = success_threshold(z, clips)
    encoder.config.update(
        typical_distance=distance,
        reward_scale=1 / distance,
        reward_scale_other=other_scale(z, clips),
        success_threshold=threshold,
        success_threshold_balanced_accuracy=accuracy,
        reward_correlation={
            "bfloat16": reward_correlation(encoder, read(args.rollouts), torch.bfloat16)
        },
        **dict(note.split("=", 1) for note in args.note),
    )
    save_vip(encoder, args.out, dtype=torch.float16)
    print((args.out / "config.json").read_text())


if __name__ == "__main__":
    main()
