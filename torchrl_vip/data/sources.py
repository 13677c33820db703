"""Where clips come from: folders of videos or frames, Ego4D manifests, LeRobot datasets.

==================  ==============================================================================
folder              at any depth, video files and/or folders of numbered frames (the official
                    layout); an ``index.json`` or ``manifest.json`` (a list of objects with "file")
                    gives each clip's other entries as its labels
Ego4D manifest      a folder with ``manifest.csv`` (or that file): columns "path", a folder of
                    000000.jpg, 000001.jpg, ..., and "len", how many; further columns are labels
LeRobot v2, v3      a folder with ``meta/info.json``; an episode of a camera is a clip, labelled with
                    its "task", "camera" and "episode"
==================  ==============================================================================
"""

from __future__ import annotations

import csv
import json
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path

VIDEO_SUFFIXES = {".mp4", ".webm", ".gif", ".mkv", ".avi", ".mov", ".m4v"}
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg"}


@dataclass(frozen=True)
class Clip:
    """One video: a file, a folder of numbered frames, or frames [first, end) of either."""

    path: Path
    name: str
    labels: dict = field(default_factory=dict, compare=False, hash=False)
    span: tuple[int, int] | None = None

    @property
    def scene(self) -> str | None:
        """What clips have in common whose ends are each other's goals: their label "group", or else
        "task", seen by the same "camera"; None where the labels tell neither."""
        group, task, camera = (
            None if (label := self.labels.get(key)) in (None, "") else str(label)  # 0 is one
            for key in ("group", "task", "camera")
        )
        return group or (f"{task}/{camera}" if task and camera else task)

    @property
    def success(self) -> bool:
        """False where the label "success" says so, in a table's words too; True without one, or null."""
        said = self.labels.get("success")
        said = "yes" if said is None else str(said).strip().lower()
        return said not in ("false", "0", "0.0", "no", "none", "")


def find_clips(source: str | Path) -> list[Clip]:
    """All clips of a source, sorted by name; nothing is decoded.

    Raises:
        FileNotFoundError: no such source.
        ValueError: a source without any clip, or with metadata that cannot be used.
    """
    source = Path(source)
    if source.is_file() and source.suffix == ".csv":
        return ego4d_clips(source)
    if not source.is_dir():
        raise FileNotFoundError(
            f"{source} is no folder; wanted one that holds video files and/or folders of frames, "
            "a LeRobot dataset, or an Ego4D manifest.csv."
        )
    if (source / "meta" / "info.json").is_file():
        return lerobot_clips(source)
    if (source / "manifest.csv").is_file():
        return ego4d_clips(source / "manifest.csv")
    return folder_clips(source)


def folder_clips(folder: Path) -> list[Clip]:
    """Video files and folders of frames under a folder, at any depth and behind links. Images beside videos
    and images without a number in their names are no clip: covers, plots."""
    files = _files_below(folder)
    datasets = sorted(p.parent for p in files if p.name == "manifest.csv")
    datasets += sorted(p.parent.parent for p in files if p.parts[-2:] == ("meta", "info.json"))
    if datasets:  # as plain videos their episodes would run into each other
        raise ValueError(
            f"{folder} holds datasets: give these instead, as a list, [{','.join(map(str, datasets))}]."
        )
    labels = {}
    for index in sorted(p for p in files if p.name in ("index.json", "manifest.json")):
        labels |= _read_labels(index)
    videos = {p for p in files if p.suffix.lower() in VIDEO_SUFFIXES}
    numbered = {
        p.parent
        for p in files
        if p.suffix.lower() in IMAGE_SUFFIXES and any(c.isdigit() for c in p.stem)
    }
    paths = videos | (numbered - {p.parent for p in videos})
    if not paths:
        raise ValueError(
            f"{folder} holds no clip; wanted video files ({', '.join(sorted(VIDEO_SUFFIXES))}) "
            "and/or folders of numbered frames (0.png, 1.png, ... or .jpg)."
        )
    lost = sorted(labels.keys() - {p.resolve() for p in paths})
    if lost:
        warnings.warn(
            f"{len(lost)} of {len(labels)} entries of the index.json or manifest.json in {folder} name no "
            f"clip there, such as {lost[0]}: their labels are not used.",
            stacklevel=3,
        )
    return [
        Clip(p, p.relative_to(folder).as_posix(), labels.get(p.resolve(), {}))
        for p in sorted(paths)
    ]


