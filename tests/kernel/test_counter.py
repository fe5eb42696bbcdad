"""The module that is no part of the project, against a real FIFO: the contract suffices."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from google.protobuf import struct_pb2

from aemd.core.errors import AemError
from aemd.modules.contract import Module
from aemd.modules.params import parse_values
from aemd.service.registry import Registry
from aemd.v1 import job_pb2
from tests.kernel.conftest import FakeHost, principal
from tests.packages.install import install


@pytest.fixture
def counter(host: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Module:
    monkeypatch.syspath_prepend(str(tmp_path))
    install("aemd-module-counter", tmp_path)
    registry = Registry(host)
    yield registry.load("counter")
    registry.unload("counter")
    assert "aemd_module_counter" not in sys.modules


def test_bytes_written_to_a_fifo_are_counted(host, counter, tmp_path):
    path = tmp_path / "lines"
    os.mkfifo(path)
    values = parse_values(
        counter.description.parameters, {"path": job_pb2.Value(text=str(path))}, host.limits
    )
    job = host.job(values)
    counter.open(job)
    counter.start(job)
    for line in ("one\n", "three\n"):
        path.write_text(line)
        host.wait_for(len(host.fired) + 1)
    told = []
    for fired in host.fired:
        struct = struct_pb2.Struct()
        assert fired.event.any.Unpack(struct)
        told.append(dict(struct))
    assert told == [{"bytes": 4, "total": 4}, {"bytes": 6, "total": 10}]
    counter.close(job)


def test_what_is_no_fifo_and_who_has_no_right_is_refused(host, counter, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(AemError, match="no FIFO"):
        counter.open(host.job({"path": os.fsencode(tmp_path / "file")}))
    with pytest.raises(AemError, match="not allowed"):
        counter.open(host.job({"path": b"/x"}, owner=principal(1000)))
