"""Socket addresses: numeric hosts, abstract and absolute paths, and errors that say how to write it."""

from __future__ import annotations

import pytest

from aemd.modules.address import parse_address
from aemd.modules.contract import Address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("tcp:127.0.0.1:8080", Address("tcp", "127.0.0.1", 8080)),
        ("tcp:localhost:80", Address("tcp", "127.0.0.1", 80)),
        ("tcp::8080", Address("tcp", "", 8080)),
        ("tcp:*:8080", Address("tcp", "", 8080)),
        ("tcp:[::1]:0", Address("tcp", "::1", 0)),
        ("udp:[FE80:0::1%eth0]:53", Address("udp", "fe80::1%eth0", 53)),
        ("unix:/run/x.sock", Address("unix", path=b"/run/x.sock")),
        ("unix:@name", Address("unix", path=b"\0name")),
        ("unix-dgram:/a b", Address("unix-dgram", path=b"/a b")),
        ("unix-seqpacket:@x:y", Address("unix-seqpacket", path=b"\0x:y")),
        ("unix:/" + "x" * 106, Address("unix", path=b"/" + b"x" * 106)),
        ("unix:@" + "x" * 107, Address("unix", path=b"\0" + b"x" * 107)),
    ],
)
def test_an_address_is_parsed_and_written_out_again(text, address):
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("127.0.0.1:80", "there are tcp"),
        ("http://x", "there are tcp"),
        ("tcp:8080", "port is missing"),
        ("tcp:127.0.0.1:", "from 0 to 65535"),
        ("tcp:127.0.0.1:65536", "from 0 to 65535"),
        ("tcp:127.0.0.1:\u0661", "from 0 to 65535"),
        ("tcp:example.org:80", "not looked up"),
        ("tcp:127.1:80", "not looked up"),
        ("tcp:::1:80", "in brackets"),
        ("tcp:[127.0.0.1]:80", "no IPv6"),
        ("tcp:[fe80::1%" + "x" * 16 + "]:80", "network interface"),
        ("unix:relative", "absolute"),
        ("unix:", "absolute"),
        ("unix:@", "empty"),
        ("unix:/a\0b", "NUL"),
        ("unix:/" + "x" * 107, "too long"),
        ("unix:@" + "x" * 108, "too long"),
    ],
)
def test_what_is_no_address_is_refused_with_the_way_out(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse_address(text)
