"""Episodes in HDF5 files: those of robomimic and Minari, and others of their kind.

::

    data/demo_0/obs/front            robomimic: uint8 [T, H, W, 3]
    data/demo_0/next_obs/front       the frame after each
    episode_0/observations/front     Minari: [T + 1, ...], as it is or each a JPEG
    observations/images/front        ALOHA: a file an episode
    observations, terminals          D4RL: episodes one after another

An array is a camera's by its shape and type, whatever its name.
"""

from __future__ import annotations

import io
import json
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from torchrl_vip.data.clip import ArrayRows, Clip
from torchrl_vip.data.pixels import is_picture, natural_number, to_frame
from torchrl_vip.files import is_lfs_pointer
from torchrl_vip.goals import read_image

HDF5_SUFFIXES = {".hdf5", ".h5", ".hdf"}
BLOCK = 1 << 24
"""Bytes that are read at a time; a chunk of the file at least."""
CELLS = 32
"""Encoded pictures that are read at a time."""

INSIDE = {"obs", "observations", "action", "actions", "reward", "rewards"}
"""What a group holds, one of them, that is an episode."""
ENDS = ("terminals", "timeouts", "dones", "terminations", "truncations")
TASKS = ("language_instruction", "language", "lang", "task", "env_name", "env_id", "env")
SUCCESSES = ("success", "is_success", "successes", "infos/success", "infos/is_success")


class NoPicturesError(ValueError):
    """A file that can be read and holds no picture."""


@contextmanager
def opened(path: Path, mode: str = "r") -> Iterator[Any]:
    """An h5py.File.

    Raises:
        ValueError: it cannot be read, or what is read in it cannot be.
        ImportError: h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f'reading {path} needs h5py: pip install "torchrl-vip[h5py]"') from error
    try:
        # What is written is nobody else's, and may be locked by files.write_whole.
        with h5py.File(path, mode, locking="best-effort" if mode == "r" else False) as file:
            yield file
    except (OSError, RuntimeError, KeyError, TypeError) as error:  # TypeError: damaged names
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        if is_lfs_pointer(path):
            reason = "a Git LFS pointer in its place: run git lfs pull there"
        raise ValueError(f"{path}: not a readable HDF5 file ({reason})") from error


# --- clips --------------------------------------------------------------------------------------------


def hdf5_clips(path: Path, name: str = "") -> list[Clip]:
    """One clip for every episode and camera; nothing is decoded.

    An episode that lacks a camera which others have becomes a clip with an error.

    Args:
        name: of the file, where its data set has several.

    Raises:
        ValueError: it cannot be read, or holds no picture.
        ImportError: h5py is not installed.
    """
    with opened(path) as file:
        episodes: dict[str, dict[str, int]] = defaultdict(dict)
        for array in _pixel_arrays(file):
            group, inside = split_episode(file, array)
            episodes[group][inside] = len(file[array])
        if not episodes:
            raise NoPicturesError(f"{path} holds no pictures: {_what_there_is(file)}")
        cameras = sorted({c for arrays in episodes.values() for c in _cameras(arrays)})
        groups = sorted({*episodes, *_siblings(file, episodes)}, key=_order)
        return [
            clip
            for camera in cameras
            for number, group in enumerate(groups)
            for clip in _clips(path, name, file, (group, number), camera, episodes[group])
        ]


def minari_file(folder: Path) -> Path | None:
    """The file of a Minari dataset, given its folder or the "data" inside; None of another folder.

    Raises:
        ValueError: the dataset is in another format.
    """
    for data in (folder / "data", folder):
        if (data / "main_data.hdf5").is_file():
            return data / "main_data.hdf5"
        try:
            said = json.loads((data / "metadata.json").read_text(encoding="utf-8"))["data_format"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        raise ValueError(
            f"{folder} is a Minari dataset of data_format={said}, with no main_data.hdf5: wanted hdf5. "
            "Download it whole, or create it with data_format='hdf5'."
        )
    return None


def hdf5_folder_clips(folder: Path, files: list[Path]) -> list[Clip]:
    """The clips of several files below a folder; a file that cannot be read is a clip with an error.

    Files without pictures are left alone, with a warning.

    Raises:
        ValueError: none of them holds a picture.
    """
    clips: list[Clip] = []
    without: list[str] = []
    for path in sorted(files, key=lambda p: _order(p.with_suffix("").as_posix())):
        name = path.relative_to(folder).as_posix()
        try:
            clips += hdf5_clips(path, name)
        except NoPicturesError as error:
            without.append(str(error))
        except ValueError as error:
            clips.append(Clip(path, name, error=str(error)))
    if all(clip.error for clip in clips):
        raise ValueError("\n".join([*without, *(str(clip.error) for clip in clips)][:10]))
    if without:
        warnings.warn(f"{len(without)} files were left alone: {without[0]}", stacklevel=3)
    return clips


def split_episode(file: Any, name: str) -> tuple[str, str]:
    """The group that is an array's episode, and the array's name in it; "" where the file is the episode."""
    parts = name.split("/")
    for depth in range(1, len(parts)):
        group = "/".join(parts[:depth])
        if natural_number(parts[depth - 1]) is not None and INSIDE & set(file[group]):
            return group, "/".join(parts[depth:])
    return "", name


def episode_ends(file: Any, rows: int) -> np.ndarray:
    """Rows, ascending, where the episodes of a file without groups end; the last row where none is named."""
    flags = [np.asarray(file[key]).reshape(-1) for key in ENDS if _length(file.get(key)) == rows]
    ends = np.logical_or.reduce(flags).nonzero()[0] if flags else np.zeros(0, np.int64)
    return np.unique(np.append(ends, rows - 1))


def _length(item: Any) -> int | None:
    shape = getattr(item, "shape", None)
    return int(np.prod(shape)) if shape and shape[0] == np.prod(shape) else None


def _pixel_arrays(file: Any) -> list[str]:
    """Names of the arrays that hold pictures; not those in other files that this one refers to."""
    found: list[str] = []

    def look(name: str, item: Any) -> None:
        if getattr(item, "shape", None) and not (item.is_virtual or item.external):
            raw = item.dtype == np.uint8 and is_picture(item.shape[1:])
            if raw or is_encoded(item):
                found.append(name)

    file.visititems(look)
    return found


def is_encoded(item: Any) -> bool:
    """Whether a data set's rows are JPEG or PNG files: of any length, or padded to the longest."""
    import h5py

    if len(item) == 0:
        return False
    ragged = item.ndim == 1 and h5py.check_vlen_dtype(item.dtype) == np.uint8
    padded = item.ndim == 2 and item.dtype == np.uint8
    return (ragged or padded) and bytes(item[0][:8]).startswith((b"\xff\xd8\xff", b"\x89PNG\r\n"))


