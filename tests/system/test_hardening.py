"""Every protection that the units set, tried from inside.

For each there is something that succeeds where nothing protects, is refused where it alone protects, and is
refused in the service.
"""

import json
import os
import platform

import pytest

from tests.system.box import PYTHON, REPOSITORY

PROBE = "/opt/aemd/src/tests/system/probe.py"
INT80 = bytes.fromhex("b814000000cd80c3")  # mov eax, 20 (getpid); int 0x80; ret

# (key, how its value begins): (attempt, what refuses it when nothing else is set, what else must be set)
PROTECTIONS = {
    ("User", "aemd"): ("be_root", "EPERM"),
    ("CapabilityBoundingSet", "CAP_"): ("read_foreign_folder", "EACCES"),
    ("NoNewPrivileges", "yes"): ("gain_by_set_user_id", "nothing gained"),
    ("SystemCallFilter", "@system-service"): ("unmount", "SIGSYS"),
    ("SystemCallFilter", "~@resources"): ("set_priority", "SIGSYS"),
    ("SystemCallFilter", "~@privileged"): ("give_a_file_away", "SIGSYS"),
    ("SystemCallErrorNumber", "EPERM"): ("unmount", "EPERM", "SystemCallFilter=@system-service"),
    ("SystemCallArchitectures", "native"): ("call_of_another_abi", "SIGSYS"),
    ("LockPersonality", "yes"): ("change_personality", "EPERM"),
    ("MemoryDenyWriteExecute", "yes"): ("write_code", "EPERM"),
    ("RestrictRealtime", "yes"): ("be_real_time", "EPERM"),
    ("RestrictNamespaces", "net"): ("new_host_name_space", "EPERM"),
    ("RestrictNamespaces", "yes"): ("new_network", "EPERM"),
    ("RestrictSUIDSGID", "yes"): ("make_set_user_id_file", "EPERM"),
    ("RestrictAddressFamilies", "AF_UNIX"): ("open_netlink", "EAFNOSUPPORT"),
    ("PrivateNetwork", "yes"): ("share_network_with_the_machine", "another"),
    ("IPAddressDeny", "any"): ("send_a_datagram", "EPERM"),
    ("UMask", "0077"): ("make_readable_file", "for nobody else"),
    ("ProtectSystem", "strict"): ("write_to_system", "EROFS"),
    ("ProtectHome", "yes"): ("see_home", "ENOENT"),
    ("PrivateTmp", "yes"): ("see_temporary_files", "ENOENT"),
    ("PrivateDevices", "yes"): ("see_device", "ENOENT"),
    ("PrivateMounts", "yes"): ("share_mounts_with_the_machine", "another"),
    ("DevicePolicy", "closed"): ("open_device", "EPERM"),
    ("ProtectClock", "yes"): ("set_clock", "EPERM"),
    ("ProtectHostname", "yes"): ("set_host_name", "EPERM"),
    ("ProtectKernelLogs", "yes"): ("write_kernel_log", "EACCES"),
    ("ProtectKernelModules", "yes"): ("see_modules", "ENOENT"),
    ("ProtectKernelTunables", "yes"): ("read_symbols", "empty"),
    ("ProtectControlGroups", "yes"): ("make_control_group", "EROFS"),
    ("ProtectProc", "invisible"): ("see_processes_as_a_stranger", "ENOENT"),
    ("ProcSubset", "pid"): ("read_uptime", "ENOENT"),
}
UNITS = ("aemd.service", "aemd-deputy.service", "aemd-runner.service")
ATTEMPTS = sorted({protection[0] for protection in PROTECTIONS.values()})
# What the units say that protects nobody: how the service lives, not what it may do.
LIFE = {
    "Type",
    "ExecStart",
    "ExecReload",
    "SyslogIdentifier",
    "AmbientCapabilities",
    "KillMode",
    "KillSignal",
    "Delegate",
    "TasksMax",
    "Restart",
    "RestartSec",
    "TimeoutStartSec",
    "TimeoutStopSec",
    "WatchdogSec",
    "TimeoutAbortSec",
    "FileDescriptorStoreMax",
    "LimitNOFILE",
    "LimitCORE",
    "OOMScoreAdjust",
    "RuntimeDirectory",
    "RuntimeDirectoryMode",
    "RuntimeDirectoryPreserve",
    "StateDirectory",
    "StateDirectoryMode",
    "ConfigurationDirectory",
}


