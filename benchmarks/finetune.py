"""What twenty clips of your own bring: one DROID scene, its held-out clips before and after.

Fine-tunes the bundled encoder by ``preset=finetune`` on the clips of one camera of one laboratory and
scores, with both encoders, the clips of later days: each clip's own last frame is the goal (clips of
this set seldom share a task). The laboratory is one that the bundled encoder was not trained on.

    python benchmarks/finetune.py --droid ../shared/data/droid     # about 5 minutes on two cores
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import yaml
from machine import about, in_words

from torchrl_vip import FrozenEncoder, load_vip
from torchrl_vip.data.sources import find_clips
from torchrl_vip.data.video import decode_once
from torchrl_vip.evaluation.clips import embed_clips
from torchrl_vip.evaluation.metrics import bootstrap, bumps, voc
from torchrl_vip.functional import resize_size
from torchrl_vip.pretrain.trainer import pretrain
from torchrl_vip.pretrain.validation import labelled_clips

ROOT = Path(__file__).parent
PRETRAIN = ROOT.parent / "torchrl_vip" / "pretrain"


def config_of(preset: str, **changes) -> dict:
    """The defaults with a preset and changes on top, as the command line composes them."""
    config = yaml.safe_load((PRETRAIN / "config.yaml").read_text())
    del config["defaults"]
    for layer in (yaml.safe_load((PRETRAIN / "preset" / f"{preset}.yaml").read_text()), changes):
        config["data"] |= layer.pop("data", {})
        config |= layer
    return config


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--droid", type=Path, required=True)
    parser.add_argument("--lab", default="f147f077")
    parser.add_argument("--camera", default="23960472")
    parser.add_argument(
        "--train", type=int, default=20, help="clips to train on, the earliest days"
    )
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--out", type=Path, default=ROOT / "results")
    args = parser.parse_args()
    machine = about()  # with the load before
    scene = [
        clip
        for clip in find_clips(args.droid)
        if (clip.labels["lab"], clip.labels["camera"]) == (args.lab, args.camera)
    ]
    scene.sort(key=lambda clip: (clip.labels["date"], clip.name))
    last_day = scene[args.train - 1].labels["date"]  # days are not parted
    train = [clip for clip in scene if clip.labels["date"] <= last_day]
    held_out = scene[len(train) :]
    with tempfile.TemporaryDirectory() as folder:
        for clip in train:
            (Path(folder) / "clips").mkdir(exist_ok=True)
            shutil.copy(clip.path, Path(folder) / "clips")
        start = time.perf_counter()
        final = pretrain(
            config_of(
                "finetune",
                out_dir=f"{folder}/run",
                steps=args.steps,
                data={"path": f"{folder}/clips", "validation": 0.0},
            )
        )
        minutes = (time.perf_counter() - start) / 60
        before, after = load_vip(), load_vip(final)
        table = decode_once(held_out, resize_size(before.image_size), f"{folder}/held_out")
        clips = labelled_clips(table, len(table.clips))
        curves = {
            name: [np.linalg.norm(z - z[-1], axis=-1) for z in embed_clips(encode, clips)]
            for name, encode in (
                ("before", FrozenEncoder(before, dtype=torch.float32)),
                ("after", FrozenEncoder(after, dtype=torch.float32)),
            )
        }
    rows = []
    for metric in (voc, bumps):
        values = {name: np.array([metric(c) for c in curve]) for name, curve in curves.items()}
        change = bootstrap(values["after"] - values["before"])
        rows.append((metric.__name__, values["before"].mean(), values["after"].mean(), *change))
    text = "\n".join(
        [
            f"# Fine-tuning on {len(train)} clips of one DROID scene",
            "",
            f"Laboratory {args.lab}, camera {args.camera}; {args.steps} steps, {minutes:.1f} minutes on "
            f"{torch.get_num_threads()} threads; scored on {len(held_out)} clips of later days against "
            "their own last frame. Change: mean over clips, 95 % bootstrap interval.",
            "",
            "| metric | before | after | change |",
            "|---|---|---|---|",
            *(
                f"| {n} | {b:.3f} | {a:.3f} | {c:+.3f} [{lo:+.3f}, {hi:+.3f}] |"
                for n, b, a, c, lo, hi in rows
            ),
            "",
            in_words(machine),
            "",
        ]
    )
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "finetune.md").write_text(text)
    numbers = {name: [c.tolist() for c in curve] for name, curve in curves.items()}
    (args.out / "finetune.json").write_text(json.dumps({"about": machine, **numbers}) + "\n")
    plot(curves, held_out, args.out / "finetune.png")
    print(text)


def plot(curves: dict[str, list[np.ndarray]], clips: list, picture: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    count = min(6, len(clips))
    figure, axes = plt.subplots(1, count, figsize=(2.6 * count, 2.6), sharey=True, squeeze=False)
    for i, axis in enumerate(axes[0]):
        for name, curve in curves.items():
            axis.plot(np.linspace(0, 1, len(curve[i])), curve[i] / curve[i][0], label=name)
        axis.set(xlabel="time", title=str(clips[i].labels["task"])[:28])
        axis.title.set_fontsize(7)
    axes[0, 0].set_ylabel("distance to the last frame")
    axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(picture, dpi=90)


if __name__ == "__main__":
    main()
