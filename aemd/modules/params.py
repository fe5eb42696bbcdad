"""A job's parameters, from the wire to Python values.

Each parameter has a kind (ParameterKind). Its value may come as text, as a person types it, or typed, as
a program has it; both give the same Python value:

    kind              text form                              typed forms          Python value
    TEXT              any                                    -                    str
    INTEGER           42, -1, 0x2a                           integer, number      int
    TRUTH             yes no true false 1 0                  truth, integer       bool
    DURATION          200ms, 1h 30min (systemd.time(7))      integer: ns          int, ns
    TIME              RFC 3339, @SECONDS                     integer: ns          int, ns since 1970
    SIZE              4096, 64K, 1MiB                        integer, number      int, bytes
    CHOICE            one of choices                         -                    str
    ADDRESS           tcp:HOST:PORT, unix:PATH, ...          data: the same text  contract.Address
    BYTES             UTF-8                                  data                 bytes

A `number` (a double, all that some languages have) must be whole, and is not taken for times: whether 1.5
means seconds or nanoseconds would be a guess. `minimum` and `maximum` bound numbers, and the length in
bytes of TEXT and BYTES. A repeated parameter takes one value or a list, and becomes a tuple.

Whatever a client sends, the only thing raised is AemError with the field `params.NAME`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches

from aemd.core.errors import AemError, invalid
from aemd.core.limits import Limits
from aemd.modules.address import parse_address
from aemd.modules.contract import Kind, Parameter
from aemd.modules.quantity import (
    INT64_MAX,
    INT64_MIN,
    parse_duration,
    parse_integer,
    parse_size,
    parse_time,
)
from aemd.v1 import job_pb2

SHOWN_CHARS_MAX = 64  # of what a client sent, in an error message
_TRUTHS = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
_NUMERIC: dict[Kind.ValueType, Callable[[str], int]] = {
    Kind.PARAMETER_KIND_INTEGER: parse_integer,
    Kind.PARAMETER_KIND_DURATION: parse_duration,
    Kind.PARAMETER_KIND_TIME: parse_time,
    Kind.PARAMETER_KIND_SIZE: parse_size,
}
_TIMES = (Kind.PARAMETER_KIND_DURATION, Kind.PARAMETER_KIND_TIME)
_UNITS = {
    Kind.PARAMETER_KIND_DURATION: " ns",
    Kind.PARAMETER_KIND_TIME: " ns",
    Kind.PARAMETER_KIND_SIZE: " bytes",
    Kind.PARAMETER_KIND_TEXT: " bytes",
    Kind.PARAMETER_KIND_BYTES: " bytes",
}
_FORMS = {
    Kind.PARAMETER_KIND_TEXT: "text",
    Kind.PARAMETER_KIND_INTEGER: "a whole number",
    Kind.PARAMETER_KIND_TRUTH: "yes or no",
    Kind.PARAMETER_KIND_DURATION: "text with a unit, such as 200ms, or an integer of nanoseconds",
    Kind.PARAMETER_KIND_TIME: "text, such as 2026-03-01T09:00:00Z, or an integer of nanoseconds since 1970",
    Kind.PARAMETER_KIND_SIZE: "a number of bytes, such as 4096 or 64K",
    Kind.PARAMETER_KIND_CHOICE: "one of its choices, as text",
    Kind.PARAMETER_KIND_ADDRESS: "a socket address, such as tcp:127.0.0.1:8080",
    Kind.PARAMETER_KIND_BYTES: "bytes or text",
}


def parse_values(
    parameters: Sequence[Parameter], given: Mapping[str, job_pb2.Value], limits: Limits
) -> dict[str, object]:
    """The values of `parameters` by name; what was not given and has no default is absent.

    Raises AemError, always with the field `params` or `params.NAME`.
    """
    _check_size(given, limits)
    known = {parameter.name: parameter for parameter in parameters}
    for name in given:
        if name not in known:
            raise _unknown(name, list(known))
    values: dict[str, object] = {}
    for parameter in parameters:
        if parameter.name in given:
            values[parameter.name] = _value(parameter, given[parameter.name])
        elif parameter.required:
            example = f"; for example {parameter.name}={parameter.example}" if parameter.example else ""
            raise invalid(f"params.{parameter.name}", f"is required: {parameter.description}{example}")
        elif parameter.default:
            values[parameter.name] = parse_default(parameter)
    return values


def parse_default(parameter: Parameter) -> object:
    """The value of `parameter.default`; AemError if the module's author got it wrong."""
    return _value(parameter, job_pb2.Value(text=parameter.default))


def _check_size(given: Mapping[str, job_pb2.Value], limits: Limits) -> None:
    if len(given) > limits.params_max:
        raise invalid(
            "params",
            f"{len(given)} parameters, at most {limits.params_max} are taken",
            value=len(given),
            limit=limits.params_max,
        )
    size = sum(len(name.encode()) + value.ByteSize() for name, value in given.items())
    if size > limits.params_bytes:
        raise invalid(
            "params",
            f"{size} bytes together, at most {limits.params_bytes} are taken; make the values shorter",
            value=size,
            limit=limits.params_bytes,
        )