def _files_below(folder: Path) -> list[Path]:
    """All files but hidden ones; a folder that links lead to again and again is read once."""
    files, seen = [], set()
    for name, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(name)
        folders[:] = [] if real in seen else sorted(f for f in folders if not f.startswith("."))
        if real not in seen:
            files += [Path(name, n) for n in names if not n.startswith(".")]
        seen.add(real)
    return [file for file in files if file.is_file()]


def _read_labels(index: Path) -> dict[Path, dict]:
    """Clip -> its labels, of one index.json or manifest.json."""
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


def ego4d_clips(manifest: Path) -> list[Clip]:
    """Clips of the official code's manifest; relative paths count from the manifest's folder."""
    try:
        with open(manifest, newline="", encoding="utf-8-sig") as file:  # Excel's has a mark
            rows = list(csv.DictReader(file))
        clips = [
            Clip(
                manifest.parent / row["path"],
                row["path"].rstrip("/"),
                {k: v or "" for k, v in row.items() if k and k not in ("path", "len")},
                span=(0, max(int(row["len"]), 0)),
            )
            for row in rows
        ]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(
            f'{manifest} cannot be used: wanted columns "path" and "len" ({error!r}).'
        ) from error
    if not clips:
        raise ValueError(f"{manifest} lists no clip.")
    return sorted(clips, key=lambda clip: clip.name)


def lerobot_clips(folder: Path) -> list[Clip]:
    """One clip for every episode and camera of a local LeRobot dataset, format v2 or v3.

    TorchRL's LeRobotExperienceReplay reads the hub only, so the layout is read here; v3 stores
    episodes back to back in one file, which ``span`` cuts out.
    """
    info_file = folder / "meta" / "info.json"
    try:
        info = json.loads(info_file.read_text())
        major = int(str(info["codebase_version"]).lstrip("v").split(".")[0])
        template, fps = info["video_path"], float(info["fps"])
        features = info["features"]
        cameras = sorted(k for k, f in features.items() if f.get("dtype") == "video")
        episodes = _lerobot_episodes(folder, major)
        clips = []
        for episode in episodes:
            index, length = int(episode["episode_index"]), int(episode["length"])
            tasks = episode.get("tasks") or [""]
            labels = {"task": str(tasks[0]), "episode": index}
            for camera in cameras:
                names = {"video_key": camera, "episode_index": index}
                span = None
                if major >= 3:
                    prefix = f"videos/{camera}/"
                    names["chunk_index"] = int(episode[prefix + "chunk_index"])
                    names["file_index"] = int(episode[prefix + "file_index"])
                    first = round(float(episode[prefix + "from_timestamp"]) * fps)
                    span = (first, first + length)
                else:
                    names["episode_chunk"] = index // int(info.get("chunks_size", 1000))
                path = folder / template.format(**names)
                name = f"{camera}/episode_{index:06d}"
                clips.append(Clip(path, name, labels | {"camera": camera}, span))
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ValueError(
            f"{folder} is no LeRobot dataset of format v2 or v3 ({info_file.name}, episodes): "
            f"{error!r}."
        ) from error
    if not clips:
        raise ValueError(f"{folder} holds no video episode; its features are {sorted(features)}.")
    return sorted(clips, key=lambda clip: clip.name)


def _lerobot_episodes(folder: Path, major: int) -> list[dict]:
    if major < 3:
        lines = (folder / "meta" / "episodes.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines if line.strip()]
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            f'reading {folder} (LeRobot v3) needs pyarrow: pip install "torchrl-vip[lerobot]"'
        ) from error
    files = sorted((folder / "meta" / "episodes").rglob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"{folder / 'meta' / 'episodes'} holds no parquet file")
    return [row for file in files for row in parquet.read_table(file).to_pylist()]
