"""The event modules that are loaded, and how one is put in another's place while the daemon runs.

Modules are found through the entry-point group `aemd.modules` of installed distributions; the daemon's own
come the same way. Every load scans anew, so a distribution that was installed a second ago is found, and
reads the module's code anew from disk:

- of somebody else's package, the whole top-level package that the entry point names;
- of the daemon's own modules, the file (or folder) that the entry point names. What modules share with each
  other and with the core (sources, contract, parameters) changes with a restart of the daemon, not here:
  two versions of a source at work at once would be two owners of one kernel object;
- of protobuf messages the first version stays: a process knows one file of a name. A module whose .proto has
  changed is refused until the daemon is restarted.

A module is built before it takes anybody's place: one that does not import, raises, or describes itself
wrongly leaves everything as it was. Jobs are the caller's business: they are shut down before `install()`
or `unload()`, because the code that they run on goes.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

import structlog

from aemd.core.errors import AemError, Code
from aemd.modules.contract import Delivery, Description, Host, Module
from aemd.service.described import check_module
from aemd.v1 import module_pb2

GROUP = "aemd.modules"
_SHOWN_CHARS_MAX = 64
_DELIVERIES = {
    Delivery.QUEUE: module_pb2.DELIVERY_QUEUE,
    Delivery.COALESCE: module_pb2.DELIVERY_COALESCE,
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A module, and the distribution that it came from, as "name version"."""

    module: Module
    name: str
    origin: str
    _prefix: str  # what of sys.modules is its own


class Registry:
    """The loaded modules by name. Everything raises AemError and nothing else."""

    def __init__(self, host: Host, *, group: str = GROUP) -> None:
        self._host = host
        self._group = group
        self._loaded: dict[str, Loaded] = {}
        self._log = structlog.get_logger()

    def __iter__(self) -> Iterator[Module]:
        return (self._loaded[name].module for name in sorted(self._loaded))

    def __contains__(self, name: str) -> bool:
        return name in self._loaded

    def get(self, name: str) -> Module:
        """The loaded module of that name; NOT_FOUND with reason MODULE_UNKNOWN says what there is."""
        return self._find(name).module

    def load_all(self) -> None:
        """Load what is installed; one that fails is logged and left out."""
        for name in sorted({entry.name for entry in self._scan()}):
            try:
                self.load(name)
            except AemError as error:
                self._log.error("module not loaded", module=name, reason=error.reason, error=error.message)

    def load(self, name: str) -> Module:
        """Load a module, in the place of one of that name if there is one."""
        fresh = self.build(name)
        self.install(fresh)
        return fresh.module

    def build(self, name: str) -> Loaded:
        """A new object of the installed module `name`, from the code on disk; nobody uses it yet.

        NOT_FOUND, MODULE_UNKNOWN: no distribution has it. FAILED_PRECONDITION, MODULE_AMBIGUOUS: two
        have it. FAILED_PRECONDITION, MODULE_BROKEN: it does not import, raised, or describes itself wrongly.
        """
        entry = self._entry(name)
        prefix = _own_prefix(entry)
        kept = _forget_code(prefix)
        try:
            module = entry.load()(self._host)
            check_module(name, module)
        except (Exception, SystemExit) as error:
            _forget_code(prefix)
            sys.modules.update(kept)
            if not isinstance(error, AemError):
                self._log.error("module broken", module=name, exc_info=True)
            raise _broken(name, entry, error) from error
        return Loaded(module, name, _origin(entry), prefix)

    def install(self, fresh: Loaded) -> None:
        """Put what build() gave into its place; a module that was there is shut down."""
        old = self._loaded.get(fresh.name)
        if old is not None:
            self._shut_down(old)
        self._loaded[fresh.name] = fresh

    def unload(self, name: str) -> None:
        """Shut a module down and forget it and its code; its jobs are closed already."""
        old = self._find(name)
        del self._loaded[name]
        self._shut_down(old)
        _forget_code(old._prefix)

    def close(self) -> None:
        """Shut every module down: the daemon ends."""
        for name in sorted(self._loaded, reverse=True):
            self._shut_down(self._loaded.pop(name))

    def describe(self, module: Module, *, jobs: int = 0) -> module_pb2.Module:
        """The module as clients see it."""
        described = module.description
        loaded = self._loaded.get(described.name)
        return module_pb2.Module(
            name=f"modules/{described.name}",
            id=described.name,
            summary=described.summary,
            description=described.description,
            delivery=_DELIVERIES[described.delivery],
            keyed=described.keyed,
            parameters=[
                module_pb2.Parameter(
                    name=parameter.name,
                    kind=parameter.kind,
                    description=parameter.description,
                    required=parameter.required,
                    default_text=parameter.default,
                    choices=parameter.choices,
                    example=parameter.example,
                )
                for parameter in described.parameters
            ],
            events=[
                module_pb2.EventType(name=name, description=text) for name, text in described.events.items()
            ],
            operations=[
                module_pb2.OperationType(name=name, description=text, takes_data=takes_data)
                for name, (text, takes_data) in described.operations.items()
            ],
            payload_message=described.payload_message,
            origin=loaded.origin if loaded is not None else "",
            jobs=jobs,
            examples=described.examples,
        )

    def _find(self, name: str) -> Loaded:
        loaded = self._loaded.get(name)
        if loaded is None:
            raise _unknown(name, sorted(self._loaded), "loaded")
        return loaded

    def _entry(self, name: str) -> EntryPoint:
        entries = self._scan()
        named = [entry for entry in entries if entry.name == name]
        if not named:
            raise _unknown(name, sorted({entry.name for entry in entries}), "installed")
        if len(named) > 1:
            origins = " and ".join(sorted(_origin(entry) for entry in named))
            raise AemError(
                Code.FAILED_PRECONDITION,
                "MODULE_AMBIGUOUS",
                f"module {name}: it comes from {origins}; uninstall all but one",
                module=name,
            )
        return named[0]

    def _scan(self) -> list[EntryPoint]:
        importlib.invalidate_caches()  # also those of importlib.metadata: it remembers folders by their mtime
        return list(entry_points(group=self._group))

    def _shut_down(self, old: Loaded) -> None:
        try:
            old.module.shutdown()
        except Exception:  # its bug must not keep what comes after it from being done
            self._log.error("module did not shut down", module=old.name, exc_info=True)


