"""Draw what was measured last: SVG under ``docs/explanation``, and the table of ``performance.md``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from benchmarks.common import HERE, OUT

DOCS = HERE.parent / "docs" / "explanation"
BEGIN, END = "<!-- figures: written by `make bench` -->", "<!-- end of figures -->"
OURS, OTHERS, FLOOR = "#1f6f5c", "#9aa5b1", "#d9b44a"
ENGINES = {"sqlite": "SQLite", "postgres": "PostgreSQL"}


def bars(title: str, unit: str, rows: Sequence[tuple[str, float, str]], note: str) -> str:
    """Horizontal bars, longest full width."""
    top, height, left, width = 62, 30, 190, 420
    longest = max((value for _, value, _ in rows), default=1) or 1
    total = top + height * len(rows) + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 {total}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="14">',
        f"<title>{escape(title)}</title>",
        f'<rect width="720" height="{total}" fill="#ffffff"/>',
        f'<text x="16" y="28" font-size="17" font-weight="600" fill="#16202b">{escape(title)}</text>',
        f'<text x="16" y="48" fill="#51606e">{escape(unit)}</text>',
    ]
    for number, (name, value, colour) in enumerate(rows):
        y = top + number * height
        long = max(2.0, value / longest * width)
        parts += [
            f'<text x="{left - 10}" y="{y + 17}" text-anchor="end" fill="#16202b">{escape(name)}</text>',
            f'<rect x="{left}" y="{y + 3}" width="{long:.1f}" height="20" rx="2" fill="{colour}"/>',
            f'<text x="{left + long + 8:.1f}" y="{y + 18}" fill="#16202b">{value:,.0f}</text>',
        ]
    parts += [f'<text x="16" y="{total - 12}" font-size="12" fill="#51606e">{escape(note)}</text>', "</svg>"]
    return "\n".join(parts) + "\n"


def read(name: str) -> dict[str, Any]:
    """What a benchmark measured last; empty when it never ran."""
    path = OUT / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def draw() -> None:
    """Write every plot for which there are figures."""
    governance = read("governance")
    load = governance.get("machine", {}).get("load_before", ["?"])[0]
    for engine, label in ENGINES.items():
        found = governance.get(engine, {})
        cores = governance.get("machine", {}).get("cores")
        priority = governance.get("machine", {}).get("priority", "?")
        note = f"One run, interleaved; {label}, load {load} on {cores} cores, {priority} priority"
        if one := found.get("serial"):
            rows = [("bare INSERT", one["raw"]["p50_us"], FLOOR), ("Holdfast", one["governed"]["p50_us"], OURS)]
            rows += [(name, figures["p50_us"], OTHERS) for name, figures in one["peers"].items()]
            plot = bars("A durable step, one after the other", "microseconds, p50; less is better", rows, note)
            (DOCS / f"performance-serial-{engine}.svg").write_text(plot)
        if many := found.get("parallel"):
            rows = [("Holdfast", many["steps_a_second"], OURS)]
            rows += [(name, speed, OTHERS) for name, speed in many["peers"].items()]
            plot = bars("64 runs side by side", "durable steps a second; more is better", rows, note)
            (DOCS / f"performance-parallel-{engine}.svg").write_text(plot)
    page = DOCS / "performance.md"
    text = page.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{figures()}\n{END}{after}")


def figures() -> str:
    """The table of what was measured last."""
    lines = ["| what | measured | target |", "| --- | --- | --- |"]
    governance = read("governance")
    for engine, label in ENGINES.items():
        found = governance.get(engine, {})
        if one := found.get("serial"):
            lines.append(f"| {label}: governed step, p50 | {one['governed']['p50_us']:.0f} µs | |")
            lines.append(f"| {label}: bare INSERT of the same bytes, p50 | {one['raw']['p50_us']:.0f} µs | |")
            lines.append(f"| {label}: governed / bare | {one['ratio_raw']}× | ≤ 3× |")
            lines += [f"| {label}: {name} / governed | {ratio}× | ≥ 4× |" for name, ratio in one["ratio_peers"].items()]
        if many := found.get("parallel"):
            speed = many["steps_a_second"]
            lines.append(f"| {label}: 64 runs side by side | {speed:,} steps/s | ≥ 3,000 |")
            lines += [
                f"| {label}: against {name}, side by side | {speed / theirs:.1f}× | ≥ 10× |"
                for name, theirs in many["peers"].items()
            ]
    if waiting := read("waiting"):
        lines.append(
            f"| start beside {waiting['waiting']:,} waiting runs / in an empty home | {waiting['ratio']}× | ≤ 1.2× |"
        )
    if kill := read("kill"):
        for count, found in sorted(kill["sizes"].items(), key=lambda item: int(item[0])):
            what = f"{count} boundaries with a daemon each, commit of the kill to last process gone, p99"
            target = kill["targets_ms"].get(count, 100)
            lines.append(f"| {what} | {found['p99_ms']} ms | < {target:g} ms |")
    if start := read("start"):
        for key, what, target in (
            ("help_ms", "`holdfast --help`", "< 300 ms"),
            ("first_step_ms", "submit to first step committed, living node, cold", "< 250 ms"),
            ("run_ms", "`holdfast run` of one step, shell to exit", "< 1 s"),
        ):
            lines.append(f"| {what}, p50 | {start[key]['p50']:.0f} ms | {target} |")
    lines += boundaries()
    lines += way_out()
    loads = []
    for name in ("start", "cold_start", "density", "waiting", "kill", "governance", "egress"):
        if machine := read(name).get("machine"):
            loads.append(f"{name} {machine['load_before'][0]} ({machine['priority']} priority)")
    lines += ["", f"Load average when each began: {', '.join(loads)}." if loads else ""]
    return "\n".join(lines) + "\n"


def boundaries() -> list[str]:
    """Rows of what a boundary costs to start and to keep."""
    lines = []
    if cold := read("cold_start"):
        for own, plain in (
            ("namespace", "plain bwrap, python3 and the same control groups"),
            ("container", "runc run"),
        ):
            if own in cold:
                what = f"level {own}, {cold[own]['p50']:.0f} ms to the first byte / {plain}"
                lines.append(f"| {what} | {cold[f'{own}_ratio']}× | ≤ 1.2× |")
        warm = cold["warm_first_step"]["p50"]
        lines.append(f"| worker from the pool to its first step, p50 | {warm} ms | ≤ 3 ms |")
    if density := read("density"):
        what = f"the node's own memory for each of {density['count']} boundaries"
        lines.append(f"| {what} | {density['node_mib_each']:.2f} MiB | ≤ 1 MiB |")
        lines.append(f"| processes of an idle boundary (PSS) | {density['inside_pss_mib']} MiB | |")
    return lines


def way_out() -> list[str]:
    """Rows of what governing a request costs."""
    egress = read("egress")
    if not egress:
        return []
    found, cpu = egress["ratios"], egress["cpu_us"]
    spent = f"{cpu['governed']:.0f} µs of processor time, {cpu['bare']:.0f} µs ungoverned, nginx {cpu['nginx']:.0f} µs"
    return [
        f"| request out: governed / ungoverned ({spent}) | {found['governed']:.2f}× | ≥ 0.35× |",
        f"| request out: governed / mitmproxy | {found['mitmproxy']:.1f}× | ≥ 15× |",
        f"| request out: nginx / ungoverned | {found['nginx']:.2f}× | ≤ 1.3× |",
        f"| request out: added p50, in raw commits | {found['commits']:.2f} | ≤ 2.5 |",
        f"| request out: added p50 without durability | {found['volatile_ms']:.3f} ms | ≤ 0.2 ms |",
        f"| request out: TLS opened at the proxy | {found['tls']:,.0f} req/s | ≥ 1,500 |",
        f"| request out: first byte of a stream, beyond a commit | {found['stream_ms']:.3f} ms | ≤ 0.5 ms |",
        f"| memory of the engine at 1,000 connections | {found['rss_mb']:.0f} MB | ≤ 80 MB |",
    ]


if __name__ == "__main__":
    draw()
