"""How an example ends: what a user can mend is one line, and so is Ctrl-C.

Imported before everything else, as the other imports take seconds in which Ctrl-C may come.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NoReturn

INTERRUPTED = 130  # exit code of a command that Ctrl-C ended, as shells have it
_ending = threading.Lock()


def fail(message: object) -> NoReturn:
    """End with a line of error and exit code 1."""
    sys.exit(f"error: {message}")


def make_folder(folder: Path) -> Path:
    """Make the folder of ``--out``, or end with a line that says why it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        fail(f"--out {folder}: that is a file; wanted a folder, new or old")
    except OSError as error:
        fail(f"--out {folder}: {error.strerror}; wanted a folder that can be made")
    return folder


def end_now(code: int, message: str) -> NoReturn:
    """End this process and those that it started, waiting for nobody.

    The main thread may be inside gloo, or in a queue whose lock died with a worker: no exception gets
    there, and a collector's shutdown waits for workers that are busy.
    """
    _ending.acquire()  # whoever comes second waits here for the end
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    print(f"\n{message}", file=sys.stderr, flush=True)
    for worker in multiprocessing.active_children():
        worker.kill()
    sys.stdout.flush()
    os._exit(code)


def was_interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is what began it, also where another error took its place.

    An error in a block of ``params.to_module(...)``, as losses have, becomes "Converting a tensordict to
    boolean value is not permitted": Python asks for the truth of what its ``__exit__`` returns.
    https://github.com/pytorch/tensordict/blob/v0.14.0/tensordict/base.py
    """
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def end_for(interruption: KeyboardInterrupt) -> NoReturn:
    """:func:`end_now` for Ctrl-C, with what the interruption says."""
    hint = f": {interruption}" if str(interruption) else ""
    end_now(INTERRUPTED, f"stopped by Ctrl-C{hint}")


@contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """Processes that are started within it never see Ctrl-C, which a terminal sends to all: the main one
    ends them, and they print no traceback. In this process it waits until the block is left."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # what children inherit
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _on_exception(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Of what nobody caught: a traceback, but for Ctrl-C a line with the interruption's own words."""
    if isinstance(error, KeyboardInterrupt):
        end_for(error)
    sys.__excepthook__(kind, error, traceback)


sys.excepthook = _on_exception
