"""Connectors of each class. Each call is one line in a file that stands for the receiver's own books."""

import os
from pathlib import Path

BOOKS = Path(__file__).with_name("books.log")


def _write(name, key):
    descriptor = os.open(BOOKS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{name} {key}\n".encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def pay(amount, idempotency_key):
    _write("pay", idempotency_key)
    return {"amount": amount}


def note(text, idempotency_key):
    _write("note", idempotency_key)
    return {"text": text}


def book(amount, idempotency_key):
    _write("book", idempotency_key)
    return {"amount": amount}


def unbook(amount, idempotency_key):
    _write("unbook", idempotency_key)


def read(idempotency_key):
    _write("read", idempotency_key)
    return {"value": 7}
