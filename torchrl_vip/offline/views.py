"""Frozen embeddings of shifted frames: random shifts (Kostrikov et al., DrQ, ICLR 2021) for a policy that
never sees a pixel.

Ten demonstrations show ten places of a thing, under one light. A frame that is shifted by a few pixels shows
the hand and the thing as they are to one another, elsewhere; one in other colours, under another light. What
to do does not change.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torchvision.transforms.v2.functional as F
from torch import Tensor
from torchvision.transforms.v2 import ColorJitter
from tqdm import tqdm

from torchrl_vip.data.clip import ArrayRows, Clip
from torchrl_vip.data.reading import read_frames
from torchrl_vip.encoders import FrozenEncoder
from torchrl_vip.functional import random_shift, resize_size
from torchrl_vip.label.job import announced, episodes_of
from torchrl_vip.label.rows import padded
from torchrl_vip.label.store import EmbeddingStore
from torchrl_vip.label.stream import Embedded, End
from torchrl_vip.weights import load_vip, weights_digest

SHIFT = 1 / 14  # of a frame's side, at most, both ways: 16 of 224 pixels
HUE = 0.2  # of colour: a red thing stays a red thing
BATCH = 64


def shifted_views(
    folder: str | Path,
    store: str | Path,
    *,
    encoder: str | None = None,
    views: int = 8,
    colour: float = 0.5,
    camera: str | None = None,
    seed: int = 0,
    show: bool = True,
) -> Tensor:
    """Embeddings of randomly shifted frames of a labelled dataset.

    What was embedded once is read from the store, so that a stopped run goes on.

    Args:
        folder: see :func:`torchrl_vip.offline.read_steps`.
        store: folder of the embeddings.
        encoder: that labelled the dataset; a checkpoint's name or folder, None is the bundled one.
        views: V, shifts of each frame.
        colour: of every second view brightness, contrast and saturation change by a factor in
            [1 - colour, 1 + colour], and the hue by up to a fifth of it, in parts of its circle.
        camera: of a dataset with several.
        seed: of the shifts.
        show: a progress bar.

    Returns:
        float32 ``[R, V, D]`` of the R frames of a LeRobot dataset, or the R steps of a memory-mapped
        tensordict; NaN of what could not be read.

    Raises:
        FileNotFoundError, ValueError: no frames, which camera is not said, or a colour outside [0, 1].
    """
    if not 0 <= colour <= 1:
        raise ValueError(f"colour={colour} is invalid: wanted 0 to 1.")
    clips = episodes_of(Path(folder), camera)
    frozen = FrozenEncoder(load_vip(encoder))
    digest = weights_digest(frozen, frozen.image_size, views, SHIFT, colour, seed)[:12]
    stored = EmbeddingStore(Path(store) / digest)
    for number, clip in enumerate(tqdm(clips, "shifted frames", disable=not show)):
        if not stored.has(clip):
            z = _embed(frozen, clip, views, colour, seed * 2**20 + number)
            stored.write(clip, Embedded(number, z, End()))
    dim = views * frozen.dim
    rows = torch.cat([_rows(stored.read(clip)[0], clip, dim) for clip in clips])
    spans = [clip.span for clip in clips if isinstance(clip.span, ArrayRows)]
    if spans:  # not one after another, as in a ring
        places = torch.cat([torch.from_numpy(span.rows()) for span in spans])
        rows = torch.full((int(places.max()) + 1, dim), torch.nan).index_copy(0, places, rows)
    return rows.unflatten(1, (views, -1))


def _embed(encoder: FrozenEncoder, clip: Clip, views: int, colour: float, seed: int) -> Tensor:
    """``[T, V D]``."""
    if clip.error:
        raise ValueError(clip.error)
    frames = torch.stack(list(read_frames(clip.path, clip.span)))
    frames = F.resize(frames, [resize_size(encoder.image_size)])  # the encoder's own first step
    most = max(1, round(SHIFT * min(frames.shape[-2:])))
    jitter = ColorJitter(colour, colour, colour, HUE * colour)
    random = torch.Generator().manual_seed(seed)

    def see(part: Tensor, view: int) -> Tensor:
        part = random_shift(part, most, random)
        if view % 2 and colour:
            part = torch.stack([jitter(frame) for frame in part])
        return encoder(part, channel_dim=-3).float()

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # which is where ColorJitter draws from
        seen = [[see(part, view) for view in range(views)] for part in frames.split(BATCH)]
    return torch.cat([torch.cat(of_part, 1) for of_part in seen])


def _rows(z: Tensor, clip: Clip, dim: int) -> Tensor:
    """Embeddings of a clip's rows; NaN where frames are missing."""
    z = torch.from_numpy(padded(z.numpy(), announced(clip)))
    return z[: clip.span.steps] if isinstance(clip.span, ArrayRows) else z
