"""What scanning costs and finds: clean text, text with findings, and public data where it is at hand.

Times are the best of many: what the work itself takes when nothing else does. Beside them, in the same run, the same
triggers under Python's own ``re`` alone.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import common
from holdfast.policy.detect.gate import AUTOMATON
from holdfast.policy.scan import scan

DATA = Path(os.environ.get("HOLDFAST_BENCH_DATA", Path(__file__).parents[2] / "shared" / "data"))
TARGETS = {"clean_2k_us": 50.0, "clean_100k_us": 3_000.0, "found_2k_us": 200.0, "found_100k_us": 12_000.0}
PROSE = (
    "The committee met on Thursday to look at the plans for the new station and the bridge beside it.",
    "Nobody had expected that the river would rise so fast, and the older houses were the first to suffer.",
    "A ledger of the year before shows what was paid, to whom, and which of the bills were still open.",
    "She read the letter twice, folded it, and put it back between the pages of the book on the table.",
    "When the engine starts, the pump fills the second tank first; only then does the valve open itself.",
    "Of the nine proposals four were refused, three were put off until spring, and two were carried out.",
)
FINDINGS = (
    "She paid with card 4111 1111 1111 1111 and kept the receipt in her coat for the rest of the week.",
    "Write to ann.miller@corp.example before noon, or the seats on the early train will be gone again.",
    "The social security number 536-22-1234 was written on the back of the form, in pencil, upside down.",
    "Call +49 30 901820 and ask for the office on the second floor; they know about the missing parcel.",
    "The refund goes to DE89 3704 0044 0532 0130 00 as soon as the papers have been signed by both of us.",
    "The request came from 10.20.30.40, which nobody in the building has used since the summer of that year.",
    "deploy with token=ghp_a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8 and remove it from the notes afterwards",
)
SIX = ("CREDIT_CARD", "IBAN_CODE", "US_SSN", "PHONE_NUMBER", "EMAIL_ADDRESS", "IP_ADDRESS")


def text(size: int, *, found: bool) -> str:
    """Prose; with ``found`` a tenth of its lines hold something."""
    lines, length, number = [], 0, 0
    while length < size:
        line = FINDINGS[number // 10 % len(FINDINGS)] if found and number % 10 == 4 else PROSE[number % len(PROSE)]
        lines.append(line)
        length += len(line) + 1
        number += 1
    return "\n".join(lines)[:size]


def best_us(work: Callable[[], object], times: int) -> float:
    """The fastest of several."""
    best = float("inf")
    for _ in range(times):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best * 1e6


def quality() -> dict[str, Any]:
    """Precision, recall and F1 by type on ``pii_dev.jsonl`` (overlap match); empty where the file is not at hand."""
    path = DATA / "pii_dev.jsonl"
    if not path.exists():
        return {}
    counts = {kind: [0, 0, 0] for kind in SIX}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        gold = [span for span in row["spans"] if span["type"] in SIX]
        found = scan(row["text"], SIX).findings
        pairs = [
            (a, b)
            for a, span in enumerate(gold)
            for b, one in enumerate(found)
            if one.type == span["type"] and one.start < span["end"] and span["start"] < one.end
        ]
        hit, right = {a for a, _ in pairs}, {b for _, b in pairs}
        for index, span in enumerate(gold):
            counts[span["type"]][0 if index in hit else 1] += 1
        for index, one in enumerate(found):
            counts[one.type][2] += index not in right
    counts["all"] = [sum(each[index] for each in counts.values()) for index in range(3)]
    return {
        kind: {
            "count": hit + missed,
            "precision": round(hit / max(1, hit + false), 3),
            "recall": round(hit / max(1, hit + missed), 3),
            "f1": round(2 * hit / max(1, 2 * hit + missed + false), 3),
        }
        for kind, (hit, missed, false) in counts.items()
    }


def main() -> None:
    """Measure and print."""
    options = common.arguments(__doc__).parse_args()
    times = 20 if options.quick else 200
    result: dict[str, Any] = {"machine": common.machine()}
    rows: list[tuple[object, ...]] = []
    python = AUTOMATON.in_python()
    for name, size, found in (
        ("clean_2k_us", 2_000, False),
        ("found_2k_us", 2_000, True),
        ("clean_100k_us", 100_000, False),
        ("found_100k_us", 100_000, True),
    ):
        sample = text(size, found=found)
        runs = times if size < 10_000 else max(5, times // 10)
        result[name] = best_us(lambda sample=sample: scan(sample), runs)  # type: ignore[misc]
        result[f"{name}_re"] = best_us(lambda sample=sample: list(python.spots(sample)), max(3, runs // 10))  # type: ignore[misc]
        target = TARGETS[name]
        measured = (
            f"{result[name]:,.0f} µs ({len(scan(sample).findings)} findings; re alone {result[f'{name}_re']:,.0f} µs)"
        )
        rows.append((name, measured, f"{target:,.0f} µs", common.verdict(result[name] <= target)))
    result["quality"] = quality()
    for kind, figures in result["quality"].items():
        measured = (
            f"P {figures['precision']:.3f}  R {figures['recall']:.3f}  F1 {figures['f1']:.3f}  of {figures['count']}"
        )
        target, met = ("F1 0.95", common.verdict(figures["f1"] >= 0.95)) if kind == "all" else ("", "")
        rows.append((f"{kind} on public data", measured, target, met))
    common.report("policy_scan", result, rows, options.json)


if __name__ == "__main__":
    main()
