"""Applications with a login of their own: sessions, headers, functions and objects."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from flask import abort, g, request, session
from flask.testing import FlaskClient

from llm_budget_mw import Authenticator, Principal
from llm_budget_mw.errors import AuthenticationError
from llm_budget_mw_flask import BudgetRefused, current_budget
from tests.adapters.flask_bench import FlaskBench, content
from tests.edge.driver import OWN


def in_session() -> Principal | None:
    """Return who has logged in, as an application's own function would."""
    user = session.get("user")
    return Principal(user, tier=session.get("plan")) if user else None


async def in_session_async() -> Principal | None:
    """Return the same from a coroutine."""
    return in_session()


class InSession:
    """The same as an object."""

    def authenticate(self, headers: Any) -> Principal:
        """Return who has logged in."""
        principal = in_session()
        if principal is None:
            raise AuthenticationError("log in", code=None)
        return principal


def logged_in(bench: FlaskBench) -> FlaskClient:
    """Give an application a login and a guarded view; return a client that has logged in."""

    @bench.app.post("/login")
    def login() -> str:
        session["user"] = "bob"
        return "welcome"

    @bench.app.post(OWN)
    def own() -> str:
        assert "asked" not in g, "what the login left behind is still there"
        return current_budget.principal.id + request.get_data(as_text=True)

    client = bench.client
    client.post("/login")
    return client


@pytest.mark.parametrize("who", [in_session, in_session_async, InSession()])
def test_who_is_logged_in_pays(who: Any) -> None:
    """A function, a coroutine or an object may ask the session; nobody gets a 401."""
    bench = FlaskBench(authenticator=who)
    client = logged_in(bench)

    friend = client.post(OWN, data="!")
    stranger = bench.client.post(OWN)

    assert (friend.status_code, friend.text) == (200, "bob!")
    assert (stranger.status_code, content(stranger)["code"]) == (401, "unauthenticated")
    assert [plan.subjects[0].subject.name for plan in bench.store.plans] == ["user/bob"]


def test_a_login_needs_no_issuer() -> None:
    """With an authenticator of its own an application configures no JWT."""
    bench = FlaskBench(authenticator=in_session, jwt=())

    assert logged_in(bench).post(OWN).status_code == 200


def test_a_login_sees_the_request_but_not_its_body() -> None:
    """Path, address and headers are there; reading the body leaves it to the view."""
    seen: list[tuple[str, str | None, bytes]] = []

    def who() -> Principal:
        g.asked = True
        seen.append((request.path, request.headers.get("x-word"), request.get_data()))
        return Principal("bob")

    bench = FlaskBench(authenticator=who)

    answer = logged_in(bench).post(OWN, data="?", headers={"x-word": "friend"})

    assert answer.text == "bob?"
    assert seen == [(OWN, "friend", b"")]


def test_the_context_of_a_login_is_torn_down() -> None:
    """A database session opened for it is closed, before the view has its own."""
    events: list[str] = []

    def who() -> Principal:
        events.append("login")
        return Principal("bob")

    bench = FlaskBench(authenticator=who)
    bench.app.teardown_request(lambda error: events.append("teardown"))
    client = logged_in(bench)
    events.clear()

    client.post(OWN, buffered=True)

    assert events == ["login", "teardown", "teardown"]


def no_teapots() -> Principal | None:
    """Refuse by an answer of its own."""
    abort(418)


def broken() -> Principal | None:
    """Fail, as with a database that is away."""
    raise ConnectionError("the database is away")


def a_user() -> Any:
    """Return something of the application's own by mistake."""
    return "bob"


@pytest.mark.parametrize(("who", "status"), [(no_teapots, 418), (broken, 500), (a_user, 500)])
def test_a_login_that_fails_lets_nobody_in(
    who: Callable[[], Principal | None], status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Flask answers what it raised, and logs what is a fault; the event has the status."""
    bench = FlaskBench(authenticator=who)

    with caplog.at_level(logging.ERROR):
        answer = bench.client.post(OWN)

    assert answer.status_code == status
    assert bench.sink.named("budget.denied") == [
        {"status": status, "code": "login_failed", "route": OWN}
    ]
    assert bool(caplog.records) == (status == 500)
    assert not bench.store.plans


def test_a_page_may_send_who_is_not_logged_in_to_the_login() -> None:
    """A handler for the refusal answers with a redirect."""
    bench = FlaskBench(authenticator=in_session)

    @bench.app.errorhandler(BudgetRefused)
    def to_login(error: BudgetRefused) -> Any:
        assert isinstance(error.error, AuthenticationError)
        return "", 303, {"location": "/login"}

    answer = bench.client.post(OWN)

    assert (answer.status_code, answer.location) == (303, "/login")


def test_an_object_is_an_authenticator() -> None:
    """It has the shape the core asks for."""
    desk: Authenticator = InSession()

    assert callable(desk.authenticate)
