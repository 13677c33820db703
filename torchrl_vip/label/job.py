"""Labelling a dataset: embed what is missing, choose the goals, and make every episode's numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from torchrl_vip.data.clip import ArrayRows, Clip, ImageColumn, Moments
from torchrl_vip.data.sources import find_clips
from torchrl_vip.encoders import FrozenEncoder
from torchrl_vip.label import rows as maths
from torchrl_vip.label.goals import Goals, gather_ends, goal_images, task_of
from torchrl_vip.label.rows import Rows, Summary
from torchrl_vip.label.store import EmbeddingStore
from torchrl_vip.label.stream import Meter, embed_stream
from torchrl_vip.transforms import VIPRewardTransform, VIPTransform
from torchrl_vip.weights import load_vip, weights_digest


@dataclass(frozen=True)
class Settings:
    """What the numbers depend on.

    Attributes:
        source: a dataset, as of :func:`torchrl_vip.data.sources.find_clips`.
        results: folder of the embeddings, tables and pictures.
        goal: ``"last"``, each episode's own last frame; ``"mean-last"``, the mean of its task's successful
            episodes' last frames; or an image, or a folder of images named as the tasks are.
        camera: of a dataset with several; its name, or the end of it.
        encoder: a checkpoint's name or path; None is the bundled default.
        form, scale, gamma, threshold: of :class:`torchrl_vip.VIPRewardTransform`.
        success_threshold: distance of a last frame beyond which an episode is suspected to have failed; None
            is the checkpoint's.
        blur: of :class:`torchrl_vip.FrozenEncoder`.
        dtype: of the network's arithmetic: ``"auto"``, as FrozenEncoder picks it for the device, or the
            name of a torch dtype.
        batch_size: frames of one forward.
        threads: episodes that are decoded at a time.
        device: ``"auto"`` is a GPU where there is one.
    """

    source: Path
    results: Path
    goal: str = "last"
    camera: str | None = None
    encoder: str | None = None
    form: str = "difference"
    scale: float | str = "auto"
    gamma: float = 0.98
    threshold: float | None = None
    success_threshold: float | None = None
    blur: float = 0.0
    dtype: str = "auto"
    batch_size: int = 64
    threads: int = 2
    device: str = "auto"


class Labelled(NamedTuple):
    """An episode with its numbers; ``rows`` is None where it could not be used."""

    clip: Clip
    summary: Summary
    rows: Rows | None


def episodes_of(source: Path, camera: str | None = None) -> list[Clip]:
    """The dataset's episodes, seen by one camera.

    Args:
        camera: its name, or the end of it (``top`` for ``observation.images.top``).

    Raises:
        FileNotFoundError, ValueError: as :func:`find_clips`; or a camera that is not there, or none given
            where there are several. The message lists them.
    """
    clips = find_clips(source)
    cameras = sorted({str(clip.labels["camera"]) for clip in clips if "camera" in clip.labels})
    listed = f"{source} has the cameras {', '.join(cameras)}" if cameras else f"{source} names none"
    if camera is None:
        if len(cameras) > 1:
            raise ValueError(f"{listed}: say which with --camera.")
        return clips
    chosen = [c for c in cameras if c == camera] or [
        c for c in cameras if c.endswith((f".{camera}", f"/{camera}"))
    ]
    if len(chosen) != 1:
        raise ValueError(f"--camera {camera}: {listed}.")
    return [clip for clip in clips if clip.labels.get("camera", chosen[0]) == chosen[0]]


def make_encoder(settings: Settings) -> FrozenEncoder:
    """The encoder that the settings name, on the CPU."""
    dtype = None if settings.dtype == "auto" else getattr(torch, settings.dtype)
    return FrozenEncoder(load_vip(settings.encoder), blur=settings.blur, dtype=dtype)


class Labeller:
    """The episodes of a dataset, the encoder, and what is known of them so far.

    Raises:
        FileNotFoundError, ValueError: as :func:`episodes_of`; a goal that cannot be read.
        CheckpointError: as :func:`torchrl_vip.load_vip`.
    """

    def __init__(self, settings: Settings, encoder: FrozenEncoder | None = None):
        self.settings = settings
        self.clips = episodes_of(settings.source, settings.camera)
        self.encoder = encoder or make_encoder(settings)
        self.vip = VIPTransform(self.encoder)
        self.reward = VIPRewardTransform(
            encoder=self.vip,
            form=settings.form,
            scale=settings.scale,
            gamma=settings.gamma,
            threshold=settings.threshold,
        )
        self._check_reward()
        encoder = self.encoder
        digest = weights_digest(encoder, encoder.image_size, settings.dtype, encoder.blur)[:12]
        self.store = EmbeddingStore(settings.results / "embeddings" / digest)
        self.images = self._embed_images()
        device = settings.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        encoder.to(device)

    def _check_reward(self) -> None:
        """Now, not after hours: a scale or threshold that the checkpoint lacks raises ValueError."""
        z = torch.zeros(1, self.vip.dim)
        self.reward.reward_between(z, z, z[0])

    @property
    def config(self) -> dict:
        """The checkpoint's own config."""
        return self.encoder.config

    @property
    def threshold(self) -> float | None:
        """Distance of a last frame beyond which an episode is suspected to have failed."""
        given = self.settings.success_threshold
        return self.config.get("success_threshold") if given is None else given

    @cached_property
    def tasks(self) -> list[str]:
        """The tasks, sorted."""
        return sorted({task_of(clip) for clip in self.clips})

    def _embed_images(self) -> dict[str, Tensor] | None:
        """Task -> mean embedding ``[D]`` of its goal images; None where the goals are last frames."""
        if self.settings.goal in ("last", "mean-last"):
            return None
        known: dict[tuple[Path, ...], Tensor] = {}
        named = goal_images(Path(self.settings.goal), self.tasks)
        for paths in map(tuple, named.values()):
            if paths not in known:
                goal = VIPRewardTransform(list(map(str, paths)), encoder=self.vip).goal
                assert goal is not None  # it was given one
                known[paths] = goal
        return {task: known[tuple(paths)] for task, paths in named.items()}

    # -- embeddings --------------------------------------------------------------------------------

    def missing(self, numbers: Sequence[int] | None = None) -> list[int]:
        """Numbers of the clips, among these or all, that have no embeddings yet."""
        numbers = range(len(self.clips)) if numbers is None else numbers
        return [n for n in numbers if not self.store.has(self.clips[n])]

    def is_done(self, number: int) -> bool:
        """Whether an episode was embedded, or found to be unreadable."""
        clip = self.clips[number]
        return self.store.has(clip) or self.store.error(clip) is not None

    def embed(self, numbers: Sequence[int] | None = None, *, show: bool = True) -> Meter:
        """Embed what is missing, and keep each episode as soon as it is whole.

        Raises:
            OSError: no room. What was written before stays.
        """
        settings, meter = self.settings, Meter()
        todo = [self.clips[n] for n in self.missing(numbers)]
        stream = embed_stream(
            todo,
            lambda frames: self.encoder(frames, channel_dim=-3),
            batch_size=settings.batch_size,
            threads=settings.threads,
            meter=meter,
        )
        with tqdm(total=len(todo), unit="episode", disable=not (show and todo)) as bar:
            for embedded in stream:
                self.store.write(todo[embedded.number], embedded)
                rate = meter.frames / max(meter.encoding + meter.waiting, 1e-9)
                bar.set_postfix_str(f"{meter.frames:,} frames, {rate:.0f}/s", refresh=False)
                bar.update()
        return meter

    # -- numbers -----------------------------------------------------------------------------------

    def goals(self) -> Goals:
        """The goals of all tasks, from the embeddings that are there."""

        def read_end(clip: Clip) -> Tensor | None:
            return self.store.read(clip, last_only=True)[0][0] if self.store.has(clip) else None

        ends = gather_ends(self.clips, read_end)
        if self.images is not None:
            return Goals("images", self.images, ends.ends, ends.owners)
        return Goals(self.settings.goal, ends.shared, ends.ends, ends.owners)

    def labelled(self, goals: Goals) -> Iterator[Labelled]:
        """Every episode's numbers, in order."""
        for number in range(len(self.clips)):
            yield self.label(number, goals)

    def label(self, number: int, goals: Goals) -> Labelled:
        """An episode's numbers.

        Raises:
            ValueError: its embeddings are damaged, see :meth:`EmbeddingStore.read`.
        """
        clip = self.clips[number]
        task = task_of(clip)
        summary = Summary(
            episode=clip.name,
            index=index_of(clip, number),
            task=task,
            frames=announced(clip),
        )
        if not self.store.has(clip):
            summary.error = self.store.error(clip) or "not embedded yet"
            return Labelled(clip, summary, None)
        z, summary.note = self.store.read(clip)
        goal = goals.of(task, z)
        distance = maths.curve(z, goal)
        usual = self.config.get("typical_distance")
        rows = Rows(
            distance=distance,
            progress=maths.progress(distance, usual),
            reward=self.reward.reward_between(z, maths.following(z), goal).numpy(),
            z=z.numpy(),
        )
        self._summarise(summary, number, z, rows, goals)
        return Labelled(clip, summary, rows)

    def _summarise(
        self, summary: Summary, number: int, z: Tensor, rows: Rows, goals: Goals
    ) -> None:
        """Fill in what an episode's curves say."""
        task = summary.task
        summary.read, summary.frames = len(z), max(summary.frames, len(z))
        summary.total = float(rows.reward.sum(dtype="float64"))
        summary.bumps = maths.orders(rows.distance)["bumps"]
        summary.voc_own = maths.orders(maths.curve(z, z[-1]))["voc"]
        summary.voc_shared = maths.orders(maths.curve(z, goals.shared[task]))["voc"]
        summary.first_distance = float(rows.distance[0])
        summary.final_progress = float(rows.progress[-1])
        ends = goals.to_the_end(task, number, z[[0, -1]])
        if ends is not None:
            first, last = ends.tolist()
            summary.end_distance = last
            summary.end_progress = 1 - last / max(first, 1e-12)
            summary.suspected_failure = None if self.threshold is None else last > self.threshold
        if math.isnan(summary.final_progress):
            begins = (
                f"begins at its goal (distance {rows.distance[0]:.2g}): no progress can be told"
            )
            summary.note = "; ".join(filter(None, [summary.note, begins]))


def index_of(clip: Clip, number: int) -> int:
    """The dataset's own number of an episode, or its place in the dataset."""
    with suppress(TypeError, ValueError):
        return int(clip.labels["episode"]) if "episode" in clip.labels else number
    return number


def announced(clip: Clip) -> int:
    """Number of frames that the dataset announces; 0 where it does not."""
    if isinstance(clip.span, tuple):
        return clip.span[1] - clip.span[0]
    return clip.span.count if isinstance(clip.span, Moments | ImageColumn | ArrayRows) else 0
