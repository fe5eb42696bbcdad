"""One client among many that does not read: what the others get, and what it costs them, is counted."""

from collections import Counter

import pytest

from aemd.core.limits import BATCH_BYTES_MAX, WINDOW_BYTES
from aemd.v1 import job_pb2, session_pb2

CLIENTS = 100
ROUNDS = 120
PER_ROUND = 4
PAYLOAD = bytes(1_000)
DEPTH = 400  # a stream takes 256 such payloads ahead, a binding gives credit for 128
CHANNEL = job_pb2.Value(text="c")
LOTS = job_pb2.Credit(events=1 << 30, bytes=1 << 40)


class Crowd:
    """Clients that listen to one channel; the first of them may stop doing its part."""

    def __init__(self, bench, *, credit=None):
        self.bench = bench
        self.collected = Counter()
        self._collect, bench.daemon.engine.collect = bench.daemon.engine.collect, self.collect
        self.speaker = bench.session()
        self.wires = [bench.session(credit=LOTS) for _ in range(CLIENTS)]
        for wire in self.wires:
            options = job_pb2.Options(queue_depth=DEPTH)
            register = session_pb2.Register(
                module="user", params={"channel": CHANNEL}, options=options, credit=credit, start=True
            )
            assert wire.ask(register=register).job
        self.batches = [0] * CLIENTS
        self.events = [0] * CLIENTS

    def collect(self, session, *more):
        """Counts how often the engine was asked, for whom."""
        self.collected[session.id] += 1
        return self._collect(session, *more)

    def play(self, *, stalled, rounds=ROUNDS):
        """Events for everybody; who is not stalled reads and acknowledges. What that took for the others."""
        self.collected.clear()
        turns = self.bench.daemon.loop.turns
        self.batches, self.events = [0] * CLIENTS, [0] * CLIENTS
        for _ in range(rounds):
            self.speaker.say(**{"raise": session_pb2.Raise(channel="c", payloads=[PAYLOAD] * PER_ROUND)})
            self.bench.turn()
            for number, wire in enumerate(self.wires):
                if number or not stalled:
                    self.read(number, wire)
            self.bench.turn()
        not_others = (self.session.id, self.speaker.handler.session.id)
        return {
            "turns": self.bench.daemon.loop.turns - turns,
            "asked": sum(count for number, count in self.collected.items() if number not in not_others),
            "batches": self.batches[1:],
            "events": self.events[1:],
        }

    def read(self, number, wire):
        for frame in wire.told():
            self.batches[number] += bool(frame.batch.runs)
            for run in frame.batch.runs:
                self.events[number] += len(run.events)
                seq = run.first_seq + len(run.events) - 1
                cursor = job_pb2.Cursor(epoch=1, seq=seq)
                size = sum(map(len, run.events))
                credit = job_pb2.Credit(events=len(run.events), bytes=size)
                wire.say(ack=session_pb2.Ack(binding=run.binding, cursor=cursor))
                wire.say(grant=session_pb2.Grant(binding=run.binding, credit=credit))
        wire.stream.room = WINDOW_BYTES

    @property
    def session(self):
        """That of the first."""
        return self.wires[0].handler.session


@pytest.mark.parametrize("credit", [None, LOTS], ids=["credit", "window"])
def test_stalled_client_changes_nothing_for_the_others_and_costs_nothing(make_bench, credit):
    """It is stopped by its credit, or, where it gave enough of that, by the window of its stream."""
    crowd = Crowd(make_bench(), credit=credit)
    healthy = crowd.play(stalled=False)
    assert set(healthy["events"]) == {ROUNDS * PER_ROUND}
    stalling = crowd.play(stalled=True)
    assert stalling == healthy
    stalled = crowd.play(stalled=True)
    assert stalled == healthy
    assert crowd.collected[crowd.session.id] == 0
    (binding,) = crowd.session.bindings.values()
    assert binding.depth <= DEPTH
    assert crowd.session.queued_bytes <= DEPTH * 2 * len(PAYLOAD)
    told = sum(frame.ByteSize() for frame in crowd.wires[0].frames)
    assert told <= WINDOW_BYTES + BATCH_BYTES_MAX
