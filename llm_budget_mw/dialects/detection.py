"""Which dialect speaks at a path, going by where providers have their endpoints.

Found wrongly, a request is guarded in a format it does not have, and refused as one that
cannot be read; not found, it is refused for that. Neither gets around the budget.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

_PARENT = r"/(?:v\d\w*|openai|beta|deployments/[^/]+)"
"""What stands before a name that alone would say too little."""

_ENDINGS = {
    "openai_chat": r"/chat/completions",
    "openai_completions": rf"{_PARENT}/completions",
    "openai_embeddings": rf"{_PARENT}/embeddings",
    "openai_responses": rf"{_PARENT}/responses(?:/compact|/input_tokens)?",
    "anthropic_messages": r"/v1/messages",
    "gemini": r"/(?:models|tunedmodels)/[^/]+:(?:generatecontent|streamgeneratecontent)",
    "bedrock": r"/converse(?:-stream)?",
    "bedrock_invoke": r"/invoke(?:-with-response-stream)?",
    "cohere": r"/v2/chat",
    "ollama": r"/api/(?:chat|generate)",
}
"""The end of the path of each format's requests, in lower case."""

_AFTER = {"bedrock": "/model/", "bedrock_invoke": "/model/"}
"""What stands somewhere before; in the pattern it would take quadratic time."""

_ENDING = re.compile(
    "(?:" + "|".join(f"(?P<{name}>{ending})" for name, ending in _ENDINGS.items()) + r")\Z"
)
_FREE = re.compile(
    "(?:"
    + "|".join(
        (
            r"/v1/messages/count_tokens",
            rf"{_PARENT}/responses/input_tokens",
            r"/models/[^/]+:(?:counttokens|computetokens)",
            r"/model/[^/]+/count-tokens",
            r"/v1/(?:de)?tokenize",
            rf"{_PARENT}/moderations",
            rf"{_PARENT}/files",
            rf"{_PARENT}/uploads(?:/[^/]+/(?:parts|complete))?",
            r"/[^/]+/cancel",
        )
    )
    + r")\Z"
)
"""The end of the path of what providers do for nothing: counting, moderation, files, an end."""
_HARMLESS = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})
"""Methods that only read or take away."""
_ODD = re.compile(r"//|/\.{1,2}(?:/|$)|[%\\;?#\x00-\x1f\x7f]")


def detect(path: str) -> str | None:
    """Return the name of the dialect of a decoded path; None if no format known is served there.

    Case and slashes at the end make no difference: to some servers they do not either.
    """
    path = plain(path).rstrip("/ ")
    match = _ENDING.search(path)
    if match is None or path.find(_AFTER.get(match.lastgroup or "", ""), 0, match.start()) < 0:
        return None
    return match.lastgroup


def costs_nothing(method: str, path: str) -> bool:
    """Return whether providers are known to bill nothing for a request to a decoded path.

    True lets a request pass unmetered, so this is for what an application itself sends: at an
    edge it would let strangers use its key.
    """
    if method in _HARMLESS:
        return True
    path = plain(path).rstrip("/ ")
    return method == "POST" and _FREE.search(path) is not None and not is_odd(path)


def plain(path: str) -> str:
    """Return a path in lower case, and decoded once more than a server has done it."""
    return unquote(path).lower()


def is_odd(path: str) -> bool:
    """Return whether a path is spelt so that two servers may take it for different ones.

    An empty or a relative segment, a character that ends a path or divides a segment, one
    that is encoded more than once.
    """
    return _ODD.search(plain(path)) is not None
