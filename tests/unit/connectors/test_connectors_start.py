"""Calls that meet while their connector's process is still starting."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from holdfast.config import ConnectorSettings
from holdfast.node.connectors import ConnectorPool


def test_calls_that_arrive_together_share_one_process_and_all_succeed(tmp_path: Path) -> None:
    (tmp_path / "bank.py").write_text("import os\ndef whose(n):\n    return [n, os.getpid()]\n")
    connectors = {"whose": ConnectorSettings(call="bank.py:whose", folder=tmp_path)}

    async def main() -> list[list[int]]:
        pool = ConnectorPool(lambda tenant: connectors)
        started = asyncio.Event()

        async def call(number: int, late: bool) -> list[int]:
            if late:
                await started.wait()
            data = await pool.call("default", "whose", {"n": number}, "key", 0, lambda seconds: None)
            return list(json.loads(data))

        async def watch() -> None:
            # The process exists before its start is over: that is when a second call must wait too.
            while not pool.pids():
                await asyncio.sleep(0)
            started.set()

        try:
            async with asyncio.timeout(60):
                *answers, _ = await asyncio.gather(*(call(n, n > 0) for n in range(8)), watch())
            return answers
        finally:
            await pool.close()

    answers = asyncio.run(main())
    assert [number for number, _ in answers] == list(range(8))
    assert len({pid for _, pid in answers}) == 1
