"""Connectors whose calls are lines in a file beside them."""

import os
import time
from pathlib import Path

BOOKS = Path(__file__).with_name("books.log")


def write(*words):
    with BOOKS.open("a") as file:
        file.write(" ".join(map(str, words)) + "\n")


def book(amount, idempotency_key):
    write("book", amount)
    return {"entry": amount * 10}


def unbook(amount, idempotency_key):
    write("unbook", amount)


def hangs():
    write("hangs")
    time.sleep(3600)


def pay(amount, idempotency_key):
    write("pay", amount, idempotency_key)
    if len(BOOKS.read_text().splitlines()) == 1:
        os._exit(1)
    return {"paid": amount}
