"""What all sessions and calls of one user bring is dealt with as fast as it may be, and not refused."""

import pytest

from aemd.core.bucket import burst
from aemd.core.quota import Quota
from aemd.service import intake as module
from aemd.v1 import admin_pb2, session_pb2
from tests.unit.service.conftest import principal

SECOND = 1_000_000_000
USER, OTHER = 1000, 1001
STATUS = "/aem.v1.AdminService/GetStatus"


class Fixed:
    """Everybody has the same quota."""

    def __init__(self, **resources):
        self._answer = Quota(**resources), {}

    def quota(self, _principal):
        return self._answer


def requests(count, *, padding=0):
    """Requests that are each answered with an error."""
    unbind = session_pb2.Unbind(binding=99)
    frames = [session_pb2.ClientFrame(request_id=number, unbind=unbind) for number in range(1, count + 1)]
    if padding:
        frames[0] = session_pb2.ClientFrame(
            request_id=1, **{"raise": session_pb2.Raise(channel="nobody", payloads=[bytes(padding)])}
        )
    return frames


def answered(wire):
    return sum(bool(frame.request_id) for frame in wire.told())


@pytest.fixture
def bench(make_bench):
    return make_bench(quotas=Fixed(frames_per_second=100))


def test_sessions_of_one_user_share_a_rate_and_what_is_over_it_comes_later(bench):
    wires = [bench.session(caller=principal(USER)) for _ in range(3)]
    for wire in wires:
        for frame in requests(80):
            wire.say_bytes(frame.SerializeToString())
    bench.turn()
    early = sum(map(answered, wires))
    assert burst(100) - 10 <= early <= burst(100) + 10
    other = bench.session(caller=principal(OTHER))
    other.say_bundle(requests(50))
    bench.turn()
    assert answered(other) == 50
    taken = [early]
    bench.turn_until(lambda: taken.append(sum(map(answered, wires))) or sum(taken) == 240)
    assert all(wire.status is None for wire in wires)


def test_one_message_may_go_over_it_and_is_paid_for_by_the_next(bench):
    wire = bench.session(caller=principal(USER))
    wire.say_bundle(requests(250))
    wire.say_bytes(requests(1)[0].SerializeToString())
    bench.turn()
    assert answered(wire) == 250
    due_ns = bench.daemon.intake.due_ns(principal(USER)) - bench.daemon.loop.mono_ns()
    assert 0.9 * SECOND < due_ns < 1.1 * SECOND


def test_bytes_have_a_rate_too(make_bench):
    bench = make_bench(quotas=Fixed(bytes_per_second=100_000))
    wires = [bench.session(caller=principal(USER)) for _ in range(4)]
    for wire in wires:
        wire.say_bundle(requests(1, padding=60_000))
        wire.say_bundle(requests(1, padding=60_000))
    bench.turn()
    assert sum(map(answered, wires)) == 3
    assert bench.daemon.intake.due_ns(principal(OTHER)) == 0


def test_calls_count_as_frames_and_wait_like_them(bench):
    wires = [bench.wire(STATUS, caller=principal(USER)) for _ in range(200)]
    for wire in wires:
        wire.take = wire.frames.append
        wire.handler.data(admin_pb2.GetStatusRequest().SerializeToString())
        wire.handler.half_closed()
    bench.turn()
    early = sum(wire.status is not None for wire in wires)
    assert burst(100) - 10 <= early <= burst(100) + 10
    bench.turn_until(lambda: all(wire.status == (0, "") for wire in wires))


def test_users_who_are_forgotten_lose_no_more_than_a_piece(bench, monkeypatch):
    monkeypatch.setattr(module, "USERS_MAX", 2)
    for uid in range(10):
        assert bench.daemon.intake.due_ns(principal(uid)) == 0
    assert len(bench.daemon.intake._hands) <= 2
