"""A tape in a real memfd: what was committed is read again, whatever else is there."""

import errno
import os
import resource

import pytest

from aemd.store import tape as tapes
from aemd.store.tape import FREE_BYTES, RECORDS_AT, Header, Tape, TapeError, framed

RECORDS = [b"", b"one", bytes(range(256)) * 5, b"last"]


@pytest.fixture
def tape():
    tape = Tape.create()
    yield tape
    tape.close()


def commit(tape, begin=None):
    header = tape.header
    tape.commit(Header(header.begin if begin is None else begin, tape.end, 7, 3))


def read(tape):
    return [record for record, _ in tape.records(tape.header.begin, tape.header.end)]


def again(tape):
    """As the next daemon finds it."""
    return Tape(os.dup(tape.fd))


def test_records_come_back_in_order_with_the_header(tape):
    tape.write(b"".join(map(framed, RECORDS)))
    commit(tape)
    found = again(tape)
    assert read(found) == RECORDS
    assert (found.header.next_job, found.header.next_session, found.header.tries) == (7, 3, 0)
    found.close()


def test_what_was_not_committed_is_never_read_wherever_it_was_torn(tape):
    tape.write(framed(b"kept"))
    commit(tape)
    end = tape.header.end
    for size in range(len(torn := b"".join(map(framed, RECORDS))) + 1):
        os.ftruncate(tape.fd, end)
        os.pwrite(tape.fd, torn[:size], end)
        found = again(tape)
        assert read(found) == [b"kept"]
        found.write(framed(b"behind"))  # over what was torn
        commit(found)
        assert read(found) == [b"kept", b"behind"]
        found.close()
        tape.commit(Header(RECORDS_AT, end, 7, 3))


def test_a_file_that_is_cut_at_any_byte_is_an_error_and_no_more(tape):
    tape.write(b"".join(map(framed, RECORDS)))
    commit(tape)
    for size in range(tape.header.end):
        os.ftruncate(tape.fd, size)
        with pytest.raises(TapeError):
            read(Tape(tape.fd))
        os.ftruncate(tape.fd, tape.header.end)


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (b"", "has 0 bytes"),
        (tapes._pack(Header())[:-1], "has 47 bytes"),
        (b"x" * 48, "no tape"),
        (tapes._HEADER.pack(tapes.MAGIC, 9, 0, RECORDS_AT, RECORDS_AT, 1, 1), "version 9"),
        (tapes._pack(Header(begin=0)), "from 0"),
        (tapes._pack(Header(begin=RECORDS_AT + 8)), f"from {RECORDS_AT + 8}"),
        (tapes._pack(Header(end=1 << 40)), f"to {1 << 40}"),
        (tapes._pack(Header(next_job=0)), "next numbers"),
        (tapes._pack(Header(next_session=1 << 63)), "next numbers"),
    ],
)
def test_what_is_no_header_is_an_error_that_says_why(tape, header, told):
    os.ftruncate(tape.fd, 0)
    os.pwrite(tape.fd, header, 0)
    with pytest.raises(TapeError, match=told):
        Tape(tape.fd)


@pytest.mark.parametrize("rest", [b"\1", b"\0\0\0", (1 << 31).to_bytes(4, "little"), b"\1\0\0\0"])
def test_what_is_no_record_is_an_error_that_says_where(tape, rest):
    tape.write(framed(b"good") + rest)
    commit(tape)
    with pytest.raises(TapeError, match=f"bytes at {RECORDS_AT + 8} "):
        read(tape)


@pytest.mark.parametrize("before", [0, 1, tapes.READ_BYTES - 6, tapes.READ_BYTES - 8])
def test_a_record_larger_than_one_read_is_read_wherever_it_begins(tape, before):
    first, large = b"a" * before, os.urandom(3 * tapes.READ_BYTES)
    tape.write(framed(large) + framed(first) + framed(large) + framed(b"z"))
    commit(tape)
    assert read(tape) == [large, first, large, b"z"]


def test_memory_before_the_first_record_is_given_back(tape):
    piece = framed(b"x" * 65_532)
    for _ in range(20 * FREE_BYTES // len(piece)):
        tape.write(piece)
        commit(tape, begin=tape.end - len(piece))
        assert os.fstat(tape.fd).st_blocks * 512 <= 2 * FREE_BYTES + 2 * len(piece)
    assert read(tape) == [b"x" * 65_532]
    found = again(tape)
    found.write(piece)
    commit(found, begin=found.end - len(piece))
    assert os.fstat(tape.fd).st_size > 19 * FREE_BYTES
    assert read(found) == [b"x" * 65_532]
    found.close()


def test_a_tape_cannot_be_executed_where_the_kernel_can_say_so(tape):
    try:
        os.close(os.memfd_create("test", tapes.MFD_NOEXEC_SEAL))
    except OSError:
        pytest.skip("needs Linux 6.3: MFD_NOEXEC_SEAL")
    assert os.fstat(tape.fd).st_mode & 0o111 == 0


def test_no_room_is_an_error_and_what_was_committed_stays(tape):
    tape.write(framed(b"kept"))
    commit(tape)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (tape.end + 2, before[1]))
    try:
        with pytest.raises(OSError) as raised:
            tape.write(framed(b"too much"))
        with pytest.raises(OSError):
            tape.write(framed(b"too much"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert raised.value.errno in (errno.ENOSPC, errno.EFBIG)
    found = again(tape)
    assert read(found) == [b"kept"]
    found.close()
