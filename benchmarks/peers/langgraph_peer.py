"""LangGraph: the same steps, as nodes of a graph with a checkpoint after each. Speaks as ``dbos_peer.py`` does."""

import itertools
import json
import sys
import threading
import time
import uuid
from typing import Any, TypedDict

from langgraph.graph import END, START, StateGraph

url = sys.argv[1]
payload = json.loads(sys.argv[2])


class State(TypedDict):
    """What a checkpoint holds: as much as a step's arguments and result."""

    transaction: Any
    result: Any
    left: int


local = threading.local()


def book(state):
    """The step. The time between two of them is what one costs, its checkpoint included."""
    transaction = state["transaction"]
    local.stamps.append(time.perf_counter_ns())
    result = {
        "id": transaction["id"],
        "category": "approved",
        "score": 0.93,
        "reasons": ["known creditor", "usual amount"],
    }
    return {"transaction": transaction, "result": result, "left": state["left"] - 1}


def build(saver):
    """The graph: one node, over and over."""
    graph = StateGraph(State)
    graph.add_node("book", book)
    graph.add_edge(START, "book")
    graph.add_conditional_edges("book", lambda state: "book" if state["left"] > 0 else END)
    return graph.compile(checkpointer=saver)


def run(graph, count):
    """One thread of ``count`` steps; the times at which its steps began."""
    local.stamps = []
    graph.invoke(
        {"transaction": payload, "result": None, "left": count},
        {"configurable": {"thread_id": str(uuid.uuid4())}, "recursion_limit": count + 10},
        durability="sync",
    )
    return local.stamps


def parallel(graph, width, count):
    """Steps a second of ``width`` threads side by side."""
    threads = [threading.Thread(target=run, args=(graph, count)) for _ in range(width)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return width * count / (time.monotonic() - began)


def serve(graph):
    """Answer commands."""
    run(graph, 5)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        word, *numbers = line.split()
        if word == "serial":
            stamps = run(graph, int(numbers[0]) + 1)
            answer = [after - before for before, after in itertools.pairwise(stamps)]
        elif word == "parallel":
            answer = parallel(graph, *map(int, numbers))
        else:
            return
        print(json.dumps(answer), flush=True)


if url.startswith("sqlite:///"):
    from langgraph.checkpoint.sqlite import SqliteSaver

    with SqliteSaver.from_conn_string(url.removeprefix("sqlite:///")) as saver:
        saver.setup()
        serve(build(saver))
else:
    from langgraph.checkpoint.postgres import PostgresSaver
    from psycopg.rows import dict_row
    from psycopg_pool import ConnectionPool

    with ConnectionPool(
        url, min_size=1, max_size=16, kwargs={"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    ) as pool:
        saver = PostgresSaver(pool)
        saver.setup()
        serve(build(saver))
