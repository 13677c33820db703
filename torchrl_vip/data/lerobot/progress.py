"""The sidecar of progress that LeRobot's reward-aligned behaviour cloning (RA-BC) reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_vip.data.lerobot.schema import arrow_column, as_column, need_pyarrow
from torchrl_vip.files import write_whole

NAME = "vip_progress.parquet"
WHERE = ("index", "episode_index", "frame_index")
SHARES = ("progress_sparse", "progress_dense")


def write_progress(
    root: str | Path, columns: Mapping[str, Any], *, encoder: str, name: str = NAME
) -> Path:
    """Write ``<root>/vip_progress.parquet``, a row a frame, whole or not at all.

    LeRobot reads it by ``--rabc_progress_path``; the rest of the dataset is not touched.

    Args:
        root: folder of the dataset.
        columns: name -> ``[N]``, or ``[N, D]``. "index", "episode_index" and "frame_index" are whole numbers,
            as :func:`~torchrl_vip.data.lerobot.columns.episode_rows` gives them; "progress_sparse", and
            "progress_dense" where it is given, are in [0, 1], or NaN for a frame that was not read. Others
            follow them.
        encoder: its name or path; "reward_model_path" in the file's metadata.

    Returns:
        The file's path. Its rows are in the order of "index".

    Raises:
        ValueError: a column is missing, has another length or wrong values, or an index is there twice.
    """
    pa = need_pyarrow()
    arrays = {key: as_column(key, values) for key, values in columns.items()}
    if lost := [key for key in (*WHERE, SHARES[0]) if key not in arrays]:
        raise ValueError(f"no column {', '.join(lost)}: wanted {', '.join((*WHERE, SHARES[0]))}.")
    lengths = {key: len(values) for key, values in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns of several lengths, {lengths}: wanted a row a frame.")
    ordered = {key: _whole_numbers(key, arrays.pop(key)) for key in WHERE}
    ordered |= {key: _shares(key, arrays.pop(key)) for key in SHARES if key in arrays}
    order = np.argsort(ordered["index"], kind="stable")
    twice = np.flatnonzero(np.diff(ordered["index"][order]) == 0)
    if len(twice):
        raise ValueError(
            f"index {ordered['index'][order][twice[0]]} is there twice: wanted a row a frame."
        )
    table = pa.table({k: arrow_column(v[order]) for k, v in (ordered | arrays).items()})
    table = table.replace_schema_metadata({b"reward_model_path": encoder.encode()})
    return write_whole(Path(root) / name, lambda part: pa.parquet.write_table(table, part))


def _whole_numbers(name: str, values: np.ndarray) -> np.ndarray:
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ValueError(f"column {name} is {values.dtype} {list(values.shape)}: wanted int64 [N].")
    return values.astype(np.int64)


def _shares(name: str, values: np.ndarray) -> np.ndarray:
    if values.ndim != 1 or values.dtype.kind != "f":
        raise ValueError(
            f"column {name} is {values.dtype} {list(values.shape)}: wanted float32 [N]."
        )
    outside = (values < 0) | (values > 1)
    if outside.any():
        row = np.flatnonzero(outside)[0]
        raise ValueError(f"column {name} has {values[row]} in row {row}: wanted [0, 1] or NaN.")
    return values.astype(np.float32)
