"""A W&B server on this machine: answers what a run asks, and keeps what arrives."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

VIEWER = {"id": "u", "entity": "team", "username": "someone", "email": "", "flags": "{}", "teams": {"edges": []}}


class WandbServer(ThreadingHTTPServer):
    """Keeps runs' history, config, summary and files.

    Attributes:
        status: What every request is answered with; 0 keeps silent until the test is over.
        viewer: The account that every API key belongs to; None knows no key.
        refuses_runs: Whether nobody may write a run.
        history: The rows, by their number in the run.
        config: Name to value.
        summary: Name to value.
        files: Name to content.
        exit_code: That of the run, once it said that it has finished.
        unknown: The GraphQL documents that this server has no answer to.
    """

    daemon_threads = True
    request_queue_size = 64  # W&B uploads files side by side

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status, self.refuses_runs = 200, False
        self.viewer: dict[str, Any] | None = VIEWER
        self.history, self.config, self.summary = dict[int, dict[str, Any]](), dict[str, Any](), dict[str, Any]()
        self.files, self.unknown = dict[str, bytes](), list[str]()
        self.exit_code: int | None = None
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no news."""

    def step_metrics(self) -> dict[str, str | None]:
        """Return the x-axis of every metric or pattern; W&B sends them as numbers of the fields of its records."""
        name, glob_name, step_metric_index = "1", "2", "5"
        metrics = self.config["_wandb"]["m"]
        axes = {each.get(name) or each[glob_name]: each.get(step_metric_index) for each in metrics}
        return {key: metrics[place - 1][name] if place else None for key, place in axes.items()}

    def graphql(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        if "upsertBucket" in query:
            return {"upsertBucket": self._upsert(given)}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        if "createArtifact" in query:  # a table, already known: nothing is to be uploaded
            artifact = {"id": "a", "state": "COMMITTED", "artifactSequence": {"id": "s", "latestArtifact": None}}
            return {"createArtifact": {"artifact": artifact}}
        answers: dict[str, Any] = {
            "viewer": self.viewer,
            "serverInfo": {"features": []},
            "model": None,  # no run of this id yet
            "project": {"artifact": None},
            "entity": {"organization": None},
        }
        field = query.partition("{")[2].strip().partition("{")[0].partition("(")[0].strip()
        if field not in answers:
            self.unknown.append(query)
        return {field: answers.get(field)}

    def _upsert(self, given: dict[str, Any]) -> dict[str, Any]:
        self.config |= {name: entry["value"] for name, entry in json.loads(given["config"] or "{}").items()}
        project = {"id": "p", "name": given["project"], "entity": {"id": "e", "name": "team"}}
        bucket = {"id": "r", "name": given["name"], "displayName": given["displayName"], "config": "{}"}
        return {"bucket": {**bucket, "project": project, "historyLineCount": 0}, "inserted": True}

    def stream(self, sent: dict[str, Any]) -> None:
        for name, part in sent.get("files", {}).items():
            if name == "wandb-history.jsonl":
                rows = map(json.loads, part["content"])
                self.history |= dict(enumerate(rows, part["offset"]))
            elif name == "wandb-summary.json":
                self.summary = json.loads(part["content"][-1])
        if sent.get("complete"):
            self.exit_code = sent["exitcode"]


class Handler(BaseHTTPRequestHandler):
    server: WandbServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        reply: dict[str, Any] = {}
        refused = b"upsertBucket" in body and self.server.refuses_runs
        status = 403 if refused else self.server.status
        if status == 0:
            self.server.over.wait(20)
            return
        if status == 200 and self.path == "/graphql":
            sent = json.loads(body)
            reply = {"data": self.server.graphql(sent["query"], sent.get("variables") or {})}
        elif status == 200 and self.path.endswith("/file_stream"):
            self.server.stream(json.loads(body))
        self._answer(status, json.dumps(reply).encode())

    def do_PUT(self) -> None:
        name = unquote(self.path).removeprefix("/upload/")
        self.server.files[name] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(self.server.status, b"")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""


@contextmanager
def serving() -> Iterator[WandbServer]:
    """Serve as long as the context is open."""
    with WandbServer() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
