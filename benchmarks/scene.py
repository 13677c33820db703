"""What preset=scene brings: the order by right and wrong goals, and the decoy share, before and after.

    python benchmarks/scene.py --real ../shared/data/clips --rows before head
    python benchmarks/scene.py --droid ../shared/data/droid --rows before head cells
    python benchmarks/scene.py --suite kitchen=CLIPS --idle IDLE --only _open/default _on/default --share-idle
    python benchmarks/scene.py --suite metaworld=CLIPS --idle IDLE --rows before head
    python benchmarks/scene.py --depths CLIPS                    # seconds of a training step by depth

Clips are those of ``python -m torchrl_vip.demonstrations.render --split heldout``, and IDLE of ``--split
idle``. Of each group --demos successes are trained on, all groups in one run; the others are scored, by the
ends of all other successes. Half of the idle clips of each group and state are trained on, the others
scored; with --share-idle those of the start state belong to every group. Of real clips, and of those of
DROID that show one task at one place, one a group is trained on: once the first success, once the second,
and nothing of them is kept. Each row is written as it is done, and a row that is there is not measured
again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from finetune import config_of
from machine import about, in_words
from tqdm import tqdm

from torchrl_vip import FrozenEncoder, VIPEncoder, load_vip
from torchrl_vip.data.sources import Clip, find_clips
from torchrl_vip.data.video import read_clip
from torchrl_vip.evaluation.clips import LabelledClip, embed_clips, score_groups
from torchrl_vip.evaluation.metrics import bootstrap
from torchrl_vip.functional import resize_size
from torchrl_vip.pretrain.build import Config, build_parts
from torchrl_vip.pretrain.clips import Split
from torchrl_vip.pretrain.config import DEPTHS, check
from torchrl_vip.pretrain.trainer import backward, run_once

ROOT = Path(__file__).parent
UNSEEN_LABS = ("764db432", "4b1df5eb", "f147f077", "36906660")
"""Of DROID; the bundled encoder was chosen by clips of the last one."""
SAME = (
    ("0493", "0494", "0495"),  # put the orange block on the green one
    ("0915", "0919"),  # take the lid off the silver pot
    ("0916", "0918"),  # put the lid on the small pot
    ("0934", "0935", "0936"),  # take the glass lid off the black pot
    ("0182", "0183"),  # unfold the white towel
    ("0192", "0193"),  # unfold the red cloth
)
"""Clips of one camera, day and task, told by eye."""
COLUMNS = {
    "kendall": "tau_a",
    "auc": "AUC",
    "voc_specific": "right minus wrong",
    "right_above_wrong": "P(right > wrong)",
    "decoy_share": "decoy share",
    "voc": "order",
    "voc_wrong_goal": "order, wrong goal",
    "bumps": "bumps",
    "approach": "fallen before contact",
}
BY_STEPS: Config = {"depth": "head", "task_progress": 0.0, "steps": 300}
ROWS: dict[str, Config | None] = {
    "before": None,
    "head, no idle clips": {"depth": "head", "decoy": 0.0},
    "head, no wrong goals": {"depth": "head", "wrong_goals": 0.0},
    "head, neither": {"depth": "head", "decoy": 0.0, "wrong_goals": 0.0},
    "head": {"depth": "head"},
    "cells": {"depth": "cells"},
    "time contrast, no idle clips": {**BY_STEPS, "decoy": 0.0},
    "time contrast, no wrong goals": {**BY_STEPS, "wrong_goals": 0.0},
    "time contrast, neither": {**BY_STEPS, "decoy": 0.0, "wrong_goals": 0.0},
    "time contrast, margin 0": {**BY_STEPS, "decoy_margin": 0.0},
    "time contrast": BY_STEPS,
    "cells, time contrast": {**BY_STEPS, "depth": "cells"},
    "head, then time contrast": {"depth": "head", "steps": 300},
    "late, 60 steps of 16": {
        **BY_STEPS,
        "depth": "late",
        "steps": 60,
        "batch_size": 16,
        "lr": 1e-4,
    },
    "head, then late, 60 steps of 16": {
        "depth": "late",
        "steps": 60,
        "batch_size": 16,
        "lr": 1e-4,
    },
}


# -- clips -----------------------------------------------------------------------------------------


def attempts(folder: Path, only: list[str]) -> list[Clip]:
    """Clips whose group has one of ``only`` in its name, the frames between "start_frame" and "end_frame"."""
    clips = [c for c in find_clips(folder) if any(o in str(c.labels["group"]) for o in only)]
    for n, clip in enumerate(clips):
        if (last := clip.labels.get("end_frame")) is not None:
            clips[n] = replace(clip, span=(clip.labels["start_frame"], last + 1))
    return clips


def same_tasks(folder: Path) -> list[Clip]:
    """DROID's clips of laboratories that the bundled encoder was not trained on; those of SAME are a group,
    each other one is alone."""
    clips = [c for c in find_clips(folder) if c.labels["lab"] in UNSEEN_LABS]
    group = {number: "+".join(of) for of in SAME for number in of}
    return [replace(c, labels={"group": group.get(c.path.stem, c.path.stem)}) for c in clips]


def by_group(clips: list[Clip]) -> dict[str, list[Clip]]:
    groups = defaultdict(list)
    for clip in clips:
        groups[f"{clip.labels['group']} {clip.idle_of or ''}"].append(clip)
    return groups


def trained_on(clips: list[Clip], first: int, count: int) -> list[Clip]:
    """``count`` successes of each group that has more, from number ``first`` on."""
    successes = by_group([c for c in clips if c.success])
    return [c for of in successes.values() if len(of) > count for c in of[first : first + count]]


def halves(idle: list[Clip]) -> tuple[list[Clip], list[Clip]]:
    """Of each group and state, clips to train on and to score."""
    first, second = [], []
    for of in by_group(idle).values():
        first += of[: -(-len(of) // 2)]
        second += of[-(-len(of) // 2) :]
    return first, second


def of_every_group(idle: list[Clip]) -> list[Clip]:
    """Idle clips of the start state without the labels that tell a group."""
    return [replace(c, labels={"idle_of": "start"}) if c.idle_of == "start" else c for c in idle]


def contacts(clips: list[Clip]) -> dict[str, int]:
    """Name -> frame in which things begin to move, of the kitchen's successes."""
    from torchrl_vip.demonstrations.idle import EFFECT
    from torchrl_vip.envs import kitchen

    found = {}
    for task in sorted({c.labels["task"] for c in clips}):
        rows = kitchen.KitchenSim(task, image_size=16).things()
        stored = {d.seed: d.qpos[:, rows] for d in kitchen.demonstrations(task)}
        for clip in clips:
            if clip.labels["task"] == task and clip.success:
                qpos = stored[clip.labels["seed"]][:: clip.labels["stride"]]
                moved = (np.abs(qpos - qpos[0]) > EFFECT).any(1)
                found[clip.name] = int(moved.argmax()) if moved.any() else len(qpos) - 1
    return found


