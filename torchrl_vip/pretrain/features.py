"""Under a frozen backbone every frame is embedded once, and a training step costs the head alone."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tensordict import MemoryMappedTensor, TensorDict
from torch import Tensor
from torchrl.data import TensorStorage
from tqdm import tqdm

from torchrl_vip.data.sampler import augment, generator_at
from torchrl_vip.data.video import FrameTable, fingerprint
from torchrl_vip.encoders import FrozenEncoder, VIPEncoder
from torchrl_vip.weights import weights_digest

CHUNK = 512
"""Frames embedded at a time: an hour of video does not fit into memory."""


def embed_once(
    table: FrameTable,
    encoder: VIPEncoder,
    cache: Path,
    *,
    views: int,
    stride: int = 1,
    crop_scale: tuple[float, float] = (1.0, 1.0),
    flip: float = 0.0,
    colour: float = 0.0,
    dtype: torch.dtype = torch.float32,
    progress: bool = True,
) -> FrameTable:
    """The backbone's features of every ``stride``-th frame, in a memory-map under ``cache``.

    Clip i is rows ``start[i]`` to ``start[i] + length[i]`` of each of ``views`` copies of the data,
    which lie one after another: the first shows the frames as they are, in the others each clip has a
    crop, mirror image and colours of its own, the same whatever the seed, so that runs with other
    seeds share the file. An interrupted build goes on where it stopped.

    Args:
        crop_scale, flip, colour: of :func:`torchrl_vip.data.sampler.augment`.
        dtype: of the network's arithmetic.

    Returns:
        A table whose rows are TensorDicts with "features" float16 ``[F]``.
    """
    span = table.length - 1
    step = span.clamp(max=stride)
    length = span // step + 1
    network = FrozenEncoder(
        VIPEncoder(encoder.backbone, image_size=encoder.image_size), dtype=dtype
    )
    # What the features depend on, beside the frames and the weights.
    options = [views, stride, list(crop_scale), flip, colour]
    path = cache / f"features_{_fingerprint(table, network, options)}.f16"

    def embed_clip(job: int) -> Iterator[bytes]:
        view, i = divmod(job, len(table.clips))
        for frames in table.clip_frames(i)[:: int(step[i])].split(CHUNK):
            if view:
                frames = augment(
                    frames[None],
                    generator_at(0, i, stream=2 + view),  # each part of a clip alike
                    scale=(crop_scale[0], crop_scale[1]),
                    flip=flip,
                    colour=colour,
                )[0]
            yield network(frames).half().numpy().tobytes()

    rows = views * int(length.sum())
    _write_missing(path, embed_clip, length.repeat(views) * network.dim * 2, progress)
    features = MemoryMappedTensor.from_filename(str(path), torch.float16, (rows, network.dim))
    return FrameTable(
        storage=TensorStorage(TensorDict({"features": features}, batch_size=[rows])),
        clips=table.clips,
        start=length.cumsum(0) - length,
        length=length,
        skipped=table.skipped,
    )


def _write_missing(
    path: Path, embed_clip: Callable[[int], Iterator[bytes]], sizes: Tensor, progress: bool
) -> None:
    """Append what a file lacks of clips of ``sizes`` bytes; one process embeds, others find it done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "w") as lock, open(path, "ab") as out:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Clips are appended whole: what lies beyond the last whole one was cut short.
        ends = sizes.cumsum(0)
        done = int(torch.searchsorted(ends, out.seek(0, 2), right=True))
        out.truncate(int(ends[done - 1]) if done else 0)
        todo = range(done, len(ends))
        for job in tqdm(todo, desc="embedding", unit="clip", disable=not (progress and todo)):
            out.writelines(embed_clip(job))
            out.flush()


def _fingerprint(table: FrameTable, network: FrozenEncoder, options: list) -> str:
    """Of all that the features depend on: frames, weights, precision and augmentation."""
    clips = [fingerprint(clip) for clip in table.clips]
    # A backbone that sees finer cells has the same weights, and more features.
    size = (network.image_size, network.dim)
    depends = (clips, table.length.tolist(), options, size, network.dtype)
    return weights_digest(network, depends)[:16]
