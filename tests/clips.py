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


def film(path: Path, greys: list[int], fps: int = 10, side: int = 32, **options) -> Path:
    """A video whose frames are of these greys, in the container of the path's ending.

    ``options``: ``codec``, ``pix_fmt`` and attributes of PyAV's stream, such as ``gop_size``.
    """
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    codec, pix_fmt = options.pop("codec", "libx264"), options.pop("pix_fmt", "yuv420p")
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=fps, options=options.pop("codec_options", {}))
        stream.width = stream.height = side
        stream.pix_fmt = pix_fmt
        for name, value in options.items():
            setattr(stream, name, value)
        for grey in greys:
            frame = torch.full((side, side, 3), grey, dtype=torch.uint8).numpy()
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
    return path


def near(frames: torch.Tensor) -> list[int]:
    """The grey of each frame, to the nearest five: codecs are lossy."""
    return [5 * round(float(frame.float().mean()) / 5) for frame in frames]
