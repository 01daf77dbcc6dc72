"""The vocabulary files tiktoken needs, kept where tiktoken looks for them.

tiktoken downloads a file that is missing or damaged, with no time-out. So nothing here
lets it load one that was not read and verified first.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import NamedTuple

_MAX_BYTES = 16 * 2**20
_CHUNK = 64 * 2**10


class Vocabulary(NamedTuple):
    """One encoding's file, as tiktoken expects it."""

    encoding: str
    url: str
    sha256: str

    def path(self, directory: Path) -> Path:
        """Return where tiktoken keeps this file."""
        name = hashlib.sha1(self.url.encode(), usedforsecurity=False).hexdigest()
        return directory / name

    def is_in(self, directory: Path) -> bool:
        """Return whether the file is there and undamaged."""
        try:
            content = self.path(directory).read_bytes()
        except OSError:
            return False
        return hashlib.sha256(content).hexdigest() == self.sha256


_PUBLIC = "https://openaipublic.blob.core.windows.net/encodings/"

VOCABULARIES = (
    Vocabulary(
        "o200k_base",
        _PUBLIC + "o200k_base.tiktoken",
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    ),
    Vocabulary(
        "cl100k_base",
        _PUBLIC + "cl100k_base.tiktoken",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    ),
)


def cache_directory() -> Path | None:
    """Return the directory tiktoken uses, or None where its cache is switched off."""
    default = str(Path(tempfile.gettempdir()) / "data-gym-cache")
    fallback = os.environ.get("DATA_GYM_CACHE_DIR", default)
    directory = os.environ.get("TIKTOKEN_CACHE_DIR", fallback)
    return Path(directory) if directory else None


def fetch(vocabulary: Vocabulary, directory: Path, timeout_s: float) -> None:
    """Download a vocabulary into `directory`, in at most about `timeout_s` seconds.

    Raises `OSError` if it cannot be had in time or written, `ValueError` if it is not the
    file it should be.
    """
    content = _download(vocabulary.url, timeout_s)
    if hashlib.sha256(content).hexdigest() != vocabulary.sha256:
        raise ValueError(f"{vocabulary.url} is not the expected file: its SHA-256 differs")
    directory.mkdir(parents=True, exist_ok=True)
    # Other processes may be reading or fetching the same file.
    handle, temporary = tempfile.mkstemp(dir=directory)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    Path(temporary).replace(vocabulary.path(directory))


def _download(url: str, timeout_s: float) -> bytes:
    deadline = time.monotonic() + timeout_s
    content = bytearray()
    # The time-out of urllib is for one read; a slow server could stretch that for ever.
    with urllib.request.urlopen(url, timeout=timeout_s) as answer:  # noqa: S310 - a constant URL
        while chunk := answer.read1(_CHUNK):
            content += chunk
            if len(content) > _MAX_BYTES:
                raise OSError(f"{url} is longer than {_MAX_BYTES} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError(f"{url} took longer than {timeout_s} s")
    return bytes(content)
