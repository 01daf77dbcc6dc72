"""Collects what a model reads: text to count, media to measure, fixed tokens to add.

Base64 never becomes text: it would look like one token for every byte or two.
"""

from __future__ import annotations

import binascii
from typing import Any, Literal

from llm_budget_mw.dialects._json import dump, is_array, is_object, label
from llm_budget_mw.errors import RequestError
from llm_budget_mw.types import Media, Prompt

_HEAD_CHARS = 5464
"""Base64 characters that hold the first 4 KB."""

_MAX_URL_HEADER = 256
"""Longest `data:image/png;name=...;base64` before its comma."""

_PAYLOAD_KEYS = frozenset({"data", "file_data", "bytes"})
_SEALED_KEYS = frozenset({"signature", "encrypted_content"})
_SEALED_CHARS_PER_TOKEN = 4
"""Base64 of three bytes, which is about the least text a token stands for."""

MAX_DEPTH = 64
"""Deepest part of a content that is looked through."""

MediaKind = Literal["image", "audio", "file"]


class PromptBuilder:
    """The input of one request, while it is read."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.media: list[Media] = []
        self.overhead_tokens = 0

    def build(self) -> Prompt:
        """Return what was collected."""
        return Prompt(self.texts, self.overhead_tokens, self.media)

    def add_text(self, value: object) -> None:
        """Add text; anything else has no tokens."""
        if isinstance(value, str) and value:
            self.texts.append(value)

    def add_json(self, value: object) -> None:
        """Add what a model reads as JSON, or in a form that is no longer than that."""
        if value:
            self.texts.append(dump(value).decode())

    def add_part(self, value: object) -> None:
        """Add a part of a format not known here: its JSON, with media and seals taken out."""
        self.add_json(self._without_payloads(value, MAX_DEPTH))

    def add_media(self, kind: MediaKind, url: object, detail: object = None) -> None:
        """Add a `data:` URL, or a URL or id whose content is not known here."""
        detail = label(detail) or ""
        if isinstance(url, str) and _is_data_url(url):
            comma = url.find(",", 0, _MAX_URL_HEADER)
            self._add_payload(kind, url, comma + 1, detail)
        else:
            self.media.append(Media(kind, detail=detail))

    def add_base64(self, kind: MediaKind, data: object) -> None:
        """Add media that stands in the request as base64, bare or in a `data:` URL."""
        if isinstance(data, str) and not _is_data_url(data):
            self._add_payload(kind, data, 0, "")
        else:
            self.add_media(kind, data)

    def add_sealed(self, value: object) -> None:
        """Add text that only the provider can decrypt, such as earlier thinking."""
        if isinstance(value, str):
            self.overhead_tokens += -(-len(value) // _SEALED_CHARS_PER_TOKEN)

    def _add_payload(self, kind: MediaKind, text: str, start: int, detail: str) -> None:
        padding = text[-2:].count("=")
        size = max(0, (len(text) - start) * 3 // 4 - padding)
        head = _decode(text[start : start + _HEAD_CHARS])
        self.media.append(Media(kind, head, size, detail))

    def _without_payloads(self, value: Any, depth: int) -> Any:
        if not depth:
            raise RequestError(f"A part of the content is nested deeper than {MAX_DEPTH}.")
        if isinstance(value, str):
            return self._text_or_media(value)
        if is_array(value):
            return [self._without_payloads(item, depth - 1) for item in value]
        if is_object(value):
            return {key: self._member(key, item, depth) for key, item in value.items()}
        return value

    def _text_or_media(self, value: str) -> str:
        if not _is_data_url(value):
            return value
        self.add_media("file", value)
        return ""

    def _member(self, key: str, value: Any, depth: int) -> Any:
        if isinstance(value, str) and key in _SEALED_KEYS:
            self.add_sealed(value)
            return ""
        if isinstance(value, str) and key in _PAYLOAD_KEYS:
            self.add_base64("file", value)
            return ""
        return self._without_payloads(value, depth - 1)


def _is_data_url(text: str) -> bool:
    return text[:5].lower() == "data:"


def _decode(head: str) -> bytes:
    """Decode the first characters of base64; empty if they are not that."""
    clean = "".join(head.split())
    try:
        return binascii.a2b_base64(clean[: len(clean) // 4 * 4])
    except ValueError:
        return b""
