"""A webhook's receiver on a real socket, as badly behaved as a test wants it."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from typing import NamedTuple

ENDLESS = b"HTTP/1.1 200 OK\r\n\r\n"
_PAUSE_S = 0.01


class Request(NamedTuple):
    """What arrived."""

    line: str
    headers: dict[str, str]
    body: bytes


class Receiver:
    """Takes what is sent and answers by `script`, one word for each request, the last for the rest.

    A number is a status, `redirect` leads to `elsewhere`, `hang` answers nothing, `close` hangs
    up at once, `drip` gives a head byte by byte without an end, `endless` a body, `flood` one
    that is large, `garbage` something else than HTTP.
    """

    def __init__(self, *script: str, tls: ssl.SSLContext | None = None) -> None:
        self.script = list(script) or ["200"]
        self.elsewhere = ""
        self.requests: list[Request] = []
        self._tls = tls
        self._done = threading.Event()
        self._arrived = threading.Condition()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        scheme = "https" if tls else "http"
        self.url = f"{scheme}://127.0.0.1:{self.port}/hooks/budget?team=a"
        threading.Thread(target=self._accept, daemon=True).start()

    def wait_for(self, count: int) -> list[Request]:
        """Return all requests once there are so many; fail if that takes too long."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.requests) >= count, 20)
            return list(self.requests)

    def close(self) -> None:
        """End, and whatever still hangs with it."""
        self._done.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            stack.enter_context(client)
            if self._tls is not None:
                client = stack.enter_context(self._tls.wrap_socket(client, server_side=True))
            request = _read(client)
            with self._arrived:
                word = self.script.pop(0) if len(self.script) > 1 else self.script[0]
                self.requests.append(request)
                self._arrived.notify_all()
            self._answer(word, client)

    def _answer(self, word: str, client: socket.socket) -> None:
        if word == "hang":
            self._done.wait(30)
        elif word == "drip":
            self._drip(client, b"HTTP/1.1 200 " + b"o" * 10**6)
        elif word == "endless":
            client.sendall(ENDLESS)
            self._drip(client, b"." * 10**6)
        elif word == "flood":
            client.sendall(ENDLESS + b"." * 10**7)
        elif word == "garbage":
            client.sendall(b"220 mail.example ESMTP\r\n")
        elif word == "redirect":
            head = f"HTTP/1.1 302 Found\r\nLocation: {self.elsewhere}\r\n"
            client.sendall(head.encode() + b"Content-Length: 0\r\n\r\n")
        elif word != "close":
            client.sendall(f"HTTP/1.1 {word} x\r\nContent-Length: 2\r\n\r\nok".encode())

    def _drip(self, client: socket.socket, content: bytes) -> None:
        for number in range(len(content)):
            client.sendall(content[number : number + 1])
            if self._done.wait(_PAUSE_S):
                return


def _read(client: socket.socket) -> Request:
    raw = b""
    while b"\r\n\r\n" not in raw:
        raw += client.recv(65536) or _gone()
    head, _, body = raw.partition(b"\r\n\r\n")
    line, *fields = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in [field.split(": ", 1) for field in fields]}
    while len(body) < int(headers["content-length"]):
        body += client.recv(65536) or _gone()
    return Request(line, headers, body)


def _gone() -> bytes:
    raise ConnectionError


@contextlib.contextmanager
def receiving(*script: str, tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """Run a receiver for a while."""
    receiver = Receiver(*script, tls=tls)
    try:
        yield receiver
    finally:
        receiver.close()
