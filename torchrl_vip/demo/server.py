"""The page's server: uploads within limits, a visitor's files to nobody else, nothing from elsewhere."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torchrl_vip.demo import measuring
from torchrl_vip.demo.uploads import MEGABYTES, TOGETHER, Refused, Visits
from torchrl_vip.demo.worker import Worker, WorkerError

PREFIX = "torchrl_vip_page_"
SERVED = ("frame_", "goal.jpg")
"""How the names begin of files that a visitor's page shows; beside what ``measuring.FILES`` makes."""
HEADERS = {
    # The browser itself sees to it that the page loads nothing from elsewhere.
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
        "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
        "font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; "
        "frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


PRIVATE = {"cache-control": "private, no-store"}


def offline() -> None:
    """Before Gradio is imported: it asks nothing and tells nothing."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


def serve(
    host: str, port: int, checkpoints: list[str], *, local: bool, ready: Callable[[int], None]
) -> None:
    """Serve the page until Ctrl-C, and leave nothing behind.

    Args:
        port: 0 is any that is free.
        checkpoints: paths that visitors may choose.
        local: whether only this machine reaches it; then a visitor may name a path.
        ready: called with the port.

    Raises:
        OSError: the address or port cannot be had.
    """
    # uvicorn sends itself the signal again when it has stopped: what is left is tidied up all the same
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    listening = _listen(host, port)
    with _folder() as root, listening:
        offline()
        os.environ["GRADIO_TEMP_DIR"] = str(root / "uploaded")
        visits = Visits(root)
        threads = os.cpu_count() or 1
        measurer, simulators = Worker("measure", threads), Worker("simulate", max(threads // 2, 1))
        warming = threading.Thread(target=_warm_up, args=(measurer,), daemon=True)
        warming.start()
        try:
            app = make_app(visits, root, measurer, simulators, checkpoints, local)
            ready(listening.getsockname()[1])
            _run(app, listening, visits)
        finally:
            visits.close()
            measurer.close()
            simulators.close()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError:
        listening.close()
        raise
    return listening


@contextmanager
def _folder() -> Iterator[Path]:
    """This server's own; those of servers that were killed go first."""
    for old in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(ValueError, OSError):
            number = int(old.name.removeprefix(PREFIX).partition("_")[0])
            if old.stat().st_uid == os.getuid() and not Path(f"/proc/{number}").exists():
                shutil.rmtree(old, ignore_errors=True)
    root = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}_"))
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _warm_up(measurer: Worker) -> None:
    with suppress(WorkerError):
        measurer.call(measuring.warm_up, seconds=600)


def make_app(
    visits: Visits,
    root: Path,
    measurer: Worker,
    simulators: Worker,
    checkpoints: list[str],
    local: bool,
) -> Any:
    """The page as an ASGI application."""
    import gradio as gr
    from fastapi import FastAPI

    from torchrl_vip.demo.page import Page, build

    page = Page(visits, root, measurer, simulators, checkpoints, any_path=local)
    blocks = build(page)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    add_files(app, visits, measurer)
    here = Path(__file__).parent
    plain = gr.themes.Default(
        primary_hue="blue",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    gr.mount_gradio_app(
        app,
        blocks,
        path="",
        max_file_size=MEGABYTES * 10**6,
        theme=plain,
        css=(here / "page.css").read_text(),
        head=f"<script>{(here / 'page.js').read_text()}</script>",
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
    )
    return Guard(app, root, hosts=("127.0.0.1", "localhost", "[::1]") if local else None)


def add_files(app: Any, visits: Visits, measurer: Worker) -> None:
    """Serve what visitors' pages show, and make what they download when it is asked for."""
    from fastapi.responses import FileResponse, PlainTextResponse, Response

    @app.get("/visit/{token}/{folder}/{name:path}")
    def file(token: str, folder: str, name: str) -> Any:
        place = visits.find(token, folder)
        if place is None:
            return PlainTextResponse("Not here, or not here any more.", status_code=404)
        path = place.folder / name
        try:
            if name in measuring.FILES and "wish" in place.settings:
                with place.lock:
                    if not path.exists():
                        measurer.call(measuring.make, place.settings["wish"], name, seconds=300)
            elif not (
                path.name.startswith(SERVED) and path.is_file() and _is_in(path, place.folder)
            ):
                return PlainTextResponse("Not here.", status_code=404)
            else:  # read at once: the next upload may delete it
                return Response(path.read_bytes(), media_type="image/jpeg", headers=PRIVATE)
        except (Refused, WorkerError, ValueError, OSError) as error:
            return PlainTextResponse(f"This could not be made: {error}", status_code=422)
        return FileResponse(path, headers=PRIVATE)


def _is_in(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


class Guard:
    """Refuses what is too large before it is read, and who calls this machine by another's name.

    Args:
        app: the ASGI application behind it.
        root: where uploads are written.
        hosts: names by which it may be called; None is any.
    """

    def __init__(self, app: Any, root: Path, hosts: tuple[str, ...] | None):
        self.app, self.root, self.hosts = app, root, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        refusal = self._refusal(headers)
        if refusal:
            status, text = refusal
            plain = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": status, "headers": plain})
            await send({"type": "http.response.body", "body": text.encode()})
            return

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                ours = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *ours]}
            await send(message)

        await self.app(scope, receive, with_headers)

    def _refusal(self, headers: dict[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "").rpartition(":")[0] or headers.get("host", "")
        if self.hosts is not None and host not in self.hosts:
            return 421, f"This page is at {self.hosts[0]}, not at {host}."
        length = headers.get("content-length", "0")
        size = int(length) if length.isdigit() else 0
        if size > (TOGETHER + 1) * 10**6:
            return 413, f"{size / 1e6:,.0f} MB are too much; wanted at most {TOGETHER} MB at once."
        if size and size > shutil.disk_usage(self.root).free - 10**9:
            return 507, "There is no room for this upload now."
        return None


def _run(app: Any, listening: socket.socket, visits: Visits) -> None:
    import uvicorn

    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2, ws="none")
    stopped = threading.Event()

    def tidy() -> None:
        while not stopped.wait(30):
            visits.sweep()

    threading.Thread(target=tidy, daemon=True).start()
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        stopped.set()
