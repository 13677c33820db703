"""Distance and reward along a video, as numbers, words and pictures: ``python -m torchrl_vip.curves``."""

from torchrl_vip.curves.curve import (
    Curve,
    RawPixels,
    Thumbnails,
    code_to_reproduce,
    measure,
    open_encoder,
)
from torchrl_vip.curves.figures import draw_curve

__all__ = [
    "Curve",
    "RawPixels",
    "Thumbnails",
    "code_to_reproduce",
    "draw_curve",
    "measure",
    "open_encoder",
]
