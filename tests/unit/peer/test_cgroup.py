"""What /proc/PID/cgroup says, and the unit behind it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aemd.peer.cgroup import parse_cgroup, unit_of


@pytest.mark.parametrize(
    ("content", "path"),
    [
        (b"0::/system.slice/cron.service\n", "/system.slice/cron.service"),
        (b"1:name=systemd:/system.slice/cron.service\n", "/system.slice/cron.service"),
        (b"9:name=systemd:/a.slice\n8:pids:/b\n0::/\n", "/a.slice"),
        (b"9:name=systemd:/a.slice\n0::/system.slice/cron.service\n", "/system.slice/cron.service"),
        (b"9:name=systemd:/\n0::/\n", "/"),
        (b"8:pids:/b\n", ""),
        (b"0::/a:b::c\n", "/a:b::c"),
        (b"0::/a\xff\n", "/a\\xff"),
        (b"", ""),
    ],
)
def test_path_is_that_of_the_unified_hierarchy_or_of_systemds_own(content, path):
    assert parse_cgroup(content) == path


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("/system.slice/cron.service", "cron.service"),
        ("/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service"),
        ("/system.slice/docker.service/cron.service", "docker.service"),
        ("/user.slice/user-1000.slice/session-3.scope", "session-3.scope"),
        ("/user.slice/user-1000.slice/user@1000.service", "user@1000.service"),
        ("/user.slice/user-1000.slice/user@1000.service/init.scope", "user@1000.service/init.scope"),
        (
            "/user.slice/user-1000.slice/user@1000.service/app.slice/sync.service",
            "user@1000.service/sync.service",
        ),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/x/sync.service", "user@1000.service"),
        ("/machine.slice/machine-web.scope/system.slice/cron.service", "machine-web.scope"),
        ("/init.scope", "init.scope"),
        ("/system.slice/_cgroup.service", "cgroup.service"),
        ("/system.slice", ""),
        ("/docker/0123abcd/system.slice/cron.service", ""),
        ("/kubepods.slice/kubepods-pod1.slice/cri-containerd-0.scope", "cri-containerd-0.scope"),
        ("/../system.slice/cron.service", ""),
        ("/system.slice/cron.service (deleted)", ""),
        ("/system.slice/" + "x" * 250 + ".service", ""),
        ("/system.slice/.service", ""),
        ("/", ""),
        ("", ""),
    ],
)
def test_unit_is_the_first_that_is_no_slice(cgroup, unit):
    assert unit_of(cgroup) == unit


@given(st.text(alphabet="abc.@/-_1"))
def test_whoever_owns_what_is_below_a_unit_cannot_leave_it_by_a_name(below):
    assert unit_of(f"/system.slice/docker.service/{below}") == "docker.service"
    assert unit_of(f"/user.slice/user@1000.service/{below}").partition("/")[0] == "user@1000.service"


@given(st.binary())
def test_any_content_is_read(content):
    assert isinstance(unit_of(parse_cgroup(content)), str)
