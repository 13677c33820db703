"""Local LeRobot datasets of format v2 and v3: an episode of a camera is a clip.

TorchRL's LeRobotExperienceReplay reads the hub only, so the layout is read here::

    meta/info.json                                      fps, features, templates of paths
    meta/episodes.jsonl                                 v2: a line an episode
    meta/episodes/chunk-000/file-000.parquet            v3: a row an episode
    videos/chunk-000/CAMERA/episode_000000.mp4          v2: a file an episode
    videos/CAMERA/chunk-000/file-000.mp4                v3: episodes one after another
    images/CAMERA/episode_000000/frame_000000.png       cameras of dtype "image": files, or cells of
    data/chunk-000/...parquet                           the data

Where the data has "next.success", its last row says whether an episode is a success: the label "success".
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torchrl_vip.data.clip import Clip, ImageColumn, Moments, whole_number
from torchrl_vip.data.image_column import open_parquet
from torchrl_vip.files import is_lfs_pointer

VIDEO_PATHS = {
    2: "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    3: "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}
DATA_PATHS = {
    2: "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    3: "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
}
IMAGE_FOLDERS = (
    "images/{video_key}/episode_{episode_index:06d}",
    "images/{video_key}/episode-{episode_index:06d}",
    "images/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}",
)


def lerobot_clips(folder: Path) -> list[Clip]:
    """One clip for every episode and camera.

    An episode whose row cannot be used becomes a clip with an error.

    Raises:
        ValueError: it is no such dataset, has no episodes yet or no camera.
    """
    dataset = _Dataset(folder, read_info(folder))
    if not dataset.cameras:
        raise ValueError(
            f"{folder} holds no video episode; its features are {sorted(dataset.features)}"
            f"{dataset.left_out and f', left out: {dataset.left_out}'}."
        )
    clips = [clip for where, row in dataset.episodes() for clip in dataset.clips(where, row)]
    if not clips:
        raise ValueError(
            f"{folder} is a LeRobot dataset without episodes yet: meta/episodes lists none, and info.json "
            f"says total_episodes={dataset.info.get('total_episodes')}. Record one, or download it whole."
        )
    if dataset.left_out:
        warnings.warn(f"{folder}: left out as no camera: {dataset.left_out}.", stacklevel=3)
    return sorted(clips, key=lambda clip: clip.name)


def read_info(folder: Path) -> dict[str, Any]:
    """A dataset's meta/info.json.

    Raises:
        ValueError: it is no LeRobot dataset of format v2 or v3.
    """
    path = folder / "meta" / "info.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(info["features"], dict):
            raise TypeError(f"features={info['features']!r}")
        return info
    except (KeyError, TypeError, ValueError, OSError) as error:
        reason = "a Git LFS pointer: run git lfs pull" if is_lfs_pointer(path) else repr(error)
        raise ValueError(
            f"{folder} is no LeRobot dataset of format v2 or v3 ({path.name}, features): {reason}."
        ) from error


def camera_kind(name: str, feature: Any) -> str:
    """What a feature of info.json is: "video" or "image", a camera; "depth"; "" for anything else.

    Depth is known by a flag in the feature or its "info" or "video_info", by its name, or by a picture of
    one channel.
    """
    kind = feature.get("dtype") if isinstance(feature, dict) else None
    if kind not in ("video", "image"):
        return ""
    said = _video_info(feature)
    flags = [said.get("is_depth_map"), said.get("video.is_depth_map")]
    flagged = any(str(flag).strip().lower() in ("true", "1", "1.0") for flag in flags)
    return "depth" if flagged or "depth" in name.lower() or _channels(feature) == 1 else kind


def _video_info(feature: dict) -> dict:
    """What a feature says of its video: its own entries and those of "info" and "video_info"."""
    parts = (feature.get(key) for key in ("info", "video_info"))
    merged = dict(feature)
    for part in parts:
        merged |= part if isinstance(part, dict) else {}
    return merged


def _channels(feature: dict) -> int | None:
    """Number of colours of a feature; None where it does not say."""
    shape, names = feature.get("shape"), feature.get("names")
    if said := _video_info(feature).get("video.channels"):
        return said
    if not isinstance(shape, list | tuple) or not shape:
        return None
    if isinstance(names, list) and len(names) == len(shape):
        for name in ("channels", "channel", "c"):
            if name in names:
                return shape[names.index(name)]
    return 1 if len(shape) == 2 or 1 in (shape[0], shape[-1]) else None


def _rate(*values: Any) -> float | None:
    """The first of these that is a positive number."""
    for value in values:
        try:
            if math.isfinite(rate := float(value)) and rate > 0:
                return rate
        except (TypeError, ValueError):
            continue
    return None


@dataclass
class _Dataset:
    """A dataset's folder and its info.json."""

    folder: Path
    info: dict[str, Any]

    @property
    def features(self) -> dict[str, Any]:
        return self.info["features"]

    @cached_property
    def cameras(self) -> dict[str, str]:
        """Name -> "video" or "image"."""
        kinds = {name: camera_kind(name, f) for name, f in sorted(self.features.items())}
        return {name: kind for name, kind in kinds.items() if kind in ("video", "image")}

    @property
    def left_out(self) -> str:
        """Names of depth maps."""
        depth = [n for n, f in sorted(self.features.items()) if camera_kind(n, f) == "depth"]
        return ", ".join(f"{name} (depth)" for name in depth)

    @cached_property
    def outcomes(self) -> dict[int, bool]:
        """Episode -> "next.success" of its last row; empty where the data does not say."""
        found: dict[int, bool] = {}
        if "next.success" not in self.features:
            return found
        for path in sorted((self.folder / "data").rglob("*.parquet")):
            try:
                with open_parquet(path) as file:
                    table = file.read(["episode_index", "next.success"])
                episodes, said = (table[name].to_pylist() for name in table.column_names)
            except (KeyError, ValueError, OSError):  # what needs it names what cannot be read
                continue
            for episode, success in zip(episodes, said, strict=True):
                found[episode] = bool(success[0] if isinstance(success, list) else success)
        return found

    @cached_property
    def layout(self) -> int:
        """2 or 3: what lies there; info.json decides where both do."""
        lines = (self.folder / "meta" / "episodes.jsonl").is_file()
        tables = any((self.folder / "meta" / "episodes").rglob("*.parquet"))
        if lines and tables:
            return 2 if str(self.info.get("codebase_version")).lstrip("v").startswith("2") else 3
        return 3 if tables else 2

    def episodes(self) -> Iterator[tuple[str, dict | str]]:
        """Where each episode is listed, and its entry, or why that cannot be read."""
        meta = self.folder / "meta"
        if self.layout == 2:
            path = meta / "episodes.jsonl"
            if is_lfs_pointer(path):
                raise ValueError(f"{path} is a Git LFS pointer: run git lfs pull there.")
            text = path.read_text(encoding="utf-8-sig", errors="replace") if path.exists() else ""
            for number, line in enumerate(text.splitlines(), 1):
                if line.strip():
                    yield f"meta/episodes.jsonl:{number}", _parse(line)
            return
        for path in sorted((meta / "episodes").rglob("*.parquet")):
            where = path.relative_to(self.folder).as_posix()
            try:
                with open_parquet(path) as file:
                    names = file.schema_arrow.names
                    columns = [n for n in names if not n.startswith("stats/")]
                    rows = file.read(columns).to_pylist()
            except (ValueError, OSError) as error:
                yield where, str(error)
                continue
            for number, row in enumerate(rows):
                yield f"{where}:{number}", row

    def clips(self, where: str, row: dict | str) -> Iterator[Clip]:
        """Clips of an episode; a clip with an error for what cannot be used."""
        try:
            if isinstance(row, str):
                raise ValueError(row)
            index = whole_number(row.get("episode_index"), "episode_index")
        except ValueError as error:
            yield Clip(self.folder / where, where, error=f"{self.folder}, {where}: {error}")
            return
        tasks = row.get("tasks")
        task = tasks if isinstance(tasks, str) else next(iter(tasks or [""]), "")
        for camera, kind in self.cameras.items():
            labels = {"task": str(task or ""), "episode": index, "camera": camera}
            if index in self.outcomes:
                labels["success"] = self.outcomes[index]
            name, error = f"{camera}/episode_{index:06d}", None
            path, span = self.folder / where, None
            try:
                read = self._video if kind == "video" else self._images
                path, span = read(camera, index, whole_number(row.get("length"), "length"), row)
            except ValueError as problem:
                error = f"{self.folder}, {where}, episode {index}: {problem}"
            yield Clip(path, name, labels, span, error)

    def _video(self, camera: str, index: int, length: int, row: dict) -> tuple[Path, Any]:
        prefix, start, end = f"videos/{camera}/", 0.0, None
        names = self._names(camera, index, row, prefix)
        templates = (self.info.get("video_path"), VIDEO_PATHS[self.layout])
        path = self._existing(templates, names)
        fps = _rate(self.info.get("fps"), _video_info(self.features[camera]).get("video.fps"))
        if self.layout == 3:
            start = _seconds(row, prefix + "from_timestamp")
            if row.get(prefix + "to_timestamp") is not None:
                end = _seconds(row, prefix + "to_timestamp")
            if fps is None:
                raise ValueError(f"info.json has fps={self.info.get('fps')}: wanted a number.")
            if start < -1 / fps or (end is not None and end <= start):
                raise ValueError(f"it lasts from {start} to {end} s: wanted ascending times.")
        return path, fps and Moments(max(start, 0.0), fps, length, end, self.layout == 2)

    def _images(self, camera: str, index: int, length: int, row: dict) -> tuple[Path, Any]:
        names = self._names(camera, index, row, "data/")
        said = str(self.info.get("image_path") or "").replace("{image_key", "{video_key")
        templates = (said.rpartition("/")[0], *IMAGE_FOLDERS)
        folder = self._existing(templates, names)
        if folder.is_dir():
            return folder, (0, length)
        templates = (self.info.get("data_path"), DATA_PATHS[self.layout])
        return self._existing(templates, names), ImageColumn(camera, index, length)

    def _names(self, camera: str, index: int, row: dict, prefix: str) -> dict[str, Any]:
        """Values of the templates' fields."""
        size = _rate(self.info.get("chunks_size")) or 1000
        names = {"video_key": camera, "episode_index": index, "episode_chunk": int(index // size)}
        if self.layout == 3:
            for key in ("chunk_index", "file_index"):
                names[key] = whole_number(row.get(prefix + key), prefix + key)
        return names

    def _existing(self, templates: tuple, names: dict[str, Any]) -> Path:
        """The first path that is there, else the last: info.json may be another layout's."""
        paths = []
        for template in templates:
            try:
                if template:
                    paths.append(self.folder / template.format(**names))
            except (KeyError, IndexError, ValueError, AttributeError):
                continue
        return next((path for path in paths if path.exists()), paths[-1])


def _parse(line: str) -> dict | str:
    try:
        row = json.loads(line)
        return row if isinstance(row, dict) else f"no object: {line[:80]}"
    except ValueError as error:
        return f"no JSON, as a line that was cut: {line[:80]} ({error})"


def _seconds(row: dict, key: str) -> float:
    try:
        if math.isfinite(value := float(row[key])):
            return value
    except (TypeError, ValueError, KeyError):
        pass
    raise ValueError(f"{key}={row.get(key)} is invalid: wanted seconds.")
