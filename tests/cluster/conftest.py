"""Deployments that tests share: each is started once, and whole again for the next test."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from tests.cluster.topology import Cluster, Sentinels, started

SERVERS = ["valkey", "redis"]


@pytest.fixture(params=SERVERS)
def kind(request: pytest.FixtureRequest) -> str:
    """Return which program serves."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def cluster_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Cluster]]:
    """Start a cluster of a kind when it is first asked for."""
    with contextlib.ExitStack() as stack:
        known: dict[str, Cluster] = {}

        def cluster(kind: str) -> Cluster:
            if kind not in known:
                made = Cluster(kind, tmp_path_factory.mktemp("cluster"))
                known[kind] = stack.enter_context(started(made))
            return known[kind]

        yield cluster


@pytest.fixture
def cluster(kind: str, cluster_of: Callable[[str], Cluster]) -> Iterator[Cluster]:
    """Return a cluster that is whole."""
    whole = cluster_of(kind)
    yield whole
    whole.revive()


@pytest.fixture(scope="session")
def sentinels_of(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[str], Sentinels]]:
    """Start sentinels of a kind, with their servers, when first asked for."""
    with contextlib.ExitStack() as stack:
        known: dict[str, Sentinels] = {}

        def sentinels(kind: str) -> Sentinels:
            if kind not in known:
                made = Sentinels(kind, tmp_path_factory.mktemp("sentinels"))
                known[kind] = stack.enter_context(started(made))
            return known[kind]

        yield sentinels


@pytest.fixture
def sentinels(kind: str, sentinels_of: Callable[[str], Sentinels]) -> Iterator[Sentinels]:
    """Return sentinels whose servers all run."""
    whole = sentinels_of(kind)
    yield whole
    whole.revive()
