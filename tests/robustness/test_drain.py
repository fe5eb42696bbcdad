"""SIGTERM under load: what was accepted is answered, everybody is told, and the daemon ends in time."""

import contextlib
import signal
import threading

import grpc

from aemd.v1 import job_pb2, session_pb2

WORK = 500
CROWD = 20


def test_work_in_flight_is_answered_while_others_flood(daemon):
    with daemon.client() as client, daemon.client() as loud:
        session = client.session()
        credit = job_pb2.Credit(events=WORK, bytes=1 << 20)
        options = {"acknowledgement": job_pb2.ACKNOWLEDGEMENT_EXPLICIT}
        session.register("user", channel="work", options=options, credit=credit)
        session.send(**{"raise": session_pb2.Raise(channel="work", payloads=[b"x"] * WORK)})
        work = 0
        while work < WORK:
            work += len(session.events())
        crowd = [loud.session() for _ in range(CROWD)]
        for each in crowd:
            each.register("timer", every="1ms")
        stop = threading.Event()
        floods = [threading.Thread(target=flood, args=(each, stop)) for each in crowd[:3]]
        for thread in floods:
            thread.start()
        daemon.signal(signal.SIGTERM)
        session.skip_to("drain")
        for number in range(1, WORK + 1):
            cursor = job_pb2.Cursor(epoch=1, seq=number)
            session.send(10_000 + number, complete=session_pb2.Complete(binding=1, cursor=cursor))
        answered = {}
        with contextlib.suppress(grpc.RpcError):
            while (frame := session.next()) is not None:
                if frame.request_id > 10_000:
                    answered[frame.request_id] = frame.result.status.code
        assert answered == {10_000 + number: 0 for number in range(1, WORK + 1)}
        for each in crowd:
            each.skip_to("drain")
            assert each.end()[0] == grpc.StatusCode.UNAVAILABLE
        assert daemon.process.wait(5) == 0
        stop.set()
        for thread in floods:
            thread.join()


def flood(session, stop):
    """Raise on, whether anybody listens or not, until the daemon is gone."""
    while not stop.is_set():
        session.send(**{"raise": session_pb2.Raise(channel="noise", payloads=[b"x"] * 100)})
        stop.wait(0.001)  # what the daemon does not read waits here, without a bound
