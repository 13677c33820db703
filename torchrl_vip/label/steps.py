"""What the steps of a labelled episode get in a copy of its dataset, and the room that the copy takes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from torchrl_vip.data.clip import ArrayRows
from torchrl_vip.files import check_space
from torchrl_vip.label.job import Labelled
from torchrl_vip.label.rows import Summary, padded


def step_rewards(one: Labelled, steps: int) -> np.ndarray:
    """Rewards float32 ``[steps]`` of an episode; NaN for what could not be read."""
    if one.rows is None:
        return np.full(steps, np.nan, np.float32)
    return padded(one.rows.reward[:steps], steps)


def step_vectors(one: Labelled, dim: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings before and after each row of an episode's pictures, ``[steps, dim]`` each.

    Where the frame after the last row is not known, the last frame is taken to stay.
    """
    span = one.clip.span
    assert isinstance(span, ArrayRows)
    if one.rows is None or one.rows.z is None:
        z = np.full((span.count, dim), np.nan, dtype)
    else:
        z = padded(one.rows.z.astype(dtype), span.count)
    return z[: span.steps], np.concatenate([z[1:], z[-1:]])[: span.steps]


class Episodes:
    """Labelled episodes as they come.

    Attributes:
        dim: of the embeddings, seen in the first episode that has them; 0 without any.
        summaries: of the episodes that have been iterated over.
    """

    def __init__(self, labelled: Iterable[Labelled], progress: bool = True):
        self.rest = iter(tqdm(labelled, desc="writing", unit="episode", disable=not progress))
        self.begun: list[Labelled] = []
        self.summaries: list[Summary] = []
        self.dim = 0
        for one in self.rest:
            self.begun.append(one)
            if one.rows is not None and one.rows.z is not None:
                self.dim = one.rows.z.shape[1]
                break

    def __iter__(self) -> Iterator[Labelled]:
        for one in itertools.chain(self.begun, self.rest):
            self.summaries.append(one.summary)
            yield one


def check_copy(source: Path, out: Path, more: int = 0) -> None:
    """Whether a copy of a file or folder can be written to ``out``; makes the folder that it will lie in.

    Args:
        more: bytes that are added to it.

    Raises:
        ValueError: ``out`` lies in the source.
        OSError: there is no room.
    """
    if out.resolve().is_relative_to(source.resolve()):
        raise ValueError(
            f"{out} lies in {source}, of which it would be a copy: give another place."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    files = source.rglob("*") if source.is_dir() else [source]
    needed = sum(file.stat().st_size for file in files if file.is_file()) + more
    check_space(out.parent, needed)
