"""Promises of addresses: what is public, and that a URL means one thing only."""

import ipaddress
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_worker.errors import UrlBlocked
from wan_worker.inputs import addresses

FIELD = "/input/image_url"
PUBLIC_V6 = "2606:2800:21f:cb07:6820:80da:af6b:8b2c"


# Which addresses are public?


@pytest.mark.parametrize(
    "ip",
    [
        "0.0.0.0", "0.255.255.255", "10.0.0.0", "10.255.255.255", "100.64.0.0", "100.127.255.255",
        "127.0.0.1", "127.255.255.255", "169.254.0.0", "169.254.255.255", "172.16.0.0",
        "172.31.255.255", "192.0.0.0", "192.0.0.255", "192.0.2.1", "192.31.196.1", "192.52.193.1",
        "192.88.99.1", "192.168.0.0", "192.168.255.255", "192.175.48.1", "198.18.0.0",
        "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.0", "239.255.255.255",
        "240.0.0.0", "255.255.255.255",
        "::", "::1", "::127.0.0.1", "::8.8.8.8", "::ffff:127.0.0.1", "::ffff:8.8.8.8",
        "::ffff:0:8.8.8.8", "64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::1", "100::1",
        "100:0:0:1::1", "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:2::1",
        "2001:10::1", "2001:20::1", "2001:30::1", "2001:1ff:ffff::1", "2001:db8::1",
        "2002:7f00:1::", "2002:808:808::1", "2620:4f:8000::1", "3ffe::1", "3fff::1",
        "3fff:fff:ffff::1", "4000::1", "5f00::1", "fc00::1", "fdff::1", "fe80::1", "fe80::1%eth0",
        "febf::1", "fec0::1", "feff::1", "ff02::1", "1fff:ffff::1",
        "2606:2800::5efe:7f00:1", "2606:2800::200:5efe:a00:1", "2606:2800::1%eth0",
        "", "example.com", "8.8.8", "08.8.8.8", "8.8.8.8 ", "0x8.8.8.8", "134744072",
    ],
)  # fmt: skip
def test_special_address_is_not_public(ip: str) -> None:
    assert not addresses.is_public(ip)


@pytest.mark.parametrize(
    "ip",
    ["169.254.169.254", "169.254.170.2", "168.63.129.16", "192.0.0.192", "100.100.100.200",
     "fd00:ec2::254"],
)  # fmt: skip
def test_metadata_service_is_not_public(ip: str) -> None:
    assert not addresses.is_public(ip)


@pytest.mark.parametrize(
    "ip",
    [
        "1.0.0.0", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255",
        "128.0.0.0", "168.63.129.15", "168.63.129.17", "169.253.255.255", "169.255.0.0",
        "172.15.255.255", "172.32.0.0", "192.0.1.0", "192.0.3.0", "192.167.255.255", "192.169.0.0",
        "198.17.255.255", "198.20.0.0", "203.0.112.255", "203.0.114.0", "223.255.255.255",
        "2000::1", "2001:200::1", "2001:db7::1", "2001:db9::1", "2003::1", PUBLIC_V6, "3ffd::1",
        "3fff:1000::1",
    ],
)  # fmt: skip
def test_neighbour_of_a_special_range_is_public(ip: str) -> None:
    assert addresses.is_public(ip)


REGISTERED = [
    # IANA's special-purpose registries, whether globally reachable there or not, and the
    # multicast, reserved and retired ranges that are kept elsewhere.
    "0.0.0.0/8", "0.0.0.0/32", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
    "172.16.0.0/12", "192.0.0.0/24", "192.0.0.0/29", "192.0.0.8/32", "192.0.0.9/32",
    "192.0.0.10/32", "192.0.0.170/32", "192.0.0.171/32", "192.0.2.0/24", "192.31.196.0/24",
    "192.52.193.0/24", "192.88.99.0/24", "192.88.99.2/32", "192.168.0.0/16", "192.175.48.0/24",
    "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
    "255.255.255.255/32",
    "::1/128", "::/128", "::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96",
    "64:ff9b:1::/48", "100::/64", "100:0:0:1::/64", "2001::/23", "2001::/32", "2001:1::1/128",
    "2001:1::2/128", "2001:1::3/128", "2001:2::/48", "2001:3::/32", "2001:4:112::/48",
    "2001:10::/28", "2001:20::/28", "2001:30::/28", "2001:db8::/32", "2002::/16",
    "2620:4f:8000::/48", "3ffe::/16", "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10",
    "fec0::/10", "ff00::/8",
    # Single addresses that clouds answer on, inside ordinary ranges.
    "168.63.129.16/32",
]  # fmt: skip


