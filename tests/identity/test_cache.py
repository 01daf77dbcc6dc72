from __future__ import annotations

from llm_budget_mw.identity.cache import MAX_AGE_S, PrincipalCache
from llm_budget_mw.types import Principal

ALICE = Principal("alice")


def test_principal_is_remembered_until_the_credential_expires() -> None:
    """An entry ends with its credential, to the second."""
    cache = PrincipalCache()
    cache.put(b"a", ALICE, expires_at=10, now=0)

    assert cache.get(b"a", 9.9) is ALICE
    assert cache.get(b"a", 10) is None


def test_principal_is_remembered_for_a_minute_at_most() -> None:
    """A long credential is verified again every minute."""
    cache = PrincipalCache()
    cache.put(b"a", ALICE, expires_at=86_400, now=0)

    assert cache.get(b"a", MAX_AGE_S - 1) is ALICE
    assert cache.get(b"a", MAX_AGE_S) is None


def test_least_recently_used_is_dropped_first() -> None:
    """Memory is bounded, and whoever asks often stays."""
    cache = PrincipalCache(max_entries=2)
    cache.put(b"a", ALICE, expires_at=10, now=0)
    cache.put(b"b", ALICE, expires_at=10, now=0)
    cache.get(b"a", 1)
    cache.put(b"c", ALICE, expires_at=10, now=0)

    assert [cache.get(key, 1) for key in (b"a", b"b", b"c")] == [ALICE, None, ALICE]
