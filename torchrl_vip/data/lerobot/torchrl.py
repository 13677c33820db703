"""LeRobot datasets for TorchRL's own replay buffer, whose download path reads the Hub only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchrl.data import VideoClipRef

from torchrl_vip.data.clip import Clip, Moments
from torchrl_vip.data.image_column import open_parquet
from torchrl_vip.data.lerobot.columns import data_files
from torchrl_vip.data.lerobot.reading import lerobot_clips, read_info
from torchrl_vip.data.lerobot.schema import need_pyarrow
from torchrl_vip.data.video_file import probe


def torchrl_columns(root: str | Path, *, videos: bool = True) -> dict[str, Any]:
    """All N frames of a dataset of format v2 or v3, in the order of "index".

    Videos stay where they are: their frames are decoded when they are sampled. Images in the data are left
    out.

    Args:
        videos: whether cameras are among the columns.

    Returns:
        Name -> numbers ``[N]`` or ``[N, *shape]``; a list of N texts; a VideoClipRef of N frames. "task" is
        each frame's task in words.

    Raises:
        ValueError: it is no LeRobot dataset, or frames of a video are missing.

    Note:
        Of "observation.vip" the buffer makes ("observation", "vip"), and with ``rehydrate=True`` the next
        frame's ("next", "observation", "vip"); its ``key_map`` gives other names.

    Example:
        >>> buffer = LeRobotExperienceReplay.from_columns(  # doctest: +SKIP
        ...     torchrl_columns("labelled"), slice_len=8, batch_size=32, rehydrate=True
        ... )
    """
    root = Path(root)
    columns = _numbers_and_texts(root, read_info(root)["features"])
    clips = [clip for clip in lerobot_clips(root) if isinstance(clip.span, Moments)]
    tasks = {clip.labels["episode"]: clip.labels["task"] for clip in clips}
    episodes = columns["episode_index"].tolist()
    if tasks:
        columns["task"] = [tasks.get(episode, "") for episode in episodes]
    for camera in sorted({clip.labels["camera"] for clip in clips}) if videos else ():
        of_camera = {
            clip.labels["episode"]: clip for clip in clips if clip.labels["camera"] == camera
        }
        columns[camera] = _frames(of_camera, columns["episode_index"], columns["frame_index"])
    return columns


def _numbers_and_texts(root: Path, features: dict[str, Any]) -> dict[str, Any]:
    pa = need_pyarrow()
    tables = []
    for path in data_files(root):
        with open_parquet(path) as file:
            names = [name for name in file.schema_arrow.names if name in features]
            tables.append(file.read([n for n in names if features[n]["dtype"] != "image"]))
    table = pa.concat_tables(tables)
    order = np.argsort(table["index"].to_numpy(), kind="stable")
    columns: dict[str, Any] = {}
    for name in table.column_names:
        values = table[name].combine_chunks()
        if features[name]["dtype"] == "string":
            texts = values.to_pylist()
            columns[name] = [texts[row] for row in order]
            continue
        while values.type.num_fields:
            values = values.flatten()
        shape = [size for size in features[name]["shape"] if features[name]["shape"] != [1]]
        array = values.to_numpy(zero_copy_only=False).reshape(table.num_rows, *shape)
        columns[name] = torch.from_numpy(array[order])
    return columns


def _frames(clips: dict[int, Clip], episode: Tensor, frame: Tensor) -> VideoClipRef:
    """A camera's frame of each row, by its episode and frame in it."""
    paths = list(dict.fromkeys(clip.path for clip in clips.values()))
    counts = [len(probe(path)) for path in paths]
    begins = dict(zip(paths, np.cumsum([0, *counts]).tolist(), strict=False))
    rows = torch.empty(len(episode), dtype=torch.int64)
    for index in episode.unique().tolist():
        if (clip := clips.get(index)) is None or clip.error or not isinstance(clip.span, Moments):
            raise ValueError(f"episode {index} has no video: {clip and clip.error}")
        found = begins[clip.path] + torch.from_numpy(probe(clip.path).rows_at(clip.span)[0])
        mine = episode == index
        if len(found) <= int(frame[mine].max()):
            raise ValueError(
                f"{clip.path}: episode {index} has {len(found)} of {clip.span.count} frames."
            )
        rows[mine] = found[frame[mine]]
    return VideoClipRef.from_files([str(path) for path in paths], num_frames_per_file=counts)[rows]
