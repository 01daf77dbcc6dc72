"""Each kind of weather does what it says to a connection, and no more."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.chaos.proxy import FAIR, Proxy, Weather

_QUESTION = b"question"
_WAIT_S = 5.0
_SILENCE_S = 0.2


class Echo:
    """A server that answers with what it is sent, and remembers it."""

    def __init__(self) -> None:
        self.heard = threading.Semaphore(0)
        """Released once for each piece that arrived."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._answer, args=(client,), daemon=True).start()

    def _answer(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            while piece := client.recv(65536):
                self.heard.release()
                client.sendall(piece)


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    proxy = Proxy(echo.port, seed=1)
    yield proxy
    proxy.close()


def ask(proxy: Proxy, wait_s: float = _WAIT_S) -> bytes:
    """Send one question over a new connection; return what comes until it ends or is whole."""
    with socket.create_connection(("127.0.0.1", proxy.port), wait_s) as client:
        client.sendall(_QUESTION)
        answer = b""
        while len(answer) < len(_QUESTION) and (piece := client.recv(64)):
            answer += piece
        return answer


def heard(echo: Echo, wait_s: float = _WAIT_S) -> bool:
    return echo.heard.acquire(timeout=wait_s)


def test_fair_weather_changes_nothing(proxy: Proxy) -> None:
    """What is asked arrives, and so does the answer."""
    assert ask(proxy) == _QUESTION


def test_a_delay_changes_no_byte(proxy: Proxy) -> None:
    """A slow way is a way."""
    proxy.weather = Weather(delay_s=0.1)

    assert ask(proxy) == _QUESTION


def test_closed_hangs_up_on_everyone(proxy: Proxy, echo: Echo) -> None:
    """Neither a new connection nor one that is there gets through; afterwards all do."""
    with socket.create_connection(("127.0.0.1", proxy.port), _WAIT_S) as client:
        client.sendall(_QUESTION)
        assert client.recv(64) == _QUESTION
        assert heard(echo)
        proxy.weather = Weather(closed=True)
        with contextlib.suppress(ConnectionError):
            assert client.recv(64) == b""
    with contextlib.suppress(ConnectionError):
        assert ask(proxy) == b""
    assert not heard(echo, _SILENCE_S)

    proxy.weather = FAIR
    assert ask(proxy) == _QUESTION


def test_a_deaf_way_takes_questions_to_nobody(proxy: Proxy, echo: Echo) -> None:
    """The connection stands, and nothing arrives."""
    proxy.weather = Weather(deaf=True)

    with pytest.raises(TimeoutError):
        ask(proxy, _SILENCE_S)
    assert not heard(echo, _SILENCE_S)


def test_a_mute_way_brings_no_answer(proxy: Proxy, echo: Echo) -> None:
    """The question arrives, the answer does not."""
    proxy.weather = Weather(mute=True)

    with pytest.raises(TimeoutError):
        ask(proxy, _SILENCE_S)
    assert heard(echo)


def test_a_reply_is_lost_with_its_connection(proxy: Proxy, echo: Echo) -> None:
    """The question arrives, and the connection ends before a byte of the answer."""
    proxy.weather = Weather(lose=1.0)

    assert ask(proxy) == b""
    assert heard(echo)


def test_a_reply_is_cut_in_its_middle(proxy: Proxy, echo: Echo) -> None:
    """Less than the answer comes, and all of that is right."""
    proxy.weather = Weather(cut=1.0)

    answer = ask(proxy)

    assert len(answer) < len(_QUESTION)
    assert _QUESTION.startswith(answer)
    assert heard(echo)


def test_a_question_arrives_late_after_its_connection_has_ended(proxy: Proxy, echo: Echo) -> None:
    """Who asked is told that the connection is gone; the server hears of it afterwards."""
    proxy.weather = Weather(late=1.0, late_s=0.3)

    with contextlib.suppress(ConnectionError):
        assert ask(proxy) == b""
    assert not heard(echo, 0.05)
    assert heard(echo)
