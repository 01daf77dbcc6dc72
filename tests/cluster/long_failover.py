"""Failovers, moving slots and forgotten scripts for minutes; not part of the ordinary tests.

    python -m pytest tests/cluster/long_failover.py --log-cli-level=info

`LLM_BUDGET_TEST_ROUNDS` (default 20) is the number of things that happen to each deployment.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable

from tests.cluster.load import Load
from tests.cluster.test_failover import WHO, check_books
from tests.cluster.test_migration import SLOT, Migration
from tests.cluster.topology import Cluster, Node, Sentinels, poll, promoted

ROUNDS = int(os.environ.get("LLM_BUDGET_TEST_ROUNDS", "20"))
MOST_LOST = 40
"""Settlements one crash may forget."""
_log = logging.getLogger(__name__)


def move_a_slot(cluster: Cluster, load: Load) -> None:
    migration = Migration(cluster, SLOT)
    migration.open()
    load.wait_for(20)
    migration.close()


def forget_scripts(cluster: Cluster, load: Load) -> None:
    cluster.flush_scripts()
    load.wait_for(20)


def hand_over(cluster: Cluster, load: Load) -> None:
    cluster.hand_over(cluster.replica_of(cluster.owner(random.randrange(16384))))
    load.wait_for(20)


def crash(cluster: Cluster, load: Load) -> None:
    _take_away(cluster, load, Node.kill)


def hang(cluster: Cluster, load: Load) -> None:
    _take_away(cluster, load, Node.pause).resume()


def _take_away(cluster: Cluster, load: Load, ending: Callable[[Node], None]) -> Node:
    primary = cluster.owner(random.randrange(16384))
    replica = cluster.replica_of(primary)
    ending(primary)
    poll(lambda: promoted(replica), "the replica takes over")
    load.wait_until_checked()
    return primary


def in_step(primary: Node) -> None:
    """Wait until replicas have what their primary has now; a crash then forgets the rest alone."""
    offset = primary.client.info("replication")["master_repl_offset"]
    poll(lambda: all(at >= offset for at in _offsets(primary)), "replicas in step")


def _offsets(primary: Node) -> list[int]:
    info = primary.client.info("replication")
    return [info[f"slave{number}"]["offset"] for number in range(info["connected_slaves"])]


def test_a_bad_day_of_a_cluster(cluster: Cluster) -> None:
    """Whatever happens, in any order: users see no error, and nothing is charged twice."""
    happenings = [move_a_slot, forget_scripts, hand_over, crash, hang]
    crashes = 0
    with Load(cluster.url, WHO, deadline_ms=200) as load:
        for number in range(ROUNDS):
            happening = random.choice(happenings)
            crashes += happening in (crash, hang)
            _log.info("%d: %s, %d calls so far", number, happening.__name__, load.calls.total())
            happening(cluster, load)
            cluster.revive()
            for node, role in cluster.roles().items():
                if role == "master":
                    in_step(node)

    lost = check_books(load)
    numbers = (load.calls.total(), load.unchecked, lost, crashes)
    _log.info("%d calls, %d unchecked, %d forgotten in %d crashes", *numbers)
    assert lost <= MOST_LOST * crashes


def test_a_bad_day_of_sentinels(sentinels: Sentinels) -> None:
    """The same for a primary behind sentinels."""
    with Load(sentinels.url, WHO, deadline_ms=300) as load:
        for number in range(ROUNDS // 2):
            primary = sentinels.primary()
            ending = random.choice([Node.kill, Node.pause])
            _log.info("%d: %s, %d calls so far", number, ending.__name__, load.calls.total())
            ending(primary)
            poll(lambda gone=primary: sentinels.primary() is not gone, "another primary")  # type: ignore[misc]
            load.wait_until_checked()
            # Not before: one that is back before all clients have left it takes calls that
            # are forgotten when it is demoted.
            if ending is Node.pause:
                primary.resume()
            sentinels.revive()
            in_step(sentinels.primary())

    lost = check_books(load)
    numbers = (load.calls.total(), load.unchecked, lost)
    _log.info("%d calls, %d unchecked, %d forgotten", *numbers)
    assert lost <= MOST_LOST * ROUNDS
