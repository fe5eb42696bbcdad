"""What is refused at registration, and what happens to paths."""

from __future__ import annotations

import errno
import socket

import pytest

from aemd.core.errors import AemError
from aemd.core.principal import Owner, Principal

USER = Principal(Owner(1000), gid=1000, groups=(), pid=1, start_time_ticks=0, administrator=False)
OTHER = Principal(Owner(1001), gid=1000, groups=(), pid=1, start_time_ticks=0, administrator=False)


def test_taken_port_is_refused_at_registration(rig):
    job = rig.open("tcp:127.0.0.1:0")
    port = job.data.bound.socket.getsockname()[1]
    with pytest.raises(AemError) as caught:
        rig.open(f"tcp:127.0.0.1:{port}", start=False)
    assert caught.value.reason == "ADDRESS_IN_USE"
    assert f"tcp:127.0.0.1:{port}" in caught.value.message
    assert rig.host.charged.total() == 1


def test_port_of_an_inert_job_is_taken(rig):
    job = rig.open("tcp:127.0.0.1:0", start=False)
    port = job.data.bound.socket.getsockname()[1]
    with pytest.raises(AemError, match="in use"):
        rig.open(f"tcp:127.0.0.1:{port}", start=False)
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


def test_port_with_connections_in_time_wait_can_be_bound_again(rig):
    job = rig.open("tcp:127.0.0.1:0")
    port = job.data.bound.socket.getsockname()[1]
    client, key = rig.connect(job)
    rig.op(job, key, "write-close", b"x")
    assert rig.receive_end(client) == b"x"
    client.close()
    rig.until(lambda: not job.data.discards)
    rig.close(job)
    again = rig.open(f"tcp:127.0.0.1:{port}")
    with pytest.raises(AemError, match="in use"):
        rig.open(f"tcp:127.0.0.1:{port}", start=False)
    rig.connect(again)


def test_shared_port_is_for_one_user_only(rig):
    job = rig.open("tcp:127.0.0.1:0", owner=USER, reuse_port=True)
    port = job.data.bound.socket.getsockname()[1]
    rig.open(f"tcp:127.0.0.1:{port}", owner=USER, reuse_port=True)
    with pytest.raises(AemError) as caught:
        rig.open(f"tcp:127.0.0.1:{port}", owner=OTHER, reuse_port=True)
    assert caught.value.reason == "ADDRESS_IN_USE"
    for job in tuple(rig.jobs):
        rig.close(job)
    rig.open(f"tcp:127.0.0.1:{port}", owner=OTHER, reuse_port=True)


@pytest.mark.parametrize(
    ("listen", "reason"),
    [
        ("tcp:192.0.2.1:8080", "ADDRESS_NOT_AVAILABLE"),
        ("unix:/no/such/directory/s", "INVALID_FIELD"),
        ("unix:/dev/null", "ADDRESS_IN_USE"),
    ],
)
def test_impossible_address_says_why(rig, listen, reason):
    with pytest.raises(AemError) as caught:
        rig.open(listen)
    assert caught.value.reason == reason
    assert listen in caught.value.message
    assert rig.host.charged.total() == 0


@pytest.mark.parametrize("listen", ["tcp:127.0.0.1:80", "udp:127.0.0.1:53"])
def test_low_ports_are_the_administrators(rig, listen):
    with pytest.raises(AemError) as caught:
        rig.open(listen, owner=USER)
    assert caught.value.reason == "NOT_ALLOWED"


def test_no_descriptor_left_is_refused_before_the_address_is_touched(rig, tmp_path):
    rig.host.descriptors_max = 0
    with pytest.raises(AemError) as caught:
        rig.open(f"unix:{tmp_path}/s")
    assert caught.value.reason == "LIMIT_REACHED"
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("family", ["unix", "unix-dgram", "unix-seqpacket"])
def test_stale_socket_file_is_replaced_and_a_live_one_is_not(rig, tmp_path, family):
    path = str(tmp_path / "s")
    kind = {"unix": socket.SOCK_STREAM, "unix-dgram": socket.SOCK_DGRAM}.get(family, socket.SOCK_SEQPACKET)
    live = socket.socket(socket.AF_UNIX, kind)
    live.bind(path)
    if kind != socket.SOCK_DGRAM:
        live.listen()
    with pytest.raises(AemError, match="in use"):
        rig.open(f"{family}:{path}")
    live.close()
    rig.open(f"{family}:{path}")


def test_path_of_an_inert_job_is_not_stale(rig, tmp_path):
    rig.open(f"unix:{tmp_path}/s", start=False)
    with pytest.raises(AemError, match="in use"):
        rig.open(f"unix:{tmp_path}/s")


def test_regular_file_is_never_removed(rig, tmp_path):
    (tmp_path / "s").write_text("precious")
    with pytest.raises(AemError, match="in use"):
        rig.open(f"unix:{tmp_path}/s")
    assert (tmp_path / "s").read_text() == "precious"


def test_path_goes_with_the_job_unless_it_is_somebody_elses_by_now(rig, tmp_path):
    path = tmp_path / "s"
    job = rig.open(f"unix:{path}", mode="0600")
    assert path.stat().st_mode & 0o777 == 0o600
    rig.close(job)
    assert not path.exists()
    job = rig.open(f"unix:{path}", mode="666")
    assert path.stat().st_mode & 0o777 == 0o666
    path.unlink()
    path.write_text("another's")
    rig.close(job)
    assert path.read_text() == "another's"
