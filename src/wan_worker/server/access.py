"""Who may use the HTTP API? Asked of every request before anything reads its body.

With a key: whoever sends it, as ``Authorization: Bearer`` or ``X-API-Key``. Without one the server
listens on this machine's own addresses alone; then a web page that a user of this machine has open
is the stranger: a page's requests name its origin, which is not ours, and one that has made its own
name point here (DNS rebinding) gives that name in ``Host``. A page can't send JSON elsewhere
without asking first, so a body must be JSON.

A body is read here, to its end, within a size and a time, before the route is called.
Not covered: TLS and who may connect (the network), and what a key's holder may use up.
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
"""What needs no key: is it up, what can be asked of it, and the page, which asks for the key."""

PAGE_PARTS: Final = "/page/"
"""Below it, what the page is made of."""

IS_ADMIN: Final = "wan_worker.is_admin"
"""In a request's scope: whether it may change the machine."""

BODY_SECONDS: Final = 60.0
"""For all of a body to arrive."""

_UNSAFE: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})


class Access:
    """Lets through what may pass; answers the rest itself. An ASGI application around another."""

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
        """Refuse what the web page of another site sends.

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
        """Refuse who does not know the key.

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
        """The request's body, read; a Receive that hands it out.

        Raises:
            Refusal: 413, 415 or 408.
        """
        if "content-length" not in headers and "transfer-encoding" not in headers:
            return receive  # there is none
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
        return _handing_out(b"".join(parts), receive)


def admin_only(request: Request) -> None:
    """A route's dependency: it changes the machine.

    Raises:
        Refusal: 403.
    """
    if not request.scope[IS_ADMIN]:
        raise Refusal(403, "FORBIDDEN", "This needs the server's API_ADMIN_KEY")


def _handing_out(body: bytes, receive: Receive) -> Receive:
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
        # Before it is accepted: the server answers the handshake with 403.
        await send({"type": "websocket.close", "code": 1008})
        return
    response = refusal.response()
    if refusal.status in (408, 413):
        response.headers["Connection"] = "close"  # what is still coming is not read
    await response(scope, receive, send)


def _headers(scope: Scope) -> dict[str, str]:
    """By lower-case name; of one that is given twice, the first.

    Raises:
        Refusal: 400, where those are given twice that decide.
    """
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        key = name.decode("latin-1").lower()
        if key in found and key in ("host", "origin", "authorization", "x-api-key"):
            raise Refusal(400, "INVALID_REQUEST", f"The header {key} is given twice")
        found.setdefault(key, value.decode("latin-1"))
    return found


def _netloc(origin: str) -> str | None:
    """Host and port of an origin; None where it is none."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def _names_loopback(host: str) -> bool:
    """Whether a Host header names this machine as seen from itself."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return is_loopback(name)
    except ValueError:
        return False


def _given_keys(headers: Mapping[str, str]) -> tuple[str, str]:
    """Both places: behind RunPod's load balancer the first one holds RunPod's own key."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    bearer = key.strip() if scheme.lower() == "bearer" else ""
    return bearer, headers.get("x-api-key", "")


def _holds(given: tuple[str, str], key: Secret) -> bool:
    wanted = key.reveal().encode()
    first, second = (hmac.compare_digest(each.encode(), wanted) for each in given)
    return first or second
