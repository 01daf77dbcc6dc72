"""Tests of `llm_budget_mw.sinks.webhook`, with receivers on real sockets."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import re
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from llm_budget_mw import events
from llm_budget_mw.events import Event
from llm_budget_mw.guard import AsyncGuard, Guard
from llm_budget_mw.sinks.webhook import WebhookSink
from tests.deployment import configured
from tests.processes import ROOT
from tests.servers import free_port
from tests.sinks.receiver import Receiver, Request, receiving

SECRET = b"a secret of some length"
ALERT = events.store_down("gone")
LOOPBACK = IPv4Address("127.0.0.1")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


def sink_for(receiver: Receiver, **options: Any) -> WebhookSink:
    """Return a sink in a hurry."""
    options = {"pause_s": 0.02, "timeout_s": 5.0, **options}
    return WebhookSink(receiver.url, SECRET, **options)


def is_signed(request: Request, secret: bytes = SECRET) -> bool:
    """Return whether a request's signature is that of its time and body."""
    signed = request.headers["x-llm-budget-timestamp"].encode() + b"." + request.body
    expected = hmac.new(secret, signed, hashlib.sha256).hexdigest()
    return request.headers["x-llm-budget-signature"] == f"v1={expected}"


def documented_check() -> Any:
    """Return the function that the operations page gives to receivers."""
    text = (ROOT / "docs" / "operations.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", text.partition("## Alerts")[2], re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 (ours)
    return names["is_genuine"]


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged as an error."""
    return [line.getMessage() for line in caplog.records if line.levelno >= logging.ERROR]


def idle() -> bool:
    """Return whether no sink's thread runs, within five seconds."""
    pause = threading.Event()

    def runs() -> bool:
        return any(thread.name == "llm-budget-webhook" for thread in threading.enumerate())

    return any(not runs() or pause.wait(0.005) for _ in range(1000))


def test_an_alert_arrives_as_signed_json(receiver: Receiver) -> None:
    """With an id, a time and everything the event has."""
    before = int(time.time())
    sink = sink_for(receiver)
    sink.emit(events.store_up(3, 1))
    sink.close()

    (request,) = receiver.requests
    body = json.loads(request.body)
    assert request.line == "POST /hooks/budget?team=a HTTP/1.1"
    assert request.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert request.headers["content-type"] == "application/json"
    assert before <= int(request.headers["x-llm-budget-timestamp"]) <= time.time()
    assert is_signed(request)
    assert not is_signed(request, b"another secret of that length")
    assert not is_signed(request._replace(body=request.body + b" "))
    assert body.pop("id") == request.headers["x-llm-budget-id"]
    assert body.pop("time").endswith("Z")
    assert body == {
        "event": "budget.store_up",
        "severity": "critical",
        "attributes": {"waiting": 3, "lost": 1},
    }
    assert sink.lost == 0


def test_the_documented_check_takes_what_is_sent_and_nothing_else(receiver: Receiver) -> None:
    """Not with another key, body or time, not late, and whatever stands in the header."""
    is_genuine = documented_check()
    sink = sink_for(receiver)
    sink.emit(ALERT)
    sink.close()
    (request,) = receiver.requests
    names = ("X-LLM-Budget-Timestamp", "X-LLM-Budget-Signature")
    headers = {name: request.headers[name.lower()] for name in names}

    assert is_genuine(headers, request.body, SECRET)
    assert not is_genuine(headers, request.body, SECRET + b"!")
    assert not is_genuine(headers, request.body + b" ", SECRET)
    assert not is_genuine(headers, request.body, SECRET, within_s=-1)
    for name, value in ((names[0], "1"), (names[1], "v1=\u00e4"), (names[1], "")):
        assert not is_genuine({**headers, name: value}, request.body, SECRET)


def test_other_events_stay_here(receiver: Receiver) -> None:
    """A call is nothing to wake somebody for."""
    sink = sink_for(receiver)
    sink.emit(events.denied(401, None, "/chat"))
    sink.emit(ALERT)
    sink.close()

    assert [json.loads(request.body)["event"] for request in receiver.requests] == [ALERT.name]


def test_alerts_arrive_in_order_and_the_thread_ends(receiver: Receiver) -> None:
    """Each has an id of its own; when nothing is left to send there is no thread."""
    sink = sink_for(receiver)
    for number in range(20):
        sink.emit(events.store_down(str(number)))
    requests = receiver.wait_for(20)

    told = [json.loads(request.body)["attributes"]["error"] for request in requests]
    assert told == [str(number) for number in range(20)]
    assert len({request.headers["x-llm-budget-id"] for request in requests}) == 20
    assert idle()
    sink.emit(ALERT)
    assert len(receiver.wait_for(21)) == 21


@pytest.mark.parametrize("trouble", ["500", "503", "429", "close", "garbage"])
def test_what_may_pass_is_tried_again(trouble: str) -> None:
    """With the same id and body, and a signature of its own time."""
    with receiving(trouble, trouble, "204") as receiver:
        sink = sink_for(receiver)
        sink.emit(ALERT)
        requests = receiver.wait_for(3)
        sink.close()

    assert len({(each.body, each.headers["x-llm-budget-id"]) for each in requests}) == 1
    assert all(map(is_signed, requests))
    assert (sink.lost, len(receiver.requests)) == (0, 3)


def test_a_receiver_that_never_takes_it_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    """After five tries; the next alert has its own."""
    with receiving(*["500"] * 5, "200") as receiver:
        sink = sink_for(receiver, pause_s=0.001)
        sink.emit(ALERT)
        sink.emit(ALERT)
        receiver.wait_for(6)
        sink.close()

    assert (sink.lost, len(receiver.requests)) == (1, 6)
    (error,) = errors(caplog)
    assert "budget.store_down" in error
    assert "the answer was 500" in error


@pytest.mark.parametrize("status", ["400", "401", "404", "410", "413"])
def test_what_will_not_pass_is_tried_once(status: str, caplog: pytest.LogCaptureFixture) -> None:
    """Who does not want it is not asked again."""
    with receiving(status) as receiver:
        sink = sink_for(receiver)
        sink.emit(ALERT)
        sink.close()

    assert (sink.lost, len(receiver.requests)) == (1, 1)
    assert f"the answer was {status}" in errors(caplog)[0]


def test_a_redirect_leads_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    """Not to another port of this machine, from where it could reach what only we can."""
    with receiving("redirect") as receiver, receiving() as inside:
        receiver.elsewhere = inside.url
        sink = sink_for(receiver)
        sink.emit(ALERT)
        sink.close()

    assert (sink.lost, len(receiver.requests), inside.requests) == (1, 1, [])
    assert "302, a redirect, which is not followed" in errors(caplog)[0]
    assert inside.url not in caplog.text


@pytest.mark.parametrize("trouble", ["hang", "drip"])
def test_a_receiver_that_keeps_us_waiting_is_left(trouble: str) -> None:
    """A try ends in time, also where a byte drips in now and then; the next one may do better."""
    with receiving(trouble, "200") as receiver:
        sink = sink_for(receiver, timeout_s=0.2)
        sink.emit(ALERT)
        receiver.wait_for(2)
        sink.close()

    assert sink.lost == 0


@pytest.mark.parametrize("body", ["endless", "flood"])
def test_only_the_status_of_an_answer_counts(body: str) -> None:
    """What follows is read within bounds; it cannot keep us, and the alert was taken."""
    with receiving(body) as receiver:
        sink = sink_for(receiver, timeout_s=0.2)
        sink.emit(ALERT)
        assert idle()

    assert (sink.lost, len(receiver.requests)) == (0, 1)


def test_nobody_at_the_address_is_no_trouble_for_requests(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither the request nor the process waits for it."""
    sink = WebhookSink(f"http://127.0.0.1:{free_port()}/", SECRET, pause_s=0.001)
    sink.emit(ALERT)
    assert idle()

    assert sink.lost == 1
    assert "refused" in errors(caplog)[0]


def test_emitting_never_waits_and_the_queue_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """While a receiver hangs, the newest are dropped, counted, and told of once."""
    with receiving("hang") as receiver:
        sink = sink_for(receiver, timeout_s=20.0)
        sink.emit(ALERT)
        receiver.wait_for(1)
        started = time.monotonic()
        for _ in range(1000):
            sink.emit(ALERT)
        took_s = time.monotonic() - started

        assert took_s < 5.0
        assert sink.lost == 1000 - 256
        assert len(errors(caplog)) == 1
        assert "256 others are waiting" in errors(caplog)[0]
        started = time.monotonic()
        sink.close(within_s=0.1)

    assert time.monotonic() - started < 5.0
    assert idle()
    assert sink.lost == 1001


def test_closing_sends_what_waits_without_pauses() -> None:
    """The pause before another try is cut short, and everything else is tried once."""
    with receiving("500", "200") as receiver:
        sink = sink_for(receiver, pause_s=600.0)
        for _ in range(3):
            sink.emit(ALERT)
        receiver.wait_for(1)
        sink.close()

        assert (sink.lost, len(receiver.requests)) == (0, 4)


def test_a_sink_that_was_closed_still_sends(receiver: Receiver) -> None:
    """An application under test starts and ends several times in one process."""
    sink = sink_for(receiver)
    for count in (1, 2):
        sink.emit(ALERT)
        sink.close()
        assert len(receiver.requests) == count


def test_a_fork_sends_its_own_alerts_and_no_other(receiver: Receiver) -> None:
    """What waited in the parent is the parent's; locks held there do not stop the child."""
    script = """
import os, sys, threading
from llm_budget_mw import events
from llm_budget_mw.sinks.webhook import WebhookSink
sink = WebhookSink(sys.argv[1], b"a secret of some length", pause_s=0.01)
sink.emit(events.store_down("parent"))
with sink._queue.lock:
    child = os.fork()
if child == 0:
    sink.emit(events.store_down("child"))
    sink.close()
    os._exit(0)
os.waitpid(child, 0)
sink.close()
"""
    subprocess.run([sys.executable, "-c", script, receiver.url], cwd=ROOT, check=True, timeout=60)

    told = [json.loads(each.body)["attributes"]["error"] for each in receiver.requests]
    assert sorted(told) == ["child", "parent"]


def test_the_end_of_a_process_delivers_what_waits(receiver: Receiver) -> None:
    """Also what is emitted when no thread can be started any more."""
    script = """
import atexit, sys
from llm_budget_mw import events
from llm_budget_mw.sinks.webhook import WebhookSink
sink = WebhookSink(sys.argv[1], b"a secret of some length")
def end():
    sink.emit(events.store_down("at the end"))
    sink.close()
atexit.register(end)
"""
    subprocess.run([sys.executable, "-c", script, receiver.url], cwd=ROOT, check=True, timeout=60)

    assert len(receiver.requests) == 1


def test_a_proxy_in_the_environment_is_not_used(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configured address is the only one that is spoken to."""
    with receiving() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        sink = sink_for(receiver)
        sink.emit(ALERT)
        sink.close()

        assert (len(receiver.requests), proxy.requests) == (1, [])


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with a certificate of 127.0.0.1 that it signed itself, and its key."""
    key = generate_private_key(SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "receiver")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(LOOPBACK)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, SHA256())
    )
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file = tmp_path_factory.mktemp("tls") / "certificate.pem"
    file.write_bytes(made.public_bytes(Encoding.PEM) + secret)
    return file


@pytest.mark.parametrize("trusted", [True, False])
def test_over_tls_only_who_can_prove_its_name_is_told(
    trusted: bool,
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A certificate that nobody vouches for gets nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with receiving(tls=context) as receiver:
        sink = sink_for(receiver, pause_s=0.001)
        sink.emit(ALERT)
        assert idle()

        assert (len(receiver.requests), sink.lost) == ((1, 0) if trusted else (0, 1))
        assert trusted or "certificate" in errors(caplog)[0]


def test_an_event_that_is_no_json_harms_only_itself(receiver: Receiver) -> None:
    """It is an error where it is emitted, which the guard logs."""
    sink = sink_for(receiver)
    with pytest.raises(TypeError):
        sink.emit(Event(ALERT.name, "info", {"what": object()}))
    sink.emit(ALERT)
    sink.close()

    assert len(receiver.requests) == 1


def alerting(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a configuration with a webhook, whose secret is in the environment."""
    monkeypatch.setenv("LLM_BUDGET_WEBHOOK_SECRET", SECRET.decode())
    return configured(alerts={"webhook": receiver.url})


def test_a_guard_sends_alerts_until_it_is_closed(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configuration is enough; closing the guard delivers."""
    guard = Guard.open(alerting(receiver, monkeypatch))
    guard.emit(ALERT)
    guard.close()

    (request,) = receiver.requests
    assert is_signed(request)


async def test_a_guard_of_a_loop_delivers_without_stalling_it(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its closing waits in a thread."""
    guard = AsyncGuard.open(alerting(receiver, monkeypatch))
    guard.emit(ALERT)
    await guard.close()

    (request,) = receiver.requests
    assert is_signed(request)


class FailingSink:
    """A sink whose end fails."""

    def emit(self, event: Event) -> None: ...

    def close(self) -> None:
        raise OSError("no space left")


async def test_a_sink_that_cannot_be_closed_stops_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is logged, and the others are closed all the same."""
    Guard.open(configured(), sinks=[FailingSink()]).close()
    await AsyncGuard.open(configured(), sinks=[FailingSink()]).close()

    assert errors(caplog) == ["the sink FailingSink could not be closed"] * 2
