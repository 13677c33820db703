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

from torchrl_vip.curves.figures import GOAL_COLOUR, WIDTH, plain, show, write
from torchrl_vip.data.video import write_video

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {"success": "tab:green", "failure": "tab:red"}
DISTANCE = "distance to the goal image\n(embedding units)"


@dataclass
class Episode:
    """What a picture shows of an episode: frames ``[T + 1]``, distances ``[T + 1]``, rewards ``[T]``, and
    the step that solved the task, None where none did."""

    frames: np.ndarray
    distances: np.ndarray
    rewards: np.ndarray
    solved: int | None


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
    figure.suptitle(plain(title), fontsize=15, weight="bold")
    grid = figure.add_gridspec(5, columns + 1, height_ratios=[0.22 * len(lines), 1, 1, 1.4, 1.0])
    write(figure.add_subplot(grid[0, :]), lines)
    show(figure.add_subplot(grid[1:3, -1]), goal, "goal image\n(another episode)", GOAL_COLOUR)
    for row, (name, episode) in enumerate(episodes.items(), 1):
        count = len(episode.frames)
        for column, t in enumerate(np.linspace(0, count - 1, columns).astype(int)):
            axis = figure.add_subplot(grid[row, column])
            show(axis, episode.frames[t], f"step {t}", COLOURS[name])
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
    figure.suptitle(plain(title), fontsize=11)
    show(axes["goal"], goal, "goal image\n(another episode)", GOAL_COLOUR)
    for name, episode in episodes.items():
        show(axes[name], episode.frames[0], name, COLOURS[name])
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


def _distance_axis(axis: Axes) -> None:
    """Distances are read from 0, the goal itself."""
    top = max(float(np.max(line.get_ydata())) for line in axis.lines)
    axis.set_ylim(0, 1.05 * top or 1.0)
    axis.set_ylabel(DISTANCE)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=80)
    plt.close(figure)
