"""Clips as rows of a TorchRL storage that decodes what is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Storage, set_video_decoder_cache_size
from tqdm import tqdm

from torchrl_vip.data.clip import Clip
from torchrl_vip.data.frame_table import FrameTable, readable
from torchrl_vip.data.reading import check_two, frames_at, measure, to_square


class LazyVideoStorage(Storage):
    """Rows that are decoded when they are read, for sets larger than the disk.

    A frame of a video costs decoding from the key frame before it: slow where key frames are rare.

    Args:
        clips: video files and folders of frames.
        start, length: int64 ``[len(clips)]``, first row and number of rows of each.
        size: side of the frames, in pixels.
    """

    def __init__(self, clips: Sequence[Clip], start: Tensor, length: Tensor, size: int):
        super().__init__(max_size=int(length.sum()))
        self.clips, self.start, self.length, self.size = list(clips), start, length, size

    def get(self, index: Tensor | int | slice | Sequence[int]) -> TensorDict:
        """TensorDict ``[N]`` with "pixels" uint8 ``[N, 3, S, S]``."""
        if isinstance(index, slice):
            index = range(len(self))[index]
        rows = torch.as_tensor(index)
        flat = rows.reshape(-1)
        owner = torch.searchsorted(self.start, flat, right=True) - 1
        pixels = torch.empty(len(flat), 3, self.size, self.size, dtype=torch.uint8)
        for i in owner.unique().tolist():
            mine = (owner == i).nonzero()[:, 0]
            clip = self.clips[i]
            try:
                frames = frames_at(clip.path, flat[mine] - self.start[i], clip.span)
            except ValueError as error:
                raise ValueError(
                    f"{error}; it could be when the run began. Repair the clip {clip.name} or take it "
                    "out, then go on."
                ) from error
            pixels[mine] = torch.stack([to_square(f, self.size) for f in frames])
        return TensorDict({"pixels": pixels.reshape(*rows.shape, *pixels.shape[1:])}, rows.shape)

    def set(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError("LazyVideoStorage reads files and cannot be written.")

    def __len__(self) -> int:
        return int(self.length.sum())

    def contains(self, item: Tensor | int) -> Tensor:
        return (torch.as_tensor(item) >= 0) & (torch.as_tensor(item) < len(self))

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state_dict: dict) -> None: ...

    def dumps(self, path: Any) -> None: ...

    def loads(self, path: Any) -> None: ...

    def _empty(self) -> None: ...


def decode_lazily(
    clips: Sequence[Clip], size: int, *, workers: int = 2, progress: bool = True
) -> FrameTable:
    """Clips behind a :class:`LazyVideoStorage`; only their numbers of frames are read now.

    Raises:
        NoReadableClipError: what its name says.
    """
    set_video_decoder_cache_size(64)  # open decoders, of TorchRL's default 8
    with ThreadPoolExecutor(workers) as pool:
        opened = tqdm(
            pool.map(_try_open, clips),
            total=len(clips),
            desc="opening",
            unit="clip",
            disable=not progress,
        )
        counts, errors, notes = zip(*opened, strict=True) if clips else ((), (), ())
    good, skipped, noted = readable(clips, errors, notes)
    length = torch.tensor([counts[i] for i in good])
    start = length.cumsum(0) - length
    kept = [clips[i] for i in good]
    storage = LazyVideoStorage(kept, start, length, size)
    return FrameTable(storage, kept, start, length, skipped, noted)


def _try_open(clip: Clip) -> tuple[int, str | None, str]:
    """Number of frames of a clip whose first and last frame can be read, or why not; and a note."""
    if clip.error:
        return 0, clip.error, ""
    try:
        count, note = measure(clip.path, clip.span)
        check_two(clip, count)
        frames_at(clip.path, torch.tensor([0, count - 1]), clip.span)
        return count, None, note
    except ValueError as error:
        return 0, str(error), ""
    except (RuntimeError, OSError) as error:
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        return 0, f"{clip.path}: not readable ({reason})", ""
