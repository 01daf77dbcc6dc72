"""Who is let in, on a real server before a real Valkey; everybody else costs nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import jwt
import pytest

from llm_budget_mw.asgi import BudgetMiddleware
from llm_budget_mw.errors import AuthenticationError
from llm_budget_mw.testing import Issuer
from llm_budget_mw.types import Principal
from tests.asgi.driver import RawClient, UvicornServer, commands, settings
from tests.edge.driver import ANSWER, CHAT, ISSUER, LIMITS, MESSAGES, OWN, QUESTION, Bench, Exchange
from tests.edge.driver import answering as answer
from tests.servers import ValkeyServer

FINE = answer(json.dumps(ANSWER).encode())
SCOPE = {**ISSUER.config(), "scope": "llm:chat"}
GOOD = ISSUER.token("alice", scope="llm:chat")


def unsigned() -> str:
    """Return a credential of algorithm none."""
    _, payload, _ = GOOD.split(".")
    nothing = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=").decode()
    return f"{nothing}.{payload}."


def tampered() -> str:
    """Return a credential whose claims were changed after it was signed."""
    head, payload, signature = GOOD.split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "==")) | {"sub": "root"}
    changed = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    return f"{head}.{changed}.{signature}"


def bearer(token: str) -> str:
    """Return the header that carries a credential."""
    return f"authorization: Bearer {token}"


STRANGERS: list[Any] = [
    pytest.param([], 401, None, id="no credential"),
    pytest.param(["authorization: Bearer"], 400, "invalid_request", id="no token"),
    pytest.param([bearer("a.b.c")], 401, "invalid_token", id="garbage"),
    pytest.param([bearer("\x7f")], 400, "invalid_request", id="control"),
    pytest.param([bearer(unsigned())], 401, "invalid_token", id="unsigned"),
    pytest.param([bearer(tampered())], 401, "invalid_token", id="tampered"),
    pytest.param(
        [bearer(Issuer().token("alice", scope="llm:chat"))], 401, "invalid_token", id="other key"
    ),
    pytest.param(
        [bearer(ISSUER.token("alice", scope="llm:chat", expires_in=-200))],
        401,
        "invalid_token",
        id="expired",
    ),
    pytest.param(
        [bearer(ISSUER.token("alice", scope="llm:chat", aud="somebody-else"))],
        401,
        "invalid_token",
        id="other audience",
    ),
    pytest.param(
        [bearer(ISSUER.token("alice", scope="llm:chat", iss="https://evil.test"))],
        401,
        "invalid_token",
        id="other issuer",
    ),
    pytest.param([bearer(ISSUER.token("alice"))], 403, "insufficient_scope", id="no scope"),
    pytest.param(
        [bearer(ISSUER.token("alice", scope="llm:cha llm chat"))],
        403,
        "insufficient_scope",
        id="other scopes",
    ),
    pytest.param([bearer(GOOD), bearer(GOOD)], 400, "invalid_request", id="twice"),
    pytest.param(["authorization: Basic YTpi"], 401, None, id="basic"),
    pytest.param([f"x-api-key: {GOOD}"], 401, None, id="another header"),
    pytest.param([bearer("a" * 50_000)], 400, "invalid_request", id="50 kB"),
]


SCRIPTS = ("eval", "evalsha")
"""What a request asks of the store; a guard's look at its deployment runs no scripts."""


@pytest.fixture(scope="module")
def door(valkey: ValkeyServer) -> Iterator[str]:
    # Without a limit that is local in an outage nothing is asked beside the requests.
    limits = {**LIMITS, "on_outage": {"budget": "open"}}
    config = settings(limits, valkey.url) | {"jwt": SCOPE}
    with UvicornServer(BudgetMiddleware(FINE, config=config)) as running:
        yield running.url


@pytest.mark.parametrize("path", [CHAT, MESSAGES, OWN])
@pytest.mark.parametrize(("headers", "status", "code"), STRANGERS)
def test_a_stranger_gets_the_answer_of_rfc_6750_and_costs_no_command(
    path: str,
    headers: list[str],
    status: int,
    code: str | None,
    door: str,
    valkey: ValkeyServer,
) -> None:
    """Before the body has arrived, which it never does, and without a word to the store."""
    before = commands(valkey, *SCRIPTS)

    with RawClient(door) as client:
        lines = [f"POST {path} HTTP/1.1", "host: x", "content-length: 9", *headers, "", ""]
        client.say("\r\n".join(lines).encode("latin-1"))
        seen = client.read_until(b"\r\n\r\n").decode().lower()

    challenge = seen.partition("www-authenticate: ")[2].partition("\r\n")[0]
    assert seen.startswith(f"http/1.1 {status}")
    assert challenge.startswith('bearer realm="api"')
    assert (f'error="{code}"' in challenge) if code else ("error" not in challenge)
    assert commands(valkey, *SCRIPTS) == before


def test_who_is_known_does_cost_commands(door: str, valkey: ValkeyServer) -> None:
    """Else the count above would prove nothing."""
    before = commands(valkey, *SCRIPTS)

    with RawClient(door) as client:
        client.say(b"")
        raw = json.dumps(QUESTION).encode()
        lines = [f"POST {CHAT} HTTP/1.1", "host: x", f"content-length: {len(raw)}", bearer(GOOD)]
        client.say("\r\n".join([*lines, "", ""]).encode() + raw)
        assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 200")

    assert commands(valkey, *SCRIPTS) >= before + 1


