"""aiohttp servers for tests.

Knows aiohttp's runner; apart from `http.py` because aiohttp is optional.
"""

from __future__ import annotations

import ssl as ssl_module
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web


@asynccontextmanager
async def aiohttp_server(
    app: web.Application, *, ssl: ssl_module.SSLContext | None = None, **options: Any
) -> AsyncGenerator[int]:
    """Serve an application on a free port of 127.0.0.1; stops it at the end.

    `options` are the runner's.
    """
    runner = web.AppRunner(app, access_log=None, **options)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=ssl)
        await site.start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()
