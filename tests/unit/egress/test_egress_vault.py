"""Secrets in the journal, and credentials on the way out: what is added, what is stripped, what is refused."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast.egress import sigv4
from holdfast.egress.base import Body, Dressed, Refused, RequestHead
from holdfast.egress.bindings import binding
from holdfast.egress.credentials import Credentials, placeholder
from holdfast.egress.oauth import Tokens
from holdfast.egress.scrub import MARK
from holdfast.egress.vault import Vault, list_secrets, remove_secret, set_secret
from holdfast.errors import StoreError, UsageError
from holdfast.journal.base import Draft, Tenant
from holdfast.journal.event import Kind, encode
from holdfast.journal.open import open_store
from holdfast.journal.sqlstore import SqlStore
from holdfast.testing.clock import FakeClock

KEY = "sk-live-0123456789abcdef"
CLOCK = FakeClock()


class NoGuard:
    async def addresses(self, host: str, port: int) -> tuple[str, ...]:
        raise Refused(f"{host} is not to be reached", kind="ssrf")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    opened = open_store("sqlite", tmp_path)
    for name in ("acme", "other"):
        draft = Draft(kind=Kind.TENANT_CREATED, at=CLOCK.now())
        opened.create_tenant(Tenant(name=name, region="eu", created_at=1), draft, "cli")
    yield opened
    opened.close()


def put(store: SqlStore, name: str, inject: str, value: str, host: str = "api.example.com", **more: Any) -> None:
    tenant = more.pop("tenant", "acme")
    bound = binding(inject, host, **more)
    set_secret(store, CLOCK, tenant, name, bound, value.encode(), principal="ada", auth="token")


def credentials(store: SqlStore, agent: str = "books", tenant: str = "acme") -> Credentials:
    return Credentials(Vault(store, tenant), agent, Tokens(NoGuard()), CLOCK)


def request(
    headers: dict[str, str] | None = None,
    *,
    host: str = "api.example.com",
    scheme: str = "https",
    method: str = "GET",
    path: str = "/v1/things",
    query: str = "",
    port: int = 0,
) -> RequestHead:
    return RequestHead(
        method=method,
        scheme=scheme,
        host=host,
        port=port or {"http": 80, "https": 443}[scheme],
        path=path,
        query=query,
        headers=tuple((name.lower().encode(), value.encode()) for name, value in (headers or {}).items()),
    )


def dress(outfitter: Credentials, head: RequestHead, body: bytes = b"", *, complete: bool = True) -> Dressed:
    return asyncio.run(outfitter.dress(None, head, Body(data=body, decoded=body, complete=complete)))


def sent(dressed: Dressed) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in dressed.head.headers}


class TestVault:
    def test_the_value_is_in_no_event_and_in_no_byte_of_the_database(self, store: SqlStore, tmp_path: Path) -> None:
        put(store, "bank", "bearer", KEY)
        event = store.events("control:acme")[-1]
        assert (event.kind, event.principal, event.auth) == (Kind.SECRET_SET, "ada", "token")
        assert event.data["name"] == "bank"
        assert event.data["binding"]["host"] == "api.example.com"
        assert KEY.encode() not in encode(event)
        store.close()
        for path in tmp_path.iterdir():
            data = path.read_bytes()
            assert KEY.encode() not in data, path
            assert base64.b64encode(KEY.encode())[:16] not in data, path

    def test_rotation_and_removal_count_from_the_next_look(self, store: SqlStore) -> None:
        vault = Vault(store, "acme")
        assert vault.current() == ()
        put(store, "bank", "bearer", KEY)
        [first] = vault.current()
        put(store, "bank", "bearer", KEY + "-rotated")
        [second] = vault.current()
        assert (first.value, second.value) == (KEY.encode(), KEY.encode() + b"-rotated")
        assert second.version > first.version
        remove_secret(store, CLOCK, "acme", "bank", principal="ada", auth="token")
        assert vault.current() == ()
        assert store.events("control:acme")[-1].kind == Kind.SECRET_REMOVED
        assert store._query("SELECT count(*) FROM secrets") == [(0,)]

    def test_tenants_share_nothing(self, store: SqlStore) -> None:
        put(store, "bank", "bearer", KEY)
        assert Vault(store, "other").current() == ()
        assert [row.name for row in list_secrets(store, "acme")] == ["bank"]
        with pytest.raises(UsageError, match="no secret bank"):
            remove_secret(store, CLOCK, "other", "bank", principal="ada", auth="token")
        with pytest.raises(UsageError, match="no tenant nobody"):
            put(store, "bank", "bearer", KEY, tenant="nobody")

    def test_a_row_that_was_moved_does_not_open(self, store: SqlStore) -> None:
        put(store, "bank", "bearer", KEY)
        store._write(lambda run: run("UPDATE secrets SET tenant = 'other'", ()))
        with pytest.raises(StoreError):
            Vault(store, "other").current()
        with pytest.raises(Refused, match="cannot be read"):
            dress(credentials(store, tenant="other"), request())

    def test_nothing_prints_the_value(self, store: SqlStore) -> None:
        put(store, "bank", "bearer", KEY)
        [held] = Vault(store, "acme").current()
        assert KEY not in repr(held) + str(held) + f"{[held]}"


class TestInjection:
    def test_bearer_replaces_the_agents_own(self, store: SqlStore) -> None:
        put(store, "bank", "bearer", KEY)
        dressed = dress(credentials(store), request({"Authorization": "Bearer mine", "Accept": "*/*"}))
        assert sent(dressed) == {"accept": "*/*", "authorization": f"Bearer {KEY}"}
        assert dressed.secret

    def test_header(self, store: SqlStore) -> None:
        put(store, "bank", "header:X-Api-Key", KEY)
        own = {"x-api-key": placeholder("bank"), "authorization": "Bearer mine", "proxy-authorization": "Basic eDp5"}
        assert sent(dress(credentials(store), request(own))) == {"x-api-key": KEY}

    def test_query(self, store: SqlStore) -> None:
        put(store, "maps", "query:key", "a+b/c&d=e ~0")
        dressed = dress(credentials(store), request(query="q=1&key=mine&k%65y=mine&z"))
        assert dressed.head.query == "q=1&z&key=a%2Bb%2Fc%26d%3De%20~0"

    def test_basic_as_git_wants_it(self, store: SqlStore) -> None:
        put(store, "git", "basic", "x-access-token:ghp_0123456789", host="git.example.com", path="/team/*")
        dressed = dress(credentials(store), request(host="git.example.com", path="/team/repo.git/info/refs"))
        assert (
            base64.b64decode(sent(dressed)["authorization"].removeprefix("Basic ")) == b"x-access-token:ghp_0123456789"
        )

    def test_rotation_takes_effect_on_the_next_request_and_the_old_one_stays_unseen(self, store: SqlStore) -> None:
        outfitter = credentials(store)
        put(store, "bank", "bearer", KEY)
        assert sent(dress(outfitter, request()))["authorization"] == f"Bearer {KEY}"
        put(store, "bank", "bearer", "quite-another-token")
        dressed = dress(outfitter, request())
        assert sent(dressed)["authorization"] == "Bearer quite-another-token"
        assert dressed.scrub is not None
        assert dressed.scrub.feed(KEY.encode() + b" quite-another-token ") == MARK + b" " + MARK + b" "

    def test_the_login_of_a_database(self, store: SqlStore) -> None:
        put(store, "db", "postgres", "app:correct-horse", host="db.example.com", path="/books")
        books = RequestHead(method="CONNECT", scheme="postgres", host="db.example.com", port=5432, path="/books")
        other = RequestHead(method="CONNECT", scheme="postgres", host="db.example.com", port=5432, path="/salaries")
        assert credentials(store).login(books) == ("app", "correct-horse")
        with pytest.raises(Refused, match="no secret is bound to the database salaries"):
            credentials(store).login(other)


class TestWhereNothingIsSent:
    @pytest.fixture(autouse=True)
    def secret(self, store: SqlStore) -> None:
        put(store, "bank", "bearer", KEY, methods=("GET",), path="/v1/*", agent="books")

    @pytest.mark.parametrize(
        ("agent", "where"),
        [
            ("books", {"host": "evil.example.com"}),
            ("books", {"host": "api.example.com.evil.net"}),
            ("books", {"port": 8443}),
            ("books", {"method": "POST"}),
            ("books", {"path": "/v2/things"}),
            ("other", {}),
        ],
    )
    def test_a_request_that_it_does_not_cover(self, store: SqlStore, agent: str, where: dict[str, Any]) -> None:
        dressed = dress(credentials(store, agent), request({"authorization": "Bearer mine"}, **where))
        assert not dressed.secret
        assert sent(dressed) == {"authorization": "Bearer mine"}
        assert KEY not in repr(dressed.head)

    def test_another_tenant(self, store: SqlStore) -> None:
        assert not dress(credentials(store, tenant="other"), request()).secret

    def test_plain_http(self, store: SqlStore) -> None:
        with pytest.raises(Refused, match="plain http") as caught:
            dress(credentials(store), request(scheme="http"))
        assert caught.value.rule == "secrets:plain-http"
        assert KEY not in str(caught.value)

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
    def test_plain_http_to_this_machine_may_carry_it(self, store: SqlStore, host: str) -> None:
        put(store, "local", "bearer", KEY, host=f"{host}:8080")
        assert dress(credentials(store), request(scheme="http", host=host, port=8080)).secret

    @pytest.mark.parametrize("host", ["127.0.0.1.evil.net", "localhost.evil.net", "127.evil.net"])
    def test_a_name_that_only_begins_like_it_may_not(self, store: SqlStore, host: str) -> None:
        put(store, "local", "bearer", KEY, host=f"{host}:8080")
        with pytest.raises(Refused, match="plain http"):
            dress(credentials(store), request(scheme="http", host=host, port=8080))

    def test_two_secrets_alike(self, store: SqlStore) -> None:
        put(store, "copy", "basic", "ada:" + KEY, methods=("GET",), path="/v1/*", agent="books")
        with pytest.raises(Refused, match="alike"):
            dress(credentials(store), request())

    def test_a_method_override_does_not_pass_with_a_credential_for_methods(self, store: SqlStore) -> None:
        dressed = dress(credentials(store), request({"X-HTTP-Method-Override": "DELETE", "Accept": "*/*"}))
        assert set(sent(dressed)) == {"accept", "authorization"}

    def test_a_server_that_knows_the_secret_is_not_asked_for_a_part_of_anything(self, store: SqlStore) -> None:
        own = {"range": "bytes=0-3", "if-range": "x", "accept": "*/*"}
        assert set(sent(dress(credentials(store), request(own)))) == {"accept", "authorization"}
        assert set(sent(dress(credentials(store), request(own, path="/log")))) == {"accept"}
        assert set(sent(dress(credentials(store), request(own, host="cdn.example.com")))) == set(own)

    def test_placeholders_leave_nowhere(self, store: SqlStore) -> None:
        hold = placeholder("bank")
        basic = "Basic " + base64.b64encode(f"user:{hold}".encode()).decode()
        head = request({"authorization": basic, "x-key": f"Bearer {hold}", "accept": "*/*"}, host="evil.example.com")
        dressed = dress(credentials(store), head)
        assert sent(dressed) == {"accept": "*/*"}
        dressed = dress(credentials(store), request(query=f"a=1&key={hold}", host="evil.example.com"))
        assert dressed.head.query == "a=1"


class TestAws:
    SECRET = "AKIDEXAMPLE:wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
    OWN = (
        "AWS4-HMAC-SHA256 Credential=holdfast-secret-aws/20200101/eu-west-1/{}/aws4_request, "
        "SignedHeaders=content-type;host;x-amz-date;x-custom, Signature=00"
    )

    def signed(self, store: SqlStore, head: RequestHead, body: bytes = b"", *, complete: bool = True) -> Dressed:
        put(store, "aws", "sigv4", self.SECRET, host="*.amazonaws.com")
        return dress(credentials(store), head, body, complete=complete)

    def test_the_agents_signature_is_replaced(self, store: SqlStore) -> None:
        head = request(
            {
                "authorization": self.OWN.format("bedrock"),
                "x-amz-date": "20200101T000000Z",
                "x-amz-security-token": "agents-own",
                "x-custom": "1",
                "accept": "*/*",
            },
            host="bedrock-runtime.eu-west-1.amazonaws.com",
            method="POST",
            path="/model/m/invoke",
        )
        got = sent(self.signed(store, head, b"{}"))
        assert got["x-amz-date"] == "20260101T000000Z"
        assert "x-amz-security-token" not in got
        expected = sigv4.sign(
            sigv4.Keys(access_key_id="AKIDEXAMPLE", secret_access_key=self.SECRET.partition(":")[2]),
            sigv4.Scope("eu-west-1", "bedrock"),
            method="POST",
            authority=head.host,
            path=head.path,
            query="",
            headers=((b"x-custom", b"1"), (b"accept", b"*/*")),
            payload="44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
            at="20260101T000000Z",
            also=frozenset({"x-custom"}),
        )
        assert got["authorization"].endswith(f"SignedHeaders=host;x-amz-date;x-custom, Signature={expected.signature}")

    @pytest.mark.parametrize(
        ("host", "scope"),
        [
            ("bucket.s3.eu-central-1.amazonaws.com", "eu-central-1/s3"),
            ("sts.amazonaws.com", "us-east-1/sts"),
            ("bedrock-runtime.us-west-2.amazonaws.com", "us-west-2/bedrock"),
        ],
    )
    def test_without_a_signature_the_host_tells_its_scope(self, store: SqlStore, host: str, scope: str) -> None:
        assert f"/{scope}/aws4_request" in sent(self.signed(store, request(host=host)))["authorization"]

    def test_a_presigned_query_is_stripped(self, store: SqlStore) -> None:
        query = (
            "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=x%2F20200101%2Feu-west-3%2Fs3%2Faws4_request"
            "&X-Amz-Signature=00&X-Amz-Date=20200101T000000Z&X-Amz-SignedHeaders=host&list-type=2"
        )
        dressed = self.signed(store, request(host="b.s3.amazonaws.com", query=query))
        assert dressed.head.query == "list-type=2"
        assert "/eu-west-3/s3/aws4_request" in sent(dressed)["authorization"]

    def test_a_body_that_is_too_long_to_be_seen(self, store: SqlStore) -> None:
        head = request({"x-amz-content-sha256": "UNSIGNED-PAYLOAD"}, host="b.s3.amazonaws.com", method="PUT")
        assert sent(self.signed(store, head, b"x", complete=False))["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
        with pytest.raises(Refused, match="too long"):
            self.signed(store, request(host="b.s3.amazonaws.com", method="PUT"), b"x", complete=False)
        chunks = {"x-amz-content-sha256": "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"}
        with pytest.raises(Refused, match="one by one"):
            self.signed(store, request(chunks, host="b.s3.amazonaws.com", method="PUT"), b"x")

    def test_a_host_of_no_region(self, store: SqlStore) -> None:
        put(store, "minio", "sigv4", self.SECRET, host="minio.example.com")
        with pytest.raises(Refused, match="region"):
            dress(credentials(store), request(host="minio.example.com"))
        keys = '{"access_key_id": "AKIDEXAMPLE", "secret_access_key": "wJalrXUtnFEMI", "region": "eu", "service": "s3"}'
        put(store, "minio", "sigv4", keys, host="minio.example.com")
        assert "/eu/s3/" in sent(dress(credentials(store), request(host="minio.example.com")))["authorization"]
