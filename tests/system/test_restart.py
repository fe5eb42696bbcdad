"""Restarts, deaths and hangs of the daemon under the load of fifty clients, which do nothing for it."""

import contextlib
import json
import shutil
import sqlite3
from pathlib import Path

from tests.system.box import PATIENCE
from tests.system.conftest import UNITS

SOCKET = "/run/aemd/aemd.sock"
PROGRAMS, MEMBERS = 2, 25
PERIOD_NS = 100_000_000
RESTARTS = 10
KILLS = 3


class Crowd:
    """Fifty clients, in two programs; see crowd.py."""

    def __init__(self, program):
        self._programs = [
            program("crowd.py", f"unix:{SOCKET}", str(MEMBERS), str(number)) for number in range(PROGRAMS)
        ]

    def is_there(self):
        """Wait until every client is connected and gets events: how often they came back so far."""
        for each in self._programs:
            each.stdin.write("\n")
            each.stdin.flush()
        told = [json.loads(each.stdout.readline()) for each in self._programs]
        return {name: sum(each[name] for each in told) for name in ("resumed", "anew")}

    def end(self):
        """How often they came back, and what each has seen."""
        told = [json.loads(each.communicate(timeout=PATIENCE)[0]) for each in self._programs]
        members = [member for each in told for member in each["members"]]
        assert len(members) == PROGRAMS * MEMBERS
        return sum(each["resumed"] for each in told), sum(each["anew"] for each in told), members


def gaps(member):
    """Of all its jobs."""
    return [gap for ledger in member["ledgers"].values() for gap in ledger["gaps"]]


def faults(member):
    """Numbers that are missing or came twice, and connections that do not fit together."""
    found = [fault for ledger in member["ledgers"].values() for fault in ledger["faults"]]
    return found + member["strange"]


def test_ten_restarts_under_load_lose_nothing(aemd, program):
    storm = program("storm.py", SOCKET, "2")
    crowd = Crowd(program)
    crowd.is_there()
    pids = {aemd.pid}
    for number in range(RESTARTS):
        aemd.box.run("systemctl", "reset-failed", "aemd.service")  # ten in ten seconds are its limit
        aemd.box.run("systemctl", "restart", "aemd.service")
        pids.add(aemd.pid)
        back = crowd.is_there()
        assert back == {"resumed": (number + 1) * PROGRAMS * MEMBERS, "anew": 0}
    _, _, members = crowd.end()
    stormed = json.loads(storm.communicate(timeout=PATIENCE)[0])
    assert len(pids) == RESTARTS + 1
    assert stormed["failed"] == {}
    assert stormed["answered"] > 100
    for member in members:
        assert len(member["jobs"]) == 1  # the same ones all the time
        assert gaps(member) == []
        assert faults(member) == []
        assert member["unknown"] == {}
        assert member["seen"] == list(range(member["raised"]))
        (before, first_ns), (after, last_ns) = member["expired"]
        assert last_ns - first_ns == (after - before) * PERIOD_NS
        assert member["open"] == 0
        assert "restart" not in member["closed"]
        assert set(member["guests"]) == {""}  # nobody was refused, or cut off
        assert member["guests"][""] > RESTARTS
        assert member["stayed"] == 1  # one has been there all the time


def holes(member):
    """Numbers that were raised, are not known to be unread, and were not seen though none was lost."""
    ledger = member["ledgers"]["user"]
    unknown = {int(number) for number in member["unknown"]}
    lost_before = {gap["events"] for gap in ledger["gaps"]}  # so many had been seen when a gap came
    found, wanted = [], 0
    for place, number in enumerate(member["seen"]):
        if place not in lost_before and set(range(wanted, number)) - unknown:
            found.append((wanted, number))
        wanted = number + 1
    return found


def die(aemd, signal, number):
    """It gets a signal, and systemd starts the next one."""
    aemd.box.run("kill", signal, str(aemd.pid))
    aemd.box.until(lambda: aemd.restarts == number and aemd.state == "active", "a restart")


def check_died(aemd, members, deaths):
    """Each job of each client has gone on, and was told of what nobody knows, once for each death."""
    assert "registrations" not in aemd.journal  # nothing was left, or not kept
    for member in members:
        assert len(member["jobs"]) == 1  # the same ones all the time
        assert faults(member) == []
        for ledger in member["ledgers"].values():
            told = [(gap["cause"], gap["stage"], gap["count"]) for gap in ledger["gaps"]]
            assert told == [("restart", "source", 0)] * deaths
        assert member["seen"] == sorted(set(member["seen"]))  # in order, and none twice
        assert holes(member) == []
        assert member["open"] == 0


