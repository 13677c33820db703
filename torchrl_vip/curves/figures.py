"""Pictures of curves, each a matplotlib Figure of its own: pyplot keeps every figure, and threads share it.

Images are uint8 ``[H, W, 3]``; times are seconds of each frame, ``[T]``.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from torchrl_vip.curves.curve import Curve
from torchrl_vip.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GOAL_COLOUR = "tab:orange"
TOWARDS, AWAY = "tab:green", "tab:red"
WIDTH = 165  # letters across a picture
DISTANCE = "distance to the goal image"
READING = [
    "How to read it:",
    "0 is the goal image itself.",
    "A line that falls to the",
    "right: the video leads",
    "to the goal.",
]


def draw_curve(
    curves: Curve | Mapping[str, Curve],
    shown: Mapping[int, np.ndarray] | None = None,
    goal: np.ndarray | None = None,
    *,
    times: np.ndarray | None = None,
    title: str = "",
    goal_name: str = "",
    sentences: Sequence[str] = (),
) -> Figure:
    """Frames in a row above their times, the goal image at its end; distance and reward below.

    Args:
        curves: of one video. Of several encoders, by name, distances are in parts of the first frame's.
        shown: frame number -> image, the frames to choose from, first and last one included.
        goal: the goal image.
        times: None counts frames.
        goal_name: of the goal image, such as its file's.
        sentences: written above all.
    """
    from matplotlib.figure import Figure

    named = {"": curves} if isinstance(curves, Curve) else dict(curves)
    count = len(next(iter(named.values())))
    ticks = np.arange(count) if times is None else np.asarray(times)
    numbers = evenly(sorted(shown), _columns(next(iter(shown.values())))) if shown else []
    columns = max(len(numbers), 1)
    lines = [line for text in sentences for line in textwrap.wrap(text, WIDTH)]
    row = 0.0
    if shown:
        height, width = shown[numbers[0]].shape[:2]
        row = min(12 / (columns + 1.2) * height / width, 3.0) + 0.5
    heights = [0.26 * len(lines) or 0.01, row or 0.01, 3.0, 1.7]
    figure = Figure(figsize=(14, sum(heights) + 1.0), layout="constrained")
    figure.suptitle(plain(title), fontsize=15, weight="bold")
    aside = [1.2] if shown or goal is not None else []
    grid = figure.add_gridspec(
        4, columns + len(aside), height_ratios=heights, width_ratios=[1] * columns + aside
    )
    if lines:
        write(figure.add_subplot(grid[0, :]), lines)
    above = figure.add_subplot(grid[2, :columns])
    below = figure.add_subplot(grid[3, :columns], sharex=above)
    label = clock(ticks, times is not None)
    if shown:
        distance = next(iter(named.values())).distance if len(named) == 1 else None
        for column, number in enumerate(numbers):
            text = label(number)
            text += "" if distance is None else f"\ndistance {distance[number]:.1f}"
            show(figure.add_subplot(grid[1, column]), shown[number], text)
    if goal is not None:
        name = "goal image" + (":\n" + textwrap.fill(goal_name, 24) if goal_name else "")
        show(figure.add_subplot(grid[1, -1]), goal, name, GOAL_COLOUR)
    draw_distance(above, named, ticks, numbers)
    draw_reward(below, named, ticks)
    # So that each frame is drawn above its time.
    margin = ticks[-1] / max(columns - 1, 1) / 2 if shown else 0.01 * ticks[-1]
    above.set_xlim(-margin, ticks[-1] + margin)
    below.set_xticks([tick for tick in below.get_xticks() if 0 <= tick <= ticks[-1]])
    above.tick_params(labelbottom=False)
    below.set_xlabel("frame of the video" if times is None else "time in the video (s)")
    if shown:
        write(figure.add_subplot(grid[2, -1]), [*READING, "", *_ends(named, label)])
        write(
            figure.add_subplot(grid[3, -1]),
            ["The reward of a step is", "how much nearer it came."]
            + (["Green: towards the goal,", "red: away from it."] if len(named) == 1 else []),
        )
    return figure


def draw_distance(
    axis: Axes, curves: Mapping[str, Curve], ticks: np.ndarray, numbers: Sequence[int] = ()
) -> None:
    """Distances over time from 0, the goal itself; dots at the frames ``numbers``."""
    for name, distance in relative(curves, "distance").items():
        (line,) = axis.plot(ticks, distance, label=name)
        if len(numbers):
            chosen = list(numbers)
            colour = line.get_color()
            axis.plot(ticks[chosen], distance[chosen], "o", color=colour, clip_on=False)
    top = max(float(np.max(line.get_ydata())) for line in axis.lines)
    axis.set_ylim(0, 1.05 * top or 1.0)
    unit = "(embedding units)" if len(curves) == 1 else "(first frame's = 1)"
    axis.set_ylabel(f"{DISTANCE}\n{unit}")
    if len(curves) > 1:
        axis.legend(loc="best", fontsize=9)


def draw_reward(axis: Axes, curves: Mapping[str, Curve], ticks: np.ndarray) -> None:
    """Each step's reward, over the time that it takes; of one curve green towards the goal, red away."""
    for reward in relative(curves, "reward").values():
        steps = np.append(reward, reward[-1])  # the last step reaches to the last frame
        if len(curves) > 1:
            axis.plot(ticks, steps, drawstyle="steps-post", linewidth=1)
            continue
        for colour, part in ((TOWARDS, steps.clip(min=0)), (AWAY, steps.clip(max=0))):
            axis.fill_between(ticks, part, step="post", color=colour, linewidth=0)
    axis.axhline(0, color="grey", linewidth=0.5)
    axis.set_ylabel("reward of\nthe step")


