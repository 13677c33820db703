"""A process for the page's heavy work: a file that crashes its decoder costs the visitor one answer."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any


class WorkerError(RuntimeError):
    """The process ended, or took too long; the message says which."""


class Worker:
    """One process that runs functions of modules, one call at a time; started by the first one.

    What it has loaded stays with it: all visitors share one encoder. After a crash it is started anew.

    Args:
        name: in the list of processes.
        threads: of PyTorch in it.
    """

    def __init__(self, name: str, threads: int = 1):
        self.name, self.threads = name, threads
        self._turn = threading.Lock()
        self._process: Any = None
        self._closed = False
        self._pipe: Connection

    def start(self) -> None:
        """Start it now, so that the first visitor does not wait for imports."""
        with self._turn:
            self._ensure()

    def call(self, function: Callable[..., Any], *args: Any, seconds: float = 300) -> Any:
        """What ``function(*args)`` returns there.

        Raises:
            WorkerError: it crashed, or took longer than ``seconds``.
            Exception: what the function raised.
        """
        (answer,) = self.stream(_once, function, *args, seconds=seconds)
        return answer

    def stream(
        self, function: Callable[..., Iterator[Any]], *args: Any, seconds: float = 300
    ) -> Iterator[Any]:
        """What the generator ``function(*args)`` yields there. Closing this one ends it.

        Args:
            seconds: for each item, at most.

        Raises: as :meth:`call`.
        """
        with self._turn:
            self._ensure()
            finished = False
            try:
                self._pipe.send((function, args))
                while True:
                    kind, value = self._receive(seconds)
                    if kind == "end":
                        finished = True
                        return
                    if kind == "error":
                        finished = True
                        raise value
                    yield value
            finally:
                if not finished:
                    self._stop()

    def close(self) -> None:
        """End the process for good, whatever it does; calls that wait for their turn are refused."""
        self._closed = True
        self._kill()

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()

    def _ensure(self) -> None:
        if self._closed:
            raise WorkerError("the page is being stopped")
        if self._process is not None and self._process.is_alive():
            return
        context = multiprocessing.get_context("spawn")  # threads and locks do not survive a fork
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, self.threads), name=self.name, daemon=True
        )
        self._process.start()
        if self._closed:  # meanwhile
            self._kill()
        theirs.close()  # so that the process's death is the end of the pipe

    def _receive(self, seconds: float) -> tuple[str, Any]:
        try:
            if self._pipe.poll(seconds):
                return self._pipe.recv()
        except (EOFError, OSError) as error:
            self._kill()
            raise WorkerError("it made the program that reads it crash") from error
        self._kill()
        raise WorkerError(f"it took more than {seconds:.0f} s")

    def _stop(self) -> None:
        """Ask for the end of a generator, which looks for that after each item."""
        if not self._process.is_alive():
            return
        try:
            self._pipe.send("stop")
            until = time.monotonic() + 10
            while self._receive(max(until - time.monotonic(), 0))[0] == "item":
                pass
        except (WorkerError, OSError):
            self._kill()


def _once(function: Callable[..., Any], *args: Any) -> Iterator[Any]:
    yield function(*args)


def _serve(pipe: Connection, threads: int) -> None:
    """The process: calls come in, items go out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's, which ends this one
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    import torch

    torch.set_num_threads(threads)
    # an end of the pipe: the server is gone
    with torch.inference_mode(), suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            wanted = pipe.recv()
            if wanted != "stop":  # else it came after the last item
                _run(pipe, *wanted)


def _run(pipe: Connection, function: Callable[..., Iterator[Any]], args: tuple) -> None:
    items = function(*args)
    try:
        for item in items:
            pipe.send(("item", item))
            if pipe.poll() and pipe.recv() == "stop":
                getattr(items, "close", lambda: None)()  # a generator's end frees what it holds
                break
        pipe.send(("end", None))
    except (BrokenPipeError, ConnectionResetError):
        raise
    except Exception as error:
        pipe.send(("error", _plain(error)))


def _plain(error: Exception) -> Exception:
    """An error that can travel: of its kind where that is one of Python's, else a RuntimeError."""
    import pickle

    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
