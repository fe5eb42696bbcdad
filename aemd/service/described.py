"""Whether a module's description holds together, checked once, when the module is loaded.

Clients are told this description and build their command lines from it, and the daemon parses parameters
by it; a fault in it would otherwise show up far away, as a confusing error for somebody who cannot mend it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from aemd.core.errors import AemError, Code
from aemd.modules.contract import Description, Kind, Module, Parameter
from aemd.modules.params import parse_default

# Lower case, as typed in a shell without quotes; 63 characters as in a DNS label.
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_METHODS = (
    "open",
    "start",
    "stop",
    "close",
    "operate",
    "pause",
    "resume",
    "sync",
    "busy",
    "details",
    "shutdown",
    "acts",
    "opens",
)


def check_module(name: str, module: Module) -> None:
    """Raise AemError (FAILED_PRECONDITION, MODULE_BROKEN) if `module` cannot serve as module `name`."""
    for method in _METHODS:
        if not callable(getattr(module, method, None)):
            raise _fault(f"it has no method {method}()")
    described = getattr(module, "description", None)
    if not isinstance(described, Description):
        raise _fault("its description is no aemd.modules.contract.Description")
    if described.name != name:
        raise _fault(f"it calls itself {described.name!r}, its entry point {name!r}")
    if described.pause_by_default and not described.pausable:
        raise _fault("pause_by_default needs pausable")
    if not described.events:
        raise _fault("it describes no events")
    _check_names("module", [described.name])
    _check_names("event", described.events)
    _check_names("operation", described.operations)
    _check_names("parameter", [parameter.name for parameter in described.parameters])
    for parameter in described.parameters:
        _check_parameter(parameter)


def _check_names(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if not _NAME.fullmatch(name):
            raise _fault(f"{what} {name!r}: names have a-z, 0-9, _ and -, and begin with a letter")
        if name in seen:
            raise _fault(f"{what} {name!r} is described twice")
        seen.add(name)


def _check_parameter(parameter: Parameter) -> None:
    what = f"parameter {parameter.name}"
    if parameter.kind not in Kind.values() or parameter.kind == Kind.PARAMETER_KIND_UNSPECIFIED:
        raise _fault(f"{what}: there is no kind {parameter.kind}")
    if bool(parameter.choices) != (parameter.kind == Kind.PARAMETER_KIND_CHOICE):
        raise _fault(f"{what}: a choice has choices, and nothing else has")
    if parameter.required and parameter.default:
        raise _fault(f"{what}: what is required has no default")
    if (
        parameter.minimum is not None
        and parameter.maximum is not None
        and parameter.minimum > parameter.maximum
    ):
        raise _fault(f"{what}: minimum {parameter.minimum} is above maximum {parameter.maximum}")
    if parameter.default:
        try:
            parse_default(parameter)
        except AemError as error:
            raise _fault(f"{what}: its default is wrong: {error.message}") from None


def _fault(what: str) -> AemError:
    return AemError(Code.FAILED_PRECONDITION, "MODULE_BROKEN", what)