def _what_there_is(file: Any) -> str:
    arrays: list[str] = []

    def look(name: str, item: Any) -> int | None:
        if (shape := getattr(item, "shape", None)) is not None:
            arrays.append(f"{name} {item.dtype} {list(shape)}")
        return 1 if len(arrays) == 8 else None

    file.visititems(look)
    return f"wanted arrays uint8 [T, H, W, 3]; it has {'; '.join(arrays) or 'no array'}."


def _cameras(arrays: dict[str, int]) -> list[str]:
    return [a for a in arrays if (now := _now(a)) == a or now not in arrays]


def _now(array: str) -> str:
    """The array of the frames before those of ``next_obs/front``: ``obs/front``."""
    return re.sub(r"(^|/)next_", r"\1", array)


def _siblings(file: Any, episodes: dict[str, dict[str, int]]) -> set[str]:
    """Episodes beside these, which may have no picture."""
    parents = {group.rpartition("/")[0] for group in episodes if group}
    names = {f"{parent}/{child}".lstrip("/") for parent in parents for child in file[parent or "/"]}
    return {name for name in names if split_episode(file, f"{name}/x")[0] == name}


def _order(group: str) -> tuple[str, int, str]:
    return group.rstrip("0123456789"), natural_number(group) or 0, group


def _clips(
    path: Path, name: str, file: Any, episode: tuple[str, int], camera: str, arrays: dict[str, int]
) -> Iterator[Clip]:
    """The clips of a group and camera: several only in a file without groups."""
    group, number = episode
    short = re.sub(r"^(obs|observations)/", "", camera)
    labels = {"camera": short, "episode": _said_number(group or path.stem, number)}
    labels |= _labels(file, group, path)
    array, rows = f"{group}/{camera}".lstrip("/"), arrays.get(camera, 0)
    following = next((a for a in arrays if a != camera and _now(a) == camera), None)
    after = f"{group}/{following}".lstrip("/") if following else None
    error = None if rows else f"{path}: {group} has no picture in {camera}"
    if after and arrays[following or ""] != rows:
        error = f"{path}: {array} has {rows} rows and {after} {arrays[following or '']}"
    if group:
        title = "/".join(filter(None, [name, short, group.rpartition("/")[2]]))
        yield Clip(path, title, labels, ArrayRows(array, rows, next_array=after), error)
        return
    first, ends = 0, episode_ends(file, rows)
    for number, end in enumerate(ends.tolist()):
        title = f"{short}/{name or path.name}"
        if len(ends) > 1:  # what the file says of success is its last episode's
            labels = {k: v for k, v in labels.items() if k != "success"} | {"episode": number}
            title = "/".join(filter(None, [name, short, f"episode_{number:06d}"]))
        yield Clip(path, title, labels, ArrayRows(array, end + 1 - first, first, after), error)
        first = end + 1