def test_a_daemon_that_is_killed_loses_nothing_unreported(aemd, program):
    crowd = Crowd(program)
    crowd.is_there()
    for number in range(1, KILLS + 1):
        die(aemd, "-KILL", number)
        assert crowd.is_there() == {"resumed": number * PROGRAMS * MEMBERS, "anew": 0}
    _, _, members = crowd.end()
    check_died(aemd, members, KILLS)


def test_a_daemon_that_hangs_and_is_ended_by_the_watchdog_loses_nothing_unreported(service, program):
    service.override("WatchdogSec=2")
    service.box.run("systemctl", "start", *UNITS)
    crowd = Crowd(program)
    crowd.is_there()
    die(service, "-STOP", 1)
    assert crowd.is_there() == {"resumed": PROGRAMS * MEMBERS, "anew": 0}
    _, _, members = crowd.end()
    assert "Watchdog timeout" in service.journal
    check_died(service, members, 1)


def test_a_front_that_hangs_is_replaced_and_its_clients_lose_nothing(service, program):
    service.override("WatchdogSec=2")
    service.box.run("systemctl", "start", *UNITS)
    own = service.fronts
    crowd = Crowd(program)
    crowd.is_there()
    pid, (front,) = service.pid, set(service.fronts) - set(own)
    service.box.run("kill", "-STOP", str(front))
    service.box.until(lambda: front not in service.fronts and len(service.fronts) == 2, "another front")
    assert crowd.is_there() == {"resumed": PROGRAMS * MEMBERS, "anew": 0}
    assert (service.pid, service.restarts) == (pid, 0)
    _, _, members = crowd.end()
    for member in members:
        assert len(member["jobs"]) == 1
        assert gaps(member) == []
        assert faults(member) == []
        assert member["seen"] == sorted(set(member["seen"]))
        assert holes(member) == []
        assert member["open"] == 0


def written(aemd, folder):
    """How many entries of durable jobs are on disk; the daemon holds the file, so a copy is looked at."""
    for path in Path(aemd.box.path("/var/lib/aemd")).glob("aemd.db*"):
        shutil.copy(path, folder)
    try:
        with contextlib.closing(sqlite3.connect(folder / "aemd.db")) as database:
            return database.execute("SELECT count(*) FROM entries").fetchone()[0]
    except sqlite3.Error:
        return 0  # it was copied between two writes


def test_a_durable_job_keeps_what_was_written_when_the_daemon_is_killed(aemd, tmp_path):
    aemd.ctl("create-job", "kept", "user", "channel=kept")
    try:
        for number in range(KILLS):
            aemd.ctl("raise", "kept", f"event {number}")
            aemd.box.until(lambda: written(aemd, tmp_path) == 2 * number + 1, "the write")  # noqa: B023
            aemd.box.run("kill", "-KILL", str(aemd.pid))
            aemd.box.until(lambda: aemd.restarts == number + 1 and aemd.state == "active", "a restart")  # noqa: B023
            aemd.box.until(lambda: written(aemd, tmp_path) == 2 * number + 2, "the gap")  # noqa: B023
        aemd.ctl("raise", "kept", f"event {KILLS}")
        shown = aemd.ctl("follow-job", "kept", "--from", "oldest", "--count", str(KILLS + 1), "-o", "json")
    finally:
        aemd.ctl("shutdown-job", "kept")
    found = [json.loads(line) for line in shown.stdout.splitlines()]
    later = [entry for epoch in range(2, KILLS + 2) for entry in (("gap", epoch, 1), ("raised", epoch, 2))]
    assert [(each["type"], each["epoch"], each["seq"]) for each in found] == [("raised", 1, 1), *later]
    assert {each["cause"] for each in found if each["type"] == "gap"} == {"restart"}


def kept(aemd):
    """How many descriptors the service manager keeps of jobs; one more is the registrations."""
    return int(aemd.box.show("aemd.service", "NFileDescriptorStore")["NFileDescriptorStore"]) - 1


def test_a_path_that_a_durable_job_listens_on_outlives_restart_and_kill(aemd):
    def identity():
        return aemd.box.run("stat", "--format=%i", "/run/door").stdout

    aemd.ctl("create-job", "door", "socket", "listen=unix:/run/door")
    try:
        aemd.box.until(lambda: kept(aemd) == 2, "the socket, and the directory of its name")
        before = identity()
        aemd.box.run("systemctl", "restart", "aemd.service")
        assert identity() == before
        assert kept(aemd) == 2
        restarts = aemd.restarts
        aemd.box.run("kill", "-KILL", str(aemd.pid))
        aemd.box.until(lambda: aemd.restarts == restarts + 1 and aemd.state == "active", "a restart")
        assert identity() == before
        assert kept(aemd) == 2
    finally:
        aemd.ctl("shutdown-job", "door")
    aemd.box.until(lambda: kept(aemd) == 0, "that nothing is kept")
    assert aemd.box.run("test", "-e", "/run/door", check=False).returncode == 1
