"""A real PostgreSQL behind the boundary: the proxy proves itself, the agent does not, and statements pass the door."""

from __future__ import annotations

import asyncio
import datetime
import ssl
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from holdfast.action import Action, Facts
from holdfast.egress import pgwire
from holdfast.egress.base import Deny, Go, Outcome, Refused, Request
from holdfast.egress.pgdial import connect, read
from holdfast.egress.pgproxy import PgProxy
from holdfast.policy.categories.code import SqlGuard

PASSWORD = "correct-horse-battery-staple"
GUARD = SqlGuard()
RULE = SqlGuard.params(statements=("select", "insert", "set"), tables=("ledger",))


class LoopbackGuard:
    async def addresses(self, host: str, port: int) -> tuple[str, ...]:
        return ("127.0.0.1",)


class GuardedDoor:
    """Decides each statement with sql_guard, as the gate does, and remembers what it was told."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self.ended: list[tuple[int, Outcome]] = []
        self.let_in = True
        self.stopped = False

    async def decide(self, request: Request) -> Go | Deny:
        head = request.head
        said = msgspec.json.decode(request.body.data) if request.body.data else None
        self.asked.append((head.method, head.path, said))
        if head.method == "CONNECT":
            return Go(ticket=0) if self.let_in else Deny(type="denied", rule="where-to", reason="not this database")
        action = Action(kind="tool", name="postgres", args=said)
        if breach := GUARD.before(action, Facts(now=0), FakeRule()):
            return Deny(type="denied", rule="read-the-ledger", reason=breach.reason)
        return Go(ticket=len(self.asked))

    async def before_dial(self, ticket: Any) -> None:
        if self.stopped:
            raise Refused("a kill came", kind="killed")

    async def outcome(self, ticket: Any, outcome: Outcome) -> None:
        self.ended.append((ticket, outcome))

    @property
    def statements(self) -> list[Any]:
        return [said["sql"] for method, _, said in self.asked if method == "QUERY"]


class FakeRule:
    params = RULE


class Boundary:
    """The agent's side: a loopback port that leads to the proxy, in a loop of its own."""

    def __init__(self, door: GuardedDoor, folder: Path, user: str, password: str) -> None:
        self.loop = uvloop.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

        async def dial(address: str, port: int) -> Any:
            return await asyncio.open_unix_connection(str(folder / ".s.PGSQL.5432"))

        self.proxy = PgProxy(door, LoopbackGuard(), "localhost", 5432, lambda head: (user, password), dial=dial)

        async def start() -> asyncio.Server:
            return await asyncio.start_server(self.proxy.serve, "127.0.0.1", 0)

        self.server = asyncio.run_coroutine_threadsafe(start(), self.loop).result(30)
        self.port = self.server.sockets[0].getsockname()[1]

    def connect(self, **more: Any) -> psycopg.Connection[Any]:
        return psycopg.connect(
            f"host=127.0.0.1 port={self.port} user=anyone dbname=boundary sslmode=prefer connect_timeout=30",
            autocommit=True,
            **more,
        )

    def close(self) -> None:
        async def stop() -> None:
            self.server.close()
            left = asyncio.all_tasks() - {asyncio.current_task()}
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(stop(), self.loop).result(30)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(30)
        self.loop.close()


@pytest.fixture(scope="module")
def database(postgres: Any) -> Path:
    """Roles that have to prove themselves, each in another way, and a table."""
    path = postgres.data / "pg_hba.conf"
    rules = "".join(f"local all {role} {method}\n" for role, method in METHODS.items())
    path.write_text(rules + path.read_text())
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as admin:
        for role, method in METHODS.items():
            kind = "md5" if method == "md5" else "scram-sha-256"
            admin.execute(f"SET password_encryption = '{kind}'")
            admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
        admin.execute("CREATE DATABASE boundary")
        admin.execute("SELECT pg_reload_conf()")
    with psycopg.connect(postgres.url("boundary"), autocommit=True) as admin:
        admin.execute("CREATE TABLE ledger (id int PRIMARY KEY, note text)")
        admin.execute("CREATE TABLE salaries (who text)")
        admin.execute("INSERT INTO ledger SELECT n, 'row ' || n FROM generate_series(1, 500) n")
        admin.execute("GRANT ALL ON ledger, salaries TO by_scram, by_md5, by_clear")
    # The server reads its rules anew in its own time: until then it lets anyone in.
    while True:
        try:
            psycopg.connect(postgres.url("postgres").replace("user=holdfast", "user=by_clear")).close()
        except psycopg.OperationalError:
            break
    return postgres.folder


METHODS = {"by_scram": "scram-sha-256", "by_md5": "md5", "by_clear": "password"}


