"""Parameters, options, errors, addresses, and the examples in docstrings."""

import doctest
import pickle

import aem
import aem._channel
import aem._commands
import grpc
import pytest
from aem._handling import outcome_of, outcome_of_exception, summary
from aem.errors import from_rpc
from aem.options import values_of
from aem.v1 import job_pb2
from google.rpc import error_details_pb2, status_pb2


@pytest.mark.parametrize("module", [aem._channel, aem._commands, aem.errors, aem.options])
def test_examples_in_docstrings_hold(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_parameters_of_every_kind():
    values = values_of({"a": "t", "b": 3, "c": True, "d": 0.5, "e": b"x", "f": ["p", 4]})
    assert [value.WhichOneof("kind") for value in values.values()] == [
        "text",
        "integer",
        "truth",
        "number",
        "data",
        "list",
    ]
    assert values["c"].truth is True
    assert [item.WhichOneof("kind") for item in values["f"].list.values] == ["text", "integer"]


@pytest.mark.parametrize("value", [None, {"a": 1}, [[1]], object(), 1 << 63])
def test_parameter_of_another_kind_is_named(value):
    with pytest.raises(TypeError, match="parameter every"):
        values_of({"every": value})


def test_options_go_over_the_wire():
    options = aem.Options(
        one_shot=True,
        priority=0,
        queue_depth=5,
        overflow=aem.Overflow.LATEST,
        acknowledgement=aem.Acknowledgement.NONE,
        lease_ns=7,
    ).message()
    assert options.HasField("priority")
    assert options.overflow == job_pb2.OVERFLOW_LATEST
    assert options.acknowledgement == job_pb2.ACKNOWLEDGEMENT_NONE
    assert not aem.Options().message().HasField("priority")


class Refusal(grpc.RpcError):
    def __init__(self, code, details, trailers=()):
        self._answers = (code, details, trailers)

    def code(self):
        return self._answers[0]

    def details(self):
        return self._answers[1]

    def trailing_metadata(self):
        return self._answers[2]


def test_error_of_a_call_has_reason_and_facts():
    status = status_pb2.Status(code=8, message="too many jobs")
    info = error_details_pb2.ErrorInfo(reason="LIMIT_REACHED", domain="aemd", metadata={"limit": "5"})
    status.details.add().Pack(info)
    trailers = (("grpc-status-details-bin", status.SerializeToString()),)
    error = from_rpc(Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many jobs", trailers))
    assert (error.code, error.reason, error.metadata) == (
        aem.Code.RESOURCE_EXHAUSTED,
        "LIMIT_REACHED",
        {"limit": "5"},
    )
    assert str(error) == "too many jobs"
    again = pickle.loads(pickle.dumps(error))
    assert (again.code, again.reason, again.message) == (error.code, error.reason, error.message)


def test_unavailable_is_a_lost_connection():
    error = from_rpc(Refusal(grpc.StatusCode.UNAVAILABLE, "no one there"))
    assert isinstance(error, aem.ConnectionLost)
    assert not isinstance(from_rpc(Refusal(grpc.StatusCode.NOT_FOUND, "")), aem.ConnectionLost)


def test_address_is_found_in_order(tmp_path):
    (tmp_path / "aemd").mkdir()
    find = aem._channel.find_address
    runtime = {"XDG_RUNTIME_DIR": str(tmp_path)}
    assert find(None, runtime) == "unix:/run/aemd/aemd.sock"
    (tmp_path / "aemd" / "aemd.sock").touch()
    assert find(None, runtime) == f"unix:{tmp_path}/aemd/aemd.sock"
    assert find(None, {**runtime, "AEMD_ADDRESS": "unix:/x"}) == "unix:/x"
    assert find("unix:/y", {"AEMD_ADDRESS": "unix:/x"}) == "unix:/y"


def test_idle_clients_ping_more_rarely_than_the_daemon_tolerates():
    tolerated_ms = 10_000  # aemd/front/server.py
    assert dict(aem._channel.OPTIONS)["grpc.keepalive_time_ms"] > tolerated_ms


def test_what_a_handler_returns():
    assert outcome_of(None).reply is None
    assert outcome_of(b"x").reply == aem.Reply("write", "x")
    assert outcome_of(bytearray(b"x")).reply.data == b"x"
    assert outcome_of(aem.Reply("close")).reply.operation == "close"
    with pytest.raises(TypeError, match="not int"):
        outcome_of(3)


def test_what_a_handler_raises():
    retry = outcome_of_exception(aem.Retry(0.5, "later")).nack
    assert (retry.delay_ns, retry.park, retry.reason) == (500_000_000, False, "later")
    assert outcome_of_exception(aem.Park("poison")).nack.park
    assert outcome_of_exception(KeyError("k")).error == "KeyError: 'k'"
    assert summary(ValueError()) == "ValueError"
    assert len(summary(ValueError("x" * 10_000))) == 1_000
