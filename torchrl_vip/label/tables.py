"""The tables of a labelled dataset: ``rewards.parquet``, ``episodes.csv``, and a CSV a clip."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_vip.data.lerobot.schema import need_pyarrow
from torchrl_vip.files import write_whole
from torchrl_vip.label.job import Labelled
from torchrl_vip.label.rows import Summary, padded

COLUMNS = ("distance", "progress", "progress_clipped", "reward")
"""Numbers of a frame, float32."""
GROUP = 100_000
"""Rows that are written at a time."""


def columns_of(labelled: Labelled) -> dict[str, np.ndarray]:
    """The numbers of an episode, float32 ``[T]``: NaN for what could not be read."""
    frames = labelled.summary.frames
    if labelled.rows is None:
        return {name: np.full(frames, np.nan, np.float32) for name in COLUMNS}
    return {name: padded(getattr(labelled.rows, name), frames) for name in COLUMNS}


def embeddings_of(labelled: Labelled, dim: int, dtype: str) -> np.ndarray:
    """The embeddings of an episode ``[T, D]``: NaN for what could not be read."""
    frames = labelled.summary.frames
    if labelled.rows is None or labelled.rows.z is None:
        return np.full((frames, dim), np.nan, dtype)
    return padded(labelled.rows.z.astype(dtype), frames)


def write_tables(
    labelled: Iterable[Labelled],
    folder: Path,
    metadata: dict[str, str],
    *,
    dim: int,
    embeddings: str | None = None,
    per_clip: bool = False,
) -> list[Summary]:
    """Write ``rewards.parquet`` and ``episodes.csv``; with ``per_clip`` also ``csv/<clip>.csv``.

    Args:
        metadata: of the parquet file's schema: what the numbers were made with.
        dim: D, of the embeddings.
        embeddings: ``"float16"`` or ``"float32"`` adds the column "vip_vec", lists of D numbers.

    Returns:
        The summary of every episode.
    """
    pa = need_pyarrow()
    fields = [("episode", pa.string()), ("episode_index", pa.int64()), ("frame_index", pa.int64())]
    fields += [(name, pa.float32()) for name in COLUMNS]
    if embeddings:
        fields.append(("vip_vec", pa.list_(pa.type_for_alias(embeddings), dim)))
    schema = pa.schema(fields, metadata=metadata)
    summaries: list[Summary] = []

    def tables() -> Iterator[Any]:
        for one in labelled:
            summaries.append(one.summary)
            columns = columns_of(one)
            if per_clip and one.rows is not None:
                _write_csv(folder / "csv" / f"{safe_name(one.summary.episode)}.csv", columns)
            frames = one.summary.frames
            rows: dict[str, Any] = {
                "episode": [one.summary.episode] * frames,
                "episode_index": np.full(frames, one.summary.index),
                "frame_index": np.arange(frames),
                **columns,
            }
            if embeddings:
                flat = embeddings_of(one, dim, embeddings).reshape(-1)
                rows["vip_vec"] = pa.FixedSizeListArray.from_arrays(pa.array(flat), dim)
            yield pa.table(rows, schema=schema)

    write_whole(folder / "rewards.parquet", lambda part: _write_groups(part, schema, tables()))
    names = list(summaries[0].row()) if summaries else []
    table = [summary.row() for summary in summaries]
    write_whole(folder / "episodes.csv", lambda part: _write_rows(part, names, table))
    return summaries


def _write_groups(path: Path, schema: Any, tables: Iterable[Any]) -> None:
    """Tables into a file, in row groups of about :data:`GROUP` rows."""
    pa = need_pyarrow()
    with pa.parquet.ParquetWriter(path, schema) as writer:
        held: list[Any] = []
        for table in tables:
            held.append(table)
            if sum(map(len, held)) >= GROUP:
                writer.write_table(pa.concat_tables(held))
                held = []
        if held:
            writer.write_table(pa.concat_tables(held))


def _write_csv(path: Path, columns: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ["frame_index", *columns]
    values = zip(*columns.values(), strict=True)
    rows = [dict(zip(names, [i, *row], strict=True)) for i, row in enumerate(values)]
    write_whole(path, lambda part: _write_rows(part, names, rows))


def _write_rows(path: Path, names: list[str], rows: list[dict[str, Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def safe_name(episode: str) -> str:
    """A file name of an episode's name: ``task/clip.mp4`` to ``task_clip.mp4``."""
    return re.sub(r"[^\w.\-]+", "_", episode)
