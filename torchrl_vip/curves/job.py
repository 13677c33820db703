"""Pictures of videos by encoders, as the command line makes them."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from torchrl_vip.curves import charts, figures
from torchrl_vip.curves.curve import Curve, Thumbnails, measure, open_encoder, small
from torchrl_vip.curves.film import write_film
from torchrl_vip.curves.saliency import saliency
from torchrl_vip.data.reading import frames_at, read_frames
from torchrl_vip.data.reading import measure as measure_clip
from torchrl_vip.encoders import FrozenEncoder
from torchrl_vip.files import write_whole

INSTALL = 'pip install "torchrl-vip[curves]"'
OWN_FRAME = (
    "Against a frame of its own almost any encoder orders a video well: --goal with the end of another "
    "episode says more."
)


@dataclass
class Video:
    """A video as it was measured.

    Attributes:
        curves: by encoder.
        shown: frame number -> small image, the first and last among them.
        goal: small image, uint8 ``[h, w, 3]``.
        times: seconds of each frame, ``[T]``; None of a folder of frames.
    """

    path: Path
    name: str
    curves: dict[str, Curve]
    shown: dict[int, np.ndarray]
    goal: np.ndarray
    times: np.ndarray | None

    def __len__(self) -> int:
        return len(next(iter(self.curves.values())))


def need_extra() -> None:
    """Raise ImportError, with the command that installs what is missing."""
    for module in ("matplotlib", "scipy", "av"):
        if importlib.util.find_spec(module) is None:
            raise ImportError(f"curves need {module}, which is not installed: {INSTALL}")


def name_videos(paths: Sequence[Path]) -> dict[str, Path]:
    """A name for each video, that of its file; of several with the same a number is added.

    Raises:
        ValueError: one that cannot be read, or has fewer than two frames.
    """
    named: dict[str, Path] = {}
    for path in paths:
        frames, _ = measure_clip(path)
        if frames < 2:
            raise ValueError(f"{path}: {frames} frame(s); wanted a video of two or more.")
        stem = path.resolve().name if path.is_dir() else path.stem
        name, number = stem, 1
        while name in named:
            number += 1
            name = f"{stem}_{number}"
        named[name] = path
    return named


def encoder_on(name: str, blur: float, device: str) -> FrozenEncoder:
    """An encoder on a device.

    Raises:
        ValueError: a device that is not there; an encoder's name without weights.
        CheckpointError: as :func:`torchrl_vip.load_vip`.
    """
    encoder = open_encoder(name, blur=blur)
    try:
        torch.empty(0, device=device)  # raw pixels have no weights that would be refused
        return encoder.to(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {device}: {reason}; wanted cpu, cuda, cuda:1, ...") from error


def look(
    path: Path,
    name: str,
    goal: Any,
    encoders: Mapping[str, FrozenEncoder],
    *,
    smoothing: float = 0.0,
) -> Video:
    """Measure a video by each encoder; arguments as of :func:`torchrl_vip.curves.measure`.

    Raises:
        ValueError: as ``measure``, with the video's path.
    """
    from torchrl_vip.data.video_file import probe

    total, curves, shown = measure_clip(path)[0], {}, Thumbnails([])
    for title, encoder in encoders.items():
        bar = tqdm(read_frames(path), f"{name}, {title}", total, unit="frame")
        shown = Thumbnails(bar)
        try:
            curves[title] = measure(shown, goal, encoder, smoothing=smoothing)
        except ValueError as error:
            raise ValueError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error
    count = len(next(iter(curves.values())))
    if goal is None or isinstance(goal, int):
        (goal,) = frames_at(path, torch.tensor([(-1 if goal is None else goal) % count]))
    times = None if path.is_dir() else probe(path).seconds
    return Video(path, name, curves, shown.images, small(goal), times)


def write(
    folder: Path,
    videos: Sequence[Video],
    encoders: Mapping[str, FrozenEncoder],
    about: Mapping[str, Any],
    *,
    only: Collection[str] = (),
    goal_name: str = "",
    is_shared: bool = False,
    moments: int = 3,
) -> None:
    """Write the pictures named in ``only``, and the numbers.

    Args:
        about: the command, for the numbers' file.
        goal_name: of the goal image; empty is each video's own last frame.
        is_shared: the videos have one goal image.
        moments: frames whose saliency is drawn.
    """
    numbers = {}
    for video in videos:
        place = folder / video.name
        place.mkdir()
        numbers[video.name] = numbers_of(video)
        if "curve" in only:
            figures.save(draw_video(video, goal_name, is_shared), place / "curve.png")
        if "film" in only:
            film_frames = tqdm(
                read_frames(video.path), f"{video.name}, film", len(video), unit="frame"
            )
            write_film(place, film_frames, _unnamed(video), times=video.times, title=video.name)
        if "path" in only:
            figure = charts.draw_path(video.curves, title=video.name, times=video.times)
            figures.save(figure, place / "path.png")
        if "saliency" in only:
            heat = look_where(video, encoders, moments)
            figures.save(draw_where(video, heat), place / "saliency.png")
            for name, maps in heat.items():
                maps_of = {str(n): one.round(4).tolist() for n, one in maps.items()}
                numbers[video.name]["encoders"][name]["saliency"] = maps_of
        if not any(place.iterdir()):
            place.rmdir()
    write_together(folder, videos, only, is_shared, goal_name)
    text = json.dumps({**about, "videos": numbers}, indent=1, allow_nan=False)
    write_whole(folder / "curves.json", lambda part: part.write_text(text))


def write_together(
    folder: Path, videos: Sequence[Video], only: Collection[str], is_shared: bool, goal_name: str
) -> None:
    """Write the pictures that all videos share."""
    curves = {video.name: video.curves for video in videos}
    if "rewards" in only:
        figures.save(charts.draw_rewards(curves), folder / "rewards.png")
    if "smoothness" in only:
        figures.save(charts.draw_smoothness(curves), folder / "smoothness.png")
    if "attempts" in only and is_shared and len(videos) > 1:
        first = charts.encoders_of(curves)[0]
        figure = charts.draw_attempts(
            {name: of_video[first] for name, of_video in curves.items()},
            videos[0].goal,
            title=f"Which comes nearest to {goal_name}? ({first})",
        )
        figures.save(figure, folder / "attempts.png")


def _unnamed(video: Video) -> Curve | dict[str, Curve]:
    """One curve by itself is drawn in embedding units."""
    return video.curves if len(video.curves) > 1 else next(iter(video.curves.values()))


def draw_video(video: Video, goal_name: str, is_shared: bool) -> Any:
    """The curve with frames, goal image and sentences."""
    what = f"the goal image {goal_name}" if is_shared else f"its own frame {goal_name}"
    goal_title = what if goal_name else "its own last frame"
    if len(video.curves) == 1:
        sentences = next(iter(video.curves.values())).sentences()
    else:
        sentences = [f"{name}: {' '.join(c.sentences()[:2])}" for name, c in video.curves.items()]
    return figures.draw_curve(
        _unnamed(video),
        video.shown,
        video.goal,
        times=video.times,
        title=f"How far is {video.name} from {goal_title}?",
        goal_name=goal_name if is_shared else goal_title,
        sentences=sentences if is_shared else [*sentences, OWN_FRAME],
    )


def look_where(
    video: Video, encoders: Mapping[str, FrozenEncoder], moments: int
) -> dict[str, dict[int, np.ndarray]]:
    """Encoder -> frame number -> map of :func:`torchrl_vip.curves.saliency.saliency`."""
    numbers = np.unique(np.linspace(0, len(video) - 1, moments).round().astype(int)).tolist()
    frames = list(frames_at(video.path, torch.tensor(numbers)))
    jobs = [(name, n, frame) for name in encoders for n, frame in zip(numbers, frames, strict=True)]
    heat: dict[str, dict[int, np.ndarray]] = {name: {} for name in encoders}
    for name, n, frame in tqdm(jobs, f"{video.name}, saliency", unit="frame"):
        heat[name][n] = saliency(frame, video.curves[name].goal, encoders[name])
    return heat


def draw_where(video: Video, heat: Mapping[str, Mapping[int, np.ndarray]]) -> Any:
    """The frames of :func:`look_where` with their maps."""
    numbers = list(next(iter(heat.values())))
    frames = frames_at(video.path, torch.tensor(numbers))
    label = figures.clock(
        np.arange(len(video)) if video.times is None else video.times, video.times is not None
    )
    images = {label(n): small(frame) for n, frame in zip(numbers, frames, strict=True)}
    maps = {name: list(of_encoder.values()) for name, of_encoder in heat.items()}
    return charts.draw_saliency(images, maps, title=video.name)


def numbers_of(video: Video) -> dict[str, Any]:
    """What curves.json says of a video."""
    encoders = {}
    for name, curve in video.curves.items():
        path, goal, share = charts.project(curve)
        encoders[name] = curve.numbers() | {
            "path": path.round(4).tolist(),
            "path_goal": goal.round(4).tolist(),
            "path_share": share.round(4).tolist(),
        }
    times = None if video.times is None else video.times.tolist()
    return {"video": str(video.path), "frames": len(video), "seconds": times, "encoders": encoders}


def tell(videos: Sequence[Video]) -> None:
    """Print what was found."""
    for video in videos:
        for name, curve in video.curves.items():
            print(f"{video.name}, {name}: {curve.in_words()}")
    print()
    print(charts.smoothness_text({video.name: video.curves for video in videos}))
    print(charts.BEST)
    print()
