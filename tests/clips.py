"""Clips whose frames tell their number."""

from pathlib import Path

import torch
from torchvision.io import write_png


def ramp(frames: int, first: int = 0, height: int = 48, width: int = 64) -> torch.Tensor:
    """uint8 [T, H, W, 3]: frame t is grey of value first + 10 t."""
    grey = first + 10 * torch.arange(frames, dtype=torch.uint8)
    return grey.view(-1, 1, 1, 1).expand(frames, height, width, 3).contiguous()


def write_folder(folder: Path, frames: int, first: int = 0) -> Path:
    folder.mkdir(parents=True)
    for t, frame in enumerate(ramp(frames, first)):
        write_png(frame.permute(2, 0, 1).contiguous(), str(folder / f"{t}.png"))
    return folder


def greys(frames: torch.Tensor) -> list[int]:
    """The value of each frame; they are all of one colour."""
    assert all(frame.unique().numel() == 1 for frame in frames)
    return frames[:, 0, 0, 0].tolist()
