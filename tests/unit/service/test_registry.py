"""Modules are found, loaded, replaced with new code and removed, and a broken one harms nobody."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from aemd.core.errors import AemError, Code
from aemd.core.limits import Limits
from aemd.service.registry import Registry
from aemd.v1 import module_pb2
from tests.packages.install import install

HOST = SimpleNamespace(limits=Limits(), reactor=None)  # enough for modules without jobs


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages, in the path of this process."""
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0].startswith("aemd_module_")]:
        del sys.modules[name]


@pytest.fixture
def registry() -> Registry:
    return Registry(HOST)


def change(folder: Path, old: str, new: str) -> None:
    source = folder / "counter.py"
    text = source.read_text()
    assert old in text
    source.write_text(text.replace(old, new))


def add(site: Path, name: str, code: str, *, entry: str | None = None) -> None:
    """A distribution of one file that offers one module."""
    package = f"aemd_module_{name}"
    (site / f"{package}.py").write_text(code)
    info = site / f"{package}-1.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[aemd.modules]\n{entry or name} = {package}:Module\n")


def test_a_module_of_another_distribution_is_loaded_and_described(site: Path, registry: Registry) -> None:
    install("aemd-module-counter", site)
    module = registry.load("counter")
    assert registry.get("counter") is module
    described = registry.describe(module, jobs=3)
    assert described.name == "modules/counter"
    assert described.origin == "aemd-module-counter 1.0"
    assert described.delivery == module_pb2.DELIVERY_QUEUE
    assert described.payload_message == "google.protobuf.Struct"
    assert [parameter.name for parameter in described.parameters] == ["path"]
    assert described.parameters[0].required
    assert [event.name for event in described.events] == ["counted"]
    assert described.jobs == 3


def test_a_module_installed_after_the_first_scan_is_found(site: Path, registry: Registry) -> None:
    with pytest.raises(AemError, match="no event module 'counter' is installed"):
        registry.load("counter")
    install("aemd-module-counter", site)
    assert registry.load("counter").description.name == "counter"


def test_unload_and_load_run_the_code_that_is_on_disk_now(site: Path, registry: Registry) -> None:
    folder = install("aemd-module-counter", site)
    assert registry.load("counter").description.summary == "Bytes written to a FIFO"
    registry.unload("counter")
    assert not [name for name in sys.modules if name.startswith("aemd_module_counter")]
    folder = install("aemd-module-counter", site, version="2.0")
    change(folder, "Bytes written to a FIFO", "Octets that somebody wrote to a FIFO")
    module = registry.load("counter")
    described = registry.describe(module)
    assert described.summary == "Octets that somebody wrote to a FIFO"
    assert described.origin == "aemd-module-counter 2.0"


def test_load_of_a_loaded_module_replaces_it_and_shuts_the_old_one_down(
    site: Path, registry: Registry
) -> None:
    folder = install("aemd-module-counter", site)
    old = registry.load("counter")
    done: list[bool] = []
    old.shutdown = lambda: done.append(True)
    change(folder, "Bytes written to a FIFO", "Octets that somebody wrote to a FIFO")
    new = registry.load("counter")
    assert done == [True]
    assert registry.get("counter") is new
    assert type(new) is not type(old)


def test_new_code_that_does_not_import_leaves_the_old_module_in_place(site: Path, registry: Registry) -> None:
    folder = install("aemd-module-counter", site)
    old = registry.load("counter")
    code = sys.modules["aemd_module_counter.counter"]
    change(folder, "READ_BYTES = 65_536", "READ_BYTES = 65_536 oops and more")
    with pytest.raises(AemError, match="SyntaxError") as caught:
        registry.load("counter")
    assert caught.value.code is Code.FAILED_PRECONDITION
    assert caught.value.reason == "MODULE_BROKEN"
    assert registry.get("counter") is old
    assert sys.modules["aemd_module_counter.counter"] is code


def test_a_module_of_the_daemon_itself_is_read_from_disk_again(registry: Registry) -> None:
    old = registry.load("user")
    contract = sys.modules["aemd.modules.contract"]
    registry.unload("user")
    new = registry.load("user")
    assert type(new) is not type(old)
    assert sys.modules["aemd.modules.user"].User is type(new)
    assert sys.modules["aemd.modules.contract"] is contract


def test_load_all_leaves_out_and_logs_what_is_broken(site: Path, registry: Registry) -> None:
    install("aemd-module-counter", site)
    add(site, "broken", "raise RuntimeError('no such device')")
    add(site, "leaving", "raise SystemExit(3)")
    with capture_logs() as logs:
        registry.load_all()
    names = [module.description.name for module in registry]
    assert "counter" in names
    assert "user" in names
    assert "broken" not in names
    messages = {log["module"]: log for log in logs if log["event"] == "module not loaded"}
    assert "RuntimeError: no such device" in messages["broken"]["error"]
    assert "SystemExit" in messages["leaving"]["error"]


def test_an_unknown_module_is_not_found_and_the_error_says_what_there_is(registry: Registry) -> None:
    registry.load("user")
    with pytest.raises(AemError) as caught:
        registry.get("usr")
    assert caught.value.code is Code.NOT_FOUND
    assert caught.value.reason == "MODULE_UNKNOWN"
    assert "did you mean user?" in caught.value.message
    with pytest.raises(AemError):
        registry.unload("x" * 10_000)


def test_a_module_in_two_distributions_is_refused(site: Path, registry: Registry) -> None:
    install("aemd-module-counter", site)
    add(site, "other", "Module = object", entry="counter")
    with pytest.raises(AemError, match=r"aemd-module-counter 1\.0 and aemd_module_other 1") as caught:
        registry.load("counter")
    assert caught.value.reason == "MODULE_AMBIGUOUS"


def test_a_module_whose_shutdown_raises_is_gone_all_the_same(registry: Registry) -> None:
    module = registry.load("user")

    def fail() -> None:
        raise RuntimeError("stuck")

    module.shutdown = fail
    with capture_logs() as logs:
        registry.unload("user")
    assert "user" not in registry
    assert [log["event"] for log in logs] == ["module did not shut down"]


def test_close_shuts_every_module_down(registry: Registry) -> None:
    module = registry.load("user")
    done: list[bool] = []
    module.shutdown = lambda: done.append(True)
    registry.close()
    assert done == [True]
    assert not list(registry)
