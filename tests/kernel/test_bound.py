"""Listeners that were bound by a process before this one."""

import os
import socket

import pytest

from aemd.modules.address import parse_address
from aemd.sources.bound import Binder


@pytest.fixture
def left():
    """A listener of another's, and its address."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


@pytest.fixture
def binder():
    return Binder()


def at(sock, host="127.0.0.1", family="tcp"):
    return parse_address(f"{family}:{host}:{sock.getsockname()[1]}")


def test_listener_is_adopted_and_does_not_depend_on_other_copies(left, binder):
    bound = binder.adopt(at(left), os.dup(left.fileno()), owner="me")
    name = left.getsockname()
    left.close()
    with socket.create_connection(name):
        bound.socket.setblocking(True)
        bound.socket.accept()[0].close()
    assert not os.get_inheritable(bound.socket.fileno())
    binder.close(bound)


@pytest.mark.parametrize(("host", "family"), [("127.0.0.2", "tcp"), ("[::1]", "tcp"), ("127.0.0.1", "udp")])
def test_listener_of_another_address_is_not_adopted(left, binder, host, family):
    assert binder.adopt(at(left, host, family), os.dup(left.fileno()), owner="me") is None


def test_what_does_not_listen_or_is_no_socket_is_not_adopted(binder):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert binder.adopt(at(bound), os.dup(bound.fileno()), owner="me") is None
    with socket.create_server(("127.0.0.1", 0)) as sock, open("/dev/null") as file:
        assert binder.adopt(at(sock), os.dup(file.fileno()), owner="me") is None


def test_listener_that_does_not_share_its_port_is_not_adopted_for_a_job_that_does(left, binder):
    assert binder.adopt(at(left), os.dup(left.fileno()), owner="me", reuse_port=True) is None


def test_abstract_name_is_adopted(binder):
    name = f"\0aemd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(name)
        sock.listen()
        bound = binder.adopt(parse_address(f"unix:@{name[1:]}"), os.dup(sock.fileno()), owner="me")
    assert bound is not None
    binder.close(bound)


def test_port_that_the_kernel_chose_is_adopted_where_the_kernel_was_to_choose(left, binder):
    bound = binder.adopt(parse_address("tcp:127.0.0.1:0"), os.dup(left.fileno()), owner="me")
    assert bound.port == left.getsockname()[1]
    binder.close(bound)


def test_datagrams_that_wait_are_adopted_with_their_socket(binder):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, socket.socket(type=sock.type) as peer:
        sock.bind(("127.0.0.1", 0))
        peer.sendto(b"waits", sock.getsockname())
        bound = binder.adopt(at(sock, family="udp"), os.dup(sock.fileno()), owner="me")
    assert bound.socket.recv(100) == b"waits"
    binder.close(bound)


@pytest.mark.parametrize("text", ["tcp:127.0.0.1:0", "unix:@aemd-test-{}", "unix-seqpacket:@aemd-test-{}"])
def test_what_is_closed_refuses_also_while_somebody_else_has_it_open(binder, text):
    bound = binder.bind(parse_address(text.format(os.getpid())), owner="me")
    bound.listen(5)
    kind, name = bound.socket.type, bound.socket.getsockname()
    with socket.socket(fileno=os.dup(bound.socket.fileno())) as other:
        binder.close(bound)
        with socket.socket(other.family, kind) as peer, pytest.raises(ConnectionRefusedError):
            peer.connect(name)


@pytest.mark.parametrize("text", ["udp:127.0.0.1:0", "udp:[::]:0", "udp::0"])
def test_what_is_closed_takes_no_datagrams_while_somebody_else_has_it_open(binder, text):
    bound = binder.bind(parse_address(text), owner="me")
    bound.socket.setblocking(True)
    port, v6 = bound.port, "[" in text
    with (
        socket.socket(fileno=os.dup(bound.socket.fileno())) as other,
        socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM) as peer,
    ):
        peer.connect(("::1" if v6 else "127.0.0.1", port))
        peer.send(b"heard")
        assert bound.socket.recv(10) == b"heard"
        binder.close(bound)
        peer.send(b"not heard")
        with pytest.raises(ConnectionRefusedError):  # ICMP
            peer.recv(1)
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.recv(10)
