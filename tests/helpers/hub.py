"""A hub on this machine: the part of the Hugging Face hub's HTTP interface that loading a model or data set needs.

It has nobody's weights, only what a test gives it, and keeps every request. A test makes it fail: gated repositories,
a file that breaks off with the hub going away, answers that never come.
"""

import hashlib
import json
import re
import socket
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Files = Mapping[str, bytes]  # by path in the repository
_LONGEST_SECONDS = 60.0  # no connection outlives its test by more
_API = re.compile(r"/api/(?P<kind>models|datasets)/(?P<id>[^/]+/[^/]+)(?:/(?P<what>revision|tree)/.*)?")
_FILE = re.compile(r"/(?:(?P<kind>datasets)/)?(?P<id>[^/]+/[^/]+)/resolve/[^/]+/(?P<file>.+)")


class LoopbackHub(ThreadingHTTPServer):
    """Serves repositories on 127.0.0.1 from a daemon thread until the `with` block ends.

    Args:
        models: Files of each model, by its id.
        datasets: Files of each data set, by its id.
        gated: Ids that want a token, and the status that they answer without one: 401, or 403 for a stranger's.
        breaks_off: Ends of paths at whose half the hub goes away for good.
        stalls: Ends of paths that are never answered.

    Attributes:
        requests: Method and path of every request, without the query.
    """

    daemon_threads = True

    def __init__(
        self,
        models: Mapping[str, Files] | None = None,
        datasets: Mapping[str, Files] | None = None,
        gated: Mapping[str, int] | None = None,
        breaks_off: tuple[str, ...] = (),
        stalls: tuple[str, ...] = (),
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = {"models": dict(models or {}), "datasets": dict(datasets or {})}
        self.gated, self.breaks_off, self.stalls = dict(gated or {}), breaks_off, stalls
        self.requests: list[str] = []
        self.over = threading.Event()

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.go_away()

    @property
    def url(self) -> str:
        """What to set HF_ENDPOINT to."""
        return f"http://127.0.0.1:{self.server_port}"

    def go_away(self) -> None:
        """Answer nobody any more; later connections are refused."""
        if not self.over.is_set():
            self.over.set()
            self.shutdown()
            self.server_close()

    def come_back(self) -> None:
        """Answer again, at the same address."""
        self.socket = socket.socket(self.address_family, self.socket_type)
        self.server_bind()
        self.server_activate()
        self.over.clear()
        self.__enter__()

    def served(self, kind: str, repository: str) -> set[str]:
        """Return the files that were downloaded of a repository."""
        start = f"GET /{'' if kind == 'models' else 'datasets/'}{repository}/resolve/"
        return {request.removeprefix(start).partition("/")[2] for request in self.requests if request.startswith(start)}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: LoopbackHub
    protocol_version = "HTTP/1.1"
    timeout = _LONGEST_SECONDS

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        if path.endswith(self.server.stalls):
            self.server.over.wait(_LONGEST_SECONDS)
            self.close_connection = True
        elif path == "/":
            self._answer(200, b"")
        elif found := _API.fullmatch(path):
            self._about(found["kind"], found["id"], found["what"])
        elif found := _FILE.fullmatch(path):
            self._file(found["kind"] or "models", found["id"], found["file"])
        else:
            self._answer(404, b"")

    do_HEAD = do_GET

    def _files(self, kind: str, repository: str) -> Files | None:
        """Return a repository's files, or answer why there are none."""
        files = self.server.repositories[kind].get(repository)
        if repository in self.server.gated:
            self._refuse(self.server.gated[repository], "GatedRepo", f"Access to {repository} is restricted.")
        elif files is None:
            self._refuse(404, "RepoNotFound", "Repository not found")
        else:
            return files
        return None

    def _about(self, kind: str, repository: str, what: str | None) -> None:
        if (files := self._files(kind, repository)) is None:
            return
        if what == "tree":
            self._tree(files)
        else:
            siblings = [{"rfilename": path} for path in files]
            self._json({"id": repository, "sha": _commit(files), "private": False, "siblings": siblings})

    def _tree(self, files: Files) -> None:
        url = urlsplit(self.path)
        folder = unquote(url.path).partition("/tree/")[2].partition("/")[2]
        entries = {path: _entry(path, content) for path, content in files.items()}
        parents = {str(parent) for path in files for parent in PurePosixPath(path).parents} - {"."}
        entries |= {path: {"type": "directory", "path": path, "size": 0, "oid": _digest(b"")} for path in parents}
        found = [entry for path, entry in entries.items() if not folder or path.startswith(f"{folder}/")]
        if parse_qs(url.query).get("recursive") != ["true"]:
            found = [entry for entry in found if str(PurePosixPath(entry["path"]).parent) == (folder or ".")]
        if found:
            self._json(found)
        else:
            self._refuse(404, "EntryNotFound", f"{folder} does not exist")

    def _file(self, kind: str, repository: str, name: str) -> None:
        if (files := self._files(kind, repository)) is None:
            return
        commit = {"X-Repo-Commit": _commit(files)}
        if name not in files:
            self._refuse(404, "EntryNotFound", "Entry not found", **commit)
            return
        content = files[name]
        etag = f'"{_digest(content)}"'
        linked = {"X-Linked-Etag": etag, "X-Linked-Size": str(len(content))} if _is_large(name) else {}
        breaks = self.command == "GET" and name.endswith(self.server.breaks_off)
        self._answer(200, content, breaks, ETag=etag, **commit, **linked)

    def _json(self, content: Any) -> None:
        self._answer(200, json.dumps(content).encode(), Content_Type="application/json")

    def _refuse(self, status: int, code: str, message: str, **headers: str) -> None:
        body = json.dumps({"error": message}).encode()
        self._answer(status, body, X_Error_Code=code, X_Error_Message=message, **headers)

    def _answer(self, status: int, body: bytes, breaks: bool = False, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[: len(body) // 2] if breaks else body)
        if breaks:
            self.wfile.flush()
            self.server.go_away()
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *arguments: Any) -> None:
        """Keep quiet."""


def _entry(name: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    if _is_large(name):
        entry["lfs"] = {"oid": _digest(content), "size": len(content), "pointerSize": 128}
    return entry


def _is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".parquet"))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _commit(files: Files) -> str:
    return hashlib.sha1(b"".join(name.encode() + content for name, content in sorted(files.items()))).hexdigest()