async def test_a_megabyte_of_credential_is_refused_unread() -> None:
    """Where a server lets it through at all."""
    exchange = await Bench(FINE).post(token="x" * 2**20)

    assert exchange.status == 400
    assert exchange.received == 0
    assert len(exchange.body) < 1000


CLAIMS = {"user": "bob", "metadata": {"user_id": "bob"}, "safety_identifier": "bob"}
DISGUISES = [
    ("x-user", "bob"),
    ("x-user-id", "bob"),
    ("x-tenant", "acme"),
    ("x-forwarded-user", "bob"),
    ("x-llm-budget-principal", "bob"),
    ("x-api-key", "bob"),
    ("openai-organization", "acme"),
    ("openai-project", "acme"),
    ("x-stainless-retry-count", "2"),
    ("cookie", "user=bob; tier=free"),
    ("forwarded", "for=bob"),
]


@pytest.mark.parametrize("path", [CHAT, MESSAGES, OWN])
@pytest.mark.parametrize("header", DISGUISES, ids=[name for name, _ in DISGUISES])
async def test_nothing_beside_the_credential_says_who_pays(
    path: str, header: tuple[str, str]
) -> None:
    """Not the user, not the tenant, not the tier, and not how much is held."""
    plain, disguised = Bench(FINE), Bench(FINE)
    body = {**QUESTION, "model": "claude-x" if path == MESSAGES else "big"}

    await plain.post(body, path)
    await disguised.post({**body, **CLAIMS}, path, headers=(header,))

    (one,), (other,) = plain.store.plans, disguised.store.plans
    assert [entry.subject for entry in one.subjects] == [entry.subject for entry in other.subjects]
    assert one.subjects[0].subject.name == "user/alice"


async def test_the_query_says_nothing_about_who_pays() -> None:
    """A token in the query is no credential (RFC 6750 section 2.3), and a user there no user."""
    bench, exchange = Bench(FINE), Exchange(token=None)
    exchange.scope["query_string"] = f"access_token={GOOD}&user=bob".encode()

    await exchange.run(bench.middleware)

    assert exchange.status == 401


async def test_two_users_have_two_budgets_and_one_users_two_tokens_have_one() -> None:
    """Counters belong to who is meant, not to the string that says so."""
    bench = Bench(FINE, {"requests": "2/day"})
    tokens = [ISSUER.token("alice"), ISSUER.token("alice", jti="2"), ISSUER.token("alice", jti="3")]

    alices = [(await bench.post(token=token)).status for token in tokens]
    bobs = await bench.post(token=ISSUER.token("bob"))

    assert alices == [200, 200, 429]
    assert bobs.status == 200


class Desk:
    """An application's own login, which may be away."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.asked: list[list[tuple[str, str]]] = []

    def authenticate(self, headers: Any) -> Principal:
        """Let everybody in, as the user the cookie names."""
        self.asked.append(list(headers))
        if self.error is not None:
            raise self.error
        return Principal(dict(headers)["cookie"], tenant="acme")


class LateDesk(Desk):
    """One that has to wait."""

    async def authenticate(self, headers: Any) -> Principal:  # type: ignore[override]
        """Do the same, later."""
        return super().authenticate(headers)


desks = pytest.mark.parametrize("desk", [Desk, LateDesk], ids=["sync", "async"])


@desks
async def test_an_authenticator_of_ones_own_sees_the_headers_and_says_who_pays(desk: Any) -> None:
    """It is asked once, with text, and its tenant counts."""
    own = desk()
    bench = Bench(FINE, authenticator=own)

    await bench.post(token=None, headers=(("cookie", "carol"),))

    assert own.asked == [[("cookie", "carol")]]
    (plan,) = bench.store.plans
    assert plan.subjects[0].subject.partition == "acme"
    assert plan.subjects[0].subject.name == "user/carol"


@desks
@pytest.mark.parametrize("status", [401, 403, 503])
async def test_an_authenticator_of_ones_own_may_refuse(desk: Any, status: int) -> None:
    """With its own words and status, before anything is read."""
    own = desk(AuthenticationError("not today", code="later", status=status))
    bench = Bench(FINE, authenticator=own)

    exchange = await bench.post(token=None)

    assert exchange.status == status
    assert "not today" in exchange.error["message"]
    assert exchange.received == 0
    assert not bench.store.plans


@desks
async def test_an_authenticator_that_breaks_lets_nobody_in(desk: Any) -> None:
    """Its mistake is the server's to answer; no call is made and nothing is held."""
    bench = Bench(FINE, authenticator=desk(RuntimeError("the directory is on fire")))

    with pytest.raises(RuntimeError, match="on fire"):
        await bench.post(token=None)

    assert not bench.store.plans


def test_the_library_and_this_file_agree_on_what_a_good_token_is() -> None:
    """The credential the attacks are made of is a valid one."""
    claims = jwt.decode(GOOD, ISSUER.key, ["HS256"], audience=ISSUER.audience)

    assert claims["sub"] == "alice"
