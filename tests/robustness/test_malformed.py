"""Absurd values in every field of every request: a clear refusal each, and nobody else notices."""

import random

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from aemd.core.errors import Code
from aemd.v1 import admin_pb2, job_pb2, module_pb2, session_pb2
from tests.fuzz import session_frames
from tests.integration.conftest import PATIENCE, register_frame

U64 = (1 << 64) - 1
U32 = (1 << 32) - 1
I64 = (1 << 63) - 1
MIB = 1 << 20

# What is refused says the field; what does not exist is NOT_FOUND, whatever its number.
FIELD = (Code.INVALID_ARGUMENT, "INVALID_FIELD")
UNKNOWN = (Code.NOT_FOUND, "NOT_FOUND")
FINE = (Code.OK, None)


@pytest.fixture
def client(shared_daemon, eventually):
    """On the daemon of this file; whatever a test leaves is ended, and then nothing of it may be left."""
    with shared_daemon.client() as client:
        eventually(lambda: client.status().connections == 1, "the end of the connection of the test before")
        yield client
        client.end_sessions()
        after = client.status()
        assert (after.sessions, after.jobs, after.connections) == (0, 0, 1)


@pytest.fixture
def witness(client):
    """Another client's timer, that fires on whatever happens."""
    session = client.session()
    session.register("timer", every="5ms")
    yield session
    for _ in range(2):  # one may have been on its way
        run, seq, event = session.events()[-1]
        assert event.timer.lateness_ns >= 0
        cursor = job_pb2.Cursor(epoch=run.epoch, seq=seq)
        session.send(ack=session_pb2.Ack(binding=run.binding, cursor=cursor))


def reason_of(status):
    if not status.details:
        return None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "aemd"
    return info.reason


def register(module="user", *, label="", credit=None, params=None, **options):
    frame = register_frame(module, options=options, credit=credit)
    frame.label = label
    for name, value in (params or {"channel": job_pb2.Value(text="c")}).items():
        frame.params[name].CopyFrom(value)
    return {"register": frame}


def value(text):
    return job_pb2.Value(text=text)


def cursor(epoch, seq):
    return job_pb2.Cursor(epoch=epoch, seq=seq)


def credit(amount):
    return job_pb2.Credit(events=amount, bytes=amount)


def raised(channel="c", payloads=(b"",), **more):
    return {"raise": session_pb2.Raise(channel=channel, payloads=payloads, **more)}


