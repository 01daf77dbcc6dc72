"""Every framework on a server people run it on, in processes of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from tests.processes import running

_APPS = "tests.behaviour.apps."
_UVICORN = ("uvicorn", "--log-level", "error", "--port", "{port}", "--workers", "{workers}")
_GUNICORN = (
    *("gunicorn", "--log-level", "critical", "--bind", "127.0.0.1:{port}"),
    *("--worker-class", "gthread", "--threads", "16", "--workers", "{workers}"),
)
SERVERS = {
    "starlette on uvicorn": (*_UVICORN, _APPS + "starlette_app:app"),
    "fastapi on uvicorn": (*_UVICORN, _APPS + "fastapi_app:app"),
    "wsgi on gunicorn": (*_GUNICORN, _APPS + "wsgi_app:app"),
    "flask on gunicorn": (*_GUNICORN, _APPS + "flask_app:app"),
    "django on gunicorn": (*_GUNICORN, _APPS + "django_wsgi:app"),
    "django on uvicorn": (*_UVICORN, _APPS + "django_asgi:app"),
}
REFERENCE = "starlette on uvicorn"


def started(
    name: str, environment: Mapping[str, str], workers: int = 1
) -> contextlib.AbstractContextManager[str]:
    """Start a server; give its base URL."""
    command = [part.replace("{workers}", str(workers)) for part in SERVERS[name]]
    return running(*command, **environment)
