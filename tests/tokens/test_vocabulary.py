"""Tests of `llm_budget_mw.tokens.vocabulary`, against a server on this machine."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_budget_mw.tokens.vocabulary import VOCABULARIES, Vocabulary, cache_directory, fetch

CONTENT = b"IQ== 0\nIg== 1\n"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Files(http.server.BaseHTTPRequestHandler):
    """`/good` is the file, `/endless` never ends, anything else is missing."""

    def do_GET(self) -> None:
        self.send_response(404 if self.path == "/missing" else 200)
        self.end_headers()
        # The client closes the connection: it has what it wants, or enough.
        with contextlib.suppress(OSError):
            self.wfile.write(CONTENT)
            while self.path == "/endless":
                self.wfile.write(bytes(2**16))

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


def vocabulary(url: str) -> Vocabulary:
    return Vocabulary("tiny", url, SHA256)


def test_a_fetched_file_is_where_tiktoken_looks_for_it(server: str, tmp_path: Path) -> None:
    """The file is verified, stored under tiktoken's name, and nothing else is left behind."""
    tiny = vocabulary(f"{server}/good")

    fetch(tiny, tmp_path / "cache", timeout_s=30)

    assert tiny.is_in(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == [tiny.path(tmp_path / "cache")]


def test_another_file_is_not_stored(server: str, tmp_path: Path) -> None:
    """What does not have the expected checksum never reaches the cache."""
    wrong = Vocabulary("tiny", f"{server}/good", "0" * 64)

    with pytest.raises(ValueError, match="SHA-256 differs"):
        fetch(wrong, tmp_path, timeout_s=30)

    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_an_error(server: str, tmp_path: Path) -> None:
    """An HTTP error is one `OSError` like any other."""
    with pytest.raises(OSError, match="404"):
        fetch(vocabulary(f"{server}/missing"), tmp_path, timeout_s=30)


def test_an_endless_answer_is_cut_off(server: str, tmp_path: Path) -> None:
    """Memory for a download is bounded."""
    with pytest.raises(OSError, match="longer than"):
        fetch(vocabulary(f"{server}/endless"), tmp_path, timeout_s=60)


def test_the_time_for_the_whole_download_is_bounded(server: str, tmp_path: Path) -> None:
    """A server that keeps sending does not hold up the start for ever."""
    with pytest.raises(OSError, match=r"took longer|timed out"):
        fetch(vocabulary(f"{server}/endless"), tmp_path, timeout_s=0.001)


def test_a_damaged_or_missing_file_is_not_there(tmp_path: Path) -> None:
    """Either would be replaced by a download of tiktoken, so neither counts as present."""
    tiny = vocabulary("https://example.org/tiny")

    assert not tiny.is_in(tmp_path)
    tiny.path(tmp_path).write_bytes(CONTENT[:-1])
    assert not tiny.is_in(tmp_path)
    tiny.path(tmp_path).write_bytes(CONTENT)
    assert tiny.is_in(tmp_path)


def test_the_names_in_the_cache_are_tiktokens_own() -> None:
    """The file of o200k_base has the name every pre-filled cache gives it."""
    names = {v.encoding: v.path(Path()).name for v in VOCABULARIES}

    assert names == {
        "o200k_base": "fb374d419588a4632f3f557e76b4b70aebbca790",
        "cl100k_base": "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
    }


@pytest.mark.parametrize(
    ("environment", "directory"),
    [
        ({"TIKTOKEN_CACHE_DIR": "/a", "DATA_GYM_CACHE_DIR": "/b"}, Path("/a")),
        ({"DATA_GYM_CACHE_DIR": "/b"}, Path("/b")),
        ({"TIKTOKEN_CACHE_DIR": ""}, None),
        ({}, Path(tempfile.gettempdir()) / "data-gym-cache"),
    ],
)
def test_the_cache_is_where_tiktoken_has_it(
    environment: dict[str, str], directory: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variables tiktoken reads are read in its order; an empty one means no cache."""
    for name in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    assert cache_directory() == directory
