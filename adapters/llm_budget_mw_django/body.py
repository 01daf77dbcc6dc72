"""The body of a Django request: read once, and put back as it was granted."""

from __future__ import annotations

import io

from django.http import HttpRequest, UnreadablePostError

from llm_budget_mw import wsgi
from llm_budget_mw.dialects.protocol import RequestHead, Rewritten

_OF_THE_OLD_BODY = ("HTTP_CONTENT_ENCODING", "HTTP_TRANSFER_ENCODING")
_PARSED = ("_post", "_files", "headers")
"""What Django keeps of the old request, to be made anew when it is asked for."""


def head_of(request: HttpRequest) -> RequestHead:
    """Return what a request says before its body."""
    query: str = request.META.get("QUERY_STRING", "")
    headers = dict(wsgi.headers_of(request.META))
    return RequestHead(request.method or "", request.path, query, headers)


def read_body(request: HttpRequest, limit: int) -> bytes:
    """Read a body, up to a little more than `limit` bytes.

    `DATA_UPLOAD_MAX_MEMORY_SIZE` does not count: a chat with one photograph is larger.
    """
    if hasattr(request, "_body"):
        return request.body  # read by a middleware above
    if getattr(request, "_read_started", False):
        raise RuntimeError(
            f"the body of {request.method} {request.path} has been read as a stream or a form; "
            "put BudgetMiddleware above the middleware that does so"
        )
    try:
        if "wsgi.input" in request.META:
            # Not through Django, which takes a chunked body for an empty one.
            return wsgi.read_body(request.META, limit)
        return request._stream.read(limit + 1)
    except OSError as error:
        raise UnreadablePostError(*error.args) from error


def put_back(request: HttpRequest, written: Rewritten) -> None:
    """Let everything that reads the request find the body, and the path, as they were granted."""
    body, meta = written.body, request.META
    for name in _OF_THE_OLD_BODY:
        meta.pop(name, None)
    for name in _PARSED:
        request.__dict__.pop(name, None)
    meta["CONTENT_LENGTH"] = str(len(body))
    if "wsgi.input" in meta:
        meta["wsgi.input"] = io.BytesIO(body)
    request._body = body
    request._stream = io.BytesIO(body)
    if written.path is not None:
        request.path = written.path
        request.path_info = written.path.removeprefix(meta.get("SCRIPT_NAME", "").rstrip("/"))
        meta["PATH_INFO"] = request.path_info
