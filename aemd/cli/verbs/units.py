"""The verb that makes a service of an aemd that pip has installed."""

from __future__ import annotations

import os
from collections.abc import Sequence

import click

from aemd.cli.failure import Failure, note
from aemd.cli.output import Column
from aemd.cli.units import UnitFile, check_reach, plan, write
from aemd.cli.verb import Settings, Verb

COLUMNS = (
    Column("STATE", lambda row: row["state"]),
    Column("FILE", lambda row: row["path"]),
)
NEXT_SYSTEM = (
    "systemd-sysusers aemd.conf && systemd-tmpfiles --create aemd.conf",
    "systemctl daemon-reload",
    "systemctl enable --now aemd.socket aemd.service",
)
NEXT_USER = ("systemctl --user daemon-reload", "systemctl --user enable --now aemd.socket")


@click.command(
    "install-units",
    cls=Verb,
    section="This program",
    examples=(
        "aemctl install-units",
        "aemctl install-units --print",
        "aemctl install-units --user",
        "aemctl install-units --root /srv/image --prefix /usr",
    ),
)
@click.option("--user", is_flag=True, help="Install the units of your own daemon, for your service manager.")
@click.option(
    "--prefix",
    metavar="DIR",
    help="Install below this directory.  [default: /usr/local; with --user $XDG_DATA_HOME or ~/.local/share]",
)
@click.option("--root", metavar="DIR", default="", help="Install into the tree at DIR, such as an image.")
@click.option("--force", is_flag=True, help="Replace files that are there and differ.")
@click.option("--print", "show", is_flag=True, help="Print the files and install nothing.")
@click.pass_obj
def install_units(
    settings: Settings, /, *, user: bool, prefix: str | None, root: str, force: bool, show: bool
) -> None:
    """Install the systemd units of aemd, with the path of this interpreter.

    A package of your distribution has them already. Files that differ are left alone, and then nothing is
    installed at all; your own changes belong into a drop-in (`systemctl edit aemd`), which is never touched.
    """
    files = plan(user=user, prefix=prefix or _prefix(user=user), root=root)
    if show:
        for file in files:
            _show(settings, file)
        return
    if not user:
        check_reach()
    different = [file.path for file in files if file.state == "differs"]
    if different and not force:
        raise Failure(
            f"there already, and different: {', '.join(different)}",
            reason="DIFFERS",
            hint="compare with `aemctl install-units --print`; --force replaces them",
        )
    for file in files:
        if file.state != "unchanged":
            write(file)
    settings.output.rows(map(_row, files), COLUMNS, empty="")
    if settings.output.for_people:
        note("next, run: " + " && ".join(NEXT_USER if user else NEXT_SYSTEM))


def _show(settings: Settings, file: UnitFile) -> None:
    settings.output.event({"path": file.path, "text": file.text}, lambda: f"# {file.path}\n{file.text}")


def _row(file: UnitFile) -> dict[str, str]:
    return {
        "state": {"new": "installed", "differs": "replaced"}.get(file.state, file.state),
        "path": file.path,
    }


def _prefix(*, user: bool) -> str:
    if not user:
        return "/usr/local"
    share = os.environ.get("XDG_DATA_HOME")
    if not share:
        home = os.environ.get("HOME")
        if not home:
            raise Failure("neither XDG_DATA_HOME nor HOME is set", hint="name a directory with --prefix DIR")
        share = f"{home}/.local/share"
    return share


VERBS: Sequence[click.Command] = (install_units,)
