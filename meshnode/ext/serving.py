"""A service whose application has a beginning and an end of its own: a lifespan."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import AbstractAsyncContextManager

from meshnode.errors import NodeClosed
from meshnode.sdk.node import Node, runtime_of
from meshnode.sdk.service import Service


class Serving:
    """A service and the application behind it, which begins with it and ends after it.

    ``await`` waits until the application has begun, and raises what it raised. ``async with`` does so too, and stops
    both at the end. Streams that come earlier wait. Without either, a failed beginning is logged and the service
    withdrawn.
    """

    def __init__(self, node: Node, service: Service, lifespan: AbstractAsyncContextManager[object]) -> None:
        self.service = service
        self._began: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ending, self._ended = asyncio.Event(), asyncio.Event()
        runtime_of(node).tasks.spawn(self._live(lifespan))

    async def _live(self, lifespan: AbstractAsyncContextManager[object]) -> None:
        try:
            async with lifespan:
                self._began.set_result(None)
                await self._ending.wait()
        except Exception as error:
            if self._began.done():
                raise
            self._began.set_exception(error)
        finally:
            if not self._began.done():
                self._began.set_exception(NodeClosed("the node was closed before the application had begun"))
            self.service.close()
            self._ended.set()

    async def began(self) -> None:
        """Wait until the application has begun.

        Raises what it raised.
        """
        await asyncio.shield(self._began)

    def close(self) -> None:
        """Withdraw the service, and have the application end. Safe to call twice."""
        self.service.close()
        self._ending.set()

    async def wait_closed(self) -> None:
        """Wait until the application has ended, after ``close``."""
        await self._ended.wait()

    def __await__(self) -> Generator[object, None, Serving]:
        yield from self.began().__await__()
        return self

    async def __aenter__(self) -> Serving:
        return await self

    async def __aexit__(self, *exc: object) -> None:
        self.close()
        await self.wait_closed()
