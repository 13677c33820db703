"""A video beside its curve, with a cursor that moves along: mp4 and GIF."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from torchrl_vip.curves.curve import Curve
from torchrl_vip.curves.figures import draw_distance, draw_reward, plain
from torchrl_vip.data.video import FPS, write_video
from torchrl_vip.files import write_whole
from torchrl_vip.functional import to_chw

HEIGHT = 360
"""Of the film, pixels."""
PLOT = 540
"""Width of the curve's part."""
FILMED = 1_500
"""Frames of a film, at most: of a longer video every k-th, at the same speed."""
GIF_FRAMES, GIF_WIDTH = 80, 560
FADED = 0.25
"""What is left of the curve after the cursor."""


def film_frames(
    frames: Iterable[np.ndarray | Tensor],
    curves: Curve | Mapping[str, Curve],
    *,
    times: np.ndarray | None = None,
    title: str = "",
) -> Iterator[np.ndarray]:
    """Each frame beside the curve, whose part to come is faded: uint8 ``[360, W, 3]``, W even.

    Args:
        frames: of the video that the curves are of, all of them.
        curves, times: see :func:`torchrl_vip.curves.draw_curve`.
    """
    named = {"": curves} if isinstance(curves, Curve) else dict(curves)
    count = len(next(iter(named.values())))
    ticks = np.arange(count) if times is None else np.asarray(times)
    scene, cursor = None, 0
    for number, frame in enumerate(frames):
        image = to_chw(torch.as_tensor(frame))
        if scene is None:
            height, width = image.shape[1:]
            slot = int(np.clip(HEIGHT * width / height, 160, 560)) // 2 * 2
            scene = _Scene(named, ticks, slot, title, in_seconds=times is not None)
        picture = scene.background.copy()
        cursor = scene.column(ticks[number])
        for top, bottom, right in scene.plots:
            part = picture[top:bottom, cursor:right]
            part[:] = 255 - (255 - part.astype(np.float32)) * FADED
            picture[top:bottom, cursor - 1 : cursor + 1] = 60
        _paste(picture[:, :slot], image)
        yield picture


class _Scene:
    """The curve as it is drawn once: matplotlib takes 100 ms, a cursor upon its pixels less than one."""

    def __init__(
        self,
        curves: Mapping[str, Curve],
        ticks: np.ndarray,
        slot: int,
        title: str,
        *,
        in_seconds: bool,
    ):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine

        width, dpi = slot + PLOT, 100
        beside = ConstrainedLayoutEngine(rect=(slot / width, 0, PLOT / width, 1))
        figure = Figure(figsize=(width / dpi, HEIGHT / dpi), dpi=dpi, layout=beside)
        canvas = FigureCanvasAgg(figure)
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
        draw_distance(above, curves, ticks)
        draw_reward(below, curves, ticks)
        above.set_ylabel("distance to the goal", fontsize=8)
        below.set_ylabel("reward", fontsize=8)
        above.set_title(plain(title if len(title) < 60 else "…" + title[-58:]), fontsize=9)
        below.set_xlabel("s" if in_seconds else "frame", fontsize=8)
        above.tick_params(labelbottom=False)
        for axis in (above, below):
            axis.tick_params(labelsize=8)
            axis.set_xlim(ticks[0], ticks[-1])
        canvas.draw()
        self.background = np.asarray(canvas.buffer_rgba())[..., :3].copy()
        self._transform = below.transData
        boxes = [axis.get_window_extent() for axis in (above, below)]
        # rows are counted from the top, matplotlib's from below
        self.plots = [
            (HEIGHT - int(box.y1) + 1, HEIGHT - int(box.y0) - 1, int(box.x1) + 1) for box in boxes
        ]

    def column(self, tick: float) -> int:
        """Of pixels, at which a moment is."""
        return round(float(self._transform.transform((tick, 0))[0]))


def _paste(place: np.ndarray, image: Tensor) -> None:
    """An image in the middle of ``place`` ``[H, W, 3]``, as large as it fits, on black."""
    scale = min(place.shape[0] / image.shape[1], place.shape[1] / image.shape[2])
    size = [max(1, round(side * scale)) for side in image.shape[1:]]
    shown = (
        resize(image, size, antialias=True)
        .permute(1, 2, 0)
        .numpy()[: place.shape[0], : place.shape[1]]
    )
    top, left = ((place.shape[i] - shown.shape[i]) // 2 for i in (0, 1))
    place[:] = 0
    place[top : top + shown.shape[0], left : left + shown.shape[1]] = shown


def write_film(
    folder: str | os.PathLike,
    frames: Iterable[np.ndarray | Tensor],
    curves: Curve | Mapping[str, Curve],
    *,
    times: np.ndarray | None = None,
    title: str = "",
    name: str = "film",
) -> list[Path]:
    """Write ``NAME.mp4`` and ``NAME.gif`` into a folder; arguments as :func:`film_frames`.

    A film lasts as long as the video. Its frames are at most 1,500, those of the GIF at most 80.

    Raises:
        OSError: they cannot be written.
    """
    some = curves if isinstance(curves, Curve) else next(iter(curves.values()))
    count = len(some)
    stride, gif_stride = -(-count // FILMED), -(-count // GIF_FRAMES)
    seconds = count / FPS if times is None else float(times[-1]) * count / (count - 1)
    rate = Fraction(len(range(0, count, stride)) / seconds).limit_denominator(1_000)
    kept: list[np.ndarray] = []

    def shown() -> Iterator[np.ndarray]:
        for number, picture in enumerate(film_frames(frames, curves, times=times, title=title)):
            if number % gif_stride == 0 or number == count - 1:
                kept.append(_gif_size(picture))
            if number % stride == 0:
                yield picture

    folder = Path(folder)
    mp4 = write_video(folder / f"{name}.mp4", shown(), rate)
    return [mp4, _write_gif(folder / f"{name}.gif", kept, seconds)]


def _gif_size(picture: np.ndarray) -> np.ndarray:
    height = round(picture.shape[0] * GIF_WIDTH / picture.shape[1])
    return (
        resize(torch.from_numpy(picture).permute(2, 0, 1), [height, GIF_WIDTH], antialias=True)
        .permute(1, 2, 0)
        .numpy()
    )


def _write_gif(path: Path, pictures: list[np.ndarray], seconds: float) -> Path:
    from PIL import Image

    first, *rest = (
        Image.fromarray(picture).quantize(128, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        for picture in pictures
    )
    # A GIF's times are in hundredths of a second; browsers slow down what is shown for less than two.
    ends = np.round(np.arange(len(pictures) + 1) * 100 * seconds / len(pictures))
    times = (10 * np.diff(ends).clip(min=2)).astype(int).tolist()
    times[-1] += 1_000
    return write_whole(
        path,
        lambda part: first.save(
            part, format="GIF", save_all=True, append_images=rest, duration=times, loop=0
        ),
    )