def _unknown(name: str, known: list[str]) -> AemError:
    shown = name[:SHOWN_CHARS_MAX]
    near = get_close_matches(shown, known, n=1)
    guess = f"; did you mean {near[0]}?" if near else ""
    there = f"it takes {', '.join(known)}" if known else "the module takes none"
    return invalid(f"params.{shown}", f"no such parameter{guess}; {there}", value=shown)


def _value(parameter: Parameter, value: job_pb2.Value) -> object:
    if not parameter.repeated:
        return _one(parameter, value)
    if value.WhichOneof("kind") != "list":
        return (_one(parameter, value),)
    if parameter.required and not value.list.values:
        raise invalid(f"params.{parameter.name}", f"needs at least one value: {parameter.description}")
    return tuple(_one(parameter, item) for item in value.list.values)


def _one(parameter: Parameter, value: job_pb2.Value) -> object:
    """A single value, parsed and held against the parameter's bounds."""
    try:
        parsed = _parsed(parameter, value)
        _check_bounds(parameter, parsed)
    except ValueError as error:
        shown = _shown(value)
        raise invalid(f"params.{parameter.name}", f"{shown}: {error}", value=shown) from None
    return parsed


def _parsed(parameter: Parameter, value: job_pb2.Value) -> object:
    match value.WhichOneof("kind"):
        case "text":
            return _from_text(parameter, value.text)
        case "integer":
            return _from_integer(parameter, value.integer)
        case "number":
            if parameter.kind not in _TIMES and value.number.is_integer():
                return _from_integer(parameter, int(value.number))
        case "truth":
            if parameter.kind == Kind.PARAMETER_KIND_TRUTH:
                return value.truth
        case "data":
            if parameter.kind == Kind.PARAMETER_KIND_BYTES:
                return value.data
            if parameter.kind == Kind.PARAMETER_KIND_ADDRESS:
                return parse_address(value.data.decode("utf-8", "surrogateescape"))
        case "list":
            raise ValueError("takes a single value, not a list")
        case None:
            raise ValueError("the value is empty; leave the parameter out, or give it one")
    raise _wrong_form(parameter)


def _from_text(parameter: Parameter, text: str) -> object:
    numeric = _NUMERIC.get(parameter.kind)
    if numeric is not None:
        return numeric(text)
    match parameter.kind:
        case Kind.PARAMETER_KIND_TEXT:
            return text
        case Kind.PARAMETER_KIND_BYTES:
            return text.encode()
        case Kind.PARAMETER_KIND_ADDRESS:
            return parse_address(text)
        case Kind.PARAMETER_KIND_CHOICE:
            return _choice(parameter, text)
        case Kind.PARAMETER_KIND_TRUTH:
            truth = _TRUTHS.get(text.strip().lower())
            if truth is not None:
                return truth
    raise _wrong_form(parameter)


def _from_integer(parameter: Parameter, integer: int) -> object:
    if parameter.kind in _NUMERIC:
        return integer
    if parameter.kind == Kind.PARAMETER_KIND_TRUTH and integer in (0, 1):
        return bool(integer)
    raise _wrong_form(parameter)


def _choice(parameter: Parameter, text: str) -> str:
    if text in parameter.choices:
        return text
    near = get_close_matches(text[:SHOWN_CHARS_MAX], parameter.choices, n=1)
    guess = f"did you mean {near[0]}? " if near else ""
    raise ValueError(f"{guess}there are {', '.join(parameter.choices)}")


def _check_bounds(parameter: Parameter, value: object) -> None:
    """Raise ValueError if a number, or the length of text or bytes, is out of bounds."""
    minimum, maximum = parameter.minimum, parameter.maximum
    if isinstance(value, str | bytes):
        measure = len(value.encode() if isinstance(value, str) else value)
    elif isinstance(value, int) and not isinstance(value, bool):
        measure = value
        minimum = INT64_MIN if minimum is None else minimum
        maximum = INT64_MAX if maximum is None else maximum
        if parameter.kind == Kind.PARAMETER_KIND_SIZE:
            minimum = max(minimum, 0)
    else:
        return
    unit = _UNITS.get(parameter.kind, "")
    if minimum is not None and measure < minimum:
        raise ValueError(f"{measure}{unit} is too small; at least {minimum}{unit}")
    if maximum is not None and measure > maximum:
        raise ValueError(f"{measure}{unit} is too large; at most {maximum}{unit}")


def _wrong_form(parameter: Parameter) -> ValueError:
    return ValueError(f"takes {_FORMS.get(parameter.kind, 'nothing')}")


def _shown(value: job_pb2.Value) -> str:
    """What was given, short and printable."""
    kind = value.WhichOneof("kind")
    if kind is None:
        return "nothing"
    if kind == "list":
        return f"a list of {len(value.list.values)}"
    content = getattr(value, kind)
    if isinstance(content, str | bytes) and len(content) > SHOWN_CHARS_MAX:
        return f"{content[:SHOWN_CHARS_MAX]!r}..."
    return repr(content)
