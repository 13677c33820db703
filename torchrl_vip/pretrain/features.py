"""Under a frozen backbone every frame is embedded once, and a training step costs the head alone."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any

import torch
from tensordict import MemoryMappedTensor, TensorDict
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
    config: dict[str, Any],
    cache: Path,
    dtype: torch.dtype,
    *,
    progress: bool = True,
) -> FrameTable:
    """The backbone's features of every ``config["stride"]``-th frame, in a memory-map under ``cache``.

    Clip i is rows ``start[i]`` to ``start[i] + length[i]`` of each of ``config["views"]`` copies of
    the data, which lie one after another: the first shows the frames as they are, in the others each
    clip has a crop, mirror image and colours of its own, the same whatever the seed, so that runs with
    other seeds share the file. An interrupted build goes on where it stopped.

    Returns:
        A table whose rows are TensorDicts with "features" float16 ``[F]``.
    """
    views, span = config["views"], table.length - 1
    step = span.clamp(max=config["stride"])
    length = span // step + 1
    network = FrozenEncoder(
        VIPEncoder(encoder.backbone, image_size=encoder.image_size), dtype=dtype
    )
    size, total = network.dim, int(length.sum())
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"features_{_fingerprint(table, network, config)}.f16"
    with open(path.with_suffix(".lock"), "w") as lock, open(path, "ab") as out:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one process embeds, others wait and find it done
        # Clips are appended whole: what lies beyond the last whole one was cut short.
        ends = length.repeat(views).cumsum(0) * size * 2
        done = int(torch.searchsorted(ends, out.seek(0, 2), right=True))
        out.truncate(int(ends[done - 1]) if done else 0)
        todo = range(done, len(ends))
        for job in tqdm(todo, desc="embedding", unit="clip", disable=not (progress and todo)):
            view, i = divmod(job, len(table.clips))
            for frames in table.clip_frames(i)[:: int(step[i])].split(CHUNK):
                if view:
                    frames = augment(
                        frames[None],
                        generator_at(0, i, stream=2 + view),  # each part of a clip alike
                        scale=tuple(config["crop_scale"]),
                        flip=config["flip"],
                        colour=config["colour"],
                    )[0]
                out.write(network(frames).half().numpy().tobytes())
            out.flush()
    rows = views * total
    features = MemoryMappedTensor.from_filename(str(path), torch.float16, (rows, size))
    return FrameTable(
        storage=TensorStorage(TensorDict({"features": features}, batch_size=[rows])),
        clips=table.clips,
        start=length.cumsum(0) - length,
        length=length,
        skipped=table.skipped,
    )


def _fingerprint(table: FrameTable, network: FrozenEncoder, config: dict[str, Any]) -> str:
    """Of all that the features depend on: frames, weights, precision and augmentation."""
    clips = [fingerprint(clip) for clip in table.clips]
    options = [config[k] for k in ("views", "stride", "crop_scale", "flip", "colour")]
    depends = (clips, table.length.tolist(), options, network.image_size, network.dtype)
    return weights_digest(network, depends)[:16]
