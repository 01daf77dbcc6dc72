"""Credential → principal: who asks, before anything is looked up for them."""

from __future__ import annotations

from llm_budget_mw.identity.authenticators import AsyncJWTAuthenticator, JWTAuthenticator
from llm_budget_mw.identity.bearer import www_authenticate
from llm_budget_mw.identity.protocol import AsyncAuthenticator, Authenticator

__all__ = [
    "AsyncAuthenticator",
    "AsyncJWTAuthenticator",
    "Authenticator",
    "JWTAuthenticator",
    "www_authenticate",
]
