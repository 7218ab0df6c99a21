"""Secrets: tokens whose form their issuer publishes, private keys, and values that a name says are secret.

A value behind a telling name (``password = …``) counts when it has the structure of a secret: not a placeholder, not a
variable, not a call or a word of prose. How random it looks is measured in bits per character (Shannon).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

from holdfast.policy.detect.found import Found

_ISSUED = re.compile(
    r"A(?:KIA|SIA|BIA|CCA)[A-Z0-9]{16}(?![A-Za-z0-9])|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255}|"
    r"glpat-[A-Za-z0-9_\-]{20,64}|xox[abeoprs]-[A-Za-z0-9-]{10,250}|xapp-\d-[A-Za-z0-9-]{10,250}|"
    r"[sr]k_(?:live|test)_[A-Za-z0-9]{16,250}|sk-(?:ant-|proj-|svcacct-|or-v1-)?[A-Za-z0-9_\-]{20,250}|"
    r"pk_live_[A-Za-z0-9]{16,250}|AIza[A-Za-z0-9_\-]{35}(?![A-Za-z0-9_\-])|ya29\.[A-Za-z0-9_\-]{20,}|"
    r"npm_[A-Za-z0-9]{36}|hf_[A-Za-z0-9]{30,40}|SG\.[A-Za-z0-9_\-]{16,32}\.[A-Za-z0-9_\-]{16,64}|"
    r"shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}|dop_v1_[a-f0-9]{64}|pypi-[A-Za-z0-9_\-]{40,}|whsec_[A-Za-z0-9+/]{24,}|"
    r"AGE-SECRET-KEY-1[A-Z0-9]{58}|EAA[A-Za-z0-9]{40,}|dckr_pat_[A-Za-z0-9_\-]{20,}|lin_api_[A-Za-z0-9]{32,}|"
    r"PMAK-[a-f0-9]{24}-[a-f0-9]{34}|r8_[A-Za-z0-9]{36,}|gsk_[A-Za-z0-9]{40,}|(?:SK|AC)[0-9a-f]{32}(?![0-9a-f])|"
    r"key-[0-9a-f]{32}|sq0[a-z]{3}-[A-Za-z0-9_\-]{22,}|hvs\.[A-Za-z0-9_\-]{20,}|dapi[0-9a-f]{32}|"
    r"eyJ[A-Za-z0-9_\-]{8,}\.eyJ[A-Za-z0-9_\-]{8,}(?:\.[A-Za-z0-9_\-]{8,})?|"
    r"hooks\.slack\.com/(?:services|workflows)/[A-Za-z0-9/]{20,}|\d{8,10}:AA[A-Za-z0-9_\-]{33}"
)
TELLING = re.compile(
    r"((?i:passw|pwd|passphrase|secret|token|api[_-]?key|credential|access[_-]?key|private[_-]?key|auth[_-]?key|"
    r"signing[_-]?key|encryption[_-]?key|accountkey|[_.-]key(?=[\"']?\s{0,4}[:=])|(?:\b|_)pass(?=[\"']?\s{0,4}[:=])))|"
    rf"({_ISSUED.pattern})"
)
"""Names that say that something is secret, and tokens of known issuers, wherever they stand in a longer one."""
_BLOCK = re.compile(r"-----BEGIN ((?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?)-----")
_BODY = re.compile(r"[A-Za-z0-9+/=\s\\]*")
_LOGIN = re.compile(r"://([^/\s:@]{0,64}):([^/\s@]{1,128})@")
_NAME_CHARS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")
_NAME_END = re.compile(r"[A-Za-z0-9_.\-]{0,64}")
_MAX_NAME = 40
_LOOKED_AT = 96
"""Characters of a value that tell what it is."""
_ASSIGNED = re.compile(
    r"""["'`\])]{0,2}\s{0,8}(?:=>|:=|={1,3}|:(?!:)|\s(?=["'])|,\s?(?=["']))\s{0,8}(?:[rbuf]?["'`]([^"'`\n]{4,400})["'`]"""
    r"""|([^\s"'`,;(){}\[\]<>&|]{4,400}))"""
)
_SPOKEN = re.compile(r"(?i)\s+(?:is|was|are|to|of)\s*:?\s+[\"'`]?([^\s\"'`,;]{6,200}?)[\"'`]?(?=[\s,;.!?]*(?:\s|$))")
_TOLD = re.compile(r"(?i)\s+(?:for|of)\s+[^\"'\n]{1,60}?\s(?:is|to|as|:)\s*[\"'`]([^\"'`\n]{6,200})[\"'`]")
_COMMANDS = re.compile(r"(?:curl|wget|mysql|mysqldump|mysqladmin|sshpass|mongo|mongosh|smbclient|ldapsearch)\s")
_LOGIN_FLAG = re.compile(
    r"\s(?:-u|--user|--proxy-user|-U)\s+[\"']?[\w.@\\-]{1,64}[:%]([^\s\"']{4,128})|"
    r"\s(?:-p|--passw(?:or)?d=|--http-password=|-w\s|--password\s|-p\s)[\"']?([^\s\"'-][^\s\"']{3,128})"
)
_MARKUP = re.compile(r">\s{0,4}([^<>\s]{4,400})\s{0,4}</")
_FLAG = re.compile(r"\s+([^\s\"'`,;(){}\[\]<>&|-][^\s\"'`,;(){}\[\]<>&|]{5,400})")
_BEARER = re.compile(r"(?i)(?:bearer|basic|token)\s+([A-Za-z0-9_\-+/=.~]{16,2000})")
_PLACEHOLDER = re.compile(
    r"(?i)^(?:x{3,}|\*{3,}|\.{3,}|<.*>|\$\{.*|\$\(.*|\$[A-Z_]{2,}|%[A-Z_]+%|\{\{.*|\{.*\}|.*\b(?:example|sample|dummy|placeholder|"
    r"changeme|change[_-]me|change[_-]this|replace[_-]?me|redacted|your[_-]|my[_-]?(?:secret|token|password|key)|insert[_-]|"
    r"todo|fixme|foobar|not[_-]?set|unset|env[.(\[_]|process\.|os\.|getenv|config[.\[(]|settings?[.\[(]|self\.|this\.|"
    r"request\.|args?\.|params?\[|vault:|ref\+|secretsmanager|ssm:|keyring|getpass|prompt\().*|"
    r"(?:none|null|nil|true|false|undefined|string|str|bytes|password|passwd|secret|token|key|required|optional|"
    r"default|value|text|hidden|test|testing|admin|user|username|email|yes|no|int|bool|any|object|varchar.*|char.*)[\"';)]*)$"
)
_TYPE = re.compile(
    r"^(?:[A-Z][a-z]+){1,5}(?:\[.*|\s*\|.*)?$|^[A-Za-z_]+(?:\.[A-Za-z_]+)+\(?.*$|^[A-Za-z_]\w*\(.*$|^[a-z]+(?:_[a-z]+)+$|^[A-Z]+(?:_[A-Z]+)+$|^--?[a-z].*$|^[/~.].*/.*$|^https?://[^\s@]*$|^\d{1,5}$"
)
_WEAK_NAME = re.compile(
    r"(?i)(?:token(?:s|izer|ize|_?(?:count|type|limit|id|ids|url|name|length|budget|usage|bucket|path|file|endpoint|ttl|expir\w*))|"
    r"tokens|(?:max|min|num|input|output|total|prompt|completion)[_-]?tokens?|secret(?:ary|s?manager)|csrf\w*token|"
    r"public[_-]?key|(?:password|passwd|pwd|secret|token|key|credentials?)[_-]?(?:field|hash(?:er)?|policy|reset\w*|length|file|path|url|"
    r"name|id|label|column|prompt|hint|rules?|strength|expir\w*|placeholder|input|form|regex|pattern|validator\w*|error|"
    r"required|changed?|type|ref|arn|version|rotation|ttl|algorithm|size|count|index|prefix|header))$"
)
_HASHED = re.compile(
    r"(?i)(?:sha\d*|md5|integrity|checksum|digest|hash|etag|commit|fingerprint|data:|base64,|uuid|guid|nonce|sri)[^\n]{0,24}$"
)
_PASSWORD = re.compile(r"(?i)pass|pwd|cred")
_PLAIN_KEY = re.compile(r"(?i)^(?!.*(?:api|access|private|auth|secret|sign|crypt|account|shared|token)).*key$")


def entropy(text: str) -> float:
    """Shannon entropy in bits per character."""
    size = len(text)
    return -sum(count / size * math.log2(count / size) for count in Counter(text).values()) if size else 0.0


def issued(text: str, start: int, end: int) -> Iterator[Found]:
    """A token of a known issuer."""
    match = _ISSUED.match(text, start, start + 4096)
    if match is None or _PLACEHOLDER.match(match[0]) or entropy(match[0][4:]) < 2.5:
        return
    yield Found("SECRET", *match.span(), 0.95)


def blocks(text: str, start: int, end: int) -> Iterator[Found]:
    """A private key in PEM (RFC 7468), to its end or, cut short, to the end of what looks like it."""
    match = _BLOCK.match(text, start)
    if match is None:
        return
    closing = text.find(f"-----END {match[1]}-----", match.end())
    if closing >= 0:
        stop = closing + len(match[1]) + 14
    else:
        body = _BODY.match(text, match.end())
        stop = body.end() if body is not None else match.end()
    yield Found("SECRET", start, stop, 0.98 if stop - match.end() > 40 else 0.7)


def logins(text: str, start: int, end: int) -> Iterator[Found]:
    """The password of a URL's authority."""
    match = _LOGIN.match(text, start)
    if match is not None and not _PLACEHOLDER.match(match[2]) and match[1] != match[2]:
        yield Found("SECRET", *match.span(2), 0.85)