@pytest.fixture
def door() -> GuardedDoor:
    return GuardedDoor()


@pytest.fixture
def boundary(database: Path, door: GuardedDoor) -> Iterator[Boundary]:
    found = Boundary(door, database, "by_scram", PASSWORD)
    yield found
    found.close()


@pytest.mark.parametrize("role", METHODS)
def test_the_proxy_proves_itself_and_the_agent_does_not(database: Path, door: GuardedDoor, role: str) -> None:
    boundary = Boundary(door, database, role, PASSWORD)
    try:
        with boundary.connect() as agent:
            assert agent.info.parameter_status("server_version")
            assert agent.execute("SELECT count(*) FROM ledger WHERE id <= 500").fetchone() == (500,)
    finally:
        boundary.close()
    assert door.asked[0] == ("CONNECT", "/boundary", None)
    assert door.ended[0][1].body == b"SELECT 1"


def test_a_wrong_password_tells_the_agent_nothing(database: Path, door: GuardedDoor) -> None:
    boundary = Boundary(door, database, "by_scram", PASSWORD + "x")
    try:
        with pytest.raises(psycopg.OperationalError, match="refuses the credential") as caught:
            boundary.connect()
    finally:
        boundary.close()
    assert "by_scram" not in str(caught.value)
    assert PASSWORD not in str(caught.value)


def test_a_session_that_is_not_let_in_never_dials(database: Path, door: GuardedDoor) -> None:
    door.let_in = False
    boundary = Boundary(door, database / "nowhere", "by_scram", PASSWORD)
    try:
        with pytest.raises(psycopg.OperationalError, match="not this database"):
            boundary.connect()
    finally:
        boundary.close()