def directives(unit):
    """What [Service] of a unit says, a list of values for each key."""
    section = (REPOSITORY / "systemd" / unit).read_text().partition("[Service]")[2].partition("[Install]")[0]
    found = {}
    for line in section.splitlines():
        if line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def values_of(unit, key, beginning):
    """The lines of a unit that a protection is made of."""
    return [f"{key}={value}" for value in directives(unit).get(key, ()) if value.startswith(beginning)]


SET = [(unit, key, start) for unit in UNITS for key, start in PROTECTIONS if values_of(unit, key, start)]


@pytest.fixture(scope="module")
def prepared(box):
    """The box, with something to be found in every place that is protected."""
    for path in ("/home/canary", "/tmp/canary", "/usr/lib/modules/canary", "/opt/foreign/secret"):
        box.write(path, "")
    os.chown(box.path("/opt/foreign"), 4711, 4711)
    os.chmod(box.path("/opt/foreign"), 0o700)
    box.run("mknod", "/dev/canary", "c", "1", "3")
    box.run("mknod", "/dev/kmsg", "c", "1", "11")
    box.run("install", "--mode=4755", "/usr/bin/id", "/opt/set-user-id")
    box.run("mkdir", "--parents", "/var/lib/aemd")
    with open(box.path("/opt/int80"), "wb") as file:
        file.write(INT80)
    return box


def unit_of_probe(name, lines):
    """A service that makes all attempts, and where it says how they went."""
    attempts = " ".join([*ATTEMPTS, "open_internet"])
    command = f"{PYTHON} -I -S {PROBE} {attempts}"
    start = ("[Service]", "Type=oneshot", "ExecStart=", f"ExecStart={command}")
    return "\n".join([*start, f"StandardOutput=truncate:/run/probe-{name}", *lines, ""])


@pytest.fixture(scope="module")
def outcomes(prepared):
    """What the attempts came to: without protection, with each one alone, and in each service."""
    lines = {"none": []}
    for number, (unit, key, beginning) in enumerate(SET):
        _, _, *others = PROTECTIONS[key, beginning]
        lines[str(number)] = [*values_of(unit, key, beginning), *others]
    for name, protection in lines.items():
        prepared.write(f"/run/systemd/system/probe-{name}.service", unit_of_probe(name, protection))
    drop_ins = [f"/run/systemd/system/{unit}.d/probe.conf" for unit in UNITS]
    for unit, drop_in in zip(UNITS, drop_ins, strict=True):
        prepared.write(drop_in, unit_of_probe(unit, ["Restart=no", "WatchdogSec=0"]))
    prepared.run("systemctl", "daemon-reload")
    units = [f"probe-{name}.service" for name in lines]
    prepared.run("systemctl", "start", *units, *UNITS)
    found = {}
    for name in [*lines, *UNITS]:
        with open(prepared.path(f"/run/probe-{name}")) as file:
            found[name] = json.load(file)
    for path in (*drop_ins, *(f"/run/systemd/system/{unit}" for unit in units)):
        os.unlink(prepared.path(path))
    prepared.run("systemctl", "stop", "aemd.socket", "aemd-deputy.socket", "aemd-runner.socket", *UNITS)
    prepared.run("systemctl", "daemon-reload")
    return found


@pytest.mark.parametrize("unit", [*UNITS, "user/aemd.service"])
def test_every_directive_is_tried_here(unit):
    said = {(key, value) for key, values in directives(unit).items() for value in values if key not in LIFE}
    tried = {
        (key, value)
        for key, value in said
        if any(key == known and value.startswith(start) for known, start in PROTECTIONS)
    }
    assert said == tried


@pytest.mark.parametrize("number", range(len(SET)), ids=["-".join(each) for each in SET])
def test_protection_bites(outcomes, number):
    unit, key, beginning = SET[number]
    attempt, refusal, *_ = PROTECTIONS[key, beginning]
    if attempt == "call_of_another_abi" and outcomes["none"][attempt] != "allowed":
        pytest.skip(f"needs a kernel that runs programs of two kinds; {platform.machine()} here does not")
    assert outcomes["none"][attempt] == "allowed"
    assert outcomes[str(number)][attempt] == refusal
    assert outcomes[unit][attempt] != "allowed"


def test_what_each_service_needs_is_left(outcomes):
    core, deputy = outcomes["aemd.service"], outcomes["aemd-deputy.service"]
    assert (core["open_internet"], deputy["open_internet"]) == ("allowed", "EAFNOSUPPORT")
    assert (core["new_network"], deputy["new_network"]) == ("EPERM", "allowed")  # each front is in one
    assert (core["be_root"], deputy["be_root"]) == ("EPERM", "allowed")
