"""A Hugging Face Hub on this machine: the routes that huggingface_hub asks for one small repository."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_a_token_that_may_read_and_write"
WHERE = r"(?P<repo>[\w.-]+/[\w.-]+)"


def commit_of(files: dict[str, bytes]) -> str:
    digest = hashlib.sha1()
    for name in sorted(files):
        digest.update(name.encode() + files[name])
    return digest.hexdigest()


class Hub(ThreadingHTTPServer):
    """Repositories, their branches and files; "private" ones want the TOKEN, "gated" ones refuse.

    Attributes:
        branches: "user/repo" -> branch -> file name -> content.
        access: "user/repo" -> "private" or "gated"; others are public.
        requests: "GET /path" of all that was asked.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Routes)
        self.branches: dict[str, dict[str, dict[str, bytes]]] = {}
        self.access: dict[str, str] = {}
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, repo: str, revision: str) -> dict[str, bytes] | None:
        branches = self.branches[repo]
        return (branches | {commit_of(files): files for files in branches.values()}).get(revision)


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Routes(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._read()

    def do_GET(self) -> None:
        self._read()

    def _read(self) -> None:
        path = self._path()
        found = (
            re.fullmatch(rf"/api/models/{WHERE}/revision/(?P<revision>[^/]+)", path)
            or re.fullmatch(rf"/api/models/{WHERE}/tree/(?P<revision>[^/]+)", path)
            or re.fullmatch(rf"/{WHERE}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", path)
            or re.fullmatch(rf"/api/models/{WHERE}", path)
        )
        if found is None:
            return self._refuse(404, "EntryNotFound")
        asked = {"revision": "main", "file": None} | found.groupdict()
        files = self._allowed(asked["repo"], asked["revision"])
        if files is None:
            return None
        if asked["file"] is not None:
            return self._send_file(files, asked["file"])
        if "/tree/" in path:
            return self._send_json([_entry(name, files[name]) for name in files])
        siblings = [{"rfilename": name} for name in files]
        return self._send_json({"id": asked["repo"], "sha": commit_of(files), "siblings": siblings})

    def do_POST(self) -> None:
        path = self._path()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        if path == "/api/validate-yaml":
            return self._send_json({"errors": [], "warnings": []})
        if not self._has_token():
            return self._refuse(401, "", "Invalid username or password.")
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            self.server.branches.setdefault(repo, {"main": {}})
            if asked.get("private") or asked.get("visibility") == "private":
                self.server.access[repo] = "private"
            return self._send_json({"url": f"{self.server.url}/{repo}"})
        if found := re.fullmatch(rf"/api/models/{WHERE}/preupload/main", path):
            modes = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self._send_json({"files": modes})
        if found := re.fullmatch(rf"/api/models/{WHERE}/commit/main", path):
            files = self.server.branches[found["repo"]]["main"]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    files[line["value"]["path"]] = content
            commit = commit_of(files)
            url = f"{self.server.url}/{found['repo']}/commit/{commit}"
            return self._send_json({"success": True, "commitUrl": url, "commitOid": commit})
        return self._refuse(404, "EntryNotFound")

    # -- answers ----------------------------------------------------------------------------------

    def _path(self) -> str:
        self.server.requests.append(f"{self.command} {self.path}")
        return self.path.partition("?")[0]

    def _has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _allowed(self, repo: str, revision: str) -> dict[str, bytes] | None:
        """The files; None once the request is refused, as the real Hub does it."""
        access = self.server.access.get(repo)
        if repo not in self.server.branches or (access == "private" and not self._has_token()):
            self._refuse(401, "RepoNotFound", "Invalid username or password.")
        elif access == "gated":
            self._refuse(403, "GatedRepo", "Access to this model is restricted.")
        elif (files := self.server.files(repo, revision)) is None:
            self._refuse(404, "RevisionNotFound", "Invalid rev id")
        else:
            return files
        return None

    def _refuse(self, status: int, code: str, message: str = "") -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": message})

    def _send_json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send_file(self, files: dict[str, bytes], name: str) -> None:
        if name not in files:
            return self._refuse(404, "EntryNotFound")
        etag = f'"{hashlib.sha256(files[name]).hexdigest()}"'
        return self._send(200, files[name], {"ETag": etag, "X-Repo-Commit": commit_of(files)})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _entry(name: str, content: bytes) -> dict[str, object]:
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return {"type": "file", "path": name, "size": len(content), "oid": oid}
