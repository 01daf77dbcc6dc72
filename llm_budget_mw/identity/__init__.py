"""Credential → principal: who asks, before anything is looked up for them.

The authenticators themselves are in `identity.authenticators`: importing cryptography takes
longer than all the rest of this package.
"""

from __future__ import annotations

from llm_budget_mw.identity.bearer import www_authenticate
from llm_budget_mw.identity.handover import hand_over, take_over
from llm_budget_mw.identity.protocol import AsyncAuthenticator, Authenticator

__all__ = ["AsyncAuthenticator", "Authenticator", "hand_over", "take_over", "www_authenticate"]
