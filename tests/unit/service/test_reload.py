"""The configuration in a daemon: at its start, read again, and wrong."""

from __future__ import annotations

import pytest

from aemd.core.errors import AemError, Code
from aemd.core.limits import Limits
from aemd.modules.need import OpenPath
from aemd.service.config import Config
from aemd.service.daemon import Daemon, StartError
from aemd.v1 import admin_pb2, job_pb2, session_pb2
from tests.unit.service.conftest import Bench, Prop, principal

DENY = '[[rule]]\nname = "%s"\nsubject = { uid = %s }\nmodule = "%s"\neffect = "deny"\n'
PORT = (
    '[[rule]]\nname = "ports"\nsubject = { uid = 7 }\nmodule = "socket"\n'
    'params = { listen = "tcp:127.0.0.1:*" }\neffect = "allow"\ngrant = ["port"]\n'
)
CHANNEL = (
    '[[rule]]\nname = "channels"\nsubject = { uid = 7 }\nmodule = "user"\neffect = "allow"\n'
    'grant = ["channel"]\nredact = ["payload", "sender_pid"]\n'
)


class Configured(Bench):
    """A bench whose daemon has a folder for its configuration."""

    def __init__(self, folder, text="", **limits):
        (folder / "etc").mkdir()
        self.file = folder / "etc" / "aemd.toml"
        self.file.write_text(text)
        config = Config(socket=f"{folder}/never", state_dir=f"{folder}", config_dir=f"{folder}/etc")
        self.daemon = Daemon(config, Limits(**limits))

    def reload(self, text):
        self.file.write_text(text)
        return self.daemon.reload.reload()

    def view(self):
        return self.daemon.reload.view()


@pytest.fixture
def configured(tmp_path):
    made = []

    def make(text="", **limits):
        bench = Configured(tmp_path, text, **limits)
        made.append(bench)
        bench.daemon.begin()
        return bench

    yield make
    for bench in made:
        bench.daemon.end()


def test_a_broken_configuration_keeps_the_daemon_from_starting(configured):
    with pytest.raises(StartError) as caught:
        configured('[[rule]]\nname = "x"\nsubject = { uid = 7 }\nmodule = "timer"\neffects = "deny"\n')
    assert "aemd.toml:5: rule[1].effects: no such key; did you mean effect?" in str(caught.value)


def test_a_rule_with_a_parameter_that_no_module_has_keeps_it_from_starting_too(configured):
    with pytest.raises(StartError, match=r"aemd.toml:6: rule\[1\]\.params\.evry: module timer has no such"):
        configured(DENY % ("x", 7, "timer") + 'params = { evry = "1s" }\n')


def test_a_denied_registration_names_the_rule(configured):
    bench = configured(DENY % ("no-timers", 7, "timer"))
    status = bench.session(principal(7)).register("timer", every="1h")
    assert status.code == Code.PERMISSION_DENIED
    assert "rule no-timers" in status.message
    assert bench.session(principal(8)).register("timer", every="1h").job
    assert bench.session(principal(7)).register("user", channel="c").job


def test_reload_shuts_down_what_is_no_longer_allowed_and_nothing_else(configured):
    bench = configured()
    wire = bench.session(principal(7))
    timer, user = wire.register("timer", every="1h").job, wire.register("user", channel="c").job
    other = bench.session(principal(8)).register("timer", every="1h").job
    assert bench.reload(DENY % ("no-timers", 7, "timer")) == 1
    bench.turn()
    (told,) = [frame.job_state for frame in wire.told() if frame.HasField("job_state")]
    assert (told.job, told.state, told.reason) == (timer, job_pb2.STATE_GONE, "policy: rule no-timers")
    left = [job.id for job in bench.daemon.engine.jobs_of(principal())]
    assert left == [user, other]
    assert wire.status is None, "the session goes on"
    assert wire.register("user", channel="d").job


def test_reload_lets_the_running_handler_end(configured):
    bench = configured()
    wire = bench.session(principal(7))
    made = wire.register("user", channel="c")
    wire.ask(**{"raise": session_pb2.Raise(channel="c", payloads=[b"x"])})
    assert bench.reload(DENY % ("none", 7, "user")) == 1
    bench.turn()
    assert not [f for f in wire.told() if f.HasField("job_state") and f.job_state.state == job_pb2.STATE_GONE]
    cursor = job_pb2.Cursor(epoch=1, seq=1)
    wire.say(ack=session_pb2.Ack(binding=made.binding, cursor=cursor))
    bench.turn()
    (gone,) = [f.job_state for f in wire.told() if f.HasField("job_state")]
    assert (gone.state, gone.reason) == (job_pb2.STATE_GONE, "policy: rule none")


