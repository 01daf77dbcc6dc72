"""Who is logged in by Django REST framework, which logs in inside its views only.

LLM_BUDGET = {"CONFIG": "llm_budget.toml", "PRINCIPAL": "llm_budget_mw_django.rest.principal"}
"""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest
from django.urls import Resolver404, get_resolver
from rest_framework.exceptions import APIException
from rest_framework.request import Request
from rest_framework.views import APIView

from llm_budget_mw.errors import AuthenticationError
from llm_budget_mw.types import Principal


def principal(request: HttpRequest) -> Principal | None:
    """Return the user whom the view's authentication classes know; None if they know nobody.

    They are asked again by the view itself. A view of another kind is asked for with
    `DEFAULT_AUTHENTICATION_CLASSES`.
    """
    asked = Request(request, authenticators=_view_of(request).get_authenticators())
    try:
        user = asked.user
    except APIException as error:
        raise AuthenticationError(str(error.detail), status=error.status_code) from error
    return Principal(str(user.pk)) if user.is_authenticated else None


def _view_of(request: HttpRequest) -> APIView:
    try:
        view: Any = get_resolver(getattr(request, "urlconf", None)).resolve(request.path_info).func
    except Resolver404:
        return APIView()
    kind = getattr(view, "cls", None)
    return kind(**view.initkwargs) if kind is not None else APIView()
