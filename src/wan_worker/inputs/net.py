"""Fetch and post within size limits and one deadline, only at addresses that are allowed.

- The worker connects only to a checked address, even if the name resolves differently later
  (dialing).
- Each redirect is a new URL, checked like the first. Only a fixed set of headers is sent, so no
  credential can cross hosts.
- Every wait (resolver, connect, handshake, header, body) ends at one monotonic deadline, even if
  bytes arrive slowly. Bodies are counted after decoding, as they arrive.
- An internal name and a name that does not exist give the same answer.

With ``allow_private`` (the operator's escape hatch, and loopback tests) any address, port and
environment proxy setting is accepted; schemes, size limits and deadlines stay.

Not covered: proxies (refused where the environment sets one), encodings other than gzip,
Retry-After given as a date.
"""

import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Final

from wan_worker.errors import FetchFailed
from wan_worker.inputs import addresses, dialing
from wan_worker.inputs.addresses import Target
from wan_worker.inputs.dialing import RESOLVE_SECONDS, Call, Policy, never, silent
from wan_worker.inputs.exchange import Sink, exchange, receive

MAX_REDIRECTS: Final = 5
PAUSES: Final = (0.25, 0.5)
"""Seconds before the second and the third try."""
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True)
class Reply:
    status: int
    retry_after: float | None
    """Seconds, if the server gave them in seconds."""


def check(url: str, policy: Policy, *, field: str | None, https_only: bool = False) -> None:
    """Refuse a URL that may not be dialled. For URLs used later, or by another client.

    Args:
        https_only: refuse plain http, unless private addresses are allowed too.

    Raises:
        UrlBlocked: it is malformed, or its host is not public or can't be resolved.
    """
    target = addresses.parse(url, field, any_port=policy.allow_private)
    if policy.allow_private:
        return
    if https_only and target.scheme != "https":
        raise addresses.blocked(field, "must be an https URL")
    dialing.dialable(target, Call(policy, field, RESOLVE_SECONDS, policy.clock() + RESOLVE_SECONDS))


def fetch(
    url: str,
    policy: Policy,
    *,
    max_bytes: int,
    seconds: float,
    field: str | None,
    canceled: Callable[[], None] = never,
) -> bytes:
    """Fetch the body of a URL into memory, within a size and a total time (``fetch_into``)."""
    sink = BytesIO()
    fetch_into(
        sink, url, policy, max_bytes=max_bytes, seconds=seconds, field=field, canceled=canceled
    )
    return sink.getvalue()


def fetch_into(
    sink: Sink,
    url: str,
    policy: Policy,
    *,
    max_bytes: int,
    seconds: float,
    field: str | None,
    canceled: Callable[[], None] = never,
    progress: Callable[[int, int | None], None] = silent,
) -> None:
    """Write the body of a URL to ``sink``, within a size and a total time.

    Each try starts from the beginning.

    Args:
        sink: empty and seekable.
        canceled: called between waits; it raises to stop the download.
        progress: called with the bytes so far, and the total if the server states it.

    Raises:
        UrlBlocked: the URL, or one that it redirects to, may not be dialled.
        FetchFailed: the server did not deliver; ``retryable`` says whether it may later.
    """
    target = addresses.parse(url, field, any_port=policy.allow_private)
    call = Call(policy, field, seconds, policy.clock() + seconds, canceled, progress)
    for pause in PAUSES:
        try:
            return _follow(target, call, max_bytes, sink)
        except FetchFailed as failure:
            if not failure.retryable or pause >= call.ends - policy.clock():
                raise
        policy.sleep(pause)
    return _follow(target, call, max_bytes, sink)


def post(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    policy: Policy,
    *,
    seconds: float,
    field: str | None = None,
) -> Reply:
    """Send one POST. A redirect is an ordinary answer; the response's body is never read.

    Raises:
        UrlBlocked: the URL may not be dialled.
        FetchFailed: no answer came in time.
    """
    target = addresses.parse(url, field, any_port=policy.allow_private)
    call = Call(policy, field, seconds, policy.clock() + seconds)
    with exchange("POST", target, call, headers, body) as response:
        return Reply(response.status, _retry_after(response.headers.get("Retry-After")))


def connect(url: str, policy: Policy, *, field: str | None, seconds: float) -> socket.socket:
    """Connect to a URL's host, without TLS, for a client with its own protocol code.

    Raises:
        UrlBlocked: the URL may not be dialled.
        FetchFailed: the time is up.
        OSError: none of the checked addresses answers.
    """
    target = addresses.parse(url, field, any_port=policy.allow_private)
    return dialing.dial(target, Call(policy, field, seconds, policy.clock() + seconds))


def _follow(target: Target, call: Call, max_bytes: int, sink: Sink) -> None:
    """GET, following a few redirects."""
    headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
    for _ in range(MAX_REDIRECTS + 1):
        with exchange("GET", target, call, headers) as response:
            if response.status not in REDIRECTS:
                return receive(response, call, max_bytes, sink)
            location = response.headers.get("Location")
        if not location:
            raise call.failed("the server redirects to nowhere", retryable=False)
        any_port = call.policy.allow_private
        target = addresses.redirected(target, location, call.field, any_port=any_port)
    raise addresses.blocked(call.field, f"redirects more than {MAX_REDIRECTS} times")


def _retry_after(text: str | None) -> float | None:
    return float(text) if text and re.fullmatch(r"[0-9]{1,9}", text, re.ASCII) else None