def test_a_grant_that_is_gone_ends_the_jobs_that_need_it(configured):
    bench = configured(PORT)
    wire = bench.session(principal(7))
    low = wire.register("socket", listen="tcp:127.0.0.1:987", start=False).job
    high = wire.register("socket", listen="tcp:127.0.0.1:0", start=False).job
    assert low
    assert high
    assert bench.reload(PORT.replace("127.0.0.1:*", "127.0.0.1:98?")) == 0
    assert bench.reload("") == 1
    assert [job.id for job in bench.daemon.engine.jobs_of(principal())] == [high]
    assert bench.reload(PORT) == 0
    assert wire.register("socket", listen="tcp:127.0.0.1:987").job


def test_another_reload_changes_what_is_redacted(configured):
    bench = configured(CHANNEL)
    wire = bench.session(principal(7))
    wire.register("user", channel="c")

    def both():
        wire.say(1, **{"raise": session_pb2.Raise(channel="c", payloads=[b"secret", b"another"])})
        bench.turn()
        return b"".join(e for f in wire.told() for run in f.batch.runs for e in run.events)

    hidden = both()
    assert b"secret" not in hidden
    assert hidden.count(b"sender_pid") == 2
    assert bench.reload("") == 0
    assert b"secret" in both()


def test_rules_about_user_hold_for_raise_as_well(configured):
    bench = configured(DENY % ("quiet", 7, "user"))
    wire = bench.session(principal(7))
    raising = session_pb2.Raise(channel="c", payloads=[b"x"])
    answer = wire.ask(**{"raise": raising})
    assert answer.code == Code.PERMISSION_DENIED
    assert "rule quiet" in answer.message
    assert bench.session(principal(8)).ask(**{"raise": raising}).code == 0


def test_the_channel_grant_reaches_another_users_channel(configured):
    bench = configured(CHANNEL)
    listener = bench.session(principal(8))
    listener.register("user", channel="c")
    raising = session_pb2.Raise(channel="c", payloads=[b"x"], uid=8)
    assert bench.session(principal(9)).ask(**{"raise": raising}).code == Code.PERMISSION_DENIED
    wire = bench.session(principal(7))
    assert wire.ask(**{"raise": raising}).code == 0
    assert wire.register("user", channel="c", uid="8").job


def test_an_error_leaves_all_as_it_was_and_stands_in_the_status_until_a_good_reload(configured):
    bench = configured(DENY % ("no-timers", 7, "timer"))
    wire = bench.session(principal(7))
    user = wire.register("user", channel="c").job
    before = bench.view()
    with pytest.raises(AemError) as caught:
        bench.reload(DENY % ("all", 7, "*") + DENY % ("x", 8, "timer") + "[limits]\nqueue_depht = 3\n")
    assert caught.value.code is Code.FAILED_PRECONDITION
    assert caught.value.reason == "CONFIGURATION_INVALID"
    told = "aemd.toml:12: limits.queue_depht: no such limit; did you mean queue_depth?"
    assert told in caught.value.message
    assert caught.value.details["line"] == "12"
    assert caught.value.details["configuration_key"] == "limits.queue_depht"
    after = bench.view()
    assert told in after.error
    assert after.error_time_ns
    assert (after.rules, after.load_time_ns) == (before.rules, before.load_time_ns)
    assert [job.id for job in bench.daemon.engine.jobs_of(principal())] == [user]
    assert wire.register("timer", every="1h").code == Code.PERMISSION_DENIED
    bench.reload("")
    assert bench.view().error == ""
    assert wire.register("timer", every="1h").job


def test_limits_change_where_they_can_and_the_rest_is_named(configured):
    bench = configured()
    wire = bench.session(principal(7))
    before = bench.daemon.limits.message_bytes
    assert wire.register("timer", every="1h").job
    bench.reload('[limits]\nqueue_depth = 7\nmessage_bytes = "2MiB"\nlease_max_ns = "1h"\n')
    job = wire.register("timer", every="1h").job
    found = bench.daemon.engine.find_job(principal(7), job)
    assert found.options.queue_depth == 7
    assert bench.daemon.limits.lease_max_ns == 3_600_000_000_000
    assert bench.daemon.limits.message_bytes == before
    assert list(bench.view().needs_restart) == ["message_bytes"]
    bench.reload("")
    assert list(bench.view().needs_restart) == []
    assert bench.daemon.limits == Limits()