REQUESTS = {
    "module": (register("tmier"), (Code.NOT_FOUND, "MODULE_UNKNOWN")),
    "module-long": (register("x" * (MIB - 1000)), (Code.NOT_FOUND, "MODULE_UNKNOWN")),
    "label": (register(label="x" * 1_000_000), FIELD),
    "label-of-many-bytes": (register(label="\u00e4" * 200), FIELD),
    "params-many": (register(params={str(n): value("") for n in range(70_000)}), FIELD),
    "params-long": (register(params={"channel": value("x" * 1_000_000)}), FIELD),
    "params-name": (register(params={"x" * 50_000: value("")}), FIELD),
    "params-nested": (
        register(params={"channel": job_pb2.Value(list=job_pb2.ValueList(values=[value("c")]))}),
        FIELD,
    ),
    "params-empty": (register(params={"channel": job_pb2.Value()}), FIELD),
    "priority-99": (register(priority=99), FIELD),
    "queue_depth": (register(queue_depth=U32), FIELD),
    "queue_bytes": (register(queue_bytes=U64), FIELD),
    "overflow": (register(overflow=99), FIELD),
    "acknowledgement": (register(acknowledgement=-1), FIELD),
    "ack_timeout-negative": (register(ack_timeout_ns=-1), FIELD),
    "ack_timeout-least": (register(ack_timeout_ns=-I64 - 1), FIELD),
    "ack_timeout-for-ever": (register(ack_timeout_ns=I64), FINE),
    "attempts_max": (register(attempts_max=U32), FINE),
    "lease-negative": (register(lease_ns=-1), FIELD),
    "lease-for-ever": (register(lease_ns=I64), FIELD),
    "credit": (register(credit=credit(U64)), FINE),
    "timer-for-ever": (register("timer", params={"after": job_pb2.Value(integer=I64)}), FIELD),
    "timer-negative": (register("timer", params={"every": job_pb2.Value(integer=-I64)}), FIELD),
    "timer-at-the-end": (register("timer", params={"at": job_pb2.Value(integer=I64)}), FINE),
    "process-0": (register("process", params={"pid": job_pb2.Value(integer=0)}), FIELD),
    "process-none": (
        register("process", params={"pid": job_pb2.Value(integer=4_194_304)}),
        (Code.NOT_FOUND, "PROCESS_GONE"),
    ),
    "bind": ({"bind": session_pb2.Bind(job=U64, cursor=cursor(U64, U64), time_ns=-1)}, UNKNOWN),
    "unbind": ({"unbind": session_pb2.Unbind(binding=U64)}, UNKNOWN),
    "unbind-0": ({"unbind": session_pb2.Unbind()}, UNKNOWN),
    "start": ({"start": session_pb2.Start(job=U64)}, UNKNOWN),
    "stop": ({"stop": session_pb2.Stop(job=1 << 63)}, UNKNOWN),
    "shutdown": ({"shutdown": session_pb2.Shutdown(job=0, deadline_ns=-1)}, UNKNOWN),
    "set_priority": ({"set_priority": session_pb2.SetPriority(job=U64, priority=U32)}, UNKNOWN),
    "grant": ({"grant": session_pb2.Grant(binding=U64)}, UNKNOWN),
    "grant-session": ({"grant": session_pb2.Grant(credit=credit(U64))}, FINE),
    "ack": ({"ack": session_pb2.Ack(binding=U64, cursor=cursor(1, 1))}, UNKNOWN),
    "complete": ({"complete": session_pb2.Complete(binding=0)}, UNKNOWN),
    "nack": ({"nack": session_pb2.Nack(binding=1 << 63)}, UNKNOWN),
    "nack-delay": ({"nack": session_pb2.Nack(binding=1, delay_ns=-1)}, FIELD),
    "op": ({"op": session_pb2.Op(job=U64)}, UNKNOWN),
    "raise-nowhere": (raised(""), FIELD),
    "raise-nothing": (raised(payloads=[]), FIELD),
    "raise-too-much": (raised(payloads=[b"x" * (MIB // 2)]), FIELD),
    "raise-too-many": (raised(payloads=[b""] * 500_000), FIELD),
    "sync": ({"sync": session_pb2.Sync(jobs=[U64])}, UNKNOWN),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_request_with_an_absurd_value_gets_its_result_and_nothing_else(client, witness, name):
    frame, (code, reason) = REQUESTS[name]
    session = client.session()
    answer = session.ask(**frame)
    status = answer.result.status
    assert (status.code, reason_of(status)) == (code, reason)
    assert bool(status.message) == (code != Code.OK)
    assert len(status.message) < 4_096
    assert session.ask(**raised("nobody")).result.status.code == 0, "the session goes on"


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        ({"ack": session_pb2.Ack(binding=1, cursor=cursor(1, 2))}, FIELD),
        ({"ack": session_pb2.Ack(binding=1, cursor=cursor(1, U64))}, FIELD),
        ({"ack": session_pb2.Ack(binding=1, cursor=cursor(0, 1))}, FIELD),
        ({"ack": session_pb2.Ack(binding=1, cursor=cursor(U64, 1))}, FIELD),
        ({"ack": session_pb2.Ack(binding=1)}, FIELD),
        ({"complete": session_pb2.Complete(binding=1, cursor=cursor(1, 7))}, FIELD),
        ({"complete": session_pb2.Complete(binding=1)}, FIELD),
        ({"nack": session_pb2.Nack(binding=1, cursor=cursor(1, 1), delay_ns=I64)}, FIELD),
        ({"nack": session_pb2.Nack(binding=1, cursor=cursor(1, 1), delay_ns=-I64)}, FIELD),
        ({"nack": session_pb2.Nack(binding=1, cursor=cursor(1, 0))}, (9, "NOT_IN_FLIGHT")),
        ({"grant": session_pb2.Grant(binding=1, credit=credit(U64))}, FINE),
    ],
)
def test_answer_to_what_was_not_delivered_changes_nothing(client, witness, frame, expected):
    session = client.session()
    job = session.register("user", channel="c").job
    session.ask(**raised(payloads=[b"kept"]))
    run, seq, _ = session.events()[0]
    status = session.ask(**frame).result.status
    assert (status.code, reason_of(status)) == expected
    stats = next(each.stats for each in client.jobs() if each.id == job)
    assert (stats.in_flight, stats.acknowledged) == (1, 0)
    done = session_pb2.Complete(binding=run.binding, cursor=cursor(run.epoch, seq))
    assert session.ask(complete=done).result.status.code == 0
    again = session.ask(complete=done).result.status
    assert (again.code, reason_of(again)) == (9, "NOT_IN_FLIGHT")


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (lambda job: {"shutdown": session_pb2.Shutdown(job=job, deadline_ns=-1)}, FIELD),
        (lambda job: {"shutdown": session_pb2.Shutdown(job=job, deadline_ns=I64)}, FIELD),
        (lambda job: {"set_priority": session_pb2.SetPriority(job=job, priority=99)}, FIELD),
        (lambda job: {"op": session_pb2.Op(job=job)}, FIELD),
        (lambda job: {"bind": session_pb2.Bind(job=job, role=99)}, (9, "NOT_DURABLE")),
    ],
)
def test_absurd_change_of_a_job_leaves_it_as_it_was(client, witness, frame, expected):
    session = client.session()
    job = session.register("user", channel="c").job
    status = session.ask(**frame(job)).result.status
    assert (status.code, reason_of(status)) == expected
    session.ask(**raised(payloads=[b"on"]))
    assert session.events()[0][2].user.payload == b"on"


def test_hello_with_ten_thousand_bindings_that_never_were(client, witness):
    position = [session_pb2.Position(binding=n, cursor=cursor(U64, U64)) for n in range(10_000)]
    welcome = client.raw().hello(resume_token=b"x" * 500_000, received=position, credit=credit(U64))
    assert not welcome.resumed


def test_resume_from_positions_that_never_were_keeps_what_is_real(client, witness):
    lost = client.session()
    binding = lost.register("user", channel="c").binding
    lost.ask(**raised(payloads=[b"1"]))
    lost.cancel()
    position = [session_pb2.Position(binding=n, cursor=cursor(U64, U64)) for n in range(100)]
    back = client.raw()
    welcome = back.hello(resume_token=lost.welcome.resume_token, received=position)
    assert welcome.resumed
    assert list(welcome.bindings) == [binding]


@pytest.mark.parametrize("hello", [{"label": "x" * 1_000_000}, {"sdk": "\u00e4" * 200}])
def test_hello_with_an_endless_name_is_refused(client, witness, hello):
    session = client.raw()
    session.send(hello=session_pb2.Hello(version_min=1, version_max=1, **hello))
    code, text = session.end()
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "at most 256" in text


def test_bundle_of_half_a_million_empty_frames_is_malformed(client, witness):
    session = client.session()
    session.send_bytes(b"\xca\x01\xfc\xf0\x3e" + b"\x0a\x00" * 515_134)
    code, text = session.end()
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "bundle" in text


# Unary calls.


def refusal(client, method, message):
    """(code, reason) of a refused unary call with these bytes."""
    rpc = client.channel.unary_unary(f"/aem.v1.{method}")
    with pytest.raises(grpc.RpcError) as caught:
        rpc(message, timeout=PATIENCE)
    assert len(caught.value.details()) < 4_096
    for key, encoded in caught.value.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            return caught.value.code(), reason_of(status_pb2.Status.FromString(encoded))
    return caught.value.code(), None


NAMES = [
    "",
    "jobs",
    "jobs/",
    "jobs/x y",
    "jobs/-1",
    "jobs/1/2",
    "jobs/\u0661",
    "sessions/1",
    "jobs/" + "9" * 400,
]
NAMED = {
    "JobService/GetJob": job_pb2.GetJobRequest,
    "JobService/StartJob": job_pb2.StartJobRequest,
    "JobService/StopJob": job_pb2.StopJobRequest,
    "JobService/ShutdownJob": job_pb2.ShutdownJobRequest,
}


@pytest.mark.parametrize("method", NAMED)
def test_name_that_is_none_is_said_in_every_method(client, witness, method):
    for name in [*NAMES, "jobs/" + "\u00e9" * 5_000, "jobs/" + "\U0001f980" * 100_000]:
        message = NAMED[method](name=name).SerializeToString()
        assert refusal(client, method, message) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"), name
    message = NAMED[method](name=f"jobs/{U64}").SerializeToString()
    assert refusal(client, method, message) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")


@pytest.mark.parametrize(
    ("method", "request_", "code", "reason"),
    [
        ("JobService/ListJobs", job_pb2.ListJobsRequest(page_size=-1), "INVALID_ARGUMENT", "INVALID_FIELD"),
        (
            "JobService/ListJobs",
            job_pb2.ListJobsRequest(page_token="%%%"),
            "INVALID_ARGUMENT",
            "INVALID_FIELD",
        ),
        (
            "AdminService/ListSessions",
            admin_pb2.ListSessionsRequest(page_token="LTE="),
            "INVALID_ARGUMENT",
            "INVALID_FIELD",
        ),
        (
            "AdminService/EndSession",
            admin_pb2.EndSessionRequest(name=f"sessions/{U64}"),
            "NOT_FOUND",
            "NOT_FOUND",
        ),
        (
            "ModuleService/GetModule",
            module_pb2.GetModuleRequest(name="modules/" + "\u00e9" * 9_000),
            "NOT_FOUND",
            "MODULE_UNKNOWN",
        ),
        (
            "ModuleService/UnloadModule",
            module_pb2.UnloadModuleRequest(name="modules/../x"),
            "INVALID_ARGUMENT",
            "INVALID_FIELD",
        ),
        (
            "ModuleService/LoadModule",
            module_pb2.LoadModuleRequest(name="modules/os"),
            "NOT_FOUND",
            "MODULE_UNKNOWN",
        ),
        ("AdminService/GetStatuses", admin_pb2.GetStatusRequest(), "UNIMPLEMENTED", None),
    ],
)
def test_absurd_unary_request_is_refused_with_its_reason(client, witness, method, request_, code, reason):
    assert refusal(client, method, request_.SerializeToString()) == (grpc.StatusCode[code], reason)


def test_largest_page_and_unknown_filters_are_no_fault(client, witness):
    request = job_pb2.ListJobsRequest(page_size=(1 << 31) - 1, state=99, module="none")
    assert not client.call("JobService/ListJobs", request, job_pb2.ListJobsResponse).jobs


def test_unary_request_that_is_no_message_or_too_large(client, witness):
    garbage = refusal(client, "JobService/GetJob", b"\xff" * 100)
    assert garbage == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED")
    large = refusal(client, "JobService/GetJob", b"\x0a\x80\x80\x80\x01" + b"x" * (2 * MIB))
    assert large[0] == grpc.StatusCode.RESOURCE_EXHAUSTED


# Any.


@pytest.mark.parametrize("seed", range(12))
def test_hundred_frames_of_any_kind_to_a_real_daemon(client, seed):
    """tests/fuzz/test_session.py, with the sockets: what ends a session says so. One user's frames may hit
    jobs of all his sessions, so the other client's begins afterwards.
    """
    other = client.session()
    session = client.session()
    for number in range(100):
        rng = random.Random(seed * 1_000 + number)
        session.send_bytes(session_frames.message(rng, number + 1)[0])
    session.half_close()
    code, _ = session.end()
    assert code in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT)
    other.register("user", channel="other")
    other.ask(**raised("other", [b"on"]))
    assert other.events()[0][2].user.payload == b"on"
