"""ExplainPolicy: for oneself, and as administrator for anybody, there or not."""

from __future__ import annotations

import pytest

from aemd.core.errors import Code
from aemd.service.configuration import interpret
from aemd.service.files import parse
from aemd.v1 import admin_pb2, job_pb2
from tests.unit.service.conftest import principal

POLICY = """
[[rule]]
name = "unit"
subject = { unit = "web.service" }
module = "socket"
effect = "allow"
grant = ["port"]
redact = ["peer"]
[[rule]]
name = "group"
subject = { gid = 4242 }
module = "timer"
effect = "deny"
[[rule]]
name = "later"
subject = { uid = 7 }
module = "file"
params = { path = "/etc/*" }
effect = "deny"
[[rule]]
name = "no-root"
subject = { all = true }
module = "process"
effect = "deny"
"""


@pytest.fixture
def ask(bench):
    bench.daemon.authority.install(interpret([parse("p.toml", POLICY, main=False)]).policy)

    def do(module, caller=None, *, params=None, **subject):
        request = admin_pb2.ExplainPolicyRequest(module=module, **subject)
        for name, text in (params or {}).items():
            request.params[name].CopyFrom(job_pb2.Value(text=text))
        wire = bench.wire("/aem.v1.AdminService/ExplainPolicy", caller)
        kept = []
        wire.take = kept.append
        wire.handler.data(request.SerializeToString())
        wire.handler.half_closed()
        code, message = wire.status
        return admin_pb2.ExplainPolicyResponse.FromString(kept[0]) if kept else (Code(code), message)

    return do


def test_the_administrator_asks_for_whom_he_likes(ask):
    low = {"listen": "tcp::80"}
    told = ask("socket", params=low, uid=7, unit="web.service")
    assert (told.allowed, told.rule, told.origin) == (True, "unit", "p.toml:2")
    assert (list(told.grants), list(told.redactions)) == (["port"], ["peer"])
    assert "its grants suffice: port" in told.reason
    told = ask("socket", params=low, uid=7, unit="other.service")
    assert (told.allowed, told.rule) == (False, "own-rights")
    assert "port 80 is below 1024" in told.reason
    assert [(step.rule, step.applies) for step in told.steps] == [
        ("unit", False),
        ("group", False),
        ("later", False),
        ("no-root", False),
        ("own-rights", True),
    ]
    assert ask("timer", params={"every": "1s"}, uid=7).allowed
    assert not ask("timer", params={"every": "1s"}, uid=7, gid=4242).allowed
    assert ask("process", params={"pid": "1"}, uid=0).rule == "administrator"
    assert ask("process", params={"pid": "1"}).rule == "administrator"


def test_others_ask_for_themselves_as_they_are(ask):
    somebody = principal(7)
    assert ask("timer", somebody, params={"every": "1s"}).allowed
    assert ask("timer", somebody, params={"every": "1s"}, uid=7).allowed
    for subject in ({"uid": 8}, {"uid": 7, "unit": "web.service"}, {"uid": 7, "gid": 1}, {"uid": 0}):
        assert ask("timer", somebody, **subject)[0] is Code.PERMISSION_DENIED
    told = ask("timer", somebody, params={"every": "1s"})
    assert [step.rule for step in told.steps] == ["later", "no-root", "own-rights"], "none about others"
    assert ask("process", somebody, params={"pid": "1"}).steps[0].origin == ""


def test_without_a_needed_parameter_the_rules_are_looked_at(ask):
    told = ask("socket", uid=7)
    assert told.allowed
    assert "depend on parameter listen" in told.reason
    assert not ask("process", uid=7).allowed


def test_of_a_module_that_is_not_loaded_the_rules_are_told(ask):
    told = ask("file", params={"path": "/etc/shadow"}, uid=7)
    assert (told.allowed, told.rule) == (False, "later")
    told = ask("file", params={"path": "/home"}, uid=7)
    assert told.allowed
    assert "no such module is loaded" in told.reason


@pytest.mark.parametrize(
    ("module", "params", "subject", "field"),
    [
        ("", {}, {}, "module: "),
        ("timer", {}, {"unit": "x"}, "unit: "),
        ("timer", {}, {"gid": 0}, "gid: "),
        ("timer", {"evry": "1s"}, {}, "params.evry: "),
        ("timer", {"every": "soon"}, {}, "params.every: "),
    ],
)
def test_a_wrong_question_is_told(ask, module, params, subject, field):
    code, message = ask(module, params=params, **subject)
    assert code is Code.INVALID_ARGUMENT
    assert message.startswith(field)


def test_who_is_refused_for_want_of_proof_is_told_so(ask):
    from dataclasses import replace

    unproven = replace(principal(7), unit="web.service", proven=False)
    told = ask("socket", unproven, params={"listen": "tcp::80"})
    assert not told.allowed
    assert "rule unit was passed over: the kernel did not name the process" in told.reason
    assert ask("socket", replace(unproven, proven=True), params={"listen": "tcp::80"}).allowed


def test_nothing_is_registered_audited_or_left_open(bench, ask, capfd):
    import os

    before = len(os.listdir("/proc/self/fd"))
    for pid in (1, os.getpid()):
        ask("process", principal(7), params={"pid": str(pid)})
        ask("socket", principal(7), params={"listen": "tcp::80"})
    assert list(bench.daemon.engine.jobs_of(principal())) == []
    assert len(os.listdir("/proc/self/fd")) == before
    assert "denied" not in capfd.readouterr().err
