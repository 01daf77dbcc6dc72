"""An issuer of credentials and its key server, for the tests of identity."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from llm_budget_mw.config import JWTConfig

NOW = 1_800_000_000
ISSUER = "https://issuer.example"
AUDIENCE = "llm-api"

RSA_KEY = generate_rsa(public_exponent=65537, key_size=2048)
OTHER_RSA_KEY = generate_rsa(public_exponent=65537, key_size=2048)
EC_KEY = generate_ec(SECP256R1())


def pem(key: Any) -> str:
    """Return the public half of a key as PEM."""
    text: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return text.decode()


def private_pem(key: Any) -> str:
    """Return a whole key as PEM."""
    text: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return text.decode()


def rsa_jwk(kid: object, key: Any = RSA_KEY, **more: Any) -> dict[str, Any]:
    """Return the public half of an RSA key as a member of a JWK set."""
    members = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return members | more | ({} if kid is None else {"kid": kid})


def ec_jwk(kid: str, key: Any = EC_KEY, **more: Any) -> dict[str, Any]:
    """Return the public half of an EC key as a member of a JWK set."""
    return ECAlgorithm.to_jwk(key.public_key(), as_dict=True) | more | {"kid": kid}


def make_config(**options: Any) -> JWTConfig:
    """Return a configuration with a static RSA key, unless it says otherwise."""
    if not options.keys() & {"key", "key_file", "jwks_url"}:
        options["key"] = pem(RSA_KEY)
    return JWTConfig(**({"issuer": ISSUER, "audience": AUDIENCE} | options))


def make_claims(**claims: Any) -> dict[str, Any]:
    """Return valid claims with some replaced, or left out where they are None."""
    base = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": NOW + 600, "iat": NOW}
    return {name: value for name, value in (base | claims).items() if value is not None}


def issue(
    key: Any = RSA_KEY,
    alg: str = "RS256",
    header: Mapping[str, Any] | None = None,
    **claims: Any,
) -> str:
    """Return a signed credential."""
    payload = json.dumps(make_claims(**claims)).encode()
    return jwt.PyJWS().encode(payload, key, algorithm=alg, headers=dict(header or {}))


def bearer(credential: str) -> list[tuple[str, str]]:
    """Return request headers that carry a credential."""
    return [("host", "api.example"), ("authorization", f"Bearer {credential}")]


@dataclass
class ManualClock:
    """A clock that stands still until it is set."""

    now: float = NOW

    def __call__(self) -> float:
        return self.now


@dataclass
class KeyServer:
    """What the key server answers, and what it was asked."""

    url: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b'{"keys": []}'
    hits: list[str] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    """Answers wait for it."""
    drips: Literal["", "head", "body"] = ""
    """The part of the answer that comes byte by byte, without an end."""

    def publish(self, *keys: Mapping[str, Any]) -> None:
        """Serve this JWK set from now on."""
        self.status, self.body = 200, json.dumps({"keys": keys}).encode()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *args: Any) -> None:
        """Say nothing: clients that hang up are part of the tests."""


def serve(keys: KeyServer) -> http.server.ThreadingHTTPServer:
    """Start a server for `keys` on a free port of loopback; the caller shuts it down."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            keys.hits.append(self.path)
            keys.gate.wait(5)
            self.send_response(keys.status)
            for name, value in keys.headers.items():
                self.send_header(name, value)
            if keys.drips == "head":
                self.send_header("Slow", "")
                self.flush_headers()
            else:
                self.end_headers()
                self.wfile.write(keys.body)
            while keys.drips and not threading.Event().wait(0.01):
                self.wfile.write(b" ")

        def log_message(self, *args: Any) -> None:
            return

    server = _Server(("127.0.0.1", 0), Handler)
    keys.url = f"http://127.0.0.1:{server.server_address[1]}/jwks.json"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server