def keyed(text: str, start: int, end: int) -> Iterator[Found]:
    """The value of a telling name."""
    if text[start : start + 6].lower() in {"bearer", "author"}:
        match = _BEARER.search(text, start, start + 2100)
        if match is not None and not _PLACEHOLDER.match(match[1]) and entropy(match[1]) > 3:
            yield Found("SECRET", *match.span(1), 0.85)
        return
    if _COMMANDS.match(text, start):
        line = text.find("\n", start, start + 400)
        match = _LOGIN_FLAG.search(text, start, min(line if line >= 0 else len(text), start + 400))
        if match is not None:
            group = 1 if match[1] else 2
            if _kinds(match[group]) >= 2 and not _PLACEHOLDER.match(match[group]):
                yield Found("SECRET", *match.span(group), 0.7)
        return
    start += text[start] == '"'
    first = start
    while first and text[first - 1] in _NAME_CHARS and start - first < _MAX_NAME:
        first -= 1
    rest = _NAME_END.match(text, start)
    name = text[first : rest.end() if rest is not None else start].rstrip(".-")
    at = first + len(name)
    match = _ASSIGNED.match(text, at) or _MARKUP.match(text, at) or _SPOKEN.match(text, at)
    match = match or _TOLD.match(text, at)
    if match is None and (name.startswith("-") or text[max(0, first - 4) : first] in ("ENV ", "ARG ")):
        match = _FLAG.match(text, at)
    if match is None:
        return
    group = next(index for index in range(1, match.re.groups + 1) if match[index])
    value = match[group].rstrip("\\")
    quoted = match.re is _ASSIGNED and group == 1
    confidence = _weigh(name.strip(".-_"), value, quoted=quoted, spoken=match.re in (_SPOKEN, _TOLD))
    if confidence:
        yield Found("SECRET", match.start(group), match.start(group) + len(value), confidence)


