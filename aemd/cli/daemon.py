"""The command `aemd`: from options to a running daemon, and from its end to an exit code."""

from __future__ import annotations

import os
import sys
from enum import IntEnum

import click

from aemd import __version__
from aemd.service.config import (
    Config,
    ConfigError,
    default_config_dir,
    default_socket,
    default_state_dir,
    prepare,
)


class Exit(IntEnum):
    """How `aemd` ends."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    RUNNING = 3


_EPILOG = """\b
Examples:
  sudo aemd                                    serve everybody on this machine
  aemd --user                                  serve yourself, without root
  aemd --user --socket /tmp/a.sock --state-dir /tmp/a
  AEMD_ADDRESS=unix:/tmp/a.sock aemctl status  talk to that one

\b
Exit codes:
  0  ended by SIGTERM or SIGINT, with every session told
  1  could not start (a broken configuration, for example), or met a fault that it could not survive
  2  wrong usage
  3  another daemon holds the socket

\b
Signals:
  SIGHUP           read the configuration again; what is wrong in it changes nothing
  SIGTERM, SIGINT  tell the sessions, finish what was accepted, end within 5 s; twice: at once
"""


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, epilog=_EPILOG
)
@click.option("--user", is_flag=True, help="Serve only yourself, with your own rights; needs no root.")
@click.option(
    "--socket",
    metavar="PATH",
    help="Listen here.  [default: /run/aemd/aemd.sock, or $XDG_RUNTIME_DIR/aemd/…]",
)
@click.option(
    "--state-dir", metavar="DIR", help="Keep state here.  [default: /var/lib/aemd, or ~/.local/state/aemd]"
)
@click.option(
    "--config-dir",
    metavar="DIR",
    help="Read aemd.toml, policy.d/*.toml and jobs.d/*.toml from here.  "
    "[default: /etc/aemd, or ~/.config/aemd]",
)
@click.option(
    "--deputy",
    metavar="PATH",
    help="Leave to the deputy that listens here what needs root's rights, and run without them. "
    "systemd starts it: aemd-deputy.socket.",
)
@click.option(
    "--runner",
    metavar="PATH",
    help="The same for commands of jobs: aemd-runner.socket. A daemon with --deputy runs none without it.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="Log from this level on, to stderr.  [default: log.level of aemd.toml, else info]",
)
@click.version_option(__version__, prog_name="aemd")
def main(
    *,
    user: bool,
    socket: str | None,
    state_dir: str | None,
    config_dir: str | None,
    deputy: str | None,
    runner: str | None,
    log_level: str | None,
) -> None:
    """Own the kernel's events on this machine and deliver them, with their data, to programs.

    Programs register jobs over gRPC on a Unix socket; see aemctl(1).
    """
    if user and (deputy or runner):
        raise click.UsageError("--deputy and --runner are for the system's daemon; --user needs neither")
    if os.geteuid() != 0 and not user and not deputy:
        raise click.UsageError(
            "only root can serve every user, or who is given --deputy; to serve yourself, run: aemd --user"
        )
    try:
        folder = config_dir or default_config_dir(user=user, environment=os.environ)
        config = Config(
            socket=os.path.abspath(
                socket or default_socket(user=user, environment=os.environ, uid=os.geteuid())
            ),
            state_dir=os.path.abspath(state_dir or default_state_dir(user=user, environment=os.environ)),
            user=user,
            log_level=log_level or "",
            config_dir=os.path.abspath(folder) if folder else "",
            deputy=os.path.abspath(deputy) if deputy else "",
            runner=os.path.abspath(runner) if runner else "",
        )
        prepare(config)
    except ConfigError as error:
        _stop(Exit.FAILURE, str(error))
    sys.exit(_serve(config))


def _serve(config: Config) -> int:
    # Imported late: --help and --version answer without loading a daemon.
    from aemd.service.daemon import AlreadyRunningError, StartError, serve

    try:
        serve(config)
    except AlreadyRunningError as error:
        _stop(Exit.RUNNING, str(error))
    except StartError as error:
        _stop(Exit.FAILURE, str(error))
    return Exit.OK


def _stop(code: Exit, message: str) -> None:
    click.echo(f"aemd: {message}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
