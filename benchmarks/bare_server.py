"""The baseline: aiohttp's low-level server with TLS and uvloop, answering every request with the same 3 kB."""

from __future__ import annotations

import asyncio
import ssl
import sys

import uvloop
from aiohttp import web

BODY = b"x" * 3100


async def answer(request: web.BaseRequest) -> web.Response:
    return web.Response(body=BODY, content_type="application/json")


async def main(certificate: str, key: str) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    server = await asyncio.get_running_loop().create_server(web.Server(answer), "127.0.0.1", 0, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1], sys.argv[2]))
