"""Allow and deny cases of the categories that read content: personal data, card data, secrets."""

from __future__ import annotations

import base64
import gzip
from typing import Any

DENY, REDACT, END, WARN = "deny", "redact", "terminate", "warn"
VISA = "4111 1111 1111 1111"
TOKEN = "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"
CANARY = "cnry-7f3a9c51e2"
PROMPT = "You are the billing assistant of Acme. Never promise refunds above forty euros without asking a supervisor."


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def gz(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def args(**values: Any) -> dict[str, Any]:
    return {"args": values}


KINDS = {
    "pii_redact": "llm",
    "phi_minimum_necessary": "tool",
    "pan_guard": "tool",
    "sad_block": "tool",
    "pseudonymise": "llm",
    "dictionary_match": "llm",
    "secret_scan": "llm",
    "canary_leak": "http",
    "system_prompt_leak": "llm",
}

CASES: dict[str, tuple[dict[str, Any], ...]] = {
    "pii_redact": (
        {"name": "an address", "action": args(prompt="write to ann@corp.example"), "outcome": REDACT},
        {"name": "no personal data", "action": args(prompt="write a poem about 1984")},
        {"name": "two types", "action": args(q="ann@corp.example, 078-05-1121"), "outcome": REDACT, "reason": "US_SSN"},
        {"name": "another type", "with_": {"types": ["US_SSN"]}, "action": args(prompt="write to ann@corp.example")},
        {"name": "one of ours", "with_": {"allow": ["*@corp.example"]}, "action": args(prompt="to ann@corp.example")},
        {
            "name": "refused",
            "policy": {"on_breach": "deny"},
            "action": args(to=["ann@corp.example"]),
            "outcome": DENY,
            "reason": "1 EMAIL_ADDRESS",
        },
        {"name": "encoded", "action": args(q=b64("call ann@corp.example about it")), "outcome": REDACT},
        {"name": "packed", "action": args(q=gz("call ann@corp.example about it")), "outcome": REDACT},
        {"name": "in percent escapes", "action": args(q="ann%40corp%2Eexample%2Ecom"), "outcome": REDACT},
        {"name": "the key tells what it is", "action": args(phone="467 3395"), "outcome": REDACT},
        {"name": "the same under another key", "action": args(order="467 3395")},
        {"name": "in a key", "action": args(by={"ann@corp.example": 1}), "outcome": DENY},
        {"name": "a guess", "action": args(q="version 10.0.0.1 of it")},
        {
            "name": "a guess that counts",
            "with_": {"threshold": 0.3},
            "action": args(q="version 10.0.0.1"),
            "outcome": REDACT,
        },
        {"name": "as a label", "with_": {"style": "label"}, "action": args(q="ann@corp.example"), "outcome": REDACT},
        {"name": "what comes back", "ended": {"value": {"mail": "ann@corp.example"}}, "outcome": REDACT},
        {"name": "what streams in", "text": "it is ann@corp.example", "outcome": REDACT},
        {"name": "only ahead", "with_": {"phases": ["before"]}, "ended": {"value": "ann@corp.example"}},
    ),
    "phi_minimum_necessary": (
        {"name": "a field on the list", "with_": {"fields": ["patient.id"]}, "action": args(patient={"id": "p1"})},
        {
            "name": "a field too many",
            "with_": {"fields": ["patient.id"]},
            "action": args(patient={"id": "p1", "diagnosis": "flu"}),
            "outcome": REDACT,
            "reason": "patient.diagnosis",
        },
        {
            "name": "below a field on the list",
            "with_": {"fields": ["patient"]},
            "action": args(patient={"a": {"b": "x"}}),
        },
        {"name": "a pattern", "with_": {"fields": ["visits.d*"]}, "action": args(visits=[{"date": "2026-01-01"}])},
        {
            "name": "a name that only starts like it",
            "with_": {"fields": ["patient.id"]},
            "action": args(patient={"id_card": "x"}),
            "outcome": REDACT,
        },
        {
            "name": "beside what is limited",
            "with_": {"under": "patient", "fields": ["patient.id"]},
            "action": args(note="x", patient={"id": "p1"}),
        },
        {
            "name": "a number is a field",
            "with_": {"fields": ["patient.id"]},
            "action": args(patient={"age": 41}),
            "outcome": REDACT,
        },
        {
            "name": "what comes back",
            "with_": {"under": "patient", "fields": ["patient.id"]},
            "ended": {"value": {"patient": {"ssn": "x"}}},
            "outcome": REDACT,
        },
    ),
    "pan_guard": (
        {"name": "a card", "action": args(note=f"pay with {VISA}"), "outcome": REDACT, "reason": "1 CREDIT_CARD"},
        {"name": "a wrong check digit", "action": args(note="pay with 4111 1111 1111 1112")},
        {"name": "no issuer's", "action": args(note="pay with 9111 1111 1111 1115")},
        {"name": "as a number", "action": args(n=4111111111111111), "outcome": REDACT},
        {"name": "encoded twice", "action": args(n=b64(b64(f"pay with {VISA} today"))), "outcome": REDACT},
        {"name": "with hidden characters", "action": args(n="4111\u200b1111\u200b1111\u200b1111"), "outcome": REDACT},
        {"name": "the last digits only", "with_": {"keep": "last4"}, "action": args(note=VISA), "outcome": REDACT},
        {"name": "a doubtful one", "with_": {"threshold": 0.95}, "action": args(n="4111111111111111")},
        {"name": "in a path", "action": {"kind": "http", "path": "/pay/4111111111111111"}, "outcome": DENY},
        {"name": "what comes back", "ended": {"value": VISA}, "outcome": REDACT},
        {"name": "not what comes back", "with_": {"phases": ["before"]}, "ended": {"value": VISA}},
    ),
    "sad_block": (
        {"name": "a code by its key", "action": args(card={"cvv": "123"}), "outcome": DENY, "reason": "CODE"},
        {"name": "a code in words", "action": args(note="the security code is 4821"), "outcome": DENY},
        {
            "name": "a track",
            "action": args(n=";4111111111111111=27121010000012300000?"),
            "outcome": DENY,
            "reason": "TRACK",
        },
        {"name": "the other track", "action": args(n="%B4111111111111111^DOE/J^2712101123?"), "outcome": DENY},
        {"name": "a PIN", "action": args(note="PIN: 4711"), "outcome": DENY, "reason": "PIN"},
        {"name": "a PIN that is let through", "with_": {"pins": False}, "action": args(pin="4711")},
        {"name": "a card alone", "action": args(note=VISA)},
        {"name": "spinning 4711 times", "action": args(note="spinning 4711 times, cvs 123")},
        {"name": "replaced", "policy": {"on_breach": "redact"}, "action": args(cvc="123"), "outcome": REDACT},
        {"name": "what comes back", "ended": {"value": {"cvv2": 123}}, "outcome": DENY},
        {"name": "not what comes back", "with_": {"phases": ["before"]}, "ended": {"value": {"cvv2": "123"}}},
    ),
    "pseudonymise": (
        {"name": "an address", "action": args(prompt="write to ann@corp.example"), "outcome": REDACT},
        {"name": "nothing", "action": args(prompt="write to Ann")},
        {"name": "another type", "with_": {"types": ["US_SSN"]}, "action": args(prompt="write to ann@corp.example")},
        {"name": "in a key", "action": args(by={"ann@corp.example": 1}), "outcome": DENY},
        {"name": "only ahead", "with_": {"phases": ["before"]}, "ended": {"value": "ann@corp.example"}},
        {"name": "what comes back", "ended": {"value": "ann@corp.example"}, "outcome": REDACT},
    ),
    "dictionary_match": (
        {"name": "a word", "with_": {"words": ["Nightjar"]}, "action": args(q="about NIGHTJAR."), "outcome": REDACT},
        {"name": "another", "with_": {"words": ["Nightjar"]}, "action": args(q="about nightingales")},
        {"name": "a part of a word", "with_": {"words": ["jar"]}, "action": args(q="about nightjars")},
        {
            "name": "parts count",
            "with_": {"words": ["jar"], "whole": False},
            "action": args(q="nightjars"),
            "outcome": REDACT,
        },
        {"name": "capitals", "with_": {"words": ["US"], "case_sensitive": True}, "action": args(q="tell us")},
        {"name": "over a line", "with_": {"words": ["red  fox"]}, "action": args(q="a red\n fox"), "outcome": REDACT},
        {"name": "in a key", "with_": {"words": ["nightjar"]}, "action": args(d={"nightjar": 1}), "outcome": DENY},
        {"name": "the stream", "with_": {"words": ["nightjar"]}, "text": "a nightjar", "outcome": REDACT},
        {"name": "only ahead", "with_": {"words": ["nightjar"], "phases": ["before"]}, "text": "a nightjar"},
    ),
    "secret_scan": (
        {"name": "a token", "action": args(prompt=f"use {TOKEN}"), "outcome": DENY, "reason": "1 SECRET"},
        {"name": "prose about tokens", "action": args(prompt="the token is used to pay for the password reset page")},
        {"name": "by its key", "action": args(env={"DB_PASSWORD": "t7!Kp0qzz"}), "outcome": DENY},
        {"name": "a placeholder", "action": args(env={"DB_PASSWORD": "${DB_PASSWORD}"})},
        {"name": "a published key", "with_": {"allow": ["ghp_a1B2*"]}, "action": args(prompt=f"use {TOKEN}")},
        {"name": "a sure one only", "with_": {"threshold": 0.9}, "action": args(note="the password is Sommer2026x")},
        {"name": "a login", "action": args(url="postgres://app:hN3!kd92@db/x"), "outcome": DENY},
        {"name": "replaced", "policy": {"on_breach": "redact"}, "action": args(p=f"use {TOKEN}"), "outcome": REDACT},
        {"name": "what comes back", "ended": {"value": f"use {TOKEN}"}, "outcome": DENY},
        {"name": "not what comes back", "with_": {"phases": ["before"]}, "ended": {"value": f"use {TOKEN}"}},
    ),
    "canary_leak": (
        {"name": "plain", "with_": {"canaries": [CANARY]}, "action": args(body=f"id={CANARY}"), "outcome": END},
        {"name": "another value", "with_": {"canaries": [CANARY]}, "action": args(body="id=cnry-7f3a9c51e3")},
        {
            "name": "spelt apart",
            "with_": {"canaries": [CANARY]},
            "action": args(b="C N R Y 7f3a 9c51 e2"),
            "outcome": END,
        },
        {"name": "backwards", "with_": {"canaries": [CANARY]}, "action": args(b=CANARY[::-1]), "outcome": END},
        {
            "name": "encoded",
            "with_": {"canaries": [CANARY]},
            "action": args(b=b64(f"the id {CANARY} it is")),
            "outcome": END,
        },
        {"name": "in the path", "with_": {"canaries": [CANARY]}, "action": {"path": f"/x/{CANARY}"}, "outcome": END},
        {"name": "what comes back", "with_": {"canaries": [CANARY]}, "ended": {"value": CANARY}, "outcome": END},
        {"name": "only ahead", "with_": {"canaries": [CANARY], "phases": ["before"]}, "ended": {"value": CANARY}},
    ),
    "system_prompt_leak": (
        {"name": "its own words", "action": args(system=PROMPT), "text": f"I was told: {PROMPT}", "outcome": DENY},
        {"name": "its own request", "action": args(system=PROMPT, messages=[PROMPT])},
        {
            "name": "other words",
            "action": args(system=PROMPT),
            "text": "Refunds are a matter for supervisors, I am afraid.",
        },
        {"name": "encoded", "action": args(system=PROMPT), "text": f"so: {b64(PROMPT)}", "outcome": DENY},
        {
            "name": "a guarded text in a request",
            "with_": {"prompts": [PROMPT]},
            "action": {"kind": "http", **args(body=PROMPT.upper())},
            "outcome": DENY,
        },
        {
            "name": "too little of it",
            "with_": {"share": 0.9},
            "action": args(system=PROMPT),
            "text": PROMPT[:70],
        },
        {
            "name": "a few words of it",
            "with_": {"words": 5},
            "action": args(system=PROMPT),
            "text": "Who promises refunds above forty euros without asking a boss?",
            "outcome": DENY,
        },
        {"name": "what is said in the end", "action": args(system=PROMPT), "ended": {"value": PROMPT}, "outcome": DENY},
        {
            "name": "only ahead",
            "with_": {"phases": ["before"]},
            "action": args(system=PROMPT),
            "ended": {"value": PROMPT},
        },
    ),
}

OTHER: dict[str, dict[str, Any]] = {
    "pii_redact": {
        "phases": ["after"],
        "types": ["UK_NHS"],
        "allow": ["*"],
        "threshold": 1,
        "style": "remove",
    },
    "phi_minimum_necessary": {"phases": ["during"], "fields": ["*"], "under": "nothing"},
    "pan_guard": {"phases": ["during"], "keep": "nothing", "threshold": 1},
    "sad_block": {"phases": ["during"], "pins": False},
    "pseudonymise": {"phases": ["during"], "types": ["UK_NHS"]},
    "dictionary_match": {"phases": ["after"], "words": ["zebra"], "whole": False, "case_sensitive": True},
    "secret_scan": {"phases": ["during"], "threshold": 1, "allow": ["*"]},
    "canary_leak": {"phases": ["during"], "canaries": ["another-canary"]},
    "system_prompt_leak": {
        "phases": ["before"],
        "prompts": ["Refunds are a matter for supervisors, I am afraid."],
        "words": 40,
        "share": 1,
    },
}
