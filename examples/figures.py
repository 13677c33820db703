"""Pictures of the demo: frames, goal image and distance, to be understood by whoever sees them first.

Distances ``[T]`` are in embedding units, frame 0 first; images are uint8 ``[H, W, 3]``.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from torchrl_vip.data.video import write_video
from torchrl_vip.evaluation.metrics import bumps, voc

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {"success": "tab:green", "failure": "tab:red"}
GOAL_COLOUR = "tab:orange"
DISTANCE = "distance to the goal image\n(embedding units)"
WIDTH = 165  # letters across a picture
ADVICE = "Try an image of the finished task from the same camera and scene."


@dataclass
class Episode:
    """What a picture shows of an episode: frames ``[T + 1]``, distances ``[T + 1]``, rewards ``[T]``, and
    the step that solved the task, None where none did."""

    frames: np.ndarray
    distances: np.ndarray
    rewards: np.ndarray
    solved: int | None


# -- sentences --------------------------------------------------------------------------------------


def way_sentence(distance: np.ndarray) -> str:
    """How much nearer to the goal the last frame is than the first."""
    first, last = distance[0], distance[-1]
    numbers = f"(distance {first:.1f} in the first frame, {last:.1f} in the last)"
    if last > first:
        return f"It ends farther from the goal image than it began {numbers}."
    covered = 1 - last / first if first else 0.0
    return f"It comes {covered:.0%} of the way to the goal image {numbers}."


def steps_sentence(distance: np.ndarray) -> str:
    """How many steps lead towards the goal, with "bumps" said in words."""
    towards = float(np.mean(np.diff(distance) < 0))
    return (
        f"{towards:.0%} of the steps from frame to frame lead towards the goal, "
        f"{bumps(distance):.0%} lead away from it (bumps {bumps(distance):.2f})."
    )


def order_sentence(distance: np.ndarray) -> str:
    """What the order, Spearman's correlation of time with minus the distance, says of the goal."""
    order = voc(distance)
    if np.ptp(distance) == 0:
        return f"The distance is the same in every frame: nothing to follow. {ADVICE}"
    if order >= 0.8:
        return f"The distance falls as time goes on (order {order:.2f}, 1 is best)."
    if order >= 0.5:
        return f"The distance mostly falls as time goes on (order {order:.2f}, 1 is best)."
    if order >= 0.2:
        return (
            f"The distance follows time loosely (order {order:.2f}, 1 is best): a reward from this "
            f"goal would be noisy for this video. {ADVICE}"
        )
    if order > -0.2:
        return (
            f"The distance hardly follows time (order {order:.2f}, 1 is best): this goal does not "
            f"work for this video. {ADVICE}"
        )
    return (
        f"The distance grows with time (order {order:.2f}, 1 is best): the video leads away from "
        f"this goal. {ADVICE}"
    )


# -- a video ----------------------------------------------------------------------------------------


def draw_video(
    shown: Mapping[int, np.ndarray],
    distance: np.ndarray,
    goal: np.ndarray,
    path: Path,
    *,
    title: str,
    goal_name: str,
    sentences: Sequence[str],
    rate: float | None,
) -> None:
    """Frames in a row above their times, the goal image at its end, the distance below.

    Args:
        shown: frame number -> image, the frames to choose from, first and last one included.
        rate: frames a second; None counts frames.
    """
    numbers = _evenly(sorted(shown), _columns(next(iter(shown.values()))))
    height, width = shown[numbers[0]].shape[:2]
    columns = len(numbers)
    row = min(12 / (columns + 1.2) * height / width, 3.0)
    lines = [line for text in sentences for line in textwrap.wrap(text, WIDTH)]
    heights = [0.26 * len(lines), row + 0.5, 3.3]
    figure = plt.figure(figsize=(14, sum(heights) + 1.0), layout="constrained")
    figure.suptitle(_plain(title), fontsize=15, weight="bold")
    grid = figure.add_gridspec(
        3, columns + 1, height_ratios=heights, width_ratios=[1] * columns + [1.2]
    )
    _write(figure.add_subplot(grid[0, :]), lines)

    unit = 1 / rate if rate else 1
    times = np.arange(len(distance)) * unit
    digits = 1 if times[-1] >= 2 else 2
    label = (lambda t: f"{times[t]:.{digits}f} s") if rate else (lambda t: f"frame {t}")
    for column, number in enumerate(numbers):
        axis = figure.add_subplot(grid[1, column])
        _show(axis, shown[number], f"{label(number)}\ndistance {distance[number]:.1f}")
    name = textwrap.fill(goal_name, 24)
    _show(figure.add_subplot(grid[1, -1]), goal, f"goal image:\n{name}", GOAL_COLOUR)

    axis = figure.add_subplot(grid[2, :columns])
    axis.plot(times, distance, color="tab:blue")
    axis.plot(times[numbers], distance[numbers], "o", color="tab:blue", clip_on=False)
    # So that each frame is drawn above its time.
    margin = times[-1] / (columns - 1) / 2
    axis.set_xlim(-margin, times[-1] + margin)
    axis.set_xticks([tick for tick in axis.get_xticks() if 0 <= tick <= times[-1]])
    axis.set_xlabel("time in the video (s)" if rate else "frame of the video")
    _distance_axis(axis)
    nearest = int(distance.argmin())
    _write(
        figure.add_subplot(grid[2, -1]),
        [
            "How to read it:",
            "0 is the goal image itself.",
            "A line that falls to the",
            "right: the video leads",
            "to the goal.",
            "",
            f"first frame: {distance[0]:.1f}",
            f"nearest ({label(nearest)}): {distance[nearest]:.1f}",
            f"last frame: {distance[-1]:.1f}",
        ],
    )
    _save(figure, path)


