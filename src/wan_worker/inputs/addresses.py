"""Which addresses are public, and what does a URL mean?

Strangers write a job's URLs, and this worker runs inside somebody's network. So:

- ``parse`` alone decides what a URL means. The worker connects to the ``Target`` that it returns. A
  spelling that two parsers might read in two ways is refused;
- a redirect is a new URL. The same rules apply, and it never leads from https to http;
- ``is_public`` is true only for an address that the public internet routes to a single ordinary
  host, and that hides no IPv4 address of another kind.

Nothing here asks the resolver or opens a socket (dialing does).

Not covered: network-specific NAT64 prefixes (RFC 6052, unknowable from outside), public addresses
that a firewall should block (the operator's own), international host names (write them as xn--…).
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final
from urllib.parse import quote, urljoin

from wan_worker.errors import UrlBlocked

# Which addresses are public?

GLOBAL_UNICAST_V6: Final = IPv6Network("2000::/3")
"""All that IANA assigns (RFC 4291 §2.4). Known ranges outside it: ::, ::1 and IPv4-compatible
(RFC 4291), IPv4-mapped ::ffff:0:0/96 (RFC 4291), NAT64 64:ff9b::/96 (RFC 6052) and 64:ff9b:1::/48
(RFC 8215), discard-only 100::/64 (RFC 6666), dummy 100:0:0:1::/64 (RFC 9780), SRv6 SIDs 5f00::/16
(RFC 9602), unique local fc00::/7 (RFC 4193; fd00:ec2::254 is Amazon's metadata), link-local
fe80::/10 (RFC 4291), site-local fec0::/10 (RFC 3879), multicast ff00::/8 (RFC 4291)."""

SPECIAL: Final = tuple(
    ip_network(network)
    for network in (
        "0.0.0.0/8",  # this network, RFC 791
        "10.0.0.0/8",  # private use, RFC 1918
        "100.64.0.0/10",  # shared by carriers, RFC 6598; 100.100.100.200 is Alibaba's metadata
        "127.0.0.0/8",  # loopback, RFC 1122
        "168.63.129.16/32",  # Azure's platform services
        "169.254.0.0/16",  # link-local, RFC 3927; 169.254.169.254 and .170.2 are metadata
        "172.16.0.0/12",  # private use, RFC 1918
        "192.0.0.0/24",  # protocol assignments, RFC 6890; 192.0.0.192 is Oracle's metadata
        "192.0.2.0/24",  # documentation, RFC 5737
        "192.31.196.0/24",  # AS112, RFC 7535
        "192.52.193.0/24",  # multicast relays, RFC 7450
        "192.88.99.0/24",  # 6to4 relays, RFC 7526
        "192.168.0.0/16",  # private use, RFC 1918
        "192.175.48.0/24",  # AS112, RFC 7534
        "198.18.0.0/15",  # benchmarks, RFC 2544
        "198.51.100.0/24",  # documentation, RFC 5737
        "203.0.113.0/24",  # documentation, RFC 5737
        "224.0.0.0/4",  # multicast, RFC 5771
        "240.0.0.0/4",  # reserved, RFC 1112; the last is broadcast, RFC 919
        # Inside GLOBAL_UNICAST_V6:
        "2001::/23",  # protocol assignments, RFC 2928: Teredo 4380, benchmarks 5180, ORCHID 7343
        "2001:db8::/32",  # documentation, RFC 3849
        "2002::/16",  # 6to4, an IPv4 address inside, RFC 3056
        "2620:4f:8000::/48",  # AS112, RFC 7534
        "3ffe::/16",  # 6bone, given back, RFC 3701
        "3fff::/20",  # documentation, RFC 9637
    )
)

ISATAP: Final = frozenset({0x0000_5EFE, 0x0200_5EFE})
"""Upper half of an interface id that holds an IPv4 address, under any prefix (RFC 5214)."""


def is_public(ip: str) -> bool:
    """Whether the public internet routes this address to a single ordinary host."""
    try:
        address = ip_address(ip)
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and (
        address.scope_id is not None
        or address not in GLOBAL_UNICAST_V6
        or (int(address) >> 32) & 0xFFFF_FFFF in ISATAP
    ):
        return False
    return not any(address in network for network in SPECIAL)


# What does a URL mean?

MAX_URL_CHARS: Final = 8192
UNCLEAR: Final = re.compile(r"[\x00-\x20\x7f\s\\\ud800-\udfff]")
"""Characters that some parsers drop, replace or read as a slash."""
URL: Final = re.compile(
    r"(?P<scheme>https?)://"
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)"
    r"(?::(?P<port>[0-9]{1,5}))?"
    # '//a#@b' and '//a?@b' are refused: parsers disagree whether a or b is the host.
    r"(?P<path>/.*|\?[^@]*)?",
    re.IGNORECASE | re.ASCII,  # without ASCII, IGNORECASE reads 'ſ' as an s
)
SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
LABEL: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
NUMBER: Final = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")
PRINTABLE: Final = "".join(map(chr, range(0x21, 0x7F)))


@dataclass(frozen=True)
class Target:
    """A parsed URL."""

    scheme: str
    host: str
    """A name in lower case, or an address in its one canonical spelling, without brackets."""
    is_address: bool
    port: int
    path: str
    """Path and query, in ASCII; never empty."""

    @property
    def authority(self) -> str:
        """The Host header. A default port is left out, because it would break presigned URLs."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _default_port(self.scheme) else f"{host}:{self.port}"


def blocked(field: str | None, rule: str) -> UrlBlocked:
    return UrlBlocked(rule[:1].upper() + rule[1:], field=field)


def parse(url: str, field: str | None, *, any_port: bool = False) -> Target:
    """Decide what this URL means.

    Args:
        field: the request's field that holds the URL, for messages.
        any_port: allow every port, not only 80 and 443.

    Raises:
        UrlBlocked: it is no http(s) URL, or two parsers might read it in two ways.
    """
    if len(url) > MAX_URL_CHARS:
        raise blocked(field, f"is longer than {MAX_URL_CHARS} characters")
    if UNCLEAR.search(url):
        raise blocked(
            field,
            "holds a space, a control character, a backslash or a lone surrogate;"
            " percent-encode it",
        )
    match = URL.fullmatch(url)
    if match is None:
        raise blocked(
            field,
            "must be http(s)://host/path with a plain host: no user name, no escapes,"
            " international names as xn--…",
        )
    scheme = match["scheme"].lower()
    port = int(match["port"] or _default_port(scheme))
    if not (1 <= port <= 65535 if any_port else port in (80, 443)):
        raise blocked(
            field, "must use a port from 1 to 65535" if any_port else "must use port 80 or 443"
        )
    host, is_address = _host(match["host"], field)
    path = "/" + (match["path"] or "").partition("#")[0].removeprefix("/")
    return Target(scheme, host, is_address, port, quote(path, safe=PRINTABLE))


def redirected(
    target: Target, location: str, field: str | None, *, any_port: bool = False
) -> Target:
    """The target that a Location header redirects to. http.client gives the header as Latin-1.

    Raises:
        UrlBlocked: as in ``parse``; or it leads from https to http.
    """
    # A server that sends raw UTF-8 here means UTF-8.
    location = location.encode("latin-1", "replace").decode("utf-8", "replace")
    # urljoin reads 'http:///x' as a path on the same host, and drops some UNCLEAR characters.
    if not SCHEME.match(location) and not UNCLEAR.search(location):
        with suppress(ValueError):  # for example '//[': parse refuses it unchanged
            location = urljoin(f"{target.scheme}://{target.authority}{target.path}", location)
    following = parse(location, field, any_port=any_port)
    if target.scheme == "https" and following.scheme == "http":
        raise blocked(field, "redirects from https to http")
    return following


def _default_port(scheme: str) -> int:
    return 443 if scheme == "https" else 80


def _host(text: str, field: str | None) -> tuple[str, bool]:
    """A host in the form of ``Target.host``, and whether it is an address."""
    labels = text.split(".")
    try:
        if text.startswith("["):
            return str(IPv6Address(text[1:-1])), True
        # If the last label is a number, every URL parser and the C library read an address. They
        # accept octal, hexadecimal and short forms, but agree only on four decimal parts.
        if NUMBER.fullmatch(labels[-1]):
            return str(IPv4Address(text)), True
    except ValueError:
        raise blocked(field, "has a malformed or unusually written IP address") from None
    if len(text) > 253 or not all(map(LABEL.fullmatch, labels)):
        raise blocked(field, "has a malformed host name")
    return text.lower(), False
