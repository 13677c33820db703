"""Rendered clips as a LeRobot v3.0 dataset: an episode a clip, in the order of the manifest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tqdm import tqdm

from torchrl_vip.data.lerobot.writer import LeRobotWriter
from torchrl_vip.data.video import FPS
from torchrl_vip.demonstrations.manifest import Entry

CAMERA = "observation.image"
"""Each clip has a camera of its own, so that none has a name."""


def write_lerobot(root: Path, clips: Path, entries: dict[str, Entry]) -> Path:
    """Write the clips of a manifest, which are taken over as they are.

    Columns are "next.reward", the task's own reward of the step to the next frame (0 at the last frame, which
    has none), "next.done", and "next.success", true at the end of a success.

    Args:
        root: folder of the dataset; nothing but an empty folder may be there.
        clips: folder of the manifest.

    Raises:
        FileExistsError: there is something at ``root``.
        ValueError: clips of several sizes, or one that cannot be read.
    """
    with LeRobotWriter(root, FPS) as writer:
        for file, entry in tqdm(sorted(entries.items()), "lerobot", unit="clip"):
            frames = entry["frames"]
            last = np.arange(frames) == frames - 1
            columns = {
                "next.reward": np.append(entry["reward"], 0).astype(np.float32),
                "next.done": last,
                "next.success": last & bool(entry["success"]),
            }
            writer.add_episode({CAMERA: clips / file}, columns, entry["task"])
    return root
