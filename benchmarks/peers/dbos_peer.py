"""DBOS: the same steps, as a durable workflow of its own.

Reads commands from stdin, one a line, and answers each with a line of JSON: ``serial N`` gives N times in nanoseconds,
``parallel W N`` gives the steps a second of W workflows of N steps side by side.
"""

import json
import sqlite3
import sys
import time

from dbos import DBOS

url = sys.argv[1]
payload = json.loads(sys.argv[2])
if url.startswith("sqlite:///"):
    # The mode stays with the file. DBOS itself leaves SQLite in its rollback journal, which is slower.
    with sqlite3.connect(url.removeprefix("sqlite:///")) as file:
        file.execute("PRAGMA journal_mode = WAL")
DBOS(
    config={
        "name": "bench",
        "system_database_url": url,
        "log_level": "ERROR",
        "run_migrations": True,
        "max_executor_threads": 128,
    }
)


@DBOS.step()
def book(transaction):
    """The step."""
    return {
        "id": transaction["id"],
        "category": "approved",
        "score": 0.93,
        "reasons": ["known creditor", "usual amount"],
    }


@DBOS.workflow()
def serial(transaction, count):
    """Steps one after the other, timed."""
    took = []
    for _ in range(count):
        began = time.perf_counter_ns()
        book(transaction)
        took.append(time.perf_counter_ns() - began)
    return took


@DBOS.workflow()
def plain(transaction, count):
    """Steps one after the other: when the first began and the last ended."""
    began = time.monotonic()
    for _ in range(count):
        book(transaction)
    return [began, time.monotonic()]


DBOS.launch()
serial(payload, 5)
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    word, *numbers = line.split()
    if word == "serial":
        answer = serial(payload, int(numbers[0]))
    elif word == "parallel":
        width, count = map(int, numbers)
        handles = [DBOS.start_workflow(plain, payload, count) for _ in range(width)]
        spans = [handle.get_result() for handle in handles]
        answer = width * count / (max(end for _, end in spans) - min(start for start, _ in spans))
    else:
        break
    print(json.dumps(answer), flush=True)
DBOS.destroy()