def relative(curves: Mapping[str, Curve], what: str) -> dict[str, np.ndarray]:
    """``distance`` or ``reward`` of curves: as they are of one, in parts of the first frame's distance (or
    the largest, where that is 0) of several, whose units differ."""
    if len(curves) == 1:
        return {name: getattr(curve, what) for name, curve in curves.items()}
    return {
        name: getattr(curve, what) / float(curve.distance[0] or curve.distance.max() or 1)
        for name, curve in curves.items()
    }


def _ends(curves: Mapping[str, Curve], label: Callable[[int], str]) -> list[str]:
    if len(curves) > 1:
        return [f"{name}: order {curve.order:.2f}" for name, curve in curves.items()]
    (curve,) = curves.values()
    distance, nearest = curve.distance, int(curve.distance.argmin())
    return [
        f"first frame: {distance[0]:.1f}",
        f"nearest ({label(nearest)}): {distance[nearest]:.1f}",
        f"last frame: {distance[-1]:.1f}",
    ]


def clock(ticks: np.ndarray, in_seconds: bool) -> Callable[[int], str]:
    """How a frame's moment is written."""
    digits = 1 if ticks[-1] >= 2 else 2
    return lambda n: f"{ticks[n]:.{digits}f} s" if in_seconds else f"frame {n}"


def _columns(image: np.ndarray) -> int:
    """How many images of this shape fill a row: many tall ones, few wide ones."""
    return int(np.clip(round(10 * image.shape[0] / image.shape[1]), 3, 9))


def evenly(numbers: Sequence[int], count: int) -> list[int]:
    """Those of ascending ``numbers`` that are nearest to ``count`` ones evenly apart."""
    wanted = np.linspace(numbers[0], numbers[-1], min(count, len(numbers)))
    have = np.asarray(numbers)
    return sorted({int(have[np.abs(have - w).argmin()]) for w in wanted})


def show(axis: Axes, image: np.ndarray, title: str, colour: str | None = None) -> None:
    """An image without ticks, in a frame where there is a colour."""
    axis.imshow(image)
    axis.set_title(plain(title), fontsize=9)
    axis.set_xticks([])
    axis.set_yticks([])
    for side in axis.spines.values():
        side.set_visible(colour is not None)
        side.set_color(colour)
        side.set_linewidth(3)


def write(axis: Axes, lines: Sequence[str]) -> None:
    """Lines of text in the place of a plot."""
    axis.axis("off")
    axis.text(0, 1, plain("\n".join(lines)), fontsize=11, va="top", transform=axis.transAxes)


def plain(text: str) -> str:
    """Without mathematics: a file's name may have dollars."""
    return text.replace("$", r"\$")


def save(figure: Figure, path: str | Path) -> Path:
    """Write a picture, whole or not at all, as a PNG."""
    return write_whole(path, lambda part: figure.savefig(part, format="png", dpi=80))
