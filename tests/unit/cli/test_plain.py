from __future__ import annotations

from aem.v1 import admin_pb2, job_pb2, module_pb2

from aemd.cli.plain import plain, value_plain


def test_numbers_stay_numbers_and_zero_fields_are_there() -> None:
    row = plain(job_pb2.JobStats(fires=1 << 60))
    assert row["fires"] == 1 << 60
    assert row["lost"] == 0
    assert row["last_error"] == ""


def test_enumerations_lose_their_prefix() -> None:
    row = plain(job_pb2.Job(state=job_pb2.STATE_ARMED, options=job_pb2.Options(overflow=1)))
    assert row["state"] == "armed"
    assert row["options"]["overflow"] == "drop-oldest"
    assert row["options"]["acknowledgement"] == ""


def test_prefix_of_an_enumeration_of_two_words() -> None:
    parameter = module_pb2.Parameter(kind=module_pb2.PARAMETER_KIND_DURATION)
    assert plain(parameter)["kind"] == "duration"


def test_value_that_a_newer_daemon_has_added_stays_a_number() -> None:
    assert plain(job_pb2.Job(state=99))["state"] == "99"  # type: ignore[arg-type]


def test_absent_messages_and_optionals_are_none() -> None:
    row = plain(job_pb2.Job())
    assert row["stats"] is None
    assert plain(job_pb2.Options())["priority"] is None
    assert plain(job_pb2.Options(priority=0))["priority"] == 0


def test_parameters_are_plain_values() -> None:
    job = job_pb2.Job()
    job.params["every"].text = "200ms"
    job.params["cookie"].integer = 7
    job.params["on"].truth = True
    job.params["path"].data = b"/tmp/\xff"
    job.params["many"].list.values.add().text = "a"
    job.params["many"].list.values.add().integer = 2
    job.params["none"].SetInParent()
    assert plain(job)["params"] == {
        "every": "200ms",
        "cookie": 7,
        "on": True,
        "path": "/tmp/\\xff",
        "many": ["a", 2],
        "none": None,
    }
    assert list(plain(job)["params"]) == sorted(job.params)
    assert value_plain(job_pb2.Value(number=0.5)) == 0.5


def test_details_and_lists_of_messages() -> None:
    job = job_pb2.Job(details={"next": "soon"})
    assert plain(job)["details"] == {"next": "soon"}
    module = module_pb2.Module(events=[module_pb2.EventType(name="expired", description="when")])
    assert plain(module)["events"] == [{"name": "expired", "description": "when"}]
    assert plain(admin_pb2.DaemonStatus(modules=["timer"]))["modules"] == ["timer"]
