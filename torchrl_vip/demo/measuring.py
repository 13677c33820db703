"""What the page's process does with a video: frames, embeddings, curves, pictures.

A clip's folder keeps what was made of it: ``frame_0000.jpg``, ... small, one of each measured frame;
``embedding_<encoder>.npy`` float32 ``[T, D]``, so that another goal costs nothing.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchrl_vip.curves import Curve, code_to_reproduce, draw_curve, open_encoder
from torchrl_vip.curves.curve import small
from torchrl_vip.curves.figures import save
from torchrl_vip.curves.film import film_frames
from torchrl_vip.data.container import opened
from torchrl_vip.data.video import write_video
from torchrl_vip.demo.uploads import Refused, check_picture, check_video
from torchrl_vip.files import write_whole
from torchrl_vip.goals import read_image
from torchrl_vip.weights import CheckpointError

if TYPE_CHECKING:
    from torchrl_vip.data.video_file import VideoFile
    from torchrl_vip.encoders import FrozenEncoder

MEASURED = 240
"""Frames of a video that are measured, at most: a longer one's evenly."""
BATCH = 16
SMALL = 320
"""Longer side of the frames that are kept, pixels."""
PLAYED = 640
"""Of a video that is written anew, as the browser cannot play it."""
AGAINST_ITSELF = (
    " Against its own last frame almost any embedding orders a video well, even raw pixels: a picture of "
    "another attempt's end says more."
)
NAMES = {"bundled": "VIP (bundled)", "tiny": "VIP (tiny)", "pixels": "raw pixels"}


class Wish(NamedTuple):
    """What is asked of a clip.

    Attributes:
        folder: of what is made of it.
        source: the video.
        name: as its visitor calls it.
        goal: a picture, the number of a measured frame, or None: the last.
        goal_name: as its visitor calls the picture.
        encoders: names, or paths of checkpoints.
    """

    folder: Path
    source: Path
    name: str
    goal: Path | int | None = None
    goal_name: str = ""
    encoders: tuple[str, ...] = ("bundled",)


# -- encoders ---------------------------------------------------------------------------------------


