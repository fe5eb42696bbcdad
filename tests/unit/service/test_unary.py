import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aemd.core.errors import AemError, Code, not_found
from aemd.service import unary
from aemd.v1 import job_pb2


class FakeStream:
    def __init__(self, method="/aem.v1.JobService/GetJob"):
        self.method = method
        self.principal = "somebody"
        self.sent = []
        self.ended = None
        self.taken = 0

    def consumed(self, size):
        self.taken += size

    def send(self, message):
        assert self.ended is None
        self.sent.append(message)

    def end(self, code, message="", status=b""):
        assert self.ended is None
        self.ended = (code, message)


def call(answer, *messages):
    stream = FakeStream()
    handler = unary.UnaryCall(
        stream, unary.method(job_pb2.GetJobRequest, answer), run=lambda _size_bytes, work: work()
    )
    for message in messages:
        handler.data(message)
    handler.half_closed()
    return stream


def test_answer_and_ok_follow_the_request():
    request = job_pb2.GetJobRequest(name="jobs/7").SerializeToString()
    stream = call(lambda principal, request: job_pb2.Job(name=request.name, label=principal), request)
    assert job_pb2.Job.FromString(stream.sent[0]) == job_pb2.Job(name="jobs/7", label="somebody")
    assert stream.ended[0] == Code.OK
    assert stream.taken == len(request)


def test_refusal_ends_the_call_with_its_code():
    def answer(principal, request):
        raise not_found("jobs/7")

    assert call(answer, b"").ended == (Code.NOT_FOUND, "jobs/7: not found")


def test_fault_is_internal_and_tells_nothing():
    def answer(principal, request):
        raise RuntimeError("/home/somebody/secret")

    code, message = call(answer, b"").ended
    assert code == Code.INTERNAL
    assert "secret" not in message


def test_garbage_and_a_second_request_are_invalid():
    assert call(None, b"\xff\xff").ended[0] == Code.INVALID_ARGUMENT
    assert call(lambda *_: job_pb2.Job(), b"", b"").ended[0] == Code.INVALID_ARGUMENT


def test_unknown_method_is_unimplemented_whatever_follows():
    stream = FakeStream("/x.Y/Z")
    handler = unary.Unimplemented(stream)
    handler.data(b"abc")
    handler.half_closed()
    assert stream.ended[0] == Code.UNIMPLEMENTED
    assert "/x.Y/Z" in stream.ended[1]


@pytest.mark.parametrize("name", ["", "jobs", "jobs/", "job/1", "jobs/1/2", "jobs/x", "jobs/-1", "jobs/١"])
def test_wrong_resource_name_is_invalid(name):
    with pytest.raises(AemError) as caught:
        unary.resource_number("jobs", name)
    assert caught.value.code == Code.INVALID_ARGUMENT


@given(st.integers(0, 2**64 - 1))
def test_page_tokens_come_back(number):
    assert unary.page_number(unary.page_token(str(number))) == number


@given(st.text())
def test_any_page_token_is_read_or_refused(token):
    with contextlib.suppress(AemError):
        assert unary.page_number(token) >= 0


@pytest.mark.parametrize("token", ["%%%", "LTE=", "MTc", "MTc=\n", "MT c=", "\u0661"])
def test_page_token_that_nobody_made_is_refused(token):
    with pytest.raises(AemError):
        unary.page_number(token)


def test_page_size_has_a_default_and_a_maximum():
    assert [unary.page_size(n) for n in (0, 1, 5_000)] == [100, 1, 1_000]
    with pytest.raises(AemError):
        unary.page_size(-1)