def test_quotas_hold_after_reload_and_take_nothing_away(configured):
    bench = configured()
    wire = bench.session(principal(7))
    for _ in range(3):
        assert wire.register("timer", every="1h").job
    bench.reload('[[quota]]\nname = "few"\nsubject = { uid = 7 }\njobs = 2\n')
    assert len(list(bench.daemon.engine.jobs_of(principal(7)))) == 3
    assert wire.register("timer", every="1h").code == Code.RESOURCE_EXHAUSTED
    assert bench.session(principal(8)).register("timer", every="1h").job


def test_only_the_administrator_reloads_and_sees_the_configuration(configured):
    bench = configured(DENY % ("no-timers", 7, "timer"))
    kept = []

    def call(method, request, caller):
        wire = bench.wire(f"/aem.v1.AdminService/{method}", caller)
        wire.take = kept.append
        wire.handler.data(request.SerializeToString())
        wire.handler.half_closed()
        return wire.status[0]

    reload = admin_pb2.ReloadConfigurationRequest()
    assert call("ReloadConfiguration", reload, principal(7)) == Code.PERMISSION_DENIED
    assert call("ReloadConfiguration", reload, principal()) == Code.OK
    assert admin_pb2.ReloadConfigurationResponse.FromString(kept.pop()).configuration.rules == 1
    assert call("GetStatus", admin_pb2.GetStatusRequest(), principal(7)) == Code.OK
    assert not admin_pb2.DaemonStatus.FromString(kept.pop()).HasField("configuration")
    assert call("GetStatus", admin_pb2.GetStatusRequest(), principal()) == Code.OK
    assert admin_pb2.DaemonStatus.FromString(kept.pop()).configuration.rules == 1


def test_every_limit_has_a_range_that_its_default_is_in():
    from dataclasses import fields

    from aemd.core import limits

    defaults = Limits()
    names = {field.name for field in fields(Limits)}
    assert set(limits.RANGES) <= names
    assert names >= limits.AT_START
    for name in names:
        least, most = limits.RANGES.get(name, limits.RANGE)
        assert least <= getattr(defaults, name) <= most
    for less, more in limits.ORDER:
        assert getattr(defaults, less) <= getattr(defaults, more)


def test_a_module_that_comes_later_and_does_not_fit_a_rule_is_told_of(configured, capfd):
    text = DENY % ("later", 7, "timer") + 'params = { every = "1s" }\n'
    bench = configured(text)
    bench.daemon.conductor.unload_module("timer")
    bench.reload(text.replace("every", "evry"))
    assert "no such module is loaded" in bench.view().warnings[0]
    capfd.readouterr()
    bench.daemon.conductor.load_module("timer")
    told = capfd.readouterr().err
    assert "params.evry: module timer has no such parameter" in told
    assert bench.session(principal(7)).register("timer", every="1s").job


def test_events_of_a_module_that_has_not_the_fields_of_its_rule_are_not_given_out(configured):
    text = (DENY % ("hide", 7, "timer")).replace("deny", "allow") + 'redact = ["nix"]\n'
    bench = configured()
    bench.daemon.conductor.unload_module("timer")
    bench.reload(text)
    bench.daemon.conductor.load_module("timer")
    refused = bench.session(principal(7)).register("timer", every="1s")
    assert refused.code == Code.PERMISSION_DENIED
    assert "takes nix out of events" in refused.message


class Needing(Prop):
    """May need a path as its job's owner before open()."""

    needing = False

    def needs(self, job, *, opening, starting):
        return (OpenPath(b"/etc/passwd"),) if opening and self.needing else ()

    def open(self, job):
        super().open(job)
        for given in self.host.given(job):
            given.close()


def test_a_policy_that_is_read_while_a_durable_job_opens_holds_for_it(configured):
    bench = configured()
    module = Needing(bench.daemon.host)
    bench.install(module)
    told = []
    request = job_pb2.CreateJobRequest(name="backup", module="prop")
    job = bench.daemon.durables.create(principal(7), request, told.append)
    bench.daemon.conductor.close_job(job, "for now")
    module.needing = True
    assert not bench.daemon.conductor.start(job, told.append)
    module.calls.clear()
    bench.reload(DENY % ("no-more", 7, "prop"))
    bench.turn_until(lambda: not bench.daemon.deputy.busy)
    assert module.calls == []
    assert "no-more" in job.reason
    assert [type(one) for one in told] == [AemError]
