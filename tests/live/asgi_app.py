"""A FastAPI application for the tests of ASGI servers on the mesh."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse

LINES, PAUSE_S = 100, 0.01


class App:
    """The application, and what has happened to it."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.app = FastAPI(lifespan=self._lifespan)
        for path, answer in (
            ("/caller", self._told),
            ("/events", self._events),
            ("/hang", self._hang),
            ("/slow", self._slow),
            ("/fail", self._fail),
        ):
            self.app.get(path)(answer)
        self.app.post("/count")(self._count)
        self.app.websocket("/ws")(self._socket)

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[dict[str, str]]:
        self.log.append("begun")
        yield {"word": "hello"}
        self.log.append("ended")

    async def _told(self, request: Request) -> dict[str, Any]:
        scope = request.scope
        return {
            "client": scope["client"],
            "caller": scope["extensions"]["meshnode"],
            "scheme": scope["scheme"],
            "word": request.state.word,
            "headers": sorted(request.headers.keys()),
        }

    async def _events(self) -> StreamingResponse:
        async def events() -> AsyncIterator[str]:
            for number in range(LINES):
                yield f"data: {number}\n\n"
                await asyncio.sleep(PAUSE_S)

        return StreamingResponse(events(), media_type="text/event-stream")

    async def _hang(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.log.append("cancelled")

    async def _slow(self) -> str:
        self.log.append("slow")
        await asyncio.sleep(1)
        return "done"

    async def _fail(self) -> None:
        raise RuntimeError("of the application")

    async def _count(self, request: Request) -> int:
        total = 0
        async for part in request.stream():
            total += len(part)
        return total

    async def _socket(self, socket: WebSocket) -> None:
        await socket.accept()
        caller = socket.scope["extensions"]["meshnode"]["id"]
        await socket.send_text(f"{caller} {socket.scope['client'][0]}")
        async for text in socket.iter_text():
            await socket.send_text(text)