# -- training and scoring --------------------------------------------------------------------------


def train(clips: list[Clip], changes: dict, folder: Path) -> tuple[VIPEncoder, float]:
    """The encoder of preset=scene on all clips, and the minutes that it took, decoding included."""
    began = time.monotonic()
    data = {"path": ".", "validation": 0.0, "cache": str(folder.parent / "frames")}
    config = config_of("scene", out_dir=str(folder), progress=False, data=data, **changes)
    if not any(c.idle_of for c in clips) or not config["decoy"]:
        clips = [c for c in clips if not c.idle_of]
    final = run_once(check(config), Split(clips, []))
    return load_vip(final), (time.monotonic() - began) / 60


@cache
def some_frames(clip: Clip, size: int, most: int = 50) -> torch.Tensor:
    """At most so many of a clip's frames, evenly spread, uint8 ``[N, 3, S, S]``."""
    frames = read_clip(clip, size)
    return frames[np.linspace(0, len(frames) - 1, min(len(frames), most)).astype(int)]


def scored(
    encoder: VIPEncoder, clips: list[Clip], trained: list[Clip], starts: dict[str, int]
) -> dict[str, dict]:
    """Group -> metric -> value, of clips that were not trained on."""
    seen, size = set(trained), resize_size(encoder.image_size)
    groups = {clip.labels["group"] for clip in trained}
    frozen, z, labelled = FrozenEncoder(encoder, dtype=torch.bfloat16), [], []
    for clip in tqdm(clips, desc="scoring", unit="clip"):
        frames = some_frames(clip, size)
        judged = clip not in seen and (clip.idle_of or clip.labels["group"] in groups)
        if not (judged and (clip.success or clip.idle_of)):
            frames = frames[[0, -1]]  # of a failure, and of a clip that is a goal alone
        one = LabelledClip(
            frames,
            str(clip.labels.get("group", "")),
            success=clip.success and not clip.idle_of,
            name=clip.name,
            idle_of=clip.idle_of,
            scored=bool(judged),
        )
        z += embed_clips(frozen, [one])
        labelled.append(replace(one, frames=frames[:1]))
    scores = score_groups(z, labelled)
    for group, values in scores.items() if starts else ():
        values["approach"] = fallen_before_contact(z, labelled, group, starts)
    return scores