def _columns(image: np.ndarray) -> int:
    """How many images of this shape fill a row: many tall ones, few wide ones."""
    return int(np.clip(round(10 * image.shape[0] / image.shape[1]), 3, 9))


def _evenly(numbers: Sequence[int], count: int) -> list[int]:
    """Those of ascending ``numbers`` that are nearest to ``count`` ones evenly apart."""
    wanted = np.linspace(numbers[0], numbers[-1], min(count, len(numbers)))
    have = np.asarray(numbers)
    return sorted({int(have[np.abs(have - w).argmin()]) for w in wanted})


# -- episodes ---------------------------------------------------------------------------------------


def draw_episodes(
    episodes: Mapping[str, Episode],
    goal: np.ndarray,
    path: Path,
    *,
    title: str,
    sentences: Sequence[str],
) -> None:
    """A success and a failure: frames along the top, distance to the goal and reward below."""
    columns = 7
    lines = [line for text in sentences for line in textwrap.wrap(text, WIDTH)]
    figure = plt.figure(figsize=(14, 10), layout="constrained")
    figure.suptitle(_plain(title), fontsize=15, weight="bold")
    grid = figure.add_gridspec(5, columns + 1, height_ratios=[0.22 * len(lines), 1, 1, 1.4, 1.0])
    _write(figure.add_subplot(grid[0, :]), lines)
    _show(figure.add_subplot(grid[1:3, -1]), goal, "goal image\n(another episode)", GOAL_COLOUR)
    for row, (name, episode) in enumerate(episodes.items(), 1):
        count = len(episode.frames)
        for column, t in enumerate(np.linspace(0, count - 1, columns).astype(int)):
            axis = figure.add_subplot(grid[row, column])
            _show(axis, episode.frames[t], f"step {t}", COLOURS[name])
            if column == 0:
                axis.set_ylabel(name, color=COLOURS[name], fontsize=14, weight="bold")
    above, below = figure.add_subplot(grid[3, :]), figure.add_subplot(grid[4, :])
    for name, episode in episodes.items():
        label = f"{name}: return {episode.rewards.sum():.2f}"
        above.plot(episode.distances, color=COLOURS[name], label=label)
        below.plot(np.arange(1, len(episode.rewards) + 1), episode.rewards, color=COLOURS[name])
        if episode.solved is not None:
            for axis in (above, below):
                axis.axvline(episode.solved, color=COLOURS[name], linestyle=":")
            above.annotate(
                " task solved", (episode.solved, 0.05), xycoords=("data", "axes fraction")
            )
    _distance_axis(above)
    above.legend(loc="lower left")
    below.set_ylabel("reward of the step")
    below.set_xlabel("environment step")
    below.axhline(0, color="grey", linewidth=0.5)
    below.sharex(above)
    _save(figure, path)


def film_episodes(
    episodes: Mapping[str, Episode], goal: np.ndarray, path: Path, *, title: str, stride: int = 2
) -> None:
    """Success and failure beside the goal, the distance curves growing below."""
    figure, axes = plt.subplot_mosaic(
        [["goal", *episodes], ["curve"] * 3],
        figsize=(7.5, 5),
        height_ratios=[1.3, 1],
        layout="constrained",
    )
    figure.suptitle(_plain(title), fontsize=11)
    _show(axes["goal"], goal, "goal image\n(another episode)", GOAL_COLOUR)
    for name, episode in episodes.items():
        _show(axes[name], episode.frames[0], name, COLOURS[name])
    lines = {
        name: axes["curve"].plot(episode.distances, color=COLOURS[name], label=name)[0]
        for name, episode in episodes.items()
    }
    _distance_axis(axes["curve"])
    axes["curve"].set_xlabel("environment step")
    axes["curve"].legend(loc="lower left")
    pictures = []
    last = max(len(episode.frames) for episode in episodes.values()) - 1
    for t in [*range(0, last, stride), last]:
        for name, episode in episodes.items():
            now = min(t, len(episode.frames) - 1)
            lines[name].set_data(np.arange(now + 1), episode.distances[: now + 1])
            axes[name].images[0].set_data(episode.frames[now])
        figure.canvas.draw()
        pictures.append(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())
    plt.close(figure)
    write_video(path, np.stack(pictures), fps=15)


# -- parts ------------------------------------------------------------------------------------------


def _show(axis: Axes, image: np.ndarray, title: str, colour: str | None = None) -> None:
    """An image without ticks, in a frame where there is a colour."""
    axis.imshow(image)
    axis.set_title(_plain(title), fontsize=9)
    axis.set_xticks([])
    axis.set_yticks([])
    for side in axis.spines.values():
        side.set_visible(colour is not None)
        side.set_color(colour)
        side.set_linewidth(3)


def _write(axis: Axes, lines: Sequence[str]) -> None:
    """Lines of text in the place of a plot."""
    axis.axis("off")
    axis.text(0, 1, _plain("\n".join(lines)), fontsize=11, va="top", transform=axis.transAxes)


def _distance_axis(axis: Axes) -> None:
    """Distances are read from 0, the goal itself."""
    top = max(float(np.max(line.get_ydata())) for line in axis.lines)
    axis.set_ylim(0, 1.05 * top or 1.0)
    axis.set_ylabel(DISTANCE)


def _plain(text: str) -> str:
    """Without mathematics: a file's name may have dollars."""
    return text.replace("$", r"\$")


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=80)
    plt.close(figure)