class TestStatements:
    def test_a_refused_statement_never_runs_and_the_session_goes_on(
        self, boundary: Boundary, door: GuardedDoor
    ) -> None:
        with boundary.connect() as agent:
            for sql in (
                "DELETE FROM ledger",
                "SELECT * FROM salaries",
                "SELECT 1; DROP TABLE ledger",
                "SELECT pg_sleep(9)",
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege) as caught:
                    agent.execute(sql)
                assert "read-the-ledger" in (caught.value.diag.message_detail or "")
            assert agent.execute("SELECT count(*) FROM ledger WHERE id <= 500").fetchone() == (500,)
        assert [outcome.status for _, outcome in door.ended] == [200]

    def test_values_pass_the_door_with_their_statement(self, boundary: Boundary, door: GuardedDoor) -> None:
        with boundary.connect() as agent:
            assert agent.execute("SELECT note FROM ledger WHERE id = %s", (7,)).fetchone() == ("row 7",)
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                agent.execute("DELETE FROM ledger WHERE id = %s", (7,))
            assert agent.execute("SELECT note FROM ledger WHERE id = %s AND note = %s", (7, "row 7")).fetchone()
        said = [one for method, _, one in door.asked if method == "QUERY"]
        assert said[0]["sql"] == "SELECT note FROM ledger WHERE id = $1"
        assert said[2]["params"][1] == "row 7"

    def test_a_prepared_statement_passes_each_time_that_it_runs(self, boundary: Boundary, door: GuardedDoor) -> None:
        with boundary.connect() as agent:
            for number in range(1, 9):
                assert agent.execute(
                    "SELECT note FROM ledger WHERE id = %s", (number,), prepare=True, binary=False
                ).fetchone() == (f"row {number}",)
        assert len(door.statements) == 8
        assert len(door.ended) == 8

    def test_a_pipeline_keeps_its_order(self, boundary: Boundary, door: GuardedDoor) -> None:
        with boundary.connect() as agent:
            first = agent.cursor()

            def together() -> None:
                with agent.pipeline() as pipeline:
                    first.execute("SELECT 1 FROM ledger WHERE id = %s", (1,))
                    agent.execute("DELETE FROM ledger WHERE id = %s", (1,))
                    agent.execute("SELECT 2 FROM ledger WHERE id = %s", (1,))
                    pipeline.sync()

            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                together()
            assert first.fetchone() == (1,)
            assert agent.execute("SELECT count(*) FROM ledger WHERE id <= 500").fetchone() == (500,)
        # The one after the refusal was passed over by the server.
        assert [(outcome.status, outcome.dialled) for _, outcome in door.ended] == [
            (200, True),
            (0, False),
            (200, True),
        ]

    def test_a_refusal_ends_the_transaction(self, boundary: Boundary) -> None:
        with boundary.connect() as agent:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                self.insert_and_drop(agent)
            assert agent.execute("SELECT count(*) FROM ledger WHERE id = 1000").fetchone() == (0,)

    def insert_and_drop(self, agent: psycopg.Connection[Any]) -> None:
        with agent.transaction():
            agent.execute("INSERT INTO ledger VALUES (1000, 'x')")
            agent.execute("DROP TABLE ledger")

    def test_transactions_of_a_client_that_is_not_told_to_commit_each_statement(self, boundary: Boundary) -> None:
        with boundary.connect() as agent:
            agent.autocommit = False
            agent.execute("INSERT INTO ledger VALUES (3000, 'x')")
            agent.rollback()
            with agent.transaction(), agent.transaction():
                agent.execute("INSERT INTO ledger VALUES (3001, 'x')")
            agent.commit()
            assert agent.execute("SELECT id FROM ledger WHERE id >= 3000").fetchall() == [(3001,)]

    def test_nothing_hides_behind_the_begin_of_a_transaction(self, boundary: Boundary, door: GuardedDoor) -> None:
        with boundary.connect() as agent:
            for sql in ("BEGIN; DROP TABLE ledger", "COMMIT PREPARED 'x'", "ROLLBACK /**/; DROP TABLE ledger"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    agent.execute(sql)
        assert len(door.statements) == 3

    def test_an_error_of_the_servers_own_is_reported_and_passed_on(self, boundary: Boundary, door: GuardedDoor) -> None:
        with boundary.connect() as agent:
            with pytest.raises(psycopg.errors.UniqueViolation):
                agent.execute("INSERT INTO ledger VALUES (1, 'x')")
            with pytest.raises(psycopg.errors.UndefinedColumn):
                agent.execute("SELECT nothing FROM ledger WHERE id = %s", (1,))
        assert [outcome.status for _, outcome in door.ended] == [400, 400]

    def test_much_comes_through(self, boundary: Boundary) -> None:
        with boundary.connect() as agent:
            rows = agent.execute("SELECT repeat(note, 2000) FROM ledger WHERE id <= 500").fetchall()
        assert sum(len(row[0]) for row in rows) == sum(len(f"row {n}") * 2000 for n in range(1, 501))

    def test_a_kill_between_the_verdict_and_the_send(self, boundary: Boundary, door: GuardedDoor) -> None:
        with boundary.connect() as agent:
            door.stopped = True
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="a kill came"):
                agent.execute("SELECT 1 FROM ledger")
        assert [(outcome.aborted, outcome.dialled) for _, outcome in door.ended] == [("lease", False)]

    def test_a_statement_may_be_cancelled_by_its_own_agent(self, boundary: Boundary, door: GuardedDoor) -> None:
        with boundary.connect() as agent:
            (key,) = boundary.proxy._keys
            with boundary.connect() as other:
                other.execute("BEGIN")
                other.execute("INSERT INTO ledger VALUES (2000, 'x')")
                # The same key makes this session wait for the other one, until it is cancelled.
                done = threading.Event()
                stopper = threading.Thread(target=cancel_until, args=(boundary, key, done))
                stopper.start()
                with pytest.raises(psycopg.errors.QueryCanceled):
                    agent.execute("INSERT INTO ledger VALUES (2000, 'y')")
                done.set()
                stopper.join(30)
                other.execute("ROLLBACK")

    def test_a_session_of_somebody_elses_is_not_cancelled(self, boundary: Boundary) -> None:
        async def dial(address: str, port: int) -> Any:
            raise AssertionError("a cancel request for another session was carried")

        boundary.proxy._dial = dial
        assert exchange(boundary, struct.pack(">II", 16, pgwire.CANCEL_REQUEST) + b"\0\0\0\1\0\0\0\2") == b""


def cancel_until(boundary: Boundary, key: bytes, done: threading.Event) -> None:
    """Cancel again and again: a request that comes before its statement has begun finds nothing to cancel.

    Not with libpq, which would hold the interpreter's lock and with it the proxy.
    """
    while not done.wait(0.1):
        exchange(boundary, struct.pack(">II", 8 + len(key), pgwire.CANCEL_REQUEST) + key)


def exchange(boundary: Boundary, data: bytes) -> bytes:
    async def talk() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", boundary.port)
        writer.write(data)
        writer.write_eof()
        async with asyncio.timeout(30):
            answer = await reader.read()
        writer.close()
        return answer

    return asyncio.run(talk())


