"""Pictures of several videos or encoders: rewards, smoothness, paths, attempts, what a distance looks at.

``Curves`` are of several videos by several encoders: video -> encoder -> Curve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from torchrl_vip.curves.curve import Curve
from torchrl_vip.curves.figures import AWAY, DISTANCE, GOAL_COLOUR, TOWARDS, plain, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

Curves = Mapping[str, Mapping[str, Curve]]

COLUMNS = {"order": "order", "bumps": "bumps", "bump_size": "bump size", "towards": "towards"}
"""Of the table: a Curve's attribute, and its title."""
BEST = "order: 1 is best. bumps, bump size: 0 is best. towards: share of steps that lead towards the goal."
TABLE_ROWS = 24
"""More are left out of the picture, which then has the means alone."""


def draw_rewards(curves: Curves) -> Figure:
    """Histogram of the rewards of all steps of all videos, one below another for each encoder.

    Rewards are in parts of the first frame's distance, so that encoders compare (VIP paper, Fig. 5).
    """
    from matplotlib.figure import Figure

    encoders = encoders_of(curves)
    rewards = {encoder: step_rewards(curves, encoder) for encoder in encoders}
    reach = max(np.quantile(np.abs(reward), 0.995) for reward in rewards.values()) or 1.0
    half = int(np.clip(np.sqrt(len(rewards[encoders[0]])), 6, 30))
    bins = np.linspace(-reach, reach, 2 * half + 1)
    bins[half] = 0.0  # an edge, so that no bin is of both signs
    figure = Figure(figsize=(7, 1.2 + 2.1 * len(encoders)), layout="constrained")
    rows = figure.subplots(len(encoders), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (encoder, reward) in zip(rows, rewards.items(), strict=True):
        heights, _, bars = axis.hist(reward.clip(-reach, reach), bins=bins)
        for bar in bars:
            bar.set_color(TOWARDS if bar.get_x() >= 0 else AWAY)
        towards, away = np.mean(reward > 0) * 100, np.mean(reward < 0) * 100
        axis.set_title(plain(f"{encoder}, {len(reward):,} steps"), fontsize=10)
        axis.set_ylim(0, 1.15 * max(heights.max(), 1))
        for x, text, side in (
            (0.02, f"away: {away:.0f} %", "left"),
            (0.98, f"towards: {towards:.0f} %", "right"),
        ):
            axis.text(x, 0.95, text, transform=axis.transAxes, va="top", ha=side, fontsize=9)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_ylabel("steps")
    rows[-1].set_xlabel("reward of a step, in parts of the first frame's distance")
    return figure


def encoders_of(curves: Curves) -> list[str]:
    """Their names, in order."""
    return list(next(iter(curves.values())))


def step_rewards(curves: Curves, encoder: str) -> np.ndarray:
    """Of all videos, in parts of each one's first distance (its largest, where that is 0)."""
    parts = []
    for of_video in curves.values():
        curve = of_video[encoder]
        parts.append(curve.reward / float(curve.distance[0] or curve.distance.max() or 1))
    return np.concatenate(parts)


# -- smoothness -------------------------------------------------------------------------------------


def smoothness(curves: Curves) -> list[tuple[str, str, list[float]]]:
    """Rows video, encoder, numbers in the order of COLUMNS; of several videos their means at the end."""
    rows = [
        (video, encoder, [getattr(curve, name) for name in COLUMNS])
        for video, of_video in curves.items()
        for encoder, curve in of_video.items()
    ]
    if len(curves) > 1:
        for encoder in encoders_of(curves):
            numbers = np.array([row[2] for row in rows if row[1] == encoder])
            known = [column[np.isfinite(column)] for column in numbers.T]
            means = [float(column.mean()) if len(column) else np.nan for column in known]
            rows.append((MEAN.format(len(curves)), encoder, means))
    return rows


MEAN = "mean of {}"


def smoothness_text(curves: Curves) -> str:
    """The table, for a terminal."""
    rows = [("video", "encoder", *COLUMNS.values())]
    rows += [
        (_short(video), encoder, *map(_number, numbers))
        for video, encoder, numbers in smoothness(curves)
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        names = [text.ljust(width) for text, width in zip(row[:2], widths, strict=False)]
        numbers = [text.rjust(width) for text, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(names + numbers).rstrip())
    return "\n".join(lines)


def draw_smoothness(curves: Curves) -> Figure:
    """The table as a picture, the best encoder of each number in bold."""
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

    rows = smoothness(curves)
    if len(rows) > TABLE_ROWS:
        rows = rows[-len(encoders_of(curves)) :]
    figure = Figure(figsize=(9, 0.9 + 0.3 * (len(rows) + 1)), layout="constrained")
    axis = figure.subplots()
    axis.axis("off")
    axis.set_title(BEST, fontsize=9)
    texts = [[_short(video), encoder, *map(_number, numbers)] for video, encoder, numbers in rows]
    table = axis.table(
        [[plain(text) for text in row] for row in texts],
        colLabels=["video", "encoder", *COLUMNS.values()],
        colWidths=[0.36, 0.24, *[0.1] * len(COLUMNS)],
        bbox=Bbox.unit(),
    )
    table.auto_set_font_size(False)
    table.set_fontsize(10)
    for (row, column), cell in table.get_celld().items():
        cell.set_linewidth(0.4)
        cell.get_text().set_horizontalalignment("left" if column < 2 else "right")
        if row == 0 or (column > 1 and row - 1 in _best(rows, column - 2)):
            cell.get_text().set_fontweight("bold")
    return figure


def _best(rows: Sequence[tuple[str, str, list[float]]], column: int) -> set[int]:
    """Rows that have the best number of their video; none where a video has one row."""
    best = set()
    higher = list(COLUMNS)[column] in ("order", "towards")
    for video in {row[0] for row in rows}:
        of_video = {n: row[2][column] for n, row in enumerate(rows) if row[0] == video}
        known = {
            n: value if higher else -value for n, value in of_video.items() if np.isfinite(value)
        }
        if len(of_video) > 1 and known:
            best |= {n for n, value in known.items() if value == max(known.values())}
    return best


def _number(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else "–"


def _short(name: str) -> str:
    return name if len(name) <= 34 else "…" + name[-33:]


# -- paths ------------------------------------------------------------------------------------------


def project(curve: Curve) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The embedding's two principal components.

    Returns:
        The path ``[T, 2]``, the goal ``[3]``, and each component's share of the frames' variance ``[2]``.
        The goal's third number is its distance to the plane, embedding units.
    """
    middle = curve.embedding.mean(0)
    centred = (curve.embedding - middle).astype(np.float64)
    _, values, directions = np.linalg.svd(centred, full_matrices=False)
    plane = np.zeros((2, centred.shape[1]))
    plane[: len(directions[:2])] = directions[:2]
    share = np.zeros(2)
    share[: len(values[:2])] = values[:2] ** 2 / max((values**2).sum(), 1e-30)
    way = curve.goal - middle
    beside = np.linalg.norm(way - way @ plane.T @ plane)
    return centred @ plane.T, np.append(way @ plane.T, beside), share


def draw_path(
    curves: Mapping[str, Curve], *, title: str = "", times: np.ndarray | None = None
) -> Figure:
    """The way of a video through each encoder's embedding, in its two principal components, to the goal.

    A path that leads to the star, with few turns, makes a smooth reward.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(curves) + 0.8, 4.6), layout="constrained")
    figure.suptitle(plain(title), fontsize=11, weight="bold")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for axis, (name, curve) in zip(panels, curves.items(), strict=True):
        path, goal, share = project(curve)
        ticks = np.arange(len(curve)) if times is None else times
        axis.plot(*path.T, color="lightgrey", linewidth=0.8, zorder=1)
        dots = axis.scatter(*path.T, c=ticks, s=12, cmap="viridis", zorder=2)
        axis.plot(
            *path[0], "o", color="black", markerfacecolor="none", markersize=11, label="first frame"
        )
        axis.plot(
            *goal[:2],
            "*",
            color=GOAL_COLOUR,
            markersize=17,
            markeredgecolor="black",
            label=f"goal, {goal[2]:.1f} from this plane",
        )
        axis.set_xlabel(f"component 1 ({share[0] * 100:.0f} % of the variance)", fontsize=9)
        axis.set_ylabel(f"component 2 ({share[1] * 100:.0f} %)", fontsize=9)
        axis.set_title(plain(name), fontsize=10)
        axis.set_aspect("equal", "datalim")
        axis.margins(0.12)
        axis.legend(fontsize=8)
    figure.colorbar(dots, ax=panels[-1], label="frame" if times is None else "time (s)")
    return figure


# -- several videos against one goal ----------------------------------------------------------------


def draw_attempts(
    curves: Mapping[str, Curve],
    goal: np.ndarray | None = None,
    *,
    title: str = "",
    threshold: float | None = None,
) -> Figure:
    """Distances of several videos to one goal, over the share of each video: the lowest end came nearest.

    Args:
        threshold: distance below which the encoder's checkpoint takes a frame for a success.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    figure.suptitle(plain(title), fontsize=12, weight="bold")
    axis, aside = figure.subplots(1, 2, width_ratios=[3.2, 1])
    ranked = sorted(curves.items(), key=lambda item: item[1].distance[-1])
    for name, curve in ranked:
        label = f"{_short(name)}: ends at {curve.distance[-1]:.1f}"
        axis.plot(np.linspace(0, 100, len(curve)), curve.distance, label=plain(label))
    if threshold is not None:
        axis.axhline(threshold, color="grey", linestyle=":")
        axis.annotate("success below", (100, threshold), fontsize=8, ha="right", va="bottom")
    axis.set(ylim=(0, None), xlim=(0, 100), xlabel="share of the video (%)")
    axis.set_ylabel(f"{DISTANCE}\n(embedding units)")
    aside.axis("off")
    aside.legend(
        *axis.get_legend_handles_labels(),
        loc="lower left",
        fontsize=8,
        title="nearest to the goal first",
        bbox_to_anchor=(0, 0),
        borderaxespad=0,
        frameon=False,
    )
    if goal is not None:
        inset = aside.inset_axes((0.0, 0.55, 1.0, 0.42))
        show(inset, goal, "goal image", GOAL_COLOUR)
    return figure


# -- what the distance looks at ---------------------------------------------------------------------


def draw_saliency(
    images: Mapping[str, np.ndarray], heat: Mapping[str, Sequence[np.ndarray]], *, title: str = ""
) -> Figure:
    """Frames, and below for each encoder the same ones with what its distance looks at.

    Args:
        images: what is written above a frame -> the frame.
        heat: encoder -> one map ``[rows, columns]`` of :func:`saliency` a frame.
    """
    from matplotlib.figure import Figure

    height, width = next(iter(images.values())).shape[:2]
    across = 3.2 * min(1.0, 1.4 * width / height)
    rows, columns = 1 + len(heat), len(images)
    figure = Figure(
        figsize=(across * columns + 1.6, (across * height / width + 0.15) * rows + 1.2),
        layout="constrained",
    )
    figure.suptitle(
        plain(title)
        + "\nred: hiding this makes the distance grow; blue: hiding this makes it shrink",
        fontsize=10,
    )
    panels = figure.subplots(rows, columns, squeeze=False)
    for axis, (name, image) in zip(panels[0], images.items(), strict=True):
        show(axis, image, name)
    for row, (encoder, maps) in zip(panels[1:], heat.items(), strict=True):
        for axis, image, one in zip(row, images.values(), maps, strict=True):
            show(axis, _grey(image), "")
            # a scale of its own: at the goal every change makes the distance grow, and by much
            bar = figure.colorbar(_overlay(axis, one, image.shape[:2]), ax=axis, fraction=0.04)
            bar.ax.tick_params(labelsize=7)
        row[0].set_ylabel(plain(encoder), fontsize=9)
        bar.set_label("change of the distance\n(embedding units)", fontsize=8)
    return figure


def _grey(image: np.ndarray) -> np.ndarray:
    return np.repeat(image.mean(-1, keepdims=True), 3, -1).astype(np.uint8)


def _overlay(axis: Axes, heat: np.ndarray, shape: tuple[int, int]) -> AxesImage:
    """A map over a frame of this shape: strong changes hide it, none leave it as it is."""
    reach = float(np.abs(heat).max()) or 1.0
    return axis.imshow(
        heat,
        cmap="RdBu_r",
        vmin=-reach,
        vmax=reach,
        alpha=(1.2 * np.abs(heat) / reach).clip(0, 0.75),
        extent=(-0.5, shape[1] - 0.5, shape[0] - 0.5, -0.5),
        interpolation="bilinear",
    )
