"""What was found in a dataset: ``report.json``, and ``report.png`` to look at."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchrl_vip.data.clip import Clip
from torchrl_vip.data.reading import frames_at, measure, to_square
from torchrl_vip.files import write_whole
from torchrl_vip.label.rows import Summary

SHOWN = 5
"""Episodes at either end that are shown with frames."""
CURVES = 200
"""Curves that are drawn: of more, every k-th."""
THUMBNAIL = 96
"""Side of a shown frame, pixels."""


def ranked(summaries: Sequence[Summary]) -> list[int]:
    """Numbers of readable episodes, the one that came nearest to where it should have come first: by
    ``end_progress``; where no episode has one, by ``voc_own``."""
    able = [n for n, summary in enumerate(summaries) if not summary.error]
    for name in ("end_progress", "voc_own"):
        value = {n: getattr(summaries[n], name) for n in able}
        if known := [n for n in able if not math.isnan(value[n])]:
            return sorted(known, key=lambda n: -value[n])
    return able


def contents(summaries: Sequence[Summary], about: dict[str, Any]) -> dict[str, Any]:
    """What report.json says: ``about`` the job, counts, averages, and episodes by name."""
    able = [summary for summary in summaries if not summary.error]

    def spread(name: str) -> dict[str, float] | None:
        values = np.array([getattr(summary, name) for summary in able], dtype=np.float64)
        values = values[np.isfinite(values)]
        if not len(values):
            return None
        low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
        return {"mean": values.mean(), "p5": low, "median": middle, "p95": high}

    return {
        **about,
        "episodes": len(summaries),
        "frames": sum(summary.frames for summary in summaries),
        "frames_read": sum(summary.read for summary in summaries),
        "return": spread("total"),
        "final_progress": spread("final_progress"),
        "voc_own": spread("voc_own"),
        "voc_shared": spread("voc_shared"),
        "bumps": spread("bumps"),
        "suspected_failures": [s.episode for s in able if s.suspected_failure],
        "unreadable": {s.episode: s.error for s in summaries if s.error},
        "notes": {s.episode: s.note for s in able if s.note},
    }


def write_report(
    folder: Path,
    clips: Sequence[Clip],
    summaries: Sequence[Summary],
    curve: Callable[[int], np.ndarray],
    about: dict[str, Any],
) -> dict[str, Any]:
    """Write ``report.json`` and ``report.png``.

    Args:
        curve: progress ``[T]`` of an episode, by its number.
        about: the job, for report.json.

    Returns:
        What report.json holds.
    """
    said = contents(summaries, about)
    text = json.dumps(said, indent=1)
    write_whole(folder / "report.json", lambda part: part.write_text(text))
    figure = _draw(clips, summaries, curve, said)
    write_whole(folder / "report.png", lambda part: figure.savefig(part, format="png"))
    return said


def _draw(
    clips: Sequence[Clip],
    summaries: Sequence[Summary],
    curve: Callable[[int], np.ndarray],
    said: dict[str, Any],
) -> Any:
    from matplotlib.figure import Figure

    order = ranked(summaries)
    able = [n for n, summary in enumerate(summaries) if not summary.error]
    best, worst = order[:SHOWN], order[SHOWN:][-SHOWN:][::-1]
    rows = max(len(best), len(worst), 1)
    figure = Figure(figsize=(13, 4.2 + 1.25 * rows), dpi=100, layout="constrained")
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=[4.2, 1.25 * rows])[:, 0]
    curves, returns, names = top.subplots(1, 3, width_ratios=[2.2, 1.2, 1.2])
    _draw_curves(curves, able, summaries, curve)
    _draw_returns(returns, summaries)
    _list_failures(names, said)
    left, right = bottom.subfigures(1, 2, squeeze=False)[0]
    _draw_frames(left, "farthest on the way to the goal", best, clips, summaries)
    _draw_frames(right, "least far: look at these", worst, clips, summaries)
    return figure


def _draw_curves(
    axes: Any, able: list[int], summaries: Sequence[Summary], curve: Callable[[int], np.ndarray]
) -> None:
    shown = able[:: -(-len(able) // CURVES)] if able else []
    kinds = {False: ("tab:blue", "episode"), True: ("tab:red", "suspected failure")}
    for n in shown:
        values = curve(n)
        failed = bool(summaries[n].suspected_failure)
        time = np.linspace(0, 1, len(values))
        axes.plot(time, values, color=kinds[failed][0], alpha=max(0.15, 1 / len(shown)), lw=0.9)
    for failed, (colour, name) in kinds.items():
        if any(bool(summaries[n].suspected_failure) == failed for n in shown):
            axes.plot([], [], color=colour, label=name)
    axes.axhline(1, color="grey", lw=0.6)
    axes.set_ylim(-1, 1.1)
    of = f"{len(shown)} of {len(able)}" if len(shown) < len(able) else f"{len(able)}"
    axes.set(xlabel="share of the episode", ylabel="progress", title=f"progress, {of} episodes")
    if shown:
        axes.legend(loc="lower right", fontsize=8)


def _draw_returns(axes: Any, summaries: Sequence[Summary]) -> None:
    values = [s.total for s in summaries if math.isfinite(s.total)]
    axes.hist(values, bins=min(max(len(values) // 3, 5), 40), color="tab:blue")
    axes.set(xlabel="return", ylabel="episodes", title="returns")


def _list_failures(axes: Any, said: dict[str, Any]) -> None:
    axes.axis("off")
    lines = []
    for title, names in (
        ("suspected failures", said["suspected_failures"]),
        ("could not be read", list(said["unreadable"])),
    ):
        lines.append(f"{title}: {len(names)}")
        lines += [f"  {name if len(name) < 34 else '…' + name[-32:]}" for name in names[:9]]
        lines += [f"  and {len(names) - 9} more (episodes.csv)"] if len(names) > 9 else []
    axes.text(0, 1, "\n".join(lines), va="top", fontsize=8, transform=axes.transAxes)


def _draw_frames(
    figure: Any, title: str, numbers: list[int], clips: Sequence[Clip], summaries: Sequence[Summary]
) -> None:
    figure.suptitle(title, fontsize=10)
    for axes, n in zip(_column(figure, len(numbers)), numbers, strict=True):
        axes.imshow(filmstrip(clips[n]))
        summary = summaries[n]
        name = summary.episode if len(summary.episode) < 60 else "…" + summary.episode[-58:]
        end = summary.end_progress
        told = [] if math.isnan(end) else [f"end progress {end:.2f}"]
        told.append(f"order {summary.voc_own:.2f}")
        axes.set_title(f"{name}: {', '.join(told)}", fontsize=7)


def _column(figure: Any, count: int) -> list[Any]:
    if not count:
        return []
    column = list(figure.subplots(count, 1, squeeze=False)[:, 0])
    for axes in column:
        axes.axis("off")
    return column


def filmstrip(clip: Clip, frames: int = 6) -> np.ndarray:
    """Frames of a clip side by side, evenly spread, the first and last among them.

    Returns:
        uint8 ``[S, frames * S, 3]``; grey where the clip cannot be read.
    """
    try:
        count = measure(clip.path, clip.span)[0]
        at = torch.linspace(0, count - 1, frames).round().long()
        shown = [to_square(frame, THUMBNAIL) for frame in frames_at(clip.path, at, clip.span)]
    except (ValueError, OSError, RuntimeError):
        return np.full((THUMBNAIL, frames * THUMBNAIL, 3), 128, np.uint8)
    return torch.cat(shown, -1).permute(1, 2, 0).numpy()
