"""Tuning to a scene: measured with each clip left out in turn, then trained on all of them.

::

    out_dir/
      final/, ...          of the run on all clips
      scene.json, .png     held-back clips before and after
      held_back/<n>/       the run that leaves out part n
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path, PurePath

import numpy as np
import torch
from torch import Tensor

from torchrl_vip.data.clip import Clip
from torchrl_vip.data.reading import measure
from torchrl_vip.data.video import FrameTable
from torchrl_vip.encoders import FrozenEncoder, VIPEncoder
from torchrl_vip.evaluation.clips import LabelledClip, embed_clips, score_groups
from torchrl_vip.files import write_whole
from torchrl_vip.pretrain.build import Config, build_device, make_encoder, make_tables, precision
from torchrl_vip.pretrain.clips import ALSO, HELD_BACK, Split, is_demonstration
from torchrl_vip.weights import load_vip

PARTS = 5
"""Clips are left out one by one, or of more than so many in so many parts."""
LEAST_CLIPS, LEAST_FRAMES = 3, 8
LEAST_CHANGE = 1.0
"""Mean difference of a clip's frames from its first one, grey levels of 255: noise and coding make less."""
LEAST_DIFFERENCE = 8.0
"""Largest difference of two clips anywhere, grey levels of 255: copies coded anew have less."""
WRONG = 8
"""Clips of data.also whose ends are wrong goals, at most."""

REPORTED = {  # metric: (what the table calls it, whether more is better)
    "voc": ("order, goal of another clip", True),
    "voc_specific": ("order, right minus wrong goal", True),
    "right_above_wrong": ("P(right goal > wrong goal)", True),
    "decoy_share": ("decoy share", False),
    "bumps": ("bumps", False),
    "auc": ("success against failure (AUC)", True),
    "voc_own": ("order, own end", True),
}


def tune(config: Config, split: Split, run_once: Callable[[Config, Split], Path]) -> Path:
    """Measure what training does to clips that are left out, then train on all.

    Args:
        split: all clips, for training.
        run_once: a whole run; returns the folder of its encoder.

    Returns:
        The folder of the encoder that was trained on all.

    Raises:
        ValueError: clips that nothing can be learnt from, or whose labels do not fit together.
    """
    began, out, device = time.monotonic(), Path(config["out_dir"]), build_device(config)
    cache = config["data"]["cache"] or str(out / "frames")
    config = config | {"data": config["data"] | {"cache": cache}}
    split = Split(in_pieces(labelled(split.training)), [])
    start = make_encoder(config).to(device)
    table = make_tables(config, split, start.image_size, (0, 1)).training
    check_clips(table)
    judge = Judge(table, device, precision(config["precision"], device))
    parts = left_out([clip for clip in table.clips if is_demonstration(clip)])
    for n, part in enumerate(parts):
        print(f"part {n + 1} of {len(parts)} left out: {', '.join(clip.name for clip in part)}")
        resting = {*part, *(clip for clip in table.clips if _piece(clip) == n)}
        own = config | {"out_dir": str(out / "held_back" / str(n)), "keep_checkpoints": 1}
        final = run_once(own, held_back(split, resting))
        judge(start, load_vip(final).to(device), resting)
    final = run_once(config, split)
    report(judge, out, len(parts), (time.monotonic() - began) / 60)
    return final


# --- clips ----------------------------------------------------------------------------------------


