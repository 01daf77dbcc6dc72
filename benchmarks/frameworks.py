"""WSGI, Flask and Django on gunicorn: guarded here, bare, and with a package that counts requests.

Those packages count requests and nothing else. By themselves they believe a header that names
the user; "token" is with the same JWT verified first, through PyJWT.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import islice

from benchmarks._deployment import USERS, Request, requests
from benchmarks._gunicorn import served
from benchmarks._sites import USER_HEADER
from benchmarks.measure import Result, Timings, alternate, at_least, at_most

_ROUNDS = 30
_COUNT = 30
_AT_ONCE = 16
_EACH = 10
_BARE, _OURS = "bare", "llm-budget-mw"
_COUNTERS = {"flask_limiter": "Flask-Limiter", "django_ratelimit": "django-ratelimit"}


def run() -> Iterable[Result]:
    """Measure one request at a time, and many at once."""
    yield from _measure("WSGI", {_BARE: "wsgi()", _OURS: "wsgi(guarded=True)"}, ())
    yield from _framework("Flask", "flask_limiter")
    yield from _framework("Django", "django_ratelimit")


def _framework(framework: str, module: str) -> Iterator[Result]:
    counter, function = _COUNTERS[module], framework.lower()
    sites = {
        _BARE: f"{function}()",
        f"{_BARE}, token": f"{function}(verified=True)",
        _OURS: f"{function}(guarded=True)",
    }
    rivals: tuple[str, ...] = ()
    if importlib.util.find_spec(module):
        sites |= {
            f"{counter}, 4 limits": f"{function}(limits=4)",
            f"{counter}, 4 limits, token": f"{function}(limits=4, verified=True)",
            f"{counter}, 1 limit, token": f"{function}(limits=1, verified=True)",
        }
        rivals = (f"{counter}, 4 limits", f"{counter}, 4 limits, token")
    yield from _measure(framework, sites, rivals)
    if not rivals:
        yield Result(f"{framework}: {counter}", "not installed")


def _measure(title: str, sites: Mapping[str, str], rivals: tuple[str, ...]) -> Iterator[Result]:
    """Compare ours with all others; the goal is to be no slower than the rivals."""
    alone, together = asyncio.run(_time(sites))
    others = [name for name in sites if name != _OURS]
    for name in sites:
        yield Result(f"{title}, one at a time: {name}", alone.us(name), "us")
    for name in others:
        goal = at_most(1.0) if name in rivals else None
        ratio = alone.ratio(_OURS, name)
        yield Result(f"{title}, one at a time: ours / {name}", ratio, "x", goal)
    for name in sites:
        yield Result(f"{title}, {_AT_ONCE} at once: {name}", 1e6 / together.us(name), "/s")
    for name in others:
        goal = at_least(1.0) if name in rivals else None
        # The share of the requests a second is the inverse of that of the time.
        share = together.ratio(name, _OURS)
        yield Result(f"{title}, {_AT_ONCE} at once: ours / {name}", share, "x", goal)


async def _time(sites: Mapping[str, str]) -> tuple[Timings, Timings]:
    sent = [_raw(number, item) for number, item in enumerate(islice(requests(), USERS))]
    with contextlib.ExitStack() as stack:
        clients = {
            name: stack.enter_context(served(factory, sent, _AT_ONCE))
            for name, factory in sites.items()
        }
        alone = {name: partial(each.one_by_one, _COUNT) for name, each in clients.items()}
        together = {name: partial(each.all_at_once, _EACH) for name, each in clients.items()}
        return await alternate(_ROUNDS, alone), await alternate(_ROUNDS, together)


def _raw(number: int, item: Request) -> bytes:
    """Return a request as it is sent, with the name of its user for those who believe it."""
    headers = [*item.scope["headers"], (USER_HEADER.encode(), b"user-%d" % number)]
    lines = [b"POST %s HTTP/1.1" % item.scope["raw_path"], *map(b": ".join, headers)]
    return b"\r\n".join([*lines, b"", item.body])