HELLO = pgwire.startup({"user": "anyone", "database": "boundary"})


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\0\0\0\x04", b"malformed"),
        (b"GET / HTTP/1.1\r\n\r\n", b"malformed"),
        (b"\0\0\0\x08\0\x02\0\0", b"version 3.0"),
        (pgwire.startup({"user": "a", "replication": "database"}), b"replication"),
        (HELLO + pgwire.message(b"F", b"\0" * 12), b"functions by number"),
        (HELLO + pgwire.message(b"B", b"\0gone\0\0\0\0\0\0\0"), b"never prepared"),
        (HELLO + pgwire.message(b"B", b"\0\0\0"), b"malformed"),
        (HELLO + pgwire.message(b"?", b""), b"no message"),
        (HELLO + b"Q\xff\xff\xff\xff", b"too long"),
        (HELLO + pgwire.message(b"Q", b"SELECT 1"), b"does not end"),
    ],
)
def test_what_breaks_the_protocol_is_told_so(boundary: Boundary, door: GuardedDoor, data: bytes, reason: bytes) -> None:
    assert reason in exchange(boundary, data)
    assert door.ended == []


def test_options_of_the_agents_do_not_reach_the_server(boundary: Boundary) -> None:
    with boundary.connect(options="-c search_path=evil", application_name="mine") as agent:
        assert agent.info.parameter_status("application_name") == "mine"
        assert agent.execute("SELECT count(*) FROM ledger WHERE id <= 500").fetchone() == (500,)


def test_scram_against_the_rfcs_example() -> None:
    """RFC 7677, section 3; the user's name, which PostgreSQL leaves empty, is the one difference."""
    scram = pgwire.Scram("pencil", "rOprNGfwEbeRWgbNEkqO")
    scram._bare = "n=user,r=rOprNGfwEbeRWgbNEkqO"
    challenge = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    assert scram.final(challenge) == (
        b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    )
    scram.check(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")
    with pytest.raises(pgwire.WireError, match="could not prove"):
        scram.check(b"v=AAAATRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")


@pytest.mark.parametrize(
    "challenge",
    [b"", b"r=other,s=eA==,i=4096", b"r=nonce,s=eA==,i=4096", b"r=nonce+x,s=eA==,i=1", b"r=nonce+x,s=eA==,i=99999999"],
)
def test_a_challenge_that_is_none(challenge: bytes) -> None:
    with pytest.raises(pgwire.WireError):
        pgwire.Scram("pencil", "nonce").final(challenge)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "db.example.com")])
    now = datetime.datetime.now(datetime.UTC)
    found = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("db.example.com")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = found.public_bytes(serialization.Encoding.PEM)
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    path.write_bytes(
        pem
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path, pem


class TestEncryption:
    """Beyond this machine, against a server that speaks the first messages."""

    def session(self, answer: bytes, path: Path, context: ssl.SSLContext | None, host: str = "db.example.com") -> Any:
        seen: list[Any] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                seen.append(await reader.readexactly(8))
                writer.write(answer)
                if answer == b"S":
                    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                    server.load_cert_chain(path)
                    await writer.start_tls(server)
                    size = int.from_bytes(await reader.readexactly(4), "big")
                    seen.append(await reader.readexactly(size - 4))
                    writer.write(pgwire.message(b"R", b"\0\0\0\3"))
                    seen.append(await read(reader))
                    writer.write(pgwire.message(b"R", b"\0\0\0\0") + pgwire.message(b"Z", b"I"))
                await reader.read()
            except (ssl.SSLError, ConnectionError, asyncio.IncompleteReadError):
                seen.append("broken off")
            finally:
                writer.close()

        async def main() -> Any:
            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            port = server.sockets[0].getsockname()[1]

            async def dial(address: str, _: int) -> Any:
                return await asyncio.open_connection(address, port)

            try:
                found = await connect(
                    host, 5432, "app", PASSWORD, {"database": "d"}, LoopbackGuard(), context=context, dial=dial
                )
                found.writer.close()
            finally:
                server.close()
            return seen

        return uvloop.run(main())

    def test_the_session_is_encrypted_and_the_server_verified(self, certificate: tuple[Path, bytes]) -> None:
        path, pem = certificate
        context = ssl.create_default_context(cadata=pem.decode())
        _, startup, password = self.session(b"S", path, context)
        assert b"user\0app\0" in startup
        assert password == (b"p", PASSWORD.encode() + b"\0")

    @pytest.mark.parametrize(
        ("answer", "host", "trusted", "reason"),
        [
            (b"N", "db.example.com", True, "offers no encryption"),
            (b"S", "db.example.com", False, "certificate is not accepted"),
            (b"S", "other.example.com", True, "certificate is not accepted"),
        ],
    )
    def test_there_is_no_downgrade(
        self, certificate: tuple[Path, bytes], answer: bytes, host: str, trusted: bool, reason: str
    ) -> None:
        path, pem = certificate
        context = ssl.create_default_context(cadata=pem.decode()) if trusted else None
        with pytest.raises(Refused, match=reason):
            self.session(answer, path, context, host)