@pytest.mark.parametrize("network", REGISTERED)
def test_special_range_is_closed_to_both_edges_and_open_beyond(network: str) -> None:
    special = ipaddress.ip_network(network)
    first, last = special[0], special[-1]
    for inside in (first, last, special[special.num_addresses // 2]):
        assert not addresses.is_public(str(inside))
    others = [ipaddress.ip_network(other) for other in REGISTERED]
    kind, top = type(first), 2**first.max_prefixlen - 1
    for beyond in (int(first) - 1, int(last) + 1):
        if not 0 <= beyond <= top:
            continue
        neighbour = kind(beyond)
        given_out = neighbour.version == 4 or neighbour in addresses.GLOBAL_UNICAST_V6
        elsewhere = any(neighbour in other for other in others if other.version == special.version)
        assert addresses.is_public(str(neighbour)) is (given_out and not elsewhere)


@given(st.ip_addresses())
def test_nothing_that_the_library_calls_private_is_public(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    if address.is_private or address.is_multicast or address.is_reserved:
        assert not addresses.is_public(str(address))


# What does a URL mean?


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("http://user@example.com/", id="user name"),
        pytest.param("http://user:pass@example.com/", id="password"),
        pytest.param("http://example.com@127.0.0.1/", id="host as user name"),
        pytest.param("http://example.com#@127.0.0.1/", id="fragment before the path"),
        pytest.param("http://example.com?@127.0.0.1/", id="query before the path"),
        pytest.param("http://example.com\\@127.0.0.1/", id="backslash in the host"),
        pytest.param("http://example.com/a\\b", id="backslash in the path"),
        pytest.param("http:\\\\example.com/", id="backslashes for slashes"),
        pytest.param("http://exa\tmple.com/", id="tab"),
        pytest.param("http://example.com/\r\nX-Header: 1", id="header injection"),
        pytest.param("http://example.com/a b", id="space"),
        pytest.param(" http://example.com/", id="space before"),
        pytest.param("http://example.com/\n", id="newline after"),
        pytest.param("http://example.com/\x00", id="NUL"),
        pytest.param("http://example.com/\u00a0", id="no-break space"),
        pytest.param("http://example.com/\ud800", id="lone surrogate"),
        pytest.param("http://[fe80::1%25eth0]/", id="zone id"),
        pytest.param("http://[::1", id="open bracket"),
        pytest.param("http://[127.0.0.1]/", id="IPv4 in brackets"),
        pytest.param("http://[1:2:3]/", id="short IPv6"),
        pytest.param("http://①②⑦.⓪.⓪.①/", id="circled digits"),
        pytest.param("http://１２７.0.0.1/", id="full-width digits"),
        pytest.param("http://127。0。0。1/", id="ideographic full stops"),
        pytest.param("http://bücher.example/", id="international name"),
        pytest.param("httpſ://example.com/", id="long s in the scheme"),
        pytest.param("http://\u212aelvin.example/", id="Kelvin sign in the host"),
        pytest.param("http://127.0.0.%31/", id="escape in the host"),
        pytest.param("http://2130706433/", id="decimal"),
        pytest.param("http://0x7f000001/", id="hexadecimal"),
        pytest.param("http://0x7f.0.0.0x1/", id="hexadecimal parts"),
        pytest.param("http://0177.0.0.1/", id="octal"),
        pytest.param("http://127.1/", id="short"),
        pytest.param("http://127.0.0.01/", id="leading zero"),
        pytest.param("http://127.0.0.1.5/", id="five parts"),
        pytest.param("http://127.0.0.256/", id="part over 255"),
        pytest.param("http://a.0x/", id="name that ends in a number"),
        pytest.param("http://127.0.0.1./", id="dot after an address"),
        pytest.param("http://example.com./", id="dot after a name"),
        pytest.param("http://a..b/", id="empty label"),
        pytest.param("http://-a.example/", id="label of a dash"),
        pytest.param(f"http://{'a' * 64}.example/", id="label too long"),
        pytest.param(f"http://{'a.' * 127}example/", id="name too long"),
        pytest.param("http://example.com:/", id="empty port"),
        pytest.param("http://example.com:0/", id="port 0"),
        pytest.param("http://example.com:22/", id="port 22"),
        pytest.param("http://example.com:8080/", id="port 8080"),
        pytest.param("http://example.com:99999/", id="port over 65535"),
        pytest.param("http://example.com:80:80/", id="two ports"),
        pytest.param("http://example.com:+80/", id="signed port"),
        pytest.param("http://example.com:８０/", id="full-width port"),
        pytest.param("http:///path", id="no host"),
        pytest.param("http:/example.com/", id="one slash"),
        pytest.param("//example.com/", id="no scheme"),
        pytest.param("ftp://example.com/", id="ftp"),
        pytest.param("file:///etc/passwd", id="file"),
        pytest.param("gopher://example.com/", id="gopher"),
        pytest.param("data:image/png;base64,AAAA", id="data"),
        pytest.param("", id="empty"),
        pytest.param("http://example.com/" + "a" * 10_000, id="longer than any URL"),
    ],
)
def test_url_that_can_be_misread_is_refused(url: str) -> None:
    with pytest.raises(UrlBlocked) as blocked:
        addresses.parse(url, FIELD)
    assert blocked.value.field == FIELD
    assert blocked.value.field == FIELD


@pytest.mark.parametrize(
    ("url", "host", "port", "path"),
    [
        ("http://example.com", "example.com", 80, "/"),
        ("HTTPS://EXAMPLE.com:443/A/@b?c=%2F&d#frag", "example.com", 443, "/A/@b?c=%2F&d"),
        ("https://example.com?x=1", "example.com", 443, "/?x=1"),
        ("https://example.com//a/#", "example.com", 443, "//a/"),
        ("http://example.com/猫.png?q=é", "example.com", 80, "/%E7%8C%AB.png?q=%C3%A9"),
        ("http://8.8.8.8/", "8.8.8.8", 80, "/"),
        (f"http://[{PUBLIC_V6.upper()}]:80/", PUBLIC_V6, 80, "/"),
        ("http://my_bucket.s3-1.example/", "my_bucket.s3-1.example", 80, "/"),
    ],
)
def test_ordinary_url_means_what_it_says(url: str, host: str, port: int, path: str) -> None:
    target = addresses.parse(url, FIELD)
    assert (target.host, target.port, target.path) == (host, port, path)


@given(st.text("htps:/@#?.[]%\\01x-aK \t", max_size=24).map(lambda tail: "http://a" + tail))
def test_no_other_parser_reads_another_host(url: str) -> None:
    try:
        target = addresses.parse(url, FIELD)
    except UrlBlocked:
        return
    assert urlsplit(url).hostname == target.host


@pytest.mark.parametrize(
    ("url", "is_address", "authority"),
    [
        ("http://EXAMPLE.com:80/", False, "example.com"),
        ("https://example.com:80/", False, "example.com:80"),
        ("https://8.8.8.8", True, "8.8.8.8"),
        (f"http://[{PUBLIC_V6}]:443", True, f"[{PUBLIC_V6}]:443"),
        ("http://[::ffff:7f00:1]", True, "[::ffff:7f00:1]"),
        ("http://10.example/", False, "10.example"),
    ],
)
def test_host_is_told_from_address_and_named_without_a_default_port(
    url: str, is_address: bool, authority: str
) -> None:
    target = addresses.parse(url, FIELD)
    assert (target.is_address, target.authority) == (is_address, authority)


@pytest.mark.parametrize("port", [1, 22, 9000, 65535])
def test_any_port_means_every_port_that_there_is(port: int) -> None:
    assert addresses.parse(f"http://minio:{port}/", FIELD, any_port=True).port == port
    with pytest.raises(UrlBlocked, match="80 or 443"):
        addresses.parse(f"http://minio:{port}/", FIELD)


@pytest.mark.parametrize("url", ["http://a:0/", "http://a:65536/", "http://a@b/", "http://127.1/"])
def test_any_port_loosens_nothing_else(url: str) -> None:
    with pytest.raises(UrlBlocked):
        addresses.parse(url, FIELD, any_port=True)


# Where does a redirect lead?


@pytest.mark.parametrize(
    ("location", "leads_to"),
    [
        ("/c", "https://example.com/c"),
        ("c?d#e", "https://example.com/a/c?d"),
        ("../c", "https://example.com/c"),
        ("?d", "https://example.com/a/b?d"),
        ("//cdn.example/c", "https://cdn.example/c"),
        ("https://cdn.example", "https://cdn.example/"),
        ("/猫".encode().decode("latin-1"), "https://example.com/%E7%8C%AB"),
    ],
)
def test_redirect_leads_where_it_says(location: str, leads_to: str) -> None:
    start = addresses.parse("https://example.com/a/b?x=1", FIELD)
    assert addresses.redirected(start, location, FIELD) == addresses.parse(leads_to, FIELD)


def test_redirect_keeps_a_port_that_is_no_default() -> None:
    start = addresses.parse("http://minio:9000/a", FIELD, any_port=True)
    assert addresses.redirected(start, "/b", FIELD, any_port=True).authority == "minio:9000"


@pytest.mark.parametrize(
    "location",
    [
        "http:///x", "http:x", "http://[", "//[", "//[::1%25eth0]/", "/a\\b", "/a b", "/a\tb",
        " /a", "\\\\evil.example/", "//a@b/", "//127.1/", "ftp://example.com/", "javascript:x",
        "https://example.com:8080/", "http://example.com/", "/" + "a" * 10_000,
    ],
)  # fmt: skip
def test_redirect_that_can_be_misread_or_leaves_https_is_refused(location: str) -> None:
    with pytest.raises(UrlBlocked):
        addresses.redirected(addresses.parse("https://example.com/", FIELD), location, FIELD)
