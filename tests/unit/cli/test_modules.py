from __future__ import annotations

from aem.v1 import module_pb2

from aemd.cli.plain import plain
from aemd.cli.verbs.modules import module_lines

MODULE = module_pb2.Module(
    id="disk",
    summary="Space on disks",
    description="One paragraph that is long enough to be wrapped.\nAnother.",
    delivery=module_pb2.DELIVERY_COALESCE,
    keyed=True,
    parameters=[
        module_pb2.Parameter(
            name="below",
            kind=module_pb2.PARAMETER_KIND_SIZE,
            description="Fire below this.",
            required=True,
            example="1GiB",
        ),
        module_pb2.Parameter(
            name="unit",
            kind=module_pb2.PARAMETER_KIND_CHOICE,
            choices=["a", "b"],
            default_text="a",
            description="\x1b[2J",
        ),
    ],
    events=[module_pb2.EventType(name="low", description="There is little left.")],
    operations=[module_pb2.OperationType(name="wipe", description="Make room.", takes_data=True)],
    origin="disk 1.0",
    examples=["below=1GiB", "disk below=2GiB"],
)


def test_module_for_people_is_wrapped_and_safe() -> None:
    assert module_lines(plain(MODULE), 40) == [
        "disk: Space on disks",
        "  (disk 1.0, coalesce, ordered by key, 0 jobs)",
        "",
        "  One paragraph that is long enough to",
        "  be wrapped.",
        "",
        "  Another.",
        "",
        "Parameters:",
        "  below  Fire below this. (size,",
        "         required, e.g. below=1GiB)",
        "  unit   \\x1b[2J (a|b, default a)",
        "",
        "Events:",
        "  low  There is little left.",
        "",
        "Operations:",
        "  wipe  Make room. (takes data)",
        "",
        "Examples:",
        "  aemctl watch disk below=1GiB",
        "  aemctl watch disk below=2GiB",
    ]


def test_module_that_says_nothing_about_itself() -> None:
    assert module_lines(plain(module_pb2.Module(id="bare", jobs=1)), 80) == ["bare: ", "  (1 job)"]
