import json
import os
import subprocess
import sys

from aemd.service import log


def test_line_reaches_its_reader():
    reader, writer = os.pipe()
    log.Stderr(writer).msg("hello")
    assert os.read(reader, 100) == b"hello\n"
    os.close(reader)
    os.close(writer)


def test_full_pipe_drops_lines_instead_of_waiting_and_says_so_later():
    reader, writer = os.pipe()
    stderr = log.Stderr(writer)
    while not stderr.dropped:
        stderr.msg("x" * 4_000)
    stderr.msg("lost too")
    assert stderr.dropped == 2
    drained = 0
    while drained < 61_440:
        drained += len(os.read(reader, 65_536))
    stderr.msg("last")
    rest = b""
    while not rest.endswith(b"last\n"):
        rest += os.read(reader, 65_536)
    assert b"(2 lines dropped)\nlast\n" in rest
    assert stderr.dropped == 0
    os.close(reader)
    os.close(writer)


def test_nobody_at_the_other_end_is_no_fault():
    reader, writer = os.pipe()
    os.close(reader)
    log.Stderr(writer).msg("hello")
    os.close(writer)


def logged(program, **environment):
    done = subprocess.run(
        [sys.executable, "-c", f"from aemd.service import log\nlog.configure('info')\n{program}"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr


def test_without_a_terminal_each_line_is_json():
    line = json.loads(logged("log.get().error('it broke', job=7)"))
    assert (line["event"], line["level"], line["job"]) == ("it broke", "error", 7)


def test_below_the_level_nothing_is_written():
    assert logged("log.get().debug('detail')") == ""


def test_under_journald_lines_begin_with_their_priority():
    program = (
        "import os\nstatus = os.fstat(2)\n"
        "os.environ['JOURNAL_STREAM'] = f'{status.st_dev}:{status.st_ino}'\n"
        "log.configure('info')\n"
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    log.get().exception('it broke', job=7)"
    )
    text = logged(program)
    assert text.startswith('<3>event="it broke" job=7')
    assert text.count("\n") == 1
