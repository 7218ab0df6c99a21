"""AWS Signature Version 4 against the vectors that AWS publishes."""

from __future__ import annotations

import hashlib
from urllib.parse import quote

import pytest

from holdfast.egress.sigv4 import EMPTY, Keys, Pairs, Scope, sign

SUITE = Keys(access_key_id="AKIDEXAMPLE", secret_access_key="wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
S3 = Keys(access_key_id="AKIAIOSFODNN7EXAMPLE", secret_access_key="wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
SUITE_AT = "20150830T123600Z"
S3_AT = "20130524T000000Z"
FORM = b"Param1=value1"
MORE = frozenset({"my-header1", "my-header2", "date", "range", "x-amz-date"})


def of_suite(method: str, path: str = "/", query: str = "", *headers: tuple[str, str], body: bytes = b"") -> str:
    pairs = tuple((name.encode(), value.encode()) for name, value in headers)
    return sign(
        SUITE,
        Scope("us-east-1", "service"),
        method=method,
        authority="example.amazonaws.com",
        path=path,
        query=query,
        headers=pairs,
        payload=hashlib.sha256(body).hexdigest(),
        at=SUITE_AT,
        also=MORE,
    ).signature


UNRESERVED = "-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@pytest.mark.parametrize(
    ("name", "got", "expected"),
    [
        ("get-vanilla", of_suite("GET"), "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
        (
            "get-vanilla-query-order-key-case",
            of_suite("GET", "/", "Param2=value2&Param1=value1"),
            "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
        ),
        (
            "get-vanilla-empty-query-key",
            of_suite("GET", "/", "Param1=value1"),
            "a67d582fa61cc504c4bae71f336f98b97f1ea3c7a6bfe1b6e45aec72011b9aeb",
        ),
        (
            "get-unreserved",
            of_suite("GET", "/" + UNRESERVED),
            "07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f",
        ),
        (
            "get-vanilla-query-unreserved",
            of_suite("GET", "/", f"{UNRESERVED}={UNRESERVED}"),
            "9c3e54bfcdf0b19771a7f523ee5669cdf59bc7cc0884027167c21bb143a40197",
        ),
        (
            "get-utf8",
            of_suite("GET", "/ሴ"),
            "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85",
        ),
        (
            "get-vanilla-utf8-query",
            of_suite("GET", "/", quote("ሴ") + "=bar"),
            "2cdec8eed098649ff3a119c94853b13c643bcf08f8b0a1d91e12c9027818dd04",
        ),
        (
            "get-header-value-trim",
            of_suite("GET", "/", "", ("my-header1", "value1"), ("my-header2", '"a   b   c"')),
            "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
        ),
        (
            "get-header-key-duplicate",
            of_suite("GET", "/", "", ("my-header1", "value2"), ("my-header1", "value2"), ("my-header1", "value1")),
            "c9d5ea9f3f72853aea855b47ea873832890dbdd183b4468f858259531a5138ea",
        ),
        ("post-vanilla", of_suite("POST"), "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
        (
            "post-header-key-sort",
            of_suite("POST", "/", "", ("my-header1", "value1")),
            "c5410059b04c1ee005303aed430f6e6645f61f4dc9e1461ec8f8916fdf18852c",
        ),
        (
            "post-x-www-form-urlencoded",
            of_suite("POST", "/", "", ("content-type", "application/x-www-form-urlencoded"), body=FORM),
            "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
        ),
    ],
)
def test_the_published_suite(name: str, got: str, expected: str) -> None:
    assert got == expected, name


def test_the_users_guides_example() -> None:
    found = sign(
        SUITE,
        Scope("us-east-1", "iam"),
        method="GET",
        authority="iam.amazonaws.com",
        path="/",
        query="Action=ListUsers&Version=2010-05-08",
        headers=((b"content-type", b"application/x-www-form-urlencoded; charset=utf-8"),),
        payload=EMPTY,
        at=SUITE_AT,
    )
    assert found.signature == "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"
    assert dict(found.headers)[b"authorization"] == (
        b"AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request, "
        b"SignedHeaders=content-type;host;x-amz-date, "
        b"Signature=5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"
    )


def of_s3(method: str, path: str, query: str = "", headers: Pairs = (), body: bytes = b"") -> str:
    return sign(
        S3,
        Scope("us-east-1", "s3"),
        method=method,
        authority="examplebucket.s3.amazonaws.com",
        path=path,
        query=query,
        headers=headers,
        payload=hashlib.sha256(body).hexdigest(),
        at=S3_AT,
        also=MORE,
    ).signature


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (
            of_s3("GET", "/test.txt", headers=((b"range", b"bytes=0-9"),)),
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        ),
        (of_s3("GET", "/", "lifecycle"), "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
        (of_s3("GET", "/", "max-keys=2&prefix=J"), "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
    ],
)
def test_s3s_examples(got: str, expected: str) -> None:
    assert got == expected
