"""Limits that the service checks before it reads a request, and the report of every request to the metrics."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Collection

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CLIENTS = 10_000  # most clients whose rates are tracked at a time


class Rates:
    """A bucket of tokens for each client, refilled at ``rate`` a second; 0 for no limit."""

    def __init__(self, rate: float) -> None:
        self.rate, self._buckets = rate, OrderedDict[str, tuple[float, float]]()

    def wait(self, client: str) -> float:
        """Takes a token of the client and returns 0, or returns the seconds until there is a token."""
        if not self.rate:
            return 0.0
        now, most = time.monotonic(), max(self.rate, 1.0)
        left, at = self._buckets.pop(client, (most, now))
        left = min(most, left + (now - at) * self.rate)
        self._buckets[client] = (left - 1 if left >= 1 else left, now)
        if len(self._buckets) > CLIENTS:
            self._buckets.popitem(last=False)
        return 0.0 if left >= 1 else (1 - left) / self.rate


class Limits:
    """Middleware that refuses requests that are too large or too many, and reports each request's route, status and
    seconds to ``observe``.

    A path that is not in ``routes`` is reported as "other", so that clients cannot create metrics by asking for paths.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        body_bytes: int,
        rate: float,
        routes: Collection[str],
        observe: Callable[[str, int, float], None],
    ) -> None:
        self._app, self._body_bytes, self._rates = app, body_bytes, Rates(rate)
        self._routes, self._observe = routes, observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500  # reported if no answer begins
        route = scope["path"] if scope["path"] in self._routes else "other"

        async def noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await (self._refused(scope) or self._app)(scope, receive, noting_status)
        finally:
            self._observe(route, status, time.perf_counter() - began)

    def _refused(self, scope: Scope) -> ASGIApp | None:
        wait = self._rates.wait(scope["client"][0] if scope["client"] else "")
        if wait:
            detail = {"detail": f"more than {self._rates.rate:g} requests a second"}
            return JSONResponse(detail, 429, {"Retry-After": str(math.ceil(wait))})
        given = Headers(scope=scope).get("content-length", "")
        size = int(given) if given.isascii() and given.isdigit() and len(given) < 20 else None
        if size is None and (given or scope["method"] in ("POST", "PUT", "PATCH")):
            return JSONResponse({"detail": "a request needs its Content-Length"}, 411)
        if size is not None and size > self._body_bytes:
            return JSONResponse({"detail": f"more than {self._body_bytes} bytes"}, 413)
        return None
