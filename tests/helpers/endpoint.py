"""A chat-completions endpoint on this machine that gives the replies of a test in their order."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[[BaseHTTPRequestHandler], None]


def answer(status: int, body: bytes, **headers: str) -> Reply:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return reply


def says(text: Any, **more: Any) -> Reply:
    return answer(200, json.dumps({"choices": [{"message": {"content": text}}], **more}).encode())


def cut_off(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')


class Server(ThreadingHTTPServer):
    """Gives the replies in their order, the last one again and again, and keeps what it was sent."""

    daemon_threads = True

    def __init__(self, *replies: Reply) -> None:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server.received.append((self.path, dict(self.headers), json.loads(body)))
                reply = server.replies.pop(0) if len(server.replies) > 1 else server.replies[0]
                reply(self)

            def log_message(self, *arguments: Any) -> None:
                """Keep quiet."""

        super().__init__(("127.0.0.1", 0), Handler)
        self.replies, self.received = list(replies), list[tuple[str, dict[str, str], dict[str, Any]]]()
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no news."""

    def stall(self, handler: BaseHTTPRequestHandler) -> None:
        self.over.wait(20)

    def trickle_headers(self, handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        while not self.over.wait(0.02):
            handler.wfile.write(b"a")
            handler.wfile.flush()

    def trickle(self, handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not self.over.wait(0.02):
            handler.wfile.write(b" ")
            handler.wfile.flush()