def _said_number(name: str, otherwise: int) -> int:
    number = natural_number(name)
    return otherwise if number is None else number


def _labels(file: Any, group: str, path: Path) -> dict[str, Any]:
    """What the file says of an episode: "task", "success"."""
    groups = [file[group or "/"]]
    while groups[-1].name != "/":
        groups.append(groups[-1].parent)
    said = [_said(item) for item in groups]
    labels: dict[str, Any] = _success(groups[0], said[0])
    task = next((s[key] for key in TASKS for s in said if isinstance(s.get(key), str)), None)
    task = task or _minari_environment(path)
    return labels | ({"task": task} if task else {})


def _said(group: Any) -> dict[str, Any]:
    """A group's attributes, and the entries of those that hold JSON objects."""
    said: dict[str, Any] = {}
    for key in group.attrs:
        try:
            value = group.attrs[key]
        except (OSError, TypeError, ValueError, KeyError):  # of a type that numpy has not
            continue
        value = value.decode(errors="replace") if isinstance(value, bytes) else value
        said.setdefault(key, value)
        if isinstance(value, str) and value.lstrip().startswith("{"):
            try:
                inside = json.loads(value)
            except (ValueError, RecursionError):
                continue
            said = {**inside, **said}
    return said


def _success(group: Any, said: dict[str, Any]) -> dict[str, bool]:
    """Whether an episode ended in success, where its attributes or its last step say so."""
    value = next((said[key] for key in SUCCESSES[:2] if key in said), None)
    if value is None:
        item = next((group[key] for key in SUCCESSES if _length(group.get(key))), None)
        value = None if item is None else item[-1]
    try:
        return {} if value is None else {"success": bool(np.asarray(value).reshape(-1)[-1])}
    except (TypeError, ValueError, IndexError):
        return {}


def _minari_environment(path: Path) -> str | None:
    """The environment's id in the metadata.json of Minari, beside the file."""
    try:
        metadata = json.loads((path.parent / "metadata.json").read_text(encoding="utf-8"))
        return str(json.loads(metadata["env_spec"])["id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


# --- frames -------------------------------------------------------------------------------------------


class Hdf5Pixels:
    """An array of pictures in a file that is open.

    Raises:
        ValueError: there is none of this name.
    """

    def __init__(self, file: Any, name: str) -> None:
        self.array, self.name = file.get(name), f"{file.filename}: {name}"
        if not getattr(self.array, "shape", None):
            raise ValueError(f"{self.name}: no such array.")
        self.encoded = self.array.ndim < 4
        if not self.encoded and not is_picture(self.array.shape[1:]):
            raise ValueError(f"{self.name}: {list(self.array.shape)} are no pictures.")

    def __len__(self) -> int:
        return len(self.array)

    @property
    def block(self) -> int:
        """Rows that are read at a time: whole chunks, as each is decompressed anew."""
        if self.encoded:
            return CELLS
        chunk = self.array.chunks[0] if self.array.chunks else 1
        row = int(np.prod(self.array.shape[1:]))
        return max(1, BLOCK // (row * chunk)) * chunk

    def read(self, rows: np.ndarray) -> Iterator[Tensor]:
        """Frames uint8 ``[3, H, W]`` of these rows, a block in memory at a time.

        Raises:
            ValueError: one of them cannot be read.
        """
        borders = (np.diff(rows) != 1) | (rows[1:] % self.block == 0)
        for run in np.split(rows, borders.nonzero()[0] + 1):
            if len(run):
                for row, cell in zip(run.tolist(), self.array[run[0] : run[-1] + 1], strict=True):
                    yield self._decoded(row, cell) if self.encoded else to_frame(cell)

    def _decoded(self, row: int, cell: np.ndarray) -> Tensor:
        try:
            with Image.open(io.BytesIO(cell.tobytes())) as image:
                return read_image(image).permute(2, 0, 1)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"{self.name}, row {row}: no readable picture ({error})") from error


@contextmanager
def open_pixels(path: Path, name: str) -> Iterator[Hdf5Pixels]:
    """An array of pictures in a file.

    Raises:
        ValueError: it cannot be read.
    """
    with opened(path) as file:
        yield Hdf5Pixels(file, name)