def fallen_before_contact(
    z: list[np.ndarray], clips: list[LabelledClip], group: str, starts: dict[str, int]
) -> float:
    """How far a demonstration's distance to another's end has fallen when things begin to move, in parts of
    the first distance."""
    own = [i for i, c in enumerate(clips) if c.group == group and c.success]
    shares = []
    for i in own:
        for j in own:
            if i != j and clips[i].scored:
                d = np.linalg.norm(z[i] - z[j][-1], axis=-1)
                shares.append(1 - d[starts[clips[i].name]] / d[0])
    return float(np.mean(shares)) if shares else np.nan


def measure(name: str, clips: list[Clip], idle: list[Clip], args: argparse.Namespace) -> dict:
    """Scores of one row: with the first successes trained on, of real clips with the second ones too."""
    found: dict[str, dict] = {}
    minutes: list[float] = []
    idle_train, idle_score = (of_every_group(c) if args.share_idle else c for c in halves(idle))
    starts = contacts(clips) if args.suite and args.suite.startswith("kitchen=") else {}
    one = args.real or args.droid
    for first in (0, 1) if one else (0,):
        train_clips = trained_on(clips, first, 1 if one else args.demos)
        groups = {c.labels["group"] for c in train_clips}
        encoder = load_vip()
        if ROWS[name] is not None:
            folder = args.scratch / f"{first}-{'-'.join(name.replace(',', '').split())}"
            encoder, took = train([*train_clips, *idle_train], dict(ROWS[name] or {}), folder)
            minutes.append(took)
        scores = scored(encoder, [*clips, *idle_score], train_clips, starts)
        found |= {f"{g} ({first})": s for g, s in scores.items() if g in groups}
    return {"groups": found, "minutes": float(np.mean(minutes)) if minutes else 0.0}


def depth_seconds(clips: list[Clip], scratch: Path, steps: int = 3) -> dict[str, dict]:
    """Depth -> seconds of a training step: the processor's, which load changes little, and passed."""
    found = {}
    for depth in DEPTHS:
        data = {"path": ".", "validation": 0.0, "cache": str(scratch / "frames")}
        options = {"depth": depth, "data": data, "out_dir": str(scratch / depth), "steps": 300}
        config = check(config_of("scene", progress=False, **options))
        parts = build_parts(config, Split(clips, []), torch.device("cpu"), (0, 1))
        seconds = []
        for step in tqdm(range(steps + 1), desc=depth, unit="step"):  # the first one warms up
            began = time.process_time(), time.perf_counter()
            batch = parts.augment(parts.buffer.sample(), step)
            parts.set_training()
            backward(parts.objective(batch, step), parts.optimizer, parts.grad_clip)
            parts.optimizer.step()
            parts.average.update_parameters(parts.encoder)
            seconds.append((time.process_time() - began[0], time.perf_counter() - began[1]))
        processor, passed = np.median(seconds[1:], axis=0)
        minutes = processor * config["steps"] / 60
        found[depth] = {"processor_s": processor, "passed_s": passed, "minutes_of_preset": minutes}
    return found


