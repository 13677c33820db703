"""Embeddings of a dataset's episodes, a file each: what was embedded once is not embedded again.

Files appear whole or not at all, so that a killed run, or a killed worker, goes on where it stopped. They do
not depend on the goal: another goal, form or scale is a matter of seconds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from torchrl_vip.data.clip import Clip
from torchrl_vip.data.frame_table import fingerprint
from torchrl_vip.files import write_whole
from torchrl_vip.label.stream import Embedded


@dataclass(frozen=True)
class EmbeddingStore:
    """A folder of embeddings by one encoder.

    A clip is known by its path, its files' sizes and times, and the part of the file that it is.
    """

    folder: Path

    def path(self, clip: Clip) -> Path:
        """Of a clip's file."""
        key = fingerprint(clip)
        return self.folder / key[:2] / f"{key}.safetensors"

    def write(self, clip: Clip, embedded: Embedded) -> None:
        """Keep a clip's embeddings; or, of a clip that cannot be used, the reason.

        Raises:
            OSError: no room. What was written before stays.
        """
        path = self.path(clip)
        path.parent.mkdir(parents=True, exist_ok=True)
        reason = path.with_suffix(".error.json")
        if embedded.end.error:
            said = json.dumps({"name": clip.name, "error": embedded.end.error})
            write_whole(reason, lambda part: part.write_text(said))
            return
        # one entry: safetensors writes several in an order that differs from run to run
        metadata = {"clip": json.dumps({"name": clip.name, "note": embedded.end.note})}
        write_whole(path, lambda part: save_file({"z": embedded.z.contiguous()}, part, metadata))
        reason.unlink(missing_ok=True)

    def has(self, clip: Clip) -> bool:
        """Whether a clip was embedded. One that could not be read is tried again: the disk may have been
        at fault."""
        return self.path(clip).is_file()

    def error(self, clip: Clip) -> str | None:
        """Why a clip could not be used; None where nobody has tried."""
        if clip.error:
            return clip.error
        reason = self.path(clip).with_suffix(".error.json")
        try:
            return json.loads(reason.read_text())["error"]
        except (OSError, ValueError, KeyError):
            return None

    def read(self, clip: Clip, *, last_only: bool = False) -> tuple[Tensor, str]:
        """Embeddings float32 ``[T, D]`` of a clip, or of its last frame ``[1, D]``, and the note.

        Raises:
            ValueError: the file is damaged; it is deleted, and the same command embeds the clip again.
        """
        path = self.path(clip)
        try:
            with safe_open(path, framework="pt") as file:
                rows = file.get_slice("z")
                z = rows[rows.get_shape()[0] - 1 :] if last_only else rows[:]
                note = json.loads(file.metadata()["clip"])["note"]
        except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
            path.unlink(missing_ok=True)
            raise ValueError(
                f"{path} is damaged ({error}) and was deleted: run the same command again."
            ) from error
        return z.to(torch.float32), note