def _weigh(name: str, value: str, *, quoted: bool, spoken: bool) -> float:
    value = value[:_LOOKED_AT]
    if _WEAK_NAME.search(name) or _PLACEHOLDER.match(value) or _TYPE.match(value) or len(set(value)) < 4:
        return 0.0
    kinds = _kinds(value)
    if spoken:
        return 0.6 if len(value) >= 8 and kinds >= 2 and any(char.isdigit() for char in value) else 0.0
    if " " in value.strip() and entropy(value) < 4.0:
        return 0.0
    if value.lower().startswith(("encrypted", "hashed", "enc(", "$2a$", "$2b$", "sha256$", "pbkdf2")):
        return 0.4
    if _PASSWORD.search(name):
        return 0.8 if kinds >= 2 or (quoted and len(value) >= 5) else (0.55 if len(value) >= 6 else 0.0)
    if _PLAIN_KEY.search(name):
        # A key is often only an index: it takes more to be a secret.
        return 0.6 if len(value) >= 16 and kinds >= 2 and value.count(" ") == 0 and entropy(value) >= 3.0 else 0.0
    if kinds >= 2 and len(value) >= 8 and entropy(value) >= 2.5:
        return 0.85 if len(value) >= 16 else 0.65
    return 0.55 if quoted and len(value) >= 12 and entropy(value) >= 3.0 else 0.0


def _kinds(value: str) -> int:
    return (
        any(char.islower() for char in value)
        + any(char.isupper() for char in value)
        + any(char.isdigit() for char in value)
        + any(not char.isalnum() for char in value)
    )


def random_tokens(text: str, start: int, end: int) -> Iterator[Found]:
    """A long token that is as random as a key where nothing near says what else it is."""
    token = text[start:end]
    if not 32 <= len(token) <= 128 or token.count("/") > 2 or token.count("-") > 2:
        return
    kinds = any(c.islower() for c in token) + any(c.isupper() for c in token) + any(c.isdigit() for c in token)
    if kinds < 3 or sum(char.isdigit() for char in token) < 3 or entropy(token) < 4.3:
        return
    if _HASHED.search(text[max(0, start - 40) : start]):
        return
    yield Found("SECRET", start, end, 0.5)
