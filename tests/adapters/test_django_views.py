"""Which views are guarded, and who is charged for them."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Awaitable
from typing import Any

import pytest
from asgiref.sync import iscoroutinefunction
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.auth.backends import BaseBackend
from django.contrib.auth.models import AnonymousUser, User
from django.contrib.sessions.backends.signed_cookies import SessionStore
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import include, path
from django.utils.decorators import method_decorator, sync_and_async_middleware
from django.views import View
from django.views.decorators.csrf import csrf_exempt

from llm_budget_mw import AuthenticationError, ConfigurationError, Principal, charge
from llm_budget_mw.calls import SCOPE
from llm_budget_mw_django import exempt, guard
from tests.adapters.django_bench import WORLDS, Bench
from tests.edge.driver import CHAT, OWN, QUESTION

both_worlds = pytest.mark.parametrize("world", WORLDS)
search = guard(feature="search", model="big", input_tokens=10, max_tokens=5)


def fine(request: HttpRequest, **_: Any) -> HttpResponse:
    return HttpResponse("fine")


@search
def marked(request: HttpRequest, **_: Any) -> HttpResponse:
    request.llm_budget.record({"prompt_tokens": 7, "completion_tokens": 2})  # type: ignore[attr-defined]
    return HttpResponse("fine")


@search
async def marked_coroutine(request: HttpRequest, **_: Any) -> HttpResponse:
    return marked(request)


@csrf_exempt
@search
def wrapped(request: HttpRequest, **_: Any) -> HttpResponse:
    return marked(request)


class Plain(View):
    def post(self, request: HttpRequest, **_: Any) -> HttpResponse:
        return marked(request)

    def get(self, request: HttpRequest, **_: Any) -> HttpResponse:
        return marked(request)


@search
class Marked(Plain):
    pass


class MethodMarked(Plain):
    @search
    def post(self, request: HttpRequest, **_: Any) -> HttpResponse:
        return marked(request)

    def delete(self, request: HttpRequest, **_: Any) -> HttpResponse:
        return HttpResponse("fine")


@method_decorator(search, name="dispatch")
class DispatchMarked(Plain):
    pass


class Inherited(Marked):
    pass


VIEWS = {
    "a function": marked,
    "a coroutine function": marked_coroutine,
    "a wrapped function": wrapped,
    "a class": Marked.as_view(),
    "a method": MethodMarked.as_view(),
    "a class through Django's decorator": DispatchMarked.as_view(),
    "a class below a marked one": Inherited.as_view(),
}


@both_worlds
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
async def test_a_marked_view_is_guarded(world: str, view: Any) -> None:
    """Wherever Django lets a decorator stand; its route is that of the pattern."""
    async with Bench(world, path("search/<word>", view)) as bench:
        unknown = await bench.post(path="/search/fox", token=None)
        known = await bench.post(path="/search/fox")

    assert (unknown.status, known.status) == (401, 200)
    assert bench.settled["route"] == "/search/<word>"
    assert (bench.settled["feature"], bench.settled["total_tokens"]) == ("search", 9)


@both_worlds
async def test_a_mark_on_a_method_is_of_that_method(world: str) -> None:
    """The others of its class are not guarded; neither is OPTIONS anywhere."""
    async with Bench(world, MethodMarked.as_view()) as bench:
        others = [await bench.post(method="DELETE", token=None, path="/search")]
    async with Bench(world, Marked.as_view()) as bench:
        others.append(await bench.post(method="OPTIONS", token=None, path="/search"))
        head = await bench.post(method="HEAD", token=None, path="/search")

    assert [each.status for each in others] == [200, 200]
    assert (head.status, head.body) == (401, b"")


@both_worlds
async def test_a_server_inside_a_charge_block_does_not_charge_its_principal(world: str) -> None:
    """Neither for guarded requests nor for others: what a view calls is its own request's."""
    scopes: list[Any] = []

    def view(request: HttpRequest) -> HttpResponse:
        scopes.append(SCOPE.get())
        return HttpResponse("fine")

    async with Bench(world, view) as bench:
        with charge(bench.guard, Principal("bob")):
            for where in (CHAT, "/other"):
                assert (await bench.post(path=where)).status == 200
            assert SCOPE.get() is not None

    assert scopes == [None, None]


@both_worlds
async def test_an_exempt_view_is_not_guarded(world: str) -> None:
    """Whatever the configuration says of its path."""

    @exempt
    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse("fine")

    async with Bench(world, view) as bench:
        answer = await bench.post(token=None)

    assert answer.status == 200
    assert bench.store.plans == []


