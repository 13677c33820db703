"""manifest.json of a folder of rendered clips: a clip counts once it is listed there."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torchrl_vip.files import write_whole

Entry = dict[str, Any]
"""What the manifest says of a clip."""


def read_manifest(out: Path) -> dict[str, Entry]:
    """Entries by file.

    Raises:
        SystemExit: it is damaged.
    """
    manifest = out / "manifest.json"
    try:
        listed = json.loads(manifest.read_text()) if manifest.exists() else []
        return {entry["file"]: entry for entry in listed}
    except (ValueError, TypeError, KeyError) as error:
        raise SystemExit(f"error: {manifest} is damaged ({error}): give another --out") from error


def write_manifest(out: Path, entries: dict[str, Entry]) -> None:
    """Whole or not at all; a clip is listed once its file is whole."""
    text = json.dumps([entries[file] for file in sorted(entries)], indent=1) + "\n"
    write_whole(out / "manifest.json", lambda part: part.write_text(text))


def forget(out: Path, entries: dict[str, Entry], files: Iterable[str]) -> None:
    """Takes clips that are about to be rendered anew out of the manifest: a kill meanwhile would leave the
    old entry beside the new clip."""
    if there := [file for file in files if entries.pop(file, None)]:
        write_manifest(out, entries)
        for file in there:
            (out / file).unlink(missing_ok=True)


def is_there(out: Path, entry: Entry | None, size: int, stride: int) -> bool:
    """Whether a clip has been rendered in this size and at this speed."""
    return (
        entry is not None
        and (out / entry["file"]).exists()
        and (entry["size"], entry["stride"]) == (size, stride)
    )
