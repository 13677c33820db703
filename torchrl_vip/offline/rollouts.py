"""Playing a learned policy: is the task solved, and does it stay so?"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

HOLD = 10  # steps that a state stays solved before a roll-out ends well: 0.4 s at 25 Hz
UNSEEN = 2**40  # and following: seeds of starts that no demonstration had


class RollOut(NamedTuple):
    """One roll-out.

    Attributes:
        solved: whether it ended solved.
        steps: its length.
        frames: uint8 ``[T + 1, H, W, 3]``; None where they were not asked for.
    """

    solved: bool
    steps: int
    frames: np.ndarray | None


@torch.no_grad()
@set_exploration_type(ExplorationType.DETERMINISTIC)
def roll_out(
    env: EnvBase,
    actor: TensorDictModule,
    seed: int,
    *,
    steps: int = 100,
    hold: int = HOLD,
    keep_frames: bool = False,
    before_step: Callable[[int], None] | None = None,
) -> RollOut:
    """Play one episode without noise. It ends after ``steps``, or when it was solved for ``hold`` steps.

    Args:
        env: writes what the actor reads, and "success"; its own episodes are no shorter than ``steps``.
        seed: of the start; :data:`UNSEEN` and following are no demonstration's.
        keep_frames: of "pixels".
        before_step: called with the step's number before it is taken, after the actor has chosen.
    """
    env.set_seed(seed)
    td = env.reset()
    frames = [_pixels(td)] if keep_frames else []
    in_a_row, solved, t = 0, False, 0
    for t in range(1, steps + 1):
        td = actor(td)
        if before_step is not None:
            before_step(t)
        td = env.step(td)["next"]
        if keep_frames:
            frames.append(_pixels(td))
        solved = bool(td["success"].all())
        in_a_row = in_a_row + 1 if solved else 0
        if in_a_row == hold:
            break
    return RollOut(solved, t, np.stack(frames) if keep_frames else None)


def _pixels(td: TensorDictBase) -> np.ndarray:
    pixels = td["pixels"]
    cameras = [pixels] if isinstance(pixels, torch.Tensor) else list(pixels.values())
    return torch.cat(cameras, -2).numpy().copy()