@both_worlds
async def test_a_mark_is_stronger_than_a_configured_route(world: str) -> None:
    """What stands at the view is what its author meant."""
    async with Bench(world, marked) as bench:
        await bench.post()

    assert bench.settled["feature"] == "search"


@both_worlds
async def test_a_marked_view_may_speak_a_providers_dialect(world: str) -> None:
    """Its body has the grant in it."""
    seen: list[Any] = []

    @guard(dialect="openai_chat")
    def view(request: HttpRequest) -> HttpResponse:
        seen.append(json.loads(request.body))
        return HttpResponse("fine")

    async with Bench(world, view, tier={"max_tokens": 25}) as bench:
        await bench.post(path="/talk")

    assert seen == [{**QUESTION, "max_tokens": 25}]


@both_worlds
async def test_the_patterns_a_request_was_given_count(world: str) -> None:
    """A middleware above may set `request.urlconf`."""
    module = types.ModuleType("tests_other_patterns")
    module.urlpatterns = [path("<path:rest>", marked)]  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module

    async with Bench(world, fine, above=[f"{__name__}.other_patterns"]) as bench:
        answer = await bench.post(path="/anything", token=None)

    assert answer.status == 401


@sync_and_async_middleware
def other_patterns(get_response: Any) -> Any:
    def middleware(request: HttpRequest) -> Any:
        request.urlconf = "tests_other_patterns"
        return get_response(request)

    async def middleware_on_a_loop(request: HttpRequest) -> Any:
        return await middleware(request)

    return middleware_on_a_loop if iscoroutinefunction(get_response) else middleware


@both_worlds
async def test_where_no_view_is_django_answers(world: str) -> None:
    """A path without a view is a 404, not a failure."""
    async with Bench(world, path("search", marked)) as bench:
        answer = await bench.post(path="/nothing")

    assert answer.status == 404


def test_a_wrong_option_of_a_mark_stops_the_import() -> None:
    """The message says which."""
    with pytest.raises(ConfigurationError, match="should be"):
        guard(dialect="french")
    with pytest.raises(ConfigurationError, match="max_tokens"):
        guard(dialect="openai_chat", max_tokens=5)


def by_header(request: HttpRequest) -> Principal | None:
    name = request.headers.get("x-user")
    return Principal(name) if name else None


async def by_header_on_a_loop(request: HttpRequest) -> Principal | None:
    return by_header(request)


def by_awaitable(request: HttpRequest) -> Awaitable[Principal | None]:
    return by_header_on_a_loop(request)


def by_refusing(request: HttpRequest) -> Principal:
    raise AuthenticationError("The key is spent.", code="spent", status=403)


def by_mistake(request: HttpRequest) -> str:
    return "alice"


@both_worlds
@pytest.mark.parametrize("who", ["by_header", "by_header_on_a_loop"])
async def test_a_function_says_who_is_charged(world: str, who: str) -> None:
    """Given by its path; None is nobody."""
    async with Bench(world, fine, principal=f"{__name__}.{who}") as bench:
        known = await bench.post(path=OWN, token=None, headers={"X-User": "bob"})
        unknown = await bench.post(path=OWN, token=None)

    assert (known.status, unknown.status) == (200, 401)
    assert unknown.headers["www-authenticate"].startswith("Bearer")
    assert [each.subject.name for each in bench.store.plans[0].subjects] == ["user/bob"]


async def test_a_function_may_return_something_to_wait_for() -> None:
    """On an event loop."""
    async with Bench("async", fine, principal=by_awaitable) as bench:
        answer = await bench.post(path=OWN, headers={"X-User": "bob"})

    assert answer.status == 200


@both_worlds
async def test_a_function_may_refuse_by_itself(world: str) -> None:
    """With a status of its own."""
    async with Bench(world, fine, principal=by_refusing) as bench:
        answer = await bench.post(path=CHAT)

    assert (answer.status, answer.error["code"]) == (403, "spent")


@both_worlds
async def test_a_function_that_returns_something_else_is_a_bug(world: str) -> None:
    """It is said, and nobody is charged."""
    async with Bench(world, fine, principal=by_mistake) as bench:
        with pytest.raises(TypeError, match=r"PRINCIPAL returned str"):
            await bench.post()

    assert bench.store.plans == []


