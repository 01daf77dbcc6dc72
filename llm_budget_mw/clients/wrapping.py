"""Transports around another one: whatever they add, they open and close what is inside."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self


class Wrapping:
    """A transport of a synchronous client."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def close(self) -> None:
        """Close the transport inside."""
        self._inner.close()

    def __enter__(self) -> Self:
        """Enter the transport inside."""
        self._inner.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        """Leave the transport inside."""
        self._inner.__exit__(kind, error, trace)


class AsyncWrapping:
    """A transport of an asynchronous client."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    async def aclose(self) -> None:
        """Close the transport inside."""
        await self._inner.aclose()

    async def __aenter__(self) -> Self:
        """Enter the transport inside."""
        await self._inner.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        """Leave the transport inside."""
        await self._inner.__aexit__(kind, error, trace)
