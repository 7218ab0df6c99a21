"""A plain forward proxy of aiohttp's: what one would write in an afternoon. Prints its port."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
from aiohttp import web

DROP = {"host", "connection", "proxy-connection", "transfer-encoding", "content-length"}


async def main() -> None:
    """Serve until killed."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False) as session:

        async def carry(request: web.BaseRequest) -> web.StreamResponse:
            body = await request.read()
            headers = {name: value for name, value in request.headers.items() if name.lower() not in DROP}
            async with session.request(request.method, request.url, headers=headers, data=body) as answer:
                kept: dict[str, Any] = {n: v for n, v in answer.headers.items() if n.lower() not in DROP}
                return web.Response(status=answer.status, headers=kept, body=await answer.read())

        runner = web.ServerRunner(web.Server(carry))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None
        print(site._server.sockets[0].getsockname()[1], flush=True)
        await asyncio.Event().wait()


try:
    import uvloop
except ImportError:
    asyncio.run(main())
else:
    uvloop.run(main())
