"""The bank and the ledger, as connectors: they run on the node's side, never inside an agent's boundary.

Both keep what they did in bank.db beside this file, under the idempotency key that comes with every call, so that a
call that is made again gives the first one's receipt and does nothing twice.
"""

from __future__ import annotations

import hashlib
import sqlite3


def _once(kind: str, key: str, subject: str, amount_cents: int) -> str:
    receipt = f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    with sqlite3.connect("bank.db", timeout=30) as bank:
        bank.execute(
            "CREATE TABLE IF NOT EXISTS bookings (key TEXT PRIMARY KEY, kind TEXT, subject TEXT, amount_cents INTEGER)"
        )
        bank.execute("INSERT OR IGNORE INTO bookings VALUES (?, ?, ?, ?)", (key, kind, subject, amount_cents))
    bank.close()
    return receipt


def post_entry(line: str, reference: str, amount_cents: int, idempotency_key: str) -> dict[str, str]:
    """Book a line against its invoice."""
    return {"receipt": _once("entry", idempotency_key, f"{line} {reference}", amount_cents)}


def wire_transfer(iban: str, country: str, amount_cents: int, purpose: str, idempotency_key: str) -> dict[str, str]:
    """Pay money to an account."""
    if amount_cents <= 0:
        raise ValueError("a transfer needs an amount above 0")
    return {"receipt": _once("wire", idempotency_key, f"{iban} {purpose}", amount_cents)}