def labelled(clips: Sequence[Clip]) -> list[Clip]:
    """Demonstrations that all tell their scene: where none has a label for it, by their folders.

    Raises:
        ValueError: some have a label, others none; idle clips of the goal state that do not tell of which
            task, or of a scene without demonstrations.
    """
    own = [clip for clip in clips if is_demonstration(clip)]
    without = [clip for clip in own if clip.scene is None]
    if without and len(without) < len(own):
        raise ValueError(
            f'{len(without)} of {len(own)} clips have no label "task" or "group", such as '
            f"{without[0].name}: label all of them (manifest.json) or none."
        )
    if without:
        scenes = {clip: str(PurePath(clip.name).parent) for clip in own}
        count = len(set(scenes.values()))
        print(
            f'no clip has a label "task" or "group": {len(own)} clips are taken for '
            f"{'one task' if count == 1 else f'{count} tasks, by their folders'} of one scene."
        )
        clips = [
            replace(c, labels=c.labels | {"group": scenes[c]}) if c in scenes else c for c in clips
        ]
    known = {clip.scene for clip in clips if is_demonstration(clip)}
    for clip in clips:
        if clip.idle_of == "goal" and clip.scene is None and len(known) > 1:
            raise ValueError(
                f"{clip.path} shows the goal state, of which of {len(known)} tasks is not known: give it the "
                '"task" or "group" of its demonstrations in a manifest.json.'
            )
        if clip.idle_of and clip.scene is not None and clip.scene not in known:
            raise ValueError(
                f"{clip.path} is idle in {clip.scene}, of which there is no demonstration; there are "
                f"{', '.join(sorted(map(str, known)))}."
            )
    return list(clips)


def in_pieces(clips: Sequence[Clip]) -> list[Clip]:
    """Idle clips cut into PARTS, so that a part of each can be held back; the others as they are."""
    cut = []
    for clip in clips:
        frames = _frames(clip) if clip.idle_of and clip.span is None else 0
        if frames < PARTS * LEAST_FRAMES:
            cut.append(clip)
            continue
        ends = np.linspace(0, frames, PARTS + 1).astype(int).tolist()
        cut += [
            replace(clip, name=f"{clip.name}#{n}", span=span)
            for n, span in enumerate(pairwise(ends))
        ]
    return cut


def _frames(clip: Clip) -> int:
    """0 where it cannot be read: decoding says why."""
    try:
        return measure(clip.path)[0]
    except (ValueError, OSError):
        return 0


def _piece(clip: Clip) -> int | None:
    """Which piece of an idle clip it is."""
    number = clip.name.rpartition("#")[2]
    return int(number) if clip.idle_of and clip.span is not None and number.isdigit() else None


def check_clips(table: FrameTable) -> None:
    """Refuse demonstrations that nothing can be learnt from: ValueError names them."""
    own = [i for i, clip in enumerate(table.clips) if is_demonstration(clip)]
    if not any(table.clips[i].success for i in own):
        raise ValueError("no clip is a success: the end of a success is the goal that is learnt.")
    short = [table.clips[i].name for i in own if table.length[i] < LEAST_FRAMES]
    if short:
        raise ValueError(
            f"{len(short)} of {len(own)} clips have fewer than {LEAST_FRAMES} frames "
            f"({', '.join(short[:3])}): give the whole way from the start to the goal."
        )
    seen = {i: _thumbnails(table, i) for i in own}
    still = [i for i, x in seen.items() if (x - x[:1]).abs().mean((1, 2, 3)).max() < LEAST_CHANGE]
    if len(still) == len(own):
        raise ValueError(
            f"nothing moves in any of the {len(own)} clips: wanted demonstrations that do the task."
        )
    if still:
        print(f"nothing moves in {', '.join(table.clips[i].name for i in still[:5])}.")
    if len(own) > 1 and all(_same(seen[own[0]], seen[i]) for i in own[1:]):
        raise ValueError(
            f"the {len(own)} clips are copies of one: wanted several demonstrations, or one clip alone."
        )


def _thumbnails(table: FrameTable, i: int) -> Tensor:
    """Nine frames of a clip, float ``[9, 3, 16, 16]``."""
    frames = table.clip_frames(i)
    rows = torch.linspace(0, len(frames) - 1, 9).long()
    return torch.nn.functional.adaptive_avg_pool2d(frames[rows].float(), 16)


def _same(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() < LEAST_DIFFERENCE)


