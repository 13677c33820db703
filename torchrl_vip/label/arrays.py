"""Labelled copies of datasets in arrays: saved replay buffers, TensorDicts, HDF5 files, Minari datasets.

A reward is of the step from frame t to t + 1: T steps take the first T of an episode's rewards. What could
not be read has NaN. The original is not touched; the copy appears whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torchrl_vip.data.clip import ArrayRows, Clip
from torchrl_vip.label.hdf5 import write_hdf5
from torchrl_vip.label.memory_map import write_tensordict
from torchrl_vip.label.rows import Summary

__all__ = ["write_hdf5", "write_tensordict", "writer_of"]


def writer_of(clips: Sequence[Clip]) -> Callable[..., list[Summary]] | None:
    """What writes a labelled copy of the dataset that has these clips; None where it is not in arrays."""
    arrays = [clip for clip in clips if isinstance(clip.span, ArrayRows)]
    if not arrays:
        return None
    return write_tensordict if arrays[0].path.is_dir() else write_hdf5
