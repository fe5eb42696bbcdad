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


def test_listener_is_adopted_and_outlives_the_one_it_was_copied_from(left, binder):
    bound = binder.adopt(at(left), left.fileno(), owner="me")
    name = left.getsockname()
    left.close()
    with socket.create_connection(name):
        bound.socket.setblocking(True)
        bound.socket.accept()[0].close()
    assert not os.get_inheritable(bound.socket.fileno())
    binder.close(bound)


@pytest.mark.parametrize(("host", "family"), [("127.0.0.2", "tcp"), ("[::1]", "tcp"), ("127.0.0.1", "udp")])
def test_listener_of_another_address_is_not_adopted(left, binder, host, family):
    assert binder.adopt(at(left, host, family), left.fileno(), owner="me") is None


def test_what_does_not_listen_or_is_no_socket_is_not_adopted(binder):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert binder.adopt(at(bound), bound.fileno(), owner="me") is None
    with socket.create_server(("127.0.0.1", 0)) as sock, open("/dev/null") as file:
        assert binder.adopt(at(sock), file.fileno(), owner="me") is None


def test_listener_that_does_not_share_its_port_is_not_adopted_for_a_job_that_does(left, binder):
    assert binder.adopt(at(left), left.fileno(), owner="me", reuse_port=True) is None


def test_abstract_name_is_adopted(binder):
    name = f"\0aemd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(name)
        sock.listen()
        bound = binder.adopt(parse_address(f"unix:@{name[1:]}"), sock.fileno(), owner="me")
    assert bound is not None
    binder.close(bound)