def left_out(demonstrations: Sequence[Clip]) -> list[list[Clip]]:
    """The parts that are left out in turn; none where there are too few clips."""
    count = len(demonstrations)
    if count < LEAST_CLIPS:
        return []
    return [list(demonstrations[n::PARTS]) for n in range(min(PARTS, count))]


def held_back(split: Split, resting: set[Clip]) -> Split:
    """The clips of which some are loaded and not trained on."""
    return Split(
        [
            replace(clip, labels=clip.labels | {HELD_BACK: True}) if clip in resting else clip
            for clip in split.training
        ],
        [],
    )


# --- measuring ------------------------------------------------------------------------------------


@dataclass
class Curves:
    """Distances of one held-back clip: to a right goal before and after, and where there is one to a wrong
    one after; the nearest that idle frames come after."""

    name: str
    before: np.ndarray
    after: np.ndarray
    wrong: np.ndarray | None
    idle: float | None


class Judge:
    """Scores clips that were held back, with the ends of those trained on as goals.

    Attributes:
        before, after: scores of :func:`score_groups`, a dict for each part and group.
        curves: of each clip that was held back.
    """

    def __init__(self, table: FrameTable, device: torch.device, dtype: torch.dtype) -> None:
        self.table, self.device, self.dtype = table, device, dtype
        self.before: list[dict[str, float]] = []
        self.after: list[dict[str, float]] = []
        self.curves: list[Curves] = []

    def __call__(self, start: VIPEncoder, end: VIPEncoder, resting: set[Clip]) -> None:
        """Score the clips of a part, by the encoder before and by the one that has not seen them."""
        clips = self._clips(resting)
        z_before, z_after = (self._embed(encoder, clips) for encoder in (start, end))
        for z, found in ((z_before, self.before), (z_after, self.after)):
            scores = score_groups(z, clips)
            found += [scores[g] for g in sorted({c.group for c in clips if c.scored} - {""})]
        self.curves += [
            _curves(clips, z_before, z_after, i)
            for i, clip in enumerate(clips)
            if clip.scored and clip.success
        ]

    def _embed(self, encoder: VIPEncoder, clips: Sequence[LabelledClip]) -> list[np.ndarray]:
        frozen = FrozenEncoder(encoder, dtype=self.dtype)
        return embed_clips(lambda frames: frozen(frames.to(self.device)), clips)

    def _clips(self, resting: set[Clip]) -> list[LabelledClip]:
        """What is held back whole; of demonstrations trained on the ends; of others some ends."""
        table, clips = self.table, []
        others = [i for i, c in enumerate(table.clips) if c.labels.get(ALSO) and c.success]
        others = others[:: -(-len(others) // WRONG) or 1]
        for i, clip in enumerate(table.clips):
            rests, also = clip in resting, i in others
            if not (rests or also or is_demonstration(clip)):
                continue
            frames = table.clip_frames(i) if rests else table.clip_ends(i)
            clips.append(
                LabelledClip(
                    frames[::2] if clip.idle_of else frames,
                    group=f"also {i}" if also else str(clip.scene or ""),
                    success=clip.success and not clip.idle_of,
                    name=clip.name,
                    idle_of=clip.idle_of,
                    scored=rests and not clip.idle_of,
                )
            )
        return clips


def _curves(
    clips: Sequence[LabelledClip], before: list[np.ndarray], after: list[np.ndarray], i: int
) -> Curves:
    """Of clip i, to the end of the first other success of its group; a lone one's own."""
    group = clips[i].group
    good = [j for j, clip in enumerate(clips) if clip.success and j != i]
    right = next((j for j in good if clips[j].group == group), i)
    wrong = next((j for j in good if clips[j].group != group), None)
    idle = [
        after[j] for j, c in enumerate(clips) if c.idle_of == "start" and c.group in ("", group)
    ]

    def to(z: list[np.ndarray], of: np.ndarray, goal: int) -> np.ndarray:
        distance: np.ndarray = np.linalg.norm(of - z[goal][-1], axis=-1)
        return distance

    return Curves(
        clips[i].name,
        to(before, before[i], right),
        to(after, after[i], right),
        None if wrong is None else to(after, after[i], wrong),
        min((float(to(after, e, right).min()) for e in idle), default=None),
    )


# --- report ---------------------------------------------------------------------------------------


def changes(judge: Judge) -> dict[str, tuple[float, float, int]]:
    """metric -> its mean before and after, over the parts and groups that have it, and their number."""
    found = {}
    for metric in REPORTED:
        pairs = np.array(
            [(b[metric], a[metric]) for b, a in zip(judge.before, judge.after, strict=True)]
        ).reshape(-1, 2)
        pairs = pairs[np.isfinite(pairs).all(1)]
        if len(pairs):
            found[metric] = (float(pairs[:, 0].mean()), float(pairs[:, 1].mean()), len(pairs))
    return found


def verdict(found: dict[str, tuple[float, float, int]]) -> str:
    """What got worse, in a sentence; and whether to take the encoder that it began with."""
    worse = []
    for metric, (before, after, _) in found.items():
        name, more = REPORTED[metric]
        if (after < before - 0.005) if more else (after > before + 0.005):
            worse.append(f"{name} {before:.2f} -> {after:.2f}")
    order = found.get("voc", found.get("voc_own"))
    if not worse:
        return "no measure got worse on clips that were held back."
    text = f"WORSE on clips that were held back: {'; '.join(worse)}."
    specific = found.get("voc_specific", order)
    if order and specific and order[1] < order[0] and specific[1] < specific[0]:
        text += " Take the encoder that it began with, or give more clips."
    return text


def report(judge: Judge, out: Path, parts: int, minutes: float) -> None:
    """Print and write what was measured; say so where nothing was."""
    found = changes(judge)
    if not parts:
        print(
            f"nothing was measured: wanted {LEAST_CLIPS} clips or more, to leave one out in turn. Try the "
            "encoder on a clip that it has not seen."
        )
    else:
        print(
            f"\nheld-back clips                   before   after   ({parts} parts left out in turn)"
        )
        for metric, (before, after, _) in found.items():
            print(f"{REPORTED[metric][0]:<32}{before:8.3f}{after:8.3f}")
        if "voc_specific" not in found:
            print(
                "no wrong goal: give clips of a second task, or data.also, to measure what the goal adds."
            )
        print(verdict(found))
        draw(judge.curves, out / "scene.png")
    print(f"{minutes:.1f} minutes.")
    told = {
        "parts": parts,
        "minutes": round(minutes, 2),
        "metrics": {m: {"before": b, "after": a, "groups": n} for m, (b, a, n) in found.items()},
        "verdict": verdict(found) if found else "nothing was measured",
    }
    write_whole(out / "scene.json", lambda part: part.write_text(json.dumps(told, indent=1) + "\n"))


def draw(curves: Sequence[Curves], picture: Path, most: int = 6) -> None:
    """Distances of held-back clips, in parts of the first one."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = list(curves)[:most]
    figure, axes = plt.subplots(
        1, len(shown), figsize=(3 * len(shown), 3), sharey=True, squeeze=False
    )
    for axis, c in zip(axes[0], shown, strict=True):
        lines = {"before": (c.before, "0.6"), "after": (c.after, "C0")}
        if c.wrong is not None:
            lines["after, wrong goal"] = (c.wrong, "C3")
        for name, (curve, colour) in lines.items():
            time_axis = np.linspace(0, 1, len(curve))
            axis.plot(time_axis, curve / max(curve[0], 1e-9), color=colour, label=name)
        if c.idle is not None:
            nearest = c.idle / max(c.after[0], 1e-9)
            axis.axhline(nearest, color="C2", linestyle=":", label="nearest idle frame")
        axis.set(title=c.name[-28:], xlabel="time", ylim=(0, None))
        axis.title.set_fontsize(7)
    axes[0, 0].set_ylabel("distance to the goal / first distance")
    axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    write_whole(picture, lambda part: figure.savefig(part, dpi=90, format="png"))
    plt.close(figure)
