"""Who may do what on the server, and how the way there is kept secret."""

from __future__ import annotations

import datetime
import ipaddress
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis.backoff import NoBackoff
from redis.retry import Retry

from llm_budget_mw.errors import StoreError
from llm_budget_mw.stores.base import Store
from llm_budget_mw.types import Charges, Subject
from tests.cluster.stores import WAYS, open_store
from tests.cluster.topology import SERVICE, Cluster, Node, binary, poll
from tests.processes import ROOT
from tests.servers import free_port
from tests.stores.kit import DAY, granted_by, limit, limits, plan, someone, tokens

LUA = ROOT / "llm_budget_mw" / "stores" / "lua"
COMMANDS = {"EVAL", "EVALSHA"} | {
    name for file in LUA.glob("*.lua") for name in re.findall(r'call\("([A-Z]+)"', file.read_text())
}
"""What the scripts need."""
ON_A_CLUSTER = {"CLUSTER|SLOTS", "ASKING"}
FEW = limits(limit(1000, window=DAY))


def documented() -> set[str]:
    """Return the commands that the manual tells to allow."""
    text = (ROOT / "docs" / "operations.md").read_text()
    found = re.search(r"restricted rights needs:(.*?)on `llmb", text, re.DOTALL)
    assert found
    return set(re.findall(r"`([A-Z|]+)`", found.group(1)))


def test_manual_names_every_command() -> None:
    """What the manual says to allow is what the scripts call, and no more."""
    assert documented() == COMMANDS


def allow(client: Any, commands: set[str]) -> None:
    """Make a user who may run these, on keys of the tests alone."""
    rights = [f"+{name.lower()}" for name in sorted(commands)]
    keys = "~llmb-test:*:1:*"
    client.execute_command("ACL", "SETUSER", "budget", "reset", "on", ">pw", keys, *rights)


def use(store: Store) -> None:
    """Do everything that a store does."""
    entry = someone("user", FEW)
    asked = plan(entry, offers=[tokens(1, 10, least=1)])
    grant = granted_by(asked, store.admit(asked))
    assert store.renew(grant)
    assert store.grow(grant, grant.output) == grant.output
    assert store.settle(grant, Charges(1, 1, 1))[0] == "1"
    store.learn({"/chat/model": {3: 1}})
    store.switch("stop", "model", "0 because")
    assert store.switch("resume", "model").stopped == {}
    assert store.amend(Subject("acme", "user"), "show").lines == ()
    assert [store.claim("process", 2, lease_ms) for lease_ms in (5_000, 0)] == [1, 0]


@pytest.fixture
def server(kind: str, tmp_path: Path) -> Iterator[Node]:
    node = Node(binary(kind), tmp_path, "--save", "", "--appendonly", "no")
    node.start()
    yield node
    node.close()


@pytest.mark.parametrize("way", WAYS)
def test_user_with_few_rights(server: Node, way: str) -> None:
    """A user with these commands, on these keys, can do everything and nothing else."""
    allow(server.client, COMMANDS)
    store = open_store(way, f"redis://budget:pw@127.0.0.1:{server.port}")
    use(store)
    if way == "sync":  # each takes a second: others must learn of it
        store.amend(Subject("acme", "user"), "add", f"raise {FEW.names[0]} 50 0 one")
        store.amend(Subject("acme", "user"), "reset", FEW.names[0])
    store.close()

    with redis.Redis(port=server.port, username="budget", password="pw") as stranger:
        for forbidden in (["FLUSHALL"], ["KEYS", "*"], ["HGETALL", "other"]):
            with pytest.raises(redis.exceptions.NoPermissionError):
                stranger.execute_command(*forbidden)


@pytest.mark.parametrize("missing", ["EVALSHA", "HSET", "TIME"])
@pytest.mark.parametrize("way", WAYS)
def test_user_with_too_few_rights(server: Node, way: str, missing: str) -> None:
    """A right that is missing is an outage whose message says so."""
    allow(server.client, COMMANDS - {missing})
    store = open_store(way, f"redis://budget:pw@127.0.0.1:{server.port}")

    with pytest.raises(StoreError, match=r"(?i)permission|can't run"):
        use(store)
    store.close()


@pytest.mark.parametrize("way", WAYS)
def test_wrong_password(server: Node, way: str) -> None:
    """A wrong password is an outage; the message does not tell it."""
    allow(server.client, COMMANDS)
    store = open_store(way, f"redis://budget:s3cret@127.0.0.1:{server.port}")

    with pytest.raises(StoreError, match=r"(?i)password") as raised:
        store.admit(plan(FEW))
    assert "s3cret" not in str(raised.value)
    store.close()


