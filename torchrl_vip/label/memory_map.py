"""Labelled copies of saved replay buffers and of TensorDicts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from torchrl_vip.data.clip import ArrayRows
from torchrl_vip.data.memory_map import MemoryMap, open_memory_map
from torchrl_vip.files import NewFolder
from torchrl_vip.label.job import Labelled
from torchrl_vip.label.rows import Summary
from torchrl_vip.label.steps import Episodes, check_copy, step_rewards, step_vectors

Key = tuple[str, ...]

REWARD: Key = ("next", "reward")
NOW: Key = ("vip_vec",)
AFTER: Key = ("next", "vip_vec")


def write_tensordict(
    source: Path,
    out: Path,
    labelled: Iterable[Labelled],
    *,
    embeddings: str | None = "float32",
    progress: bool = True,
) -> list[Summary]:
    """A copy of a saved replay buffer or TensorDict with rewards and embeddings.

    It has ("next", "reward") float32 ``[*B, 1]`` in place of an earlier one, "vip_vec" and ("next",
    "vip_vec") ``[*B, D]``; ``rb.loads`` and ``TensorDict.load_memmap`` read it. Samples that the buffer had
    drawn ahead are left out: they have the old rewards.

    Args:
        source: folder of ``rb.dumps`` or ``td.memmap``.
        out: the new folder.
        labelled: every episode of one camera.
        embeddings: their dtype, ``"float16"`` or ``"float32"``; None: no embeddings.
        progress: show a bar.

    Returns:
        The summary of every episode; those with an error have NaN.

    Raises:
        FileExistsError: there is something at ``out``.
        OSError: no room.
        ValueError: the source cannot be read; ``out`` lies in it.
    """
    data, episodes = open_memory_map(source), Episodes(labelled, progress)
    columns = {REWARD: (1, "float32")}
    if embeddings and episodes.dim:
        columns |= dict.fromkeys((NOW, AFTER), (episodes.dim, embeddings))
    row = sum(size * np.dtype(dtype).itemsize for size, dtype in columns.values())
    check_copy(source, out, int(np.prod(data.batch)) * row)
    with NewFolder(out) as new:
        ahead = shutil.ignore_patterns("prefetch.pkl")
        shutil.copytree(source, new.part, ignore=ahead, dirs_exist_ok=True)
        folder = new.part / data.folder.relative_to(source)
        for key, (size, dtype) in columns.items():
            _add_tensor(folder, key, (*data.batch, size), dtype)
        for one in episodes:
            _write_steps(folder, data, one, columns)
    return episodes.summaries


def _add_tensor(folder: Path, key: Key, shape: tuple[int, ...], dtype: str) -> None:
    """Add zeros, which take no room yet, to a folder of memory-mapped tensors."""
    inside = folder.joinpath(*key[:-1])
    if not (inside / "meta.json").is_file():  # a TensorDict without "next"
        inside.mkdir(exist_ok=True)
        top = json.loads((folder / "meta.json").read_text())
        empty = {name: top[name] for name in ("shape", "device", "_type") if name in top}
        (inside / "meta.json").write_text(json.dumps(empty))
        (folder / "meta.json").write_text(json.dumps({key[0]: {"type": "TensorDict"}} | top))
    meta = json.loads((inside / "meta.json").read_text())
    meta[key[-1]] = {"device": "cpu", "shape": shape, "dtype": f"torch.{dtype}", "is_nested": False}
    (inside / "meta.json").write_text(json.dumps(meta))
    with open(inside / f"{key[-1]}.memmap", "wb") as file:
        file.truncate(int(np.prod(shape)) * np.dtype(dtype).itemsize)


def _write_steps(
    folder: Path, data: MemoryMap, one: Labelled, columns: dict[Key, tuple[int, str]]
) -> None:
    span = one.clip.span
    if not isinstance(span, ArrayRows):
        raise ValueError(f"{one.clip.name} is no episode of {data.source}.")
    values = {REWARD: step_rewards(one, span.steps)[:, None]}
    if NOW in columns:
        values[NOW], values[AFTER] = step_vectors(one, *columns[NOW])
    for key, column in values.items():
        size, dtype = columns[key]
        path = folder.joinpath(*key[:-1], f"{key[-1]}.memmap")
        # Mapped for this episode alone: what is mapped counts as memory.
        file = np.memmap(path, dtype, "r+", shape=(int(np.prod(data.batch)), size))
        file[span.rows()] = column
