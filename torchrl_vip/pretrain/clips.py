"""The clips of a run: found, split into training and validation, loaded."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from torchrl_vip.data.sources import Clip, find_clips
from torchrl_vip.data.video import FrameTable, NoReadableClipError, decode_lazily, decode_once
from torchrl_vip.files import write_whole

ALSO, HELD_BACK = "pretrain/also", "pretrain/held_back"
"""Labels of clips of data.also, and of clips that are loaded and not trained on."""


class Split(NamedTuple):
    """Clips to train and to validate on."""

    training: list[Clip]
    validation: list[Clip]


class Tables(NamedTuple):
    """Their frames, and what could not be read: clip name -> reason."""

    training: FrameTable
    validation: FrameTable | None
    skipped: dict[str, str]

    @property
    def split(self) -> Split:
        """The clips that were really decoded."""
        return Split(self.training.clips, self.validation.clips if self.validation else [])


def find_and_split(
    path: str | list[str],
    validation: float | list,
    hold_out: list,
    *,
    also: str | list[str] | None = None,
    idle: str | list[str] | None = None,
) -> Split:
    """Training and validation clips of the sources; nothing is decoded yet.

    Args:
        also: sources of clips that are trained on, labelled ALSO.
        idle: sources of clips in which the robot moves without effect, trained on as decoys, with the label
            "idle_of": where there is none, that of a folder called start or goal, else start.

    Raises:
        FileNotFoundError: no such source.
        ValueError: a source without clips, a label value that no clip has, nothing to train on.
    """
    clips = find_all(path)
    split = split_clips(clips, validation, hold_out)
    if not split.training:
        raise ValueError(
            f"all {len(clips)} clips are held out or for validation: nothing to train on."
        )
    if validation and not split.validation:
        print(
            f"no validation: all {len(clips)} clips share one group; name a label's values by "
            'data.validation=[...], or give the clips a label "group".'
        )
    others = [_labelled_with(clip, **{ALSO: True}) for clip in find_all(also)]
    moving = [_labelled_with(clip, idle_of=_idle_of(clip)) for clip in find_all(idle)]
    return Split(split.training + others + moving, split.validation)


def find_all(path: str | list[str] | None) -> list[Clip]:
    """Clips of a source, or of several; none of None."""
    paths = path if isinstance(path, list) else [path]
    return [clip for path in paths if path is not None for clip in find_clips(path)]


def _labelled_with(clip: Clip, **labels: object) -> Clip:
    return replace(clip, labels=clip.labels | labels)


def _idle_of(clip: Clip) -> str:
    """ "start" or "goal"; ValueError for another label."""
    said = clip.idle_of or next(
        (part for part in Path(clip.name).parts if part in ("start", "goal")), "start"
    )
    if said not in ("start", "goal"):
        raise ValueError(f'{clip.path}: idle_of={said} is invalid: wanted "start" or "goal".')
    return said


def is_demonstration(clip: Clip) -> bool:
    """Whether a clip is of data.path, and an attempt at a task."""
    return not (clip.idle_of or clip.labels.get(ALSO))


def scene_only(table: FrameTable) -> FrameTable:
    """The table less clips of data.also and idle ones."""
    return table.select([i for i, clip in enumerate(table.clips) if is_demonstration(clip)])


def draw_weights(clips: Sequence[Clip], also_share: float) -> Tensor | None:
    """How often each clip is drawn, ``[V]``: those of data.also ``also_share`` of all draws together, idle
    ones and those that are held back never; None where all are drawn alike."""
    resting = torch.tensor([bool(c.idle_of or c.labels.get(HELD_BACK)) for c in clips])
    also = torch.tensor([bool(c.labels.get(ALSO)) for c in clips]) & ~resting
    own = ~also & ~resting
    if not (resting.any() or also.any()):
        return None
    shares = (1 - also_share) * own / own.sum().clamp(min=1)
    return shares + also_share * also / also.sum().clamp(min=1)


def decoyed_clips(clips: Sequence[Clip]) -> dict[int, list[int]]:
    """Each idle clip that is trained on -> the successes whose ends are its goals: those of its own scene, or
    all demonstrations where its labels tell none."""
    own = [
        i
        for i, c in enumerate(clips)
        if is_demonstration(c) and c.success and not c.labels.get(HELD_BACK)
    ]
    found = {
        i: [j for j in own if idle.scene in (None, clips[j].scene)]
        for i, idle in enumerate(clips)
        if idle.idle_of and not idle.labels.get(HELD_BACK)
    }
    return {i: goals for i, goals in found.items() if goals}


def split_clips(clips: list[Clip], validation: float | list, hold_out: list) -> Split:
    """Training and validation clips; neighbours that share a group are never parted.

    Args:
        validation: share of the groups, or label values. A share above 0 chooses at least one group, and
            one below 1 leaves at least one, where there are two.
        hold_out: label values of clips that are in neither part.

    Raises:
        ValueError: a value that no clip has as a label.
    """
    wanted = [*hold_out, *(validation if isinstance(validation, list) else [])]
    known = {str(value) for clip in clips for value in clip.labels.values()}
    if unknown := [value for value in wanted if str(value) not in known]:
        raise ValueError(f"data.hold_out or data.validation: no clip has a label {unknown}.")
    clips = [clip for clip in clips if not _labelled(clip, hold_out)]
    if isinstance(validation, list):
        chosen = [_labelled(clip, validation) for clip in clips]
    else:
        chosen = _drawn(clips, validation)
    pairs = list(zip(clips, chosen, strict=True))
    return Split([clip for clip, c in pairs if not c], [clip for clip, c in pairs if c])


def _drawn(clips: list[Clip], share: float) -> list[bool]:
    """Which clips a share of the groups has."""
    draws = [_group_draw(clip) for clip in clips]
    if len(set(draws)) > 1 and share > 0:
        share = max(share, min(draws) + 1e-9)
    if draws and share < 1:
        share = min(share, max(draws))
    return [drawn < share for drawn in draws]


def _labelled(clip: Clip, values: list) -> bool:
    return any(str(v) in {str(w) for w in values} for v in clip.labels.values())


def _group_draw(clip: Clip) -> float:
    """In [0, 1), the same for all clips of a group, whatever else there is."""
    labels = (clip.labels.get(key) for key in ("group", "lab", "task", "episode"))
    group = next((label for label in labels if label not in (None, "")), clip.name)
    return int(hashlib.sha256(os.fsencode(str(group))).hexdigest(), 16) % 10_000 / 10_000


def task_numbers(clips: list[Clip]) -> Tensor:
    """int64 ``[V]``: successes of the same :attr:`Clip.scene` have the same number; a failure has its
    own, as its end is nobody's goal, and so has a clip that is idle or held back."""
    names = [
        str((clip.success and clip.scene) or ("clip", i))
        if not (clip.idle_of or clip.labels.get(HELD_BACK))
        else f"resting {i}"
        for i, clip in enumerate(clips)
    ]
    number = {name: n for n, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([number[name] for name in names])


def scene_numbers(clips: Sequence[Clip]) -> Tensor:
    """int64 ``[V]``: clips of the same :attr:`Clip.scene` have the same number; those of data.also without
    one a number each, others without one -1."""
    names = [
        str(c.scene) if c.scene else f"also {i}" if c.labels.get(ALSO) else None
        for i, c in enumerate(clips)
    ]
    number: dict[str | None, int] = {name: n for n, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([-1 if name is None else number[name] for name in names])


def load_clips(
    split: tuple[list[Clip], list[Clip]],
    size: int,
    *,
    cache: Path,
    lazily: bool = False,
    workers: int = 2,
    progress: bool = True,
    speak: bool = True,
) -> Tables:
    """Training and validation clips in storages.

    Args:
        size: side of the stored squares, in pixels.
        cache: folder of decoded frames.
        lazily: decode at every draw instead.
        workers: decoding threads.
        progress: show a bar.
        speak: say how many clips there are, and which could not be read.

    Raises:
        NoReadableClipError: no training clip could be read; without validation clips it goes on.
    """

    def load(kind: str, clips: list[Clip]) -> FrameTable:
        if lazily:
            table = decode_lazily(clips, size, workers=workers, progress=progress)
        else:
            table = decode_once(clips, size, cache, workers=workers, progress=progress)
        if speak:
            _report(kind, table)
        return table

    training = load("training", split[0])
    if not split[1]:
        return Tables(training, None, training.skipped)
    try:
        validation = load("validation", split[1])
    except NoReadableClipError as error:
        if speak:
            print(f"no validation: {error}")
        return Tables(training, None, training.skipped | error.skipped)
    return Tables(training, validation, training.skipped | validation.skipped)


def _report(kind: str, table: FrameTable) -> None:
    print(f"{kind}: {len(table.clips)} clips, {int(table.length.sum())} frames")
    if table.skipped:
        print(f"skipped {len(table.skipped)} of them that could not be read:")
        print("\n".join(f"  {reason}" for reason in table.skipped.values()))


# --- a run's own clips.json -----------------------------------------------------------------------


def write_split(
    split: tuple[Sequence[Clip], Sequence[Clip]], path: Path, skipped: dict[str, str] | None = None
) -> None:
    """Write the names of the clips on each side, and why others were skipped."""
    training, validation = ([clip.name for clip in clips] for clips in split)
    sides = {"training": training, "validation": validation, "skipped": skipped or {}}
    write_whole(path, lambda part: part.write_text(json.dumps(sides, indent=1)))


def check_split(split: tuple[Sequence[Clip], Sequence[Clip]], began: Path) -> None:
    """Refuse to go on where clips have changed sides: ValueError says how many.

    Args:
        split: training and validation clips, those that cannot be read too.
        began: what :func:`write_split` wrote when the run began. One of the version before lists the
            clips that could not be read among the others, and has no "skipped".
    """
    if not began.exists():
        return
    old = json.loads(began.read_text())
    skipped = set(old.get("skipped", ()))
    training, validation = ({clip.name for clip in clips} for clips in split)
    then = set(old["validation"])
    gone, new = then - validation, validation - then - skipped
    if gone or new:
        raise ValueError(
            f"{began.parent} was validated on {len(then)} clips, of which {len(gone)} are not among those "
            f"for validation now, and {len(new)} are new: give data.path as it was (names count from "
            "there) and the same clips, or resume=false to begin anew."
        )
    then = set(old["training"])
    if gone_or_new := (then - training) | (training - then - skipped):
        print(f"training clips have changed since the run began: {len(gone_or_new)} gone or new")