def installed_descriptions() -> dict[str, Description]:
    """What the installed modules say of themselves, by name, without a daemon that loads them. One whose
    description is not to be had without is left out.
    """
    found = {}
    for entry in entry_points(group=GROUP):
        with suppress(Exception):  # it is somebody else's, and anything can be wrong with it
            description = getattr(entry.load(), "description", None)
            if isinstance(description, Description):
                found[entry.name] = description
    return found


def _own_prefix(entry: EntryPoint) -> str:
    package, _, rest = entry.module.partition(".")
    if package != __name__.partition(".")[0]:
        return package
    return ".".join([package, *rest.split(".")[:2]])


def _forget_code(prefix: str) -> dict[str, ModuleType]:
    """Take a module's own files out of sys.modules; returns what was there."""
    own = [name for name in sys.modules if name == prefix or name.startswith(prefix + ".")]
    return {name: sys.modules.pop(name) for name in own}


def _origin(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "unknown"


def _unknown(name: str, known: list[str], where: str) -> AemError:
    shown = name[:_SHOWN_CHARS_MAX]
    near = get_close_matches(shown, known, n=1)
    guess = f"; did you mean {near[0]}?" if near else ""
    return AemError(
        Code.NOT_FOUND,
        "MODULE_UNKNOWN",
        f"no event module {shown!r} is {where}{guess}; there are: {', '.join(known) or 'none'}",
        module=shown,
    )


def _broken(name: str, entry: EntryPoint, error: BaseException) -> AemError:
    return AemError(
        Code.FAILED_PRECONDITION,
        "MODULE_BROKEN",
        f"module {name} of {_origin(entry)} cannot be used: {type(error).__name__}: {error}"
        if not isinstance(error, AemError)
        else f"module {name} of {_origin(entry)} cannot be used: {error.message}",
        module=name,
    )