@pytest.mark.parametrize("way", WAYS)
def test_user_of_a_cluster(cluster: Cluster, way: str) -> None:
    """On a cluster two more commands are needed, also while a slot moves."""
    for node in cluster.nodes:
        allow(node.client, COMMANDS | ON_A_CLUSTER)
    store = open_store(way, cluster.url.replace("://", "://budget:pw@"))
    use(store)
    store.close()


# TLS


class Papers:
    """An authority, and the certificate of a server on the loopback address."""

    def __init__(self, folder: Path) -> None:
        self.authority, self.certificate = folder / "ca.pem", folder / "server.pem"
        self.key = folder / "server.key"
        root_key, key = (
            ec.generate_private_key(ec.SECP256R1()),
            ec.generate_private_key(ec.SECP256R1()),
        )
        root = _certificate("root", root_key, root_key, "root")
        server = _certificate("server", key, root_key, "root")
        pem = serialization.Encoding.PEM
        self.authority.write_bytes(root.public_bytes(pem))
        self.certificate.write_bytes(server.public_bytes(pem))
        plain = serialization.NoEncryption()
        form = serialization.PrivateFormat.PKCS8
        self.key.write_bytes(key.private_bytes(pem, form, plain))

    @property
    def options(self) -> list[str]:
        """Return how a server is told of them; clients need none of their own."""
        named = {
            "tls-cert-file": self.certificate,
            "tls-key-file": self.key,
            "tls-ca-cert-file": self.authority,
            "tls-auth-clients": "no",
            "tls-replication": "yes",
        }
        return [str(part) for name, value in named.items() for part in (f"--{name}", value)]

    @property
    def query(self) -> str:
        """Return how a URL tells a client whom to trust."""
        return f"ssl_ca_certs={self.authority}"


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer_key: ec.EllipticCurvePrivateKey,
    issuer: str,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    local = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(name == issuer, None), critical=True)
        .add_extension(local, critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    return Papers(tmp_path_factory.mktemp("papers"))


class Encrypted:
    """Starts servers that speak TLS alone."""

    def __init__(self, kind: str, folder: Path, papers: Papers) -> None:
        self._program = binary(kind)
        self._folder = folder
        self._papers = papers
        self._running: list[subprocess.Popen[bytes]] = []

    def server(self, *first: str, options: tuple[str, ...] = ()) -> int:
        """Return the port of another server."""
        port = free_port()
        listening = ["--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1"]
        folder = self._folder / str(port)
        folder.mkdir()
        command = [self._program, *first, *listening, "--dir", str(folder)]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [*command, *self._papers.options, *options], stdout=log, stderr=log
            )
        self._running.append(process)
        client = self.client(port)
        while process.poll() is None and not _answers(client):
            time.sleep(0.02)  # the only way to learn that another process is ready
        client.close()
        if process.poll() is not None:
            pytest.skip("this server was built without TLS")
        return port

    def client(self, port: int) -> Any:
        trusted = str(self._papers.authority)
        once = Retry(NoBackoff(), 0)
        return redis.Redis("127.0.0.1", port, ssl=True, ssl_ca_certs=trusted, retry=once)

    def close(self) -> None:
        for process in self._running:
            process.kill()
            process.wait()


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


@pytest.fixture
def encrypted(kind: str, tmp_path: Path, papers: Papers) -> Iterator[Encrypted]:
    made = Encrypted(kind, tmp_path, papers)
    yield made
    made.close()


def works(url: str) -> None:
    for way in WAYS:
        store = open_store(way, url)
        use(store)
        store.close()


def test_encrypted_server(encrypted: Encrypted, papers: Papers) -> None:
    """`rediss://` trusts the authority the URL names, and no other."""
    port = encrypted.server()
    works(f"rediss://127.0.0.1:{port}?{papers.query}")

    for way in WAYS:
        wary = open_store(way, f"rediss://127.0.0.1:{port}")
        with pytest.raises(StoreError, match=r"(?i)certificate"):
            wary.admit(plan(FEW))
        wary.close()


def test_encrypted_cluster(encrypted: Encrypted, papers: Papers) -> None:
    """`rediss+cluster://` encrypts the way to every node."""
    bus = ("--cluster-port", str(free_port()), "--tls-cluster", "yes")
    port = encrypted.server(options=("--cluster-enabled", "yes", *bus))
    client = encrypted.client(port)
    client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    poll(lambda: b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO"))
    client.close()

    works(f"rediss+cluster://127.0.0.1:{port}?{papers.query}")


def test_encrypted_sentinel(encrypted: Encrypted, papers: Papers, tmp_path: Path) -> None:
    """`rediss+sentinel://` encrypts the way to the sentinels and to the servers."""
    port = encrypted.server()
    file = tmp_path / "sentinel.conf"
    file.write_text(f"sentinel monitor {SERVICE} 127.0.0.1 {port} 1\n")
    watcher = encrypted.server(str(file), "--sentinel")

    works(f"rediss+sentinel://127.0.0.1:{watcher}/{SERVICE}?{papers.query}")
