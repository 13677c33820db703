"""Files that appear whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import os
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

FOLDER_AGE = 5.0  # seconds; the same of a temporary folder
LEFTOVER_AGE = 60.0  # seconds; a younger temporary file may be another writer's, not yet locked


def write_whole(path: str | os.PathLike, write: Callable[[Path], object]) -> Path:
    """Write a file through a temporary one beside it, which then takes its name.

    A reader sees the old file or the new one. A writer that was killed leaves a temporary file; the next
    write of the same path deletes it. Several processes may write one path: the last one wins.

    Args:
        path: of the file; its folder exists.
        write: called with the path of the temporary file, which is there and empty; writes into it.

    Returns:
        ``path``.

    Raises:
        OSError: it could not be written. The message names the path and the free space; the old file stays.
    """
    path = Path(path)
    delete_leftovers(path)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "xb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # gone with this process, killed or not
            write(part)
            with open(part, "rb") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
    except BaseException as error:
        written = part.stat().st_size if part.exists() else 0
        part.unlink(missing_ok=True)
        if _is_of_the_disk(error):
            raise _failure(path, error, written) from error
        raise
    return path


def delete_leftovers(path: Path) -> None:
    """Delete the temporary files of writers of ``path`` that were killed."""
    now = time.time()
    for part in path.parent.glob(f".{glob.escape(path.name)}.????????.part"):
        try:
            if now - part.stat().st_mtime < LEFTOVER_AGE:
                continue
            with open(part, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                part.unlink()
        except OSError:  # being written, or gone meanwhile
            continue


class NewFolder:
    """A folder that appears whole or not at all: filled under another name beside, then renamed.

    What a killed process left is deleted by the next NewFolder of the same path. As a context manager it
    publishes at the end, and discards where the block raises.

    Args:
        path: of the folder; its parents are made.
        replace: whether a folder is at ``path`` already, which the new one replaces; otherwise there is
            nothing but an empty folder.

    Attributes:
        path: where it will appear.
        part: where it is filled until then.

    Raises:
        FileExistsError: there is something at ``path``, which is not to be replaced.
    """

    def __init__(self, path: str | os.PathLike, *, replace: bool = False) -> None:
        self.path, self.replace = Path(path), replace
        self._check_path()
        delete_leftover_folders(self.path)
        self.part = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.part")
        self.part.mkdir(parents=True)
        self._lock: int | None = os.open(self.part, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)  # gone with this process, killed or not

    def _check_path(self) -> None:
        if self.path.is_symlink() or self.path.is_file():
            raise FileExistsError(f"{self.path} exists: give a folder that does not.")
        if not self.replace and self.path.is_dir() and any(self.path.iterdir()):
            raise FileExistsError(
                f"{self.path} exists and is not empty: give a folder that does not."
            )

    def publish(self) -> Path:
        """Give the folder its name, once all of it is on the disk; delete the one that it replaces."""
        sync_tree(self.part)
        self._check_path()
        old = swap_folders(self.part, self.path) if self.replace else None
        if old is None:
            os.rename(self.part, self.path)  # refuses a folder that was filled meanwhile
        _sync(self.path.parent)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
        self._unlock()
        return self.path

    def discard(self) -> None:
        """Delete what there is; nothing to do after :meth:`publish`."""
        if self.part.exists():
            shutil.rmtree(self.part, ignore_errors=True)
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> NewFolder:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            if kind is None:
                self.publish()
        finally:
            self.discard()


def swap_folders(new: Path, path: Path) -> Path:
    """Put the folder ``new`` in the place of ``path``.

    In one step where the file system can exchange two names, as those of Linux can. Elsewhere in two: who is
    killed between them leaves ``path`` absent until :func:`restore_folder`.

    Returns:
        Where the old folder is now.
    """
    if _exchange(new, path):
        return new
    old = path.with_name(f".{path.name}.{secrets.token_hex(4)}.old")
    os.rename(path, old)
    try:
        os.rename(new, path)
    except OSError:
        os.rename(old, path)
        raise
    return old


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two names; False where that is not to be had."""
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if not renameat2(here, os.fsencode(a), here, os.fsencode(b), exchange):
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(b))


def restore_folder(path: Path) -> None:
    """Bring back a folder whose replacement was cut between two renames; else nothing."""
    if not path.exists():
        for old in _leftovers(path, "old"):
            os.rename(old, path)
            return


def delete_leftover_folders(path: Path) -> None:
    """Delete what killed writers of the folder ``path`` left beside it."""
    unfinished = [part for part in _leftovers(path, "part") if _is_older(part, FOLDER_AGE)]
    for part in unfinished + (_leftovers(path, "old") if path.exists() else []):
        try:
            handle = os.open(part, os.O_RDONLY)
        except OSError:  # gone meanwhile
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(part, ignore_errors=True)
        except OSError:  # being written
            pass
        finally:
            os.close(handle)


def _leftovers(path: Path, suffix: str) -> list[Path]:
    return sorted(path.parent.glob(f".{glob.escape(path.name)}.????????.{suffix}/"))


def _is_older(path: Path, seconds: float) -> bool:
    try:
        return time.time() - path.stat().st_mtime >= seconds
    except OSError:  # gone meanwhile
        return False


def sync_tree(folder: Path) -> None:
    """Wait until all files below a folder are on the disk."""
    for name, _, files in os.walk(folder):
        for path in [name, *(os.path.join(name, file) for file in files)]:
            _sync(path)


def _sync(path: str | os.PathLike) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_space(folder: Path, needed: int) -> None:
    """Refuse to begin what will not fit.

    Raises:
        OSError: less than ``needed`` bytes are free where ``folder`` is; the message names both.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"{needed:,} bytes are needed at {folder} and {free:,} are free: make room, or write to another "
            "disk",
        )


def _is_of_the_disk(error: BaseException) -> bool:
    """Whether writing failed; safetensors and torch have types of their own for that."""
    if isinstance(error, RuntimeError):
        return "PytorchStreamWriter" in str(error) or "unexpected pos" in str(error)
    return isinstance(error, OSError | SafetensorError)


def _failure(path: Path, error: BaseException, written: int) -> OSError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    try:
        free = f"{shutil.disk_usage(path.parent).free / 1e6:,.0f} MB are free there"
    except OSError:
        free = f"its folder {path.parent} cannot be read"
    message = f"{path} could not be written ({reason}) after {written / 1e6:,.1f} MB; {free}."
    return OSError(message)


def is_lfs_pointer(path: str | os.PathLike) -> bool:
    """Whether a file is the note that Git LFS leaves where a file was not fetched."""
    try:
        with open(path, "rb") as file:
            return file.read(42).startswith(b"version https://git-lfs.github.com/spec/v1")
    except OSError:
        return False
