"""A real server on a free port, in the test's own event loop."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import uvicorn

from gateway.protocol import BoundedProtocol


@contextlib.asynccontextmanager
async def serving(application: Any) -> AsyncIterator[str]:
    """Runs an application in a real server; yields its URL."""
    config = uvicorn.Config(
        application, http=BoundedProtocol, log_level="warning", access_log=False, ws="none", proxy_headers=False
    )
    config.timeout_graceful_shutdown = 10
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    task = asyncio.create_task(server._serve([listener]))
    while not server.started:
        if task.done():
            await task
        await asyncio.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
        listener.close()
