"""Fetch and post within caps and one deadline, dialling only what addresses allows.

- Only a checked address is dialled, whatever the name answers later (dialing).
- Each redirect is a new URL, checked like the first; nothing but a fixed set of headers is sent, so
  no credential can cross hosts.
- Every wait (resolver, connect, handshake, header, body) ends at one monotonic deadline, however
  slowly bytes drip; bodies are counted after decoding, as they come.
- A name that is internal and a name that does not exist give the same answer.

With ``allow_private`` (the operator's escape hatch, and loopback tests) any address, port and
environment proxy setting will do; schemes, caps and deadlines stay.

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
    """Seconds, where the server asked for them in seconds."""


def check(url: str, policy: Policy, *, field: str | None, https_only: bool = False) -> None:
    """Would this URL be dialled at all? For URLs that are used later, or by another client.

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
    """The body behind a URL, within a size and a total time; ``fetch_into`` in memory."""
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
    """Write the body behind a URL, within a size and a total time; each try starts afresh.

    Args:
        sink: empty, seekable.
        canceled: called between waits; raises to give up.
        progress: called with the bytes so far and those in all, where the server says.

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
    """One POST. Redirects are answers like any other; the response's body is never read.

    Raises:
        UrlBlocked: the URL may not be dialled.
        FetchFailed: no answer came in time.
    """
    target = addresses.parse(url, field, any_port=policy.allow_private)
    call = Call(policy, field, seconds, policy.clock() + seconds)
    with exchange("POST", target, call, headers, body) as response:
        return Reply(response.status, _retry_after(response.headers.get("Retry-After")))


def connect(url: str, policy: Policy, *, field: str | None, seconds: float) -> socket.socket:
    """A connection, without TLS, to where a URL leads: for a client that speaks for itself.

    Raises:
        UrlBlocked: the URL may not be dialled.
        FetchFailed: the time is up.
        OSError: nobody answers at any of the checked addresses.
    """
    target = addresses.parse(url, field, any_port=policy.allow_private)
    return dialing.dial(target, Call(policy, field, seconds, policy.clock() + seconds))


def _follow(target: Target, call: Call, max_bytes: int, sink: Sink) -> None:
    """GET, through a few redirects."""
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