@sync_and_async_middleware
def logging_in(get_response: Any) -> Any:
    """Stand for Django's AuthenticationMiddleware, without its database."""

    def log_in(request: HttpRequest) -> None:
        user = User(pk=7, username="bob") if "x-user" in request.headers else AnonymousUser()

        async def auser() -> Any:
            return user

        request.user = user
        request.auser = auser

    def middleware(request: HttpRequest) -> Any:
        log_in(request)
        return get_response(request)

    async def middleware_on_a_loop(request: HttpRequest) -> Any:
        log_in(request)
        return await get_response(request)

    return middleware_on_a_loop if iscoroutinefunction(get_response) else middleware


@both_worlds
async def test_who_is_logged_in_is_who_pays(world: str) -> None:
    """By its primary key, which never changes; an anonymous user is nobody."""
    async with Bench(world, fine, principal="user", above=[f"{__name__}.logging_in"]) as bench:
        known = await bench.post(path=OWN, token=None, headers={"X-User": "bob"})
        unknown = await bench.post(path=OWN, token=None)

    assert (known.status, unknown.status) == (200, 401)
    assert [each.subject.name for each in bench.store.plans[0].subjects] == ["user/7"]


class Users(BaseBackend):
    """Knows everybody, without a database."""

    def get_user(self, user_id: Any) -> User:
        return User(pk=user_id, username="bob", password="hash")


def session_cookie() -> str:
    """Return the cookie that a login leaves."""
    store = SessionStore()
    store[SESSION_KEY] = "7"
    store[BACKEND_SESSION_KEY] = f"{__name__}.Users"
    store[HASH_SESSION_KEY] = Users().get_user(7).get_session_auth_hash()
    store.save()
    return str(store.session_key)


@both_worlds
@override_settings(AUTHENTICATION_BACKENDS=[f"{__name__}.Users"])
async def test_a_session_login_is_known(world: str) -> None:
    """Through Django's own middleware; without a session there is nobody."""
    above = [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ]
    cookies = {"sessionid": session_cookie()}

    async with Bench(world, fine, principal="user", above=above) as bench:
        known = await bench.post(path=OWN, token=None, cookies=cookies)
        unknown = await bench.post(path=OWN, token=None)

    assert (known.status, unknown.status) == (200, 401)
    assert [each.subject.name for each in bench.store.plans[0].subjects] == ["user/7"]


@both_worlds
async def test_a_login_that_is_not_there_is_explained(world: str) -> None:
    """The error names the remedy."""
    async with Bench(world, fine, principal="user") as bench:
        with pytest.raises(ConfigurationError, match="AuthenticationMiddleware above"):
            await bench.post()


@both_worlds
async def test_rest_framework_reads_what_was_granted(world: str) -> None:
    """Its parsers see the body with the grant; its views can be marked; its logins count."""
    pytest.importorskip("rest_framework")
    from rest_framework.authentication import BaseAuthentication
    from rest_framework.exceptions import AuthenticationFailed
    from rest_framework.response import Response
    from rest_framework.views import APIView
    from rest_framework.viewsets import ViewSet

    class ByHeader(BaseAuthentication):
        def authenticate(self, request: Any) -> tuple[Any, None] | None:
            name = request.headers.get("x-user")
            if name == "mallory":
                raise AuthenticationFailed("Not you.")
            return (User(pk=7, username=name), None) if name else None

        def authenticate_header(self, request: Any) -> str:
            return "Bearer"

    class Talk(APIView):
        authentication_classes = (ByHeader,)
        permission_classes = ()

        @guard(dialect="openai_chat")
        def post(self, request: Any) -> Response:
            return Response({"max_tokens": request.data["max_tokens"], "user": request.user.pk})

    class Talks(ViewSet):
        authentication_classes = (ByHeader,)
        permission_classes = ()

        @guard(dialect="openai_chat")
        def create(self, request: Any) -> Response:
            return Response({"max_tokens": request.data["max_tokens"], "user": request.user.pk})

    views = [
        path("talk", Talk.as_view()),
        path("api/", include([path("talks", Talks.as_view({"post": "create"}))])),
    ]
    who = "llm_budget_mw_django.rest.principal"
    async with Bench(world, *views, principal=who, tier={"max_tokens": 25}) as bench:
        for place in ("/talk", "/api/talks"):
            known = await bench.post(path=place, token=None, headers={"X-User": "bob"})
            unknown = await bench.post(path=place, token=None)
            failed = await bench.post(path=place, token=None, headers={"X-User": "mallory"})

            assert json.loads(known.body) == {"max_tokens": 25, "user": 7}
            assert (unknown.status, failed.status) == (401, 401)
            assert failed.error["message"] == "Not you."
        elsewhere = await bench.post(path=CHAT, token=None)

    assert elsewhere.status == 401
    assert {each.subject.name for plan in bench.store.plans for each in plan.subjects} == {"user/7"}
