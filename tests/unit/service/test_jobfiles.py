"""Durable jobs that files say: what they may say, and what becomes of it in a daemon."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aemd.core.errors import AemError
from aemd.service.configuration import Configuration, interpret
from aemd.service.files import ConfigurationError, parse, read, read_file
from aemd.service.standing import check_owner
from aemd.v1 import job_pb2
from tests.unit.service.conftest import principal
from tests.unit.service.test_configuration import EXAMPLES, MODULES, UID
from tests.unit.service.test_reload import Configured

JOB = '[[job]]\nname = "%s"\nmodule = "user"\nowner = %d\nparams = { channel = "%s" }\n'


def says(text: str) -> Configuration:
    return interpret([parse("f.toml", text, main=False, jobs=True)], MODULES)


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        says(text)
    return [str(problem) for problem in caught.value.problems]


def job(more: str = "", **keys: str) -> str:
    known = {"name": '"it"', "module": '"timer"', "params": '{ every = "1s" }', "owner": "7", **keys}
    return "\n".join(["[[job]]", *(f"{key} = {value}" for key, value in known.items() if value), more]) + "\n"


def test_the_example_is_good_and_has_every_key() -> None:
    configuration = interpret([read_file(str(EXAMPLES / "jobs.d/50-example.toml"))], MODULES)
    reports, deploys, backups = configuration.jobs
    assert (reports.uid, deploys.uid) == (0, 1_000)
    assert reports.origin.endswith("50-example.toml:3")
    request = reports.request
    assert (request.name, request.module, request.label) == ("reports", "timer", "the morning's reports")
    assert request.params["calendar"].text == "Mon..Fri 09:00"
    assert request.options.ack_timeout_ns == 3_600 * 10**9
    assert request.keep == job_pb2.Keep(entries=100, bytes=1 << 20, age_ns=30 * 86_400 * 10**9)
    assert backups.request.exec == job_pb2.Exec(
        command=["/usr/local/bin/backup", "--quick"],
        mode=job_pb2.EXEC_MODE_DIRTY,
        timeout_ns=20 * 60 * 10**9,
        backoff_min_ns=10 * 10**9,
        backoff_max_ns=3_600 * 10**9,
        environment={"TARGET": "/srv/backup"},
        directory="/srv",
    )
    assert deploys.request.stopped
    assert deploys.request.options.overflow == job_pb2.OVERFLOW_DROP_OLDEST
    assert deploys.request.options.acknowledgement == job_pb2.ACKNOWLEDGEMENT_EXPLICIT


def test_without_an_owner_it_is_the_daemons_user() -> None:
    assert [found.uid for found in says(job(owner="")).jobs] == [UID]


def test_parameters_are_taken_as_toml_has_them() -> None:
    (found,) = says(job(params="{ every = 1_000_000, cookie = 7 }")).jobs
    assert (found.request.params["every"].integer, found.request.params["cookie"].integer) == (1_000_000, 7)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (job(name=""), "f.toml:1: job[1].name: is missing"),
        (job(name='"17"'), "f.toml:2: job[1].name: '17' is no name"),
        (job(owner='"nobody-at-all"'), 'f.toml:5: job[1].owner: "nobody-at-all": there is no such'),
        (job(owner="-1"), "f.toml:5: job[1].owner: -1: must be the name of a user, or a user id"),
        (job(owner="4_294_967_295"), "f.toml:5: job[1].owner: 4294967295: must be the name of a user"),
        (job(owner="true"), "f.toml:5: job[1].owner: true: must be"),
        (job("kep = {}"), "f.toml:6: job[1].kep: no such key; did you mean keep?"),
        (job(params="{ evry = 1 }"), "f.toml:4: job[1].params.evry: "),
        (job(params='{ every = "soon" }'), "f.toml:4: job[1].params.every: "),
        (job(params="{ every = { a = 1 } }"), "f.toml:4: job[1].params.every: a table: must be text"),
        (job("options = { priority = 8 }"), "f.toml:6: job[1].options.priority: 8: must be 0 to 7"),
        (job('options = { overflow = "block" }'), 'f.toml:6: job[1].options.overflow: "block": must be'),
        (job('options = { overflow = "pause-source" }'), "f.toml:6: job[1].options.overflow: "),
        (job("options = { prio = 1 }"), "f.toml:6: job[1].options.prio: no such option; did you mean prio"),
        (job("options = { lease_ns = 9_000_000_000_000_000 }"), "f.toml:6: job[1].options.lease_ns: is 9"),
        (job("keep = { entries = 0 }"), "f.toml:6: job[1].keep.entries: 0: must be 1 to 1000000"),
        (job('keep = { bytes = "2GiB" }'), "f.toml:6: job[1].keep.bytes: "),
        (job("keep = { keep_bytes = 1 }"), "f.toml:6: job[1].keep.keep_bytes: no such key"),
        (job("exec = 1"), "f.toml:6: job[1].exec: 1: must be a table"),
        (job("exec = {}"), "f.toml:6: job[1].exec.command: is required"),
        (job('exec.command = "true"'), 'f.toml:6: job[1].exec.command: "true": '),
        (job('exec = { command = ["./x"] }'), "f.toml:6: job[1].exec.command: './x' is relative"),
        (job('exec = { command = ["x"], kommand = 1 }'), "f.toml:6: job[1].exec.kommand: no such key"),
        (job('exec = { command = ["x"], mode = "both" }'), 'f.toml:6: job[1].exec.mode: "both": must be one'),
        (job('exec = { command = ["x"], timeout_ns = "8d" }'), "f.toml:6: job[1].exec.timeout_ns: is 6912"),
        (job('exec = { command = ["x"], timeout_ns = 0 }'), "f.toml:6: job[1].exec.timeout_ns: 0: must be 1"),
        (job('exec = { command = ["x"], environment = { A = 1 } }'), "f.toml:6: job[1].exec.environment"),
        (job('exec = { command = ["x"], environment = { AEM_A = "" } }'), "f.toml:6: job[1].exec.envi"),
        (job('exec = { command = ["x"], directory = "x" }'), "f.toml:6: job[1].exec.directory: 'x' is no"),
        (job('exec = { command = ["x"] }\noptions = { acknowledgement = "none" }'), "f.toml:7: job[1].opt"),
        (job() + job(), "f.toml:8: job[2].name: \"it\": uid 7 has one of this name, f.toml:1"),
        ("[[rule]]\n", "f.toml:1: rule: no such table"),
        ("job = 1\n", "f.toml:1: job: 1: must be an array of tables, [[job]]"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_place(text: str, problem: str) -> None:
    found = problems(text)
    assert len(found) == 1, found
    assert found[0].startswith(problem), found


def test_a_module_that_is_not_loaded_is_doubtful_and_no_error() -> None:
    configuration = says(job(module='"tmer"', params="{ a = 1 }"))
    assert len(configuration.jobs) == 1
    assert "no such module is loaded; did you mean timer?" in str(configuration.warnings[0])


def test_jobs_are_said_in_jobs_d_only_and_nothing_else_is(tmp_path: Path) -> None:
    (tmp_path / "jobs.d").mkdir()
    (tmp_path / "policy.d").mkdir()
    (tmp_path / "jobs.d" / "10.toml").write_text(job())
    (tmp_path / "policy.d" / "10.toml").write_text(job())
    with pytest.raises(ConfigurationError) as caught:
        interpret(read(str(tmp_path), uid=UID), MODULES)
    assert [str(problem) for problem in caught.value.problems] == [
        f"{tmp_path}/policy.d/10.toml:1: job: no such table; there are rule, quota"
    ]
    (tmp_path / "policy.d" / "10.toml").unlink()
    assert len(interpret(read(str(tmp_path), uid=UID), MODULES).jobs) == 1
    (tmp_path / "jobs.d" / "10.toml").chmod(0o666)
    with pytest.raises(ConfigurationError, match="others may write it"):
        read(str(tmp_path), uid=UID)


class Standing(Configured):
    """A daemon with a jobs.d."""

    def __init__(self, folder, text="", **limits):
        super().__init__(folder, "", **limits)
        self.jobs = folder / "etc" / "jobs.d" / "10.toml"
        self.jobs.parent.mkdir()
        self.jobs.write_text(text)

    def say(self, text, policy=""):
        self.jobs.write_text(text)
        return self.reload(policy)

    def there(self):
        found = self.daemon.engine.jobs_of(principal())
        return {(one.owner.uid, one.durable.name): one for one in found if one.durable}


@pytest.fixture
def standing(tmp_path):
    made = []

    def make(text=""):
        bench = Standing(tmp_path, text)
        made.append(bench)
        bench.daemon.begin()
        return bench

    yield make
    for bench in made:
        bench.daemon.end()


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: jobs of other users are made")


@needs_root
def test_what_files_say_is_there_for_its_owner(standing):
    bench = standing(JOB % ("deploys", 7, "deploy"))
    made = bench.there()[7, "deploys"]
    assert made.owner.uid == 7
    assert not made.owner.administrator
    wire = bench.session(principal(7))
    wire.ask(bind={"name": "deploys"})
    assert bench.session(principal(8)).ask(bind={"name": "deploys"}).code == 5  # NOT_FOUND


@needs_root
def test_a_reload_makes_what_is_new_ends_what_has_gone_and_leaves_the_rest(standing, capfd):
    bench = standing(JOB % ("a", 7, "a") + JOB % ("b", 7, "b"))
    kept = bench.there()[7, "a"]
    bench.say(JOB % ("a", 7, "a") + JOB % ("c", 8, "c"))
    there = bench.there()
    assert sorted(there) == [(7, "a"), (8, "c")]
    assert there[7, "a"] is kept
    assert "its file in jobs.d has gone" in capfd.readouterr().err
    bench.say(JOB % ("a", 7, "other") + JOB % ("c", 8, "c"))
    assert bench.there()[7, "a"].id > kept.id
    assert "says something else now" in capfd.readouterr().err


@needs_root
def test_what_a_user_has_made_himself_is_left_alone(standing):
    bench = standing()
    request = job_pb2.CreateJobRequest(name="mine", module="user")
    request.params["channel"].text = "c"
    own = bench.daemon.durables.create(principal(7), request, print)
    bench.say(JOB % ("mine", 7, "other"))
    assert bench.there()[7, "mine"] is own
    (refused,) = bench.view().warnings
    assert "with other params" in refused
    bench.say("")
    assert bench.there()[7, "mine"] is own
    assert list(bench.view().warnings) == []


@needs_root
def test_what_cannot_be_made_is_told_and_tried_again(standing):
    deny = '[[rule]]\nname = "no"\nsubject = { uid = 7 }\nmodule = "user"\neffect = "deny"\n'
    bench = standing()
    bench.say(JOB % ("a", 7, "a"), deny)
    assert bench.there() == {}
    (refused,) = bench.view().warnings
    assert "10.toml:1: job a of uid 7 cannot be made: " in refused
    assert "rule no" in refused
    bench.reload("")
    assert list(bench.there()) == [(7, "a")]
    assert list(bench.view().warnings) == []
    assert bench.reload(deny) == 1
    assert "rule no" in bench.there()[7, "a"].reason, "it is closed, and keeps its history"


@needs_root
def test_a_rule_for_the_owner_gives_what_it_grants(standing):
    text = '[[job]]\nname = "web"\nmodule = "socket"\nowner = 7\nstopped = true\n'
    text += 'params = { listen = "tcp:127.0.0.1:987" }\n'
    bench = standing(text)
    assert "987" in bench.view().warnings[0]
    grant = '[[rule]]\nname = "web"\nsubject = { uid = 7 }\nmodule = "socket"\neffect = "allow"\n'
    bench.reload(grant + 'grant = ["port"]\n')
    assert list(bench.there()) == [(7, "web")]


def test_the_daemon_of_a_user_has_no_jobs_of_others():
    check_owner(7, 0)
    check_owner(7, 7)
    with pytest.raises(AemError, match="uid 7's and has no jobs of others"):
        check_owner(8, 7)


@needs_root
def test_an_error_in_a_file_leaves_the_jobs_as_they_are(standing):
    bench = standing(JOB % ("a", 7, "a"))
    kept = bench.there()
    with pytest.raises(AemError, match="no such key"):
        bench.say(JOB % ("a", 7, "a") + "kep = 1\n")
    assert bench.there() == kept
