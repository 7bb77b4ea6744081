"""Where may a socket go? One call's policy and deadline, and a connection to a checked address.

- The name is resolved once per try, and every answer must be public. The socket goes to one of the
  checked addresses (no DNS rebinding).
- An internal name and a name that does not exist give the same answer.
- Every wait ends at the call's monotonic deadline, or when the job is cancelled.

With ``allow_private`` (the operator's escape hatch, and loopback tests) any address, port and
environment proxy setting is accepted.
Not covered: the HTTP messages on the connection (exchange), redirects and retries (net).
"""

import socket
import ssl
import time
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Final

from wan_worker.errors import FetchFailed
from wan_worker.inputs import addresses
from wan_worker.inputs.addresses import Target

RESOLVE_SECONDS: Final = 5.0
CONNECT_SECONDS: Final = 5.0
"""The limit for one address, so that a dead IPv6 route leaves time for IPv4."""

_bypassed: Callable[..., bool] = urllib.request.proxy_bypass_environment  # type: ignore[attr-defined]


def system_resolve(host: str) -> tuple[str, ...]:
    """Every address of a name, in the system's order of preference."""
    answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(answer[4][0]) for answer in answers))


def system_dial(ip: str, port: int, seconds: float) -> socket.socket:
    return socket.create_connection((ip, port), timeout=seconds)


@cache
def system_tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def never() -> None:
    """Never cancel."""


def silent(_done: int, _total: int | None) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Policy:
    """Where this worker may connect, and the system functions that it connects with."""

    allow_private: bool = False
    resolve: Callable[[str], tuple[str, ...]] = system_resolve
    dial: Callable[[str, int, float], socket.socket] = system_dial
    tls: Callable[[], ssl.SSLContext] = system_tls
    proxies: Callable[[], Mapping[str, str]] = urllib.request.getproxies_environment
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class Call:
    """The state that all tries and redirects of one call share."""

    policy: Policy
    field: str | None
    seconds: float
    ends: float
    canceled: Callable[[], None] = never
    progress: Callable[[int, int | None], None] = silent

    def left(self) -> float:
        """Seconds until the deadline. Raises if it has passed or the job is cancelled."""
        self.canceled()
        left = self.ends - self.policy.clock()
        if left <= 0:
            raise self.failed(f"took longer than {self.seconds:g} seconds", retryable=True)
        return left

    def failed(self, what: str, *, retryable: bool) -> FetchFailed:
        message = what[:1].upper() + what[1:]
        return FetchFailed(message, field=self.field, retryable=retryable)


def dialable(target: Target, call: Call) -> tuple[str, ...]:
    """All addresses of the target's host. Raises unless the policy allows every one of them."""
    policy = call.policy
    proxies = dict(policy.proxies())
    proxied = proxies.get(target.scheme) or proxies.get("all")
    if proxied and not policy.allow_private and not _bypassed(target.host, proxies):
        raise addresses.blocked(
            call.field,
            "this worker's environment sends such requests through a proxy, where the address can't"
            " be checked; list the host in NO_PROXY or set RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS",
        )
    found = (target.host,) if target.is_address else _resolve(target.host, call)
    if policy.allow_private:
        if not found:
            raise call.failed("its host name can't be resolved", retryable=True)
    elif not found or not all(map(addresses.is_public, found)):
        # One message for both cases, so that nobody can map a private network with requests.
        raise addresses.blocked(call.field, "its host can't be reached at a public address")
    return found


def _resolve(host: str, call: Call) -> tuple[str, ...]:
    """Ask the resolver, in a thread because it has no time limit. No answer gives ()."""
    seconds = min(call.left(), RESOLVE_SECONDS)
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="resolve")
    try:
        return pool.submit(call.policy.resolve, host).result(seconds)
    except (OSError, UnicodeError):  # TimeoutError is an OSError
        return ()
    finally:
        pool.shutdown(wait=False)


def dial(target: Target, call: Call) -> socket.socket:
    """Connect to the first checked address that answers."""
    problem = OSError()
    for ip in dialable(target, call):
        try:
            return call.policy.dial(ip, target.port, min(call.left(), CONNECT_SECONDS))
        except OSError as error:
            problem = error
    raise problem
