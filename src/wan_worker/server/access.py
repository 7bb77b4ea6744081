"""Who may use the HTTP API? Every request is checked before its body is read.

If the server has a key, a caller must send it, as ``Authorization: Bearer`` or ``X-API-Key``.
Without a key the server listens only on this machine's own addresses. Then the danger is a web page
that a user of this machine has open. A page's requests name its origin, which is not ours. A page
whose own name points here (DNS rebinding) sends that name in ``Host``. A page can't send JSON to
another site without asking first, so that a body must be JSON.

The whole body is read here, with a limit for its size and time, before the route is called.
Not covered: TLS and who may connect (the network), and limits on a key holder's use.
"""

import asyncio
import hmac
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wan_worker.server.error_answers import Refusal
from wan_worker.settings import Secret, Settings, is_loopback

OPEN: Final = frozenset(
    {
        *("/ping", "/health", "/v2/health"),
        *("/", "/api/v1/dashboard/html", "/docs", "/openapi.json", "/api/v1/schema"),
    }
)
"""Paths that need no key: health checks, the API's description, and the page, which asks for it."""

PAGE_PARTS: Final = "/page/"
"""Prefix of the page's files."""

IS_ADMIN: Final = "wan_worker.is_admin"
"""Key in a request's scope: whether the request may change the machine."""

BODY_SECONDS: Final = 60.0
"""Time in which the whole body must arrive."""

_UNSAFE: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})


class Access:
    """An ASGI application around another: passes allowed requests on, and refuses the others."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        try:
            headers = _headers(scope)
            self._check_page(scope, headers)
            self._check_key(scope, headers)
            if scope["type"] == "http":
                receive = await self._body(scope, headers, receive)
        except Refusal as refusal:
            await _refuse(refusal, scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check_page(self, scope: Scope, headers: Mapping[str, str]) -> None:
        """Refuse requests from web pages of other sites.

        Raises:
            Refusal: 403.
        """
        host = headers.get("host", "")
        if is_loopback(self._settings.api_host) and not _names_loopback(host):
            raise Refusal(403, "FORBIDDEN", "Call the server localhost, or by its address")
        origin = headers.get("origin")
        if origin is None or origin in self._settings.api_cors_origins:
            return
        if _netloc(origin) != host.lower():
            raise Refusal(
                403,
                "FORBIDDEN",
                "Pages of other origins may not use this server; API_CORS_ORIGINS can allow them",
            )

    def _check_key(self, scope: Scope, headers: Mapping[str, str]) -> None:
        """Refuse requests without the right key.

        Raises:
            Refusal: 401.
        """
        key, path = self._settings.api_key, scope["path"]
        scope[IS_ADMIN] = key is None
        if key is None or path in OPEN or path.startswith(PAGE_PARTS):
            return
        given = _given_keys(headers)
        admin = self._settings.api_admin_key
        is_admin = admin is not None and _holds(given, admin)
        if not is_admin and not _holds(given, key):
            raise Refusal(
                401,
                "UNAUTHORIZED",
                "Send the server's API key as Authorization: Bearer KEY, or as X-API-Key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        scope[IS_ADMIN] = admin is None or is_admin

    async def _body(self, scope: Scope, headers: Mapping[str, str], receive: Receive) -> Receive:
        """Read the request's body, and return a Receive that gives it.

        Raises:
            Refusal: 413, 415 or 408.
        """
        if "content-length" not in headers and "transfer-encoding" not in headers:
            return receive  # there is no body
        most = self._settings.api_max_body_bytes
        too_large = Refusal(413, "TOO_LARGE", f"The body must have at most {most} bytes")
        stated = headers.get("content-length", "0")
        if not re.fullmatch("[0-9]{1,18}", stated) or int(stated) > most:
            raise too_large
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refusal(400, "INVALID_REQUEST", "The request broke off")
                    part = message.get("body", b"")
                    size += len(part)
                    if size > most:
                        raise too_large
                    parts.append(part)
                    more = message.get("more_body", False)
        except TimeoutError:
            raise Refusal(
                408,
                "TIMEOUT",
                f"The body did not arrive within {BODY_SECONDS:.0f} s",
                retry_after=1,
            ) from None
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if size and scope["method"] in _UNSAFE and kind != "application/json":
            raise Refusal(415, "UNSUPPORTED_MEDIA_TYPE", "Send JSON, as application/json")
        return _receive_of(b"".join(parts), receive)


def admin_only(request: Request) -> None:
    """A dependency of routes that change the machine: refuse callers without the admin key.

    Raises:
        Refusal: 403.
    """
    if not request.scope[IS_ADMIN]:
        raise Refusal(403, "FORBIDDEN", "This needs the server's API_ADMIN_KEY")


def _receive_of(body: bytes, receive: Receive) -> Receive:
    given = False

    async def hand_out() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return hand_out


async def _refuse(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        # It is not accepted yet, so the server answers the handshake with 403.
        await send({"type": "websocket.close", "code": 1008})
        return
    response = refusal.response()
    if refusal.status in (408, 413):
        response.headers["Connection"] = "close"  # the rest of the body is not read
    await response(scope, receive, send)


def _headers(scope: Scope) -> dict[str, str]:
    """The headers by lower-case name; if one is given twice, the first.

    Raises:
        Refusal: 400, if a header that decides access is given twice.
    """
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        key = name.decode("latin-1").lower()
        if key in found and key in ("host", "origin", "authorization", "x-api-key"):
            raise Refusal(400, "INVALID_REQUEST", f"The header {key} is given twice")
        found.setdefault(key, value.decode("latin-1"))
    return found


def _netloc(origin: str) -> str | None:
    """Host and port of an origin; None if it is not an origin."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def _names_loopback(host: str) -> bool:
    """Whether a Host header has one of this machine's loopback names."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return is_loopback(name)
    except ValueError:
        return False


def _given_keys(headers: Mapping[str, str]) -> tuple[str, str]:
    """The keys from both headers: behind RunPod's load balancer the first is RunPod's own key."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    bearer = key.strip() if scheme.lower() == "bearer" else ""
    return bearer, headers.get("x-api-key", "")


def _holds(given: tuple[str, str], key: Secret) -> bool:
    wanted = key.reveal().encode()
    first, second = (hmac.compare_digest(given_key.encode(), wanted) for given_key in given)
    return first or second
