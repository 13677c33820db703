"""Tables that name clips: the manifest.csv of VIP and LIV, and labels in index.json or manifest.json."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from torchrl_vip.data.clip import Clip, whole_number

PATH, LENGTH = ("path", "directory"), ("len", "num_frames")
"""Columns of VIP's manifest and of LIV's, which names the instruction "text"."""


def manifest_clips(manifest: Path) -> list[Clip]:
    """Clips of a manifest.csv; relative paths count from its folder, further columns are labels.

    A row that cannot be used becomes a clip with an error.

    Raises:
        ValueError: columns are missing, or not one row can be used.
    """
    try:
        with open(manifest, newline="", encoding="utf-8-sig") as file:  # Excel's has a mark
            table = csv.DictReader(file, restval="")
            rows, columns = list(table), table.fieldnames or []
    except (ValueError, csv.Error) as error:
        raise ValueError(
            f"{manifest} cannot be used: it is no table in UTF-8 ({error})."
        ) from error
    path = next((c for c in PATH if c in columns), None)
    length = next((c for c in LENGTH if c in columns), None)
    if columns and not (path and length):
        raise ValueError(
            f'{manifest} cannot be used: wanted columns "path" and "len" (VIP) or "directory", '
            f'"num_frames" and "text" (LIV); its columns are {columns}.'
        )
    if not rows or path is None or length is None:
        raise ValueError(f"{manifest} lists no clip.")
    clips = [_row_clip(manifest, n, row, path, length) for n, row in enumerate(rows, 1)]
    if all(clip.error for clip in clips):
        raise ValueError(f"{manifest} cannot be used: {clips[0].error}")
    return sorted(clips, key=lambda clip: clip.name)


def _row_clip(manifest: Path, number: int, row: dict, path: str, length: str) -> Clip:
    labels = {k: v or "" for k, v in row.items() if k and k not in (path, length)}
    if path == "directory" and labels.get("text"):
        labels.setdefault("task", labels["text"])
    name = row[path].strip().rstrip("/")
    try:
        if not name:
            raise ValueError(f'"{path}" is empty.')
        frames = whole_number(row[length], length)
    except ValueError as error:
        reason = f"{manifest}, row {number}: {error}"
        return Clip(manifest, name or f"{manifest.name}:{number}", labels, error=reason)
    return Clip(manifest.parent / name, name, labels, span=(0, max(frames, 0)))


def read_labels(index: Path) -> dict[Path, dict]:
    """Clip -> its labels, of one index.json or manifest.json: a list of objects with "file".

    Raises:
        ValueError: it is something else.
    """
    try:
        entries = json.loads(index.read_text())
        files = [index.parent / entry["file"] for entry in entries]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f'{index} cannot be used: wanted a list of objects with "file" ({error!r}).'
        ) from error
    labels = {}
    for file, entry in zip(files, entries, strict=True):
        # DROID's index lies beside the folder of its clips.
        file = file if file.exists() else index.parent / "clips" / entry["file"]
        labels[file.resolve()] = {k: v for k, v in entry.items() if k != "file"}
    return labels
