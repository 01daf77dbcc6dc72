"""The two libraries SDKs are built on: httpx, and httpx2, which has the same names.

Neither is imported before a client of it is guarded.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any, NamedTuple

_NAMES = ("httpx", "httpx2")
_UNSENT = ("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol")


class Library(NamedTuple):
    """What is used of one of them; its classes are known when the program runs."""

    name: str
    client: Any
    async_client: Any
    transport: Any
    async_transport: Any
    stream: Any
    async_stream: Any
    request: Any
    response: Any
    unsent: tuple[type[Exception], ...]
    """Errors that come before anything of a request has left."""


@functools.cache
def _load(name: str) -> Library:
    module = importlib.import_module(name)
    return Library(
        name,
        module.Client,
        module.AsyncClient,
        module.BaseTransport,
        module.AsyncBaseTransport,
        module.SyncByteStream,
        module.AsyncByteStream,
        module.Request,
        module.Response,
        tuple([getattr(module, error) for error in _UNSENT]),
    )


def library_of(client_class: type) -> Library | None:
    """Return the library whose client this class is; None if it is no client of either."""
    for ancestor in getattr(client_class, "__mro__", ()):
        name = ancestor.__module__.partition(".")[0]
        if name in _NAMES:
            library = _load(name)
            known = issubclass(client_class, library.client | library.async_client)
            return library if known else None
    return None


@functools.cache
def joined(own: type, foreign: type) -> type[Any]:
    """Return a class of ours that is also one of a library's."""
    return type(own.__name__, (own, foreign), {})