def warm_up(encoders: tuple[str, ...] = ("bundled",)) -> None:
    """Load what the first visitor will need."""
    for name in encoders:
        _encoder(name)(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def _encoder(name: str) -> FrozenEncoder:
    try:
        return _opened(name, _age(name))
    except (CheckpointError, ValueError, OSError) as error:
        raise Refused(f"This encoder cannot be opened: {error}") from error


@lru_cache(maxsize=4)
def _opened(name: str, age: int) -> FrozenEncoder:
    return open_encoder(name)


def _age(name: str) -> int:
    """So that a checkpoint that was trained on is read again."""
    path = Path(name)
    file = path / "model.safetensors" if path.is_dir() else path
    return file.stat().st_mtime_ns if name not in NAMES and file.exists() else 0


def label(encoder: str) -> str:
    """An encoder's name on the page."""
    return NAMES.get(encoder, Path(encoder).name or encoder)


# -- a clip -----------------------------------------------------------------------------------------


class Sample(NamedTuple):
    """Which frames of a video are measured: ``rows``, every ``stride``-th from ``rows[0]`` to the last."""

    file: VideoFile
    rows: np.ndarray
    stride: int

    @property
    def times(self) -> np.ndarray:
        """Seconds of each in the video, ``[T]``."""
        return self.file.seconds[self.rows]

    @property
    def rate(self) -> Fraction:
        """Frames a second."""
        return Fraction(1 / max(self.file.interval * self.stride, 1e-3)).limit_denominator(1000)


def sample(source: Path) -> Sample:
    """At most MEASURED frames of a video, the last one among them.

    Raises:
        Refused: it is no video, or beyond the limits.
    """
    file = check_video(source)
    stride = -(-len(file) // MEASURED)
    return Sample(file, np.arange((len(file) - 1) % stride, len(file), stride), stride)


def embed(wish: Wish, sampled: Sample) -> None:
    """Fill a clip's folder, as far as it lacks anything."""
    missing = {n: _encoder(n) for n in wish.encoders if not _embedding(wish.folder, n).exists()}
    if not missing:
        return
    pictures = not (wish.folder / "frame_0000.jpg").exists()
    parts: dict[str, list[Tensor]] = {name: [] for name in missing}
    number = 0
    for frames in _batches(sampled.file.frames(sampled.rows.tolist())):
        for name, encoder in missing.items():
            parts[name].append(encoder(frames).cpu())
        for frame in frames if pictures else ():
            write_picture(wish.folder / f"frame_{number:04d}.jpg", small(frame, SMALL))
            number += 1
    for name, z in parts.items():
        joined = torch.cat(z).numpy()
        if not np.isfinite(joined).all():
            raise Refused(f"{label(name)} gives values that are not finite.")
        write_whole(_embedding(wish.folder, name), partial(_save_array, array=joined))


def _batches(frames: Iterable[Tensor]) -> Iterator[Tensor]:
    """Frames ``[n, 3, H, W]`` of one size."""
    batch: list[Tensor] = []
    for frame in frames:
        if batch and (len(batch) == BATCH or frame.shape != batch[0].shape):
            yield torch.stack(batch)
            batch = []
        batch.append(frame)
    if batch:
        yield torch.stack(batch)


def _embedding(folder: Path, encoder: str) -> Path:
    return folder / f"embedding_{hashlib.sha256(encoder.encode()).hexdigest()[:16]}.npy"


def _save_array(path: Path, array: np.ndarray) -> None:
    with open(path, "wb") as file:  # by name it would append .npy
        np.save(file, array)


def write_picture(path: Path, image: np.ndarray) -> None:
    """A small picture ``[H, W, 3]`` for the page."""
    from PIL import Image

    Image.fromarray(image).save(path, quality=88)


def load_embedding(wish: Wish, encoder: str) -> np.ndarray:
    """What :func:`embed` kept, ``[T, D]``."""
    return np.load(_embedding(wish.folder, encoder))


def _curves(wish: Wish) -> dict[str, Curve]:
    """Of each encoder."""
    curves = {}
    for name in wish.encoders:
        z = load_embedding(wish, name)
        curves[label(name)] = Curve(z, _goal_embedding(wish.goal, z, name))
    return curves


def _goal_embedding(goal: Path | int | None, z: np.ndarray, encoder: str) -> np.ndarray:
    if isinstance(goal, Path):
        return embed_picture(read_picture(goal), encoder)
    return z[-1 if goal is None else min(max(goal, 0), len(z) - 1)]


def embed_picture(picture: Tensor, encoder: str) -> np.ndarray:
    """``[H, W, 3]`` to ``[D]``."""
    return _encoder(encoder)(picture.permute(2, 0, 1)).cpu().numpy()


def read_picture(path: Path) -> Tensor:
    """A goal image, uint8 ``[H, W, 3]``.

    Raises:
        Refused: it is none, or beyond the limits.
    """
    check_picture(path)
    try:
        return read_image(path)
    except (ValueError, OSError, SyntaxError) as error:
        raise Refused(f"This is not a picture that can be read ({error}).") from error


def measure(wish: Wish) -> dict[str, Any]:
    """A clip's curves as the page draws them; its files are named, and lie in its folder.

    Raises:
        Refused: the message is for the visitor.
    """
    sampled = sample(wish.source)
    if isinstance(wish.goal, Path):
        picture = read_picture(wish.goal)
        write_picture(wish.folder / "goal.jpg", small(picture, SMALL))
    embed(wish, sampled)
    curves, count = _curves(wish), len(sampled.rows)
    goal = count - 1 if wish.goal is None else wish.goal
    return {
        "name": wish.name,
        "times": sampled.times.round(4).tolist(),
        "end": round(sampled.file.end, 4),
        "frames": count,
        "of": len(sampled.file),
        "note": _note(sampled) + (AGAINST_ITSELF if wish.goal is None else ""),
        "goal": goal if isinstance(goal, int) else None,
        "goal_name": goal_name(wish, sampled),
        "curves": [_as_drawn(name, curve) for name, curve in curves.items()],
        "code": code(wish, sampled),
    }


def _as_drawn(name: str, curve: Curve) -> dict[str, Any]:
    return {
        "name": name,
        "distance": curve.distance.round(4).tolist(),
        "reward": curve.reward.round(5).tolist(),
        "order": round(curve.order, 2),
        "bumps": round(curve.bumps, 2),
        "towards": round(curve.towards, 2),
        "sentences": curve.sentences(),
    }


def goal_name(wish: Wish, sampled: Sample) -> str:
    """The goal in words."""
    if isinstance(wish.goal, Path):
        return wish.goal_name
    if wish.goal is None:
        return "its own last frame"
    return f"its frame at {sampled.times[min(wish.goal, len(sampled.rows) - 1)]:.1f} s"


def _note(sampled: Sample) -> str:
    total = len(sampled.file)
    if sampled.stride == 1:
        return f"All {total} frames are measured."
    return (
        f"Every {_ordinal(sampled.stride)} of {total:,} frames is measured, {len(sampled.rows)} in all (at "
        f"most {MEASURED})."
    )


def _ordinal(number: int) -> str:
    ending = (
        "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    )
    return f"{number}{ending}"


def code(wish: Wish, sampled: Sample) -> str:
    """The lines that make the same rewards, of the first encoder."""
    goal = wish.goal_name if isinstance(wish.goal, Path) else wish.goal
    text = code_to_reproduce(wish.name, goal, wish.encoders[0])
    if sampled.stride > 1:
        whole = f"frames = list(read_frames({wish.name!r}))"
        some = (
            f"frames = [frame for i, frame in enumerate(read_frames({wish.name!r})) "
            f"if i % {sampled.stride} == {sampled.rows[0]}]"
        )
        text = text.replace(whole, some)
    return text


# -- files of a clip --------------------------------------------------------------------------------


def make(wish: Wish, file: str) -> Path:
    """One of FILES of a measured clip, in its folder."""
    path = wish.folder / file
    write_whole(path, lambda part: FILES[file](wish, part))
    return path


def _write_csv(wish: Wish, path: Path) -> None:
    sampled, curves = sample(wish.source), _curves(wish)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(
        ["frame", "seconds"]
        + [f"{what} ({name})" for name in curves for what in ("distance", "reward")]
    )
    for t, (row, seconds) in enumerate(zip(sampled.rows, sampled.times, strict=True)):
        numbers = [
            value
            for curve in curves.values()
            for value in (f"{curve.distance[t]:.6g}", f"{curve.reward[t - 1]:.6g}" if t else "")
        ]
        writer.writerow([row, f"{seconds:.4f}", *numbers])
    path.write_text(text.getvalue())


def _picture_of(wish: Wish) -> dict[str, Any]:
    """What the figures show beside the curves."""
    from PIL import Image

    sampled = sample(wish.source)
    files = sorted(wish.folder.glob("frame_*.jpg"))
    frames = {number: np.asarray(Image.open(file)) for number, file in enumerate(files)}
    last = len(frames) - 1
    if isinstance(wish.goal, Path):
        goal = small(read_picture(wish.goal), SMALL)
    else:
        goal = frames[last if wish.goal is None else min(wish.goal, last)]
    name = goal_name(wish, sampled)
    return {"shown": frames, "goal": goal, "times": sampled.times, "goal_name": name}


def _write_png(wish: Wish, path: Path) -> None:
    curves, shown = _curves(wish), _picture_of(wish)
    figure = draw_curve(
        _one_or_all(curves),
        **shown,
        title=f"How far is {wish.name} from {shown['goal_name']}?",
        sentences=next(iter(curves.values())).sentences(),
    )
    save(figure, path)


def _one_or_all(curves: dict[str, Curve]) -> Curve | dict[str, Curve]:
    """Distances of one encoder are drawn in its own units."""
    return curves if len(curves) > 1 else next(iter(curves.values()))


def _write_film(wish: Wish, path: Path) -> None:
    sampled = sample(wish.source)
    write_video(
        path,
        film_frames(
            sampled.file.frames(sampled.rows.tolist()),
            _one_or_all(_curves(wish)),
            times=sampled.times,
            title=f"{wish.name}: distance to {goal_name(wish, sampled)}",
        ),
        sampled.rate,
    )


def _write_played(wish: Wish, path: Path) -> None:
    """The video itself where browsers can play it, else written anew from the measured frames."""
    if playable(wish.source):
        path.unlink(missing_ok=True)
        os.link(wish.source, path)
        return
    sampled = sample(wish.source)
    frames = sampled.file.frames(sampled.rows.tolist())
    write_video(path, _even(frames), fps=sampled.rate)


def _even(frames: Iterable[Tensor]) -> Iterator[np.ndarray]:
    """Frames ``[H, W, 3]`` of one even size, PLAYED at most."""
    size: tuple[int, int] | None = None
    for frame in frames:
        image = small(frame, PLAYED)
        size = size or (max(image.shape[0] & ~1, 2), max(image.shape[1] & ~1, 2))
        if image.shape[0] < size[0] or image.shape[1] < size[1]:
            image = np.pad(
                image,
                (
                    (0, max(size[0] - image.shape[0], 0)),
                    (0, max(size[1] - image.shape[1], 0)),
                    (0, 0),
                ),
            )
        yield np.ascontiguousarray(image[: size[0], : size[1]])


def playable(source: Path) -> bool:
    """Whether browsers play a video as it is: H.264 in MP4, VP8, VP9 or AV1 in WebM, 8 bits."""
    with opened(source) as (container, stream):
        kind, codec = container.format.name, stream.codec_context
        if codec.pix_fmt not in ("yuv420p", "yuvj420p"):
            return False
        return ("mp4" in kind and codec.name == "h264") or (
            "matroska" in kind and codec.name in ("vp8", "vp9", "av1", "libdav1d")
        )


FILES = {
    "curve.csv": _write_csv,
    "curve.png": _write_png,
    "curve.mp4": _write_film,
    "played.mp4": _write_played,
}
"""What a clip's folder may be asked for, and who writes it."""