def report_depths(clips: list[Clip], scratch: Path, out: Path) -> None:
    machine = about()
    found = depth_seconds(clips, scratch)
    lines = [
        "# preset=scene: a step by depth",
        "",
        f"{len(clips)} clips, batches of 64 sub-clips. Processor seconds are summed over threads.",
        "",
        "| depth | processor, s a step | passed, s a step | processor, minutes of the preset's steps |",
        "|---|---|---|---|",
        *(
            f"| {depth} | {' | '.join(f'{v:.2f}' for v in row.values())} |"
            for depth, row in found.items()
        ),
        "",
        in_words(machine),
        "",
    ]
    (out / "scene_depths.md").write_text("\n".join(lines))
    (out / "scene_depths.json").write_text(json.dumps({"about": machine, **found}, indent=1) + "\n")
    print("\n".join(lines))


# -- report ----------------------------------------------------------------------------------------


def table(rows: dict[str, dict]) -> list[str]:
    def values(row: dict, metric: str) -> list[float]:
        of = [g.get(metric) for g in row["groups"].values()]
        return [v for v in of if v is not None and np.isfinite(v)]

    columns = [m for m in COLUMNS if any(values(row, m) for row in rows.values())]
    lines = [f"| | {' | '.join(COLUMNS[m] for m in columns)} | minutes |"]
    lines.append("|---|" + "---|" * (len(columns) + 1))
    for name, row in rows.items():
        cells = []
        for metric in columns:
            of = values(row, metric)
            cells.append("{:.2f} [{:.2f}, {:.2f}]".format(*bootstrap(of)) if of else "–")
        lines.append(f"| {name} | {' | '.join(cells)} | {row['minutes']:.1f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--real", type=Path, metavar="CLIPS")
    what.add_argument("--droid", type=Path, metavar="DROID")
    what.add_argument("--suite", metavar="NAME=CLIPS")
    what.add_argument("--depths", type=Path, metavar="CLIPS")
    parser.add_argument("--idle", type=Path, help="idle clips of the suite")
    parser.add_argument("--share-idle", action="store_true", help="one start state for all groups")
    parser.add_argument(
        "--only", nargs="+", default=[""], help="groups with one of these in the name"
    )
    parser.add_argument("--name", help="of the result files (default: the suite's)")
    parser.add_argument("--demos", type=int, default=2, help="successes a group (%(default)s)")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=["before", "head"])
    parser.add_argument("--scratch", type=Path, help="frames and runs, kept; else they are deleted")
    parser.add_argument("--out", type=Path, default=ROOT / "results")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.depths:
        with tempfile.TemporaryDirectory() as scratch:
            report_depths(attempts(args.depths, args.only)[:5], Path(scratch), args.out)
        return
    if args.droid:
        name, clips = "droid", same_tasks(args.droid)
    elif args.real:
        name, clips = "real", attempts(args.real, args.only)
    else:
        name, _, folder = args.suite.partition("=")
        clips = attempts(Path(folder), args.only)
    idle = attempts(args.idle, args.only) if args.idle else []
    path = args.out / f"scene_{args.name or name}.json"
    known = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    with tempfile.TemporaryDirectory() as scratch:
        args.scratch = args.scratch or Path(scratch)
        for row in args.rows:
            if row in known["rows"]:
                continue
            machine = about()
            known["rows"][row] = measure(row, clips, idle, args) | {"about": machine}
            path.write_text(json.dumps(known, indent=1) + "\n")
            write(path.with_suffix(".md"), args.name or name, known["rows"])


def write(path: Path, name: str, rows: dict[str, dict]) -> None:
    lines = [
        f"# preset=scene: {name}",
        "",
        *table(rows),
        "",
        "Mean over groups of clips that were not trained on, 95 % bootstrap interval over groups.",
        "Decoy share: how much of the way to the goal the arm makes without effect, on idle clips that were",
        "not trained on; 0 is best.",
        "Fallen before contact: of a demonstration's first distance, when things begin to move.",
        "Minutes: training, decoding and embedding included.",
        "",
        *(f"{row}: {in_words(of['about'])}" for row, of in rows.items()),
        "",
    ]
    path.write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
