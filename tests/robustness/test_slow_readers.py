"""A client that never reads costs a bounded amount of memory, and delays nobody."""

import subprocess
import sys

from aemd.core.limits import BATCH_BYTES_MAX, WINDOW_BYTES, Limits
from aemd.v1 import job_pb2, session_pb2

PAYLOAD_BYTES = 48 * 1024
ROUNDS = 250
PER_ROUND = 8
DEAF_JOBS = 8
MIB = 1 << 20
LIMITS = Limits()

# It asks for everything there is, reads until all its jobs are registered, and then reads no more.
DEAF = """
import sys, threading, grpc
from aemd.v1 import job_pb2, session_pb2
F, lots = session_pb2.ClientFrame, job_pb2.Credit(events=1 << 39, bytes=1 << 39)
def frames():
    yield F(hello=session_pb2.Hello(version_min=1, version_max=1, credit=lots))
    for number in range(1, int(sys.argv[2]) + 1):
        acknowledgement = 3 if number % 2 else 1
        options = job_pb2.Options(acknowledgement=acknowledgement)
        register = session_pb2.Register(module="user", start=True, options=options, credit=lots)
        register.params["channel"].text = "loud"
        yield F(request_id=number, register=register)
    threading.Event().wait()
call = grpc.insecure_channel("unix:" + sys.argv[1]).stream_stream(
    "/aem.v1.EventService/Session",
    request_serializer=F.SerializeToString,
    response_deserializer=session_pb2.ServerFrame.FromString)(frames())
left = int(sys.argv[2])
while left:
    frame = next(call)
    for each in frame.bundle.frames if frame.HasField("bundle") else (frame,):
        left -= each.HasField("registered")
print("deaf", flush=True)
sys.stdin.read()
"""


def test_client_that_never_reads_delays_nobody_and_memory_stays_bounded(daemon, client, footprint):
    listener, speaker = client.session(), client.session()
    credit = job_pb2.Credit(events=1 << 39, bytes=1 << 39)
    binding = listener.register("user", channel="loud", credit=credit).binding
    listener.send(grant=session_pb2.Grant(credit=credit))
    sent = 0

    def play(rounds):
        nonlocal sent
        for _ in range(rounds):
            payloads = [b"%08d" % (sent + n) + bytes(PAYLOAD_BYTES) for n in range(PER_ROUND)]
            speaker.send(**{"raise": session_pb2.Raise(channel="loud", payloads=payloads)})
            got = []
            while len(got) < PER_ROUND:
                got += [(seq, event.user.payload[:8]) for _, seq, event in listener.events()]
            assert got == [(sent + n + 1, b"%08d" % (sent + n)) for n in range(PER_ROUND)]
            sent += PER_ROUND
            listener.send(
                ack=session_pb2.Ack(binding=binding, cursor=job_pb2.Cursor(epoch=1, seq=sent)),
            )

    command = [sys.executable, "-c", DEAF, daemon.path, str(DEAF_JOBS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as deaf:
        assert deaf.stdout.readline() == "deaf\n"
        play(5)
        core_before, fronts_before = footprint.resident_bytes()
        play(ROUNDS)
        core, fronts = footprint.resident_bytes()
        deaf.kill()
    assert core - core_before < core_bound(), (core_before, core)
    assert fronts - fronts_before < fronts_bound(), (fronts_before, fronts)


def core_bound():
    """What the deaf client's queues may hold, and its stream's window; the rest is the allocator's slack."""
    return DEAF_JOBS * LIMITS.queue_bytes + WINDOW_BYTES + BATCH_BYTES_MAX + LIMITS.control_bytes + 16 * MIB


def fronts_bound():
    """A window on its way, and what grpc takes for a client that does not read, about 4 MiB."""
    return WINDOW_BYTES + BATCH_BYTES_MAX + 4 * MIB + 16 * MIB
