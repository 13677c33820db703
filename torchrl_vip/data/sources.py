"""Where clips come from: folders of videos or frames, manifests of VIP and LIV, LeRobot datasets.

==================  ==============================================================================
folder              at any depth, video files and/or folders of numbered frames (the official
                    layout); an ``index.json`` or ``manifest.json`` (a list of objects with "file")
                    gives each clip's other entries as its labels
Ego4D manifest      a folder with ``manifest.csv`` (or that file): columns "path", a folder of
                    000000.jpg, 000001.jpg, ..., and "len", how many; further columns are labels
LIV manifest        the same with columns "directory", "num_frames" and "text", the clip's "task"
LeRobot v2, v3      a folder with ``meta/info.json``; an episode of a camera is a clip, labelled with
                    its "task", "camera" and "episode"; videos, or images in files or parquet files
HDF5                a file, or a folder of such files without videos or frames: robomimic's, Minari's and
                    others with pictures uint8 ``[T, H, W, 3]``, ``[T, 3, H, W]`` or JPEG; labelled as
                    LeRobot's, and with "success" where the file says so
Minari              a dataset's folder, with ``data/main_data.hdf5``
TorchRL             a folder of ``rb.dumps``, or a TensorDict's of ``td.memmap``: a trajectory of a camera is
                    a clip, from a key's pixels and those of its ("next", key)
==================  ==============================================================================
"""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from pathlib import Path

from torchrl_vip.data.clip import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Clip
from torchrl_vip.data.hdf5 import HDF5_SUFFIXES, hdf5_clips, hdf5_folder_clips, minari_file
from torchrl_vip.data.lerobot import lerobot_clips
from torchrl_vip.data.manifests import manifest_clips, read_labels
from torchrl_vip.data.memory_map import is_memory_map, memory_map_clips

__all__ = [
    "IMAGE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "Clip",
    "find_clips",
    "folder_clips",
    "hdf5_clips",
    "lerobot_clips",
    "manifest_clips",
    "memory_map_clips",
]

LABELS = ("index.json", "manifest.json")
HUB = re.compile(
    r"(?:hf://datasets/|https?://(?:huggingface\.co|hf\.co)/datasets/)?"
    r"(?P<id>\w[\w.-]*/[\w.-]*\w)(?:/(?:tree|blob|resolve)/.*)?/?",
    re.ASCII,
)
"""A data set's id or address on the Hugging Face Hub."""


def find_clips(source: str | Path) -> list[Clip]:
    """All clips of a source, sorted by name; nothing is decoded.

    Raises:
        FileNotFoundError: no such source.
        ValueError: a source without any clip, or with metadata that cannot be used.
    """
    given, source = str(source), Path(source)
    if source.is_file() and source.suffix == ".csv":
        return manifest_clips(source)
    if source.is_file() and source.suffix.lower() in HDF5_SUFFIXES:
        return hdf5_clips(source)
    if not source.is_dir():
        raise FileNotFoundError(
            f"{given} is no folder; wanted a local one that holds video files and/or folders of frames, a "
            "LeRobot or Minari dataset, a saved replay buffer, or a manifest.csv; or an HDF5 file."
            f"{_how_to_download(given)}"
        )
    if (source / "meta" / "info.json").is_file():
        return lerobot_clips(source)
    if (source / "manifest.csv").is_file():
        return manifest_clips(source / "manifest.csv")
    if is_memory_map(source):
        return memory_map_clips(source)
    if file := minari_file(source):
        return hdf5_clips(file)
    return folder_clips(source)


def _how_to_download(source: str) -> str:
    """What to do about a source that is none here but has the form of an address; else ""."""
    if match := HUB.fullmatch(source):
        name = match["id"].rpartition("/")[2]
        return (
            f" If it is a data set on the Hugging Face Hub, download it first: hf download {match['id']} "
            f"--repo-type dataset --local-dir {name} (older clients: huggingface-cli download ...); then "
            f"give data.path={name}."
        )
    return " An address is not read: download it first." if "://" in source else ""


def folder_clips(folder: Path) -> list[Clip]:
    """Video files and folders of frames under a folder, at any depth and behind links.

    Images beside videos and images without a number in their names are no clip: covers, plots. A warning
    counts the files that are left alone.
    """
    files = _files_below(folder)
    _refuse_datasets(folder, files)
    labels: dict[Path, dict] = {}
    for index in sorted(p for p in files if p.name in LABELS):
        labels |= read_labels(index)
    videos = {p for p in files if p.suffix.lower() in VIDEO_SUFFIXES}
    images = {p for p in files if p.suffix.lower() in IMAGE_SUFFIXES and _has_number(p)}
    folders = {p.parent for p in images} - {p.parent for p in videos}
    used = videos | {p for p in images if p.parent in folders}
    left_alone = _left_alone(folder, [p for p in files if p not in used and p.name not in LABELS])
    paths = videos | folders
    if not paths and (arrays := [p for p in files if p.suffix.lower() in HDF5_SUFFIXES]):
        return hdf5_folder_clips(folder, arrays)
    if not paths:
        raise ValueError(
            f"{folder} holds no clip; wanted video files ({', '.join(sorted(VIDEO_SUFFIXES))}) "
            "and/or folders of numbered frames (0.png, 1.png, ... or .jpg), or HDF5 files. "
            f"{left_alone}".rstrip()
        )
    if left_alone:
        warnings.warn(left_alone, stacklevel=3)
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


def _refuse_datasets(folder: Path, files: list[Path]) -> None:
    """ValueError where datasets lie below: as plain videos their episodes would run into each other."""
    datasets = sorted(p.parent for p in files if p.name == "manifest.csv")
    datasets += sorted(p.parent.parent for p in files if p.parts[-2:] == ("meta", "info.json"))
    datasets += sorted(p.parent.parent for p in files if p.parts[-2:] == ("storage", "meta.json"))
    if datasets:
        raise ValueError(
            f"{folder} holds datasets: give these instead, as a list, [{','.join(map(str, datasets))}]."
        )


def _has_number(path: Path) -> bool:
    return any(c.isdigit() for c in path.stem)


def _left_alone(folder: Path, others: list[Path]) -> str:
    """How many files are no clips, by their suffixes; "" where there are none."""
    kinds = Counter(path.suffix.lower() or "no suffix" for path in others)
    if not kinds:
        return ""
    listed = ", ".join(f"{suffix} {count}" for suffix, count in kinds.most_common(10))
    return f"{len(others)} file(s) of other kinds in {folder} were left alone ({listed})."


def _files_below(folder: Path) -> list[Path]:
    """All files but hidden ones; a folder that links lead to again and again is read once.

    A link that leads nowhere counts as a file: what git-annex has not fetched is skipped by name.
    """
    files, seen = [], set()
    for name, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(name)
        folders[:] = [] if real in seen else sorted(f for f in folders if not f.startswith("."))
        if real not in seen:
            files += [Path(name, n) for n in names if not n.startswith(".")]
        seen.add(real)
    return [file for file in files if file.is_file() or file.is_symlink()]
