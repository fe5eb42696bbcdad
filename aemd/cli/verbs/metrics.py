"""Verbs that tell what the daemon counts, in the form that Prometheus reads."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from typing import Any

import click

from aemd.cli.failure import Exit, Failure, note
from aemd.cli.halt import Halt, Halted
from aemd.cli.plain import plain
from aemd.cli.verb import Settings, Verb, failure_of
from aemd.service.feed import dumps

SECTION = "Observing"
JOBS_MAX = 1_000

_JOBS = click.option(
    "--jobs",
    type=click.IntRange(0, JOBS_MAX),
    default=0,
    show_default=True,
    help="Of so many jobs tell one by one, those with the lowest ids. Each makes series of its own.",
)


@click.command(
    "metrics",
    cls=Verb,
    section=SECTION,
    examples=(
        "aemctl metrics",
        "aemctl metrics --jobs 100 | grep lag",
        "aemctl metrics -o json | jq .metrics",
    ),
)
@_JOBS
@click.pass_obj
def metrics(settings: Settings, /, *, jobs: int) -> None:
    """Print everything that is counted, as Prometheus reads it.

    Of your own jobs and sessions; as root of everybody's, and of the daemon itself. docs/metrics.md says
    what there is.
    """
    with settings.client() as client:
        answer = client.metrics(jobs)
    if not settings.output.for_people:
        settings.output.line(dumps(plain(answer)))
        return
    from aemd.cli.exposition import exposition

    click.echo(exposition(answer)[0].decode(), nl=False)


class _PlaceType(click.ParamType[Any]):
    """Where to listen."""

    name = "place"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse it."""
        from aemd.cli.scrape import parse_place

        try:
            return parse_place(value)
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)


@click.command(
    "export-metrics",
    cls=Verb,
    section=SECTION,
    examples=(
        "aemctl export-metrics --listen 127.0.0.1:9464",
        "aemctl export-metrics --listen unix:/run/user/1000/aemd-metrics.sock",
    ),
)
@click.option(
    "--listen",
    "place",
    metavar="PLACE",
    required=True,
    type=_PlaceType(),
    help="ADDRESS:PORT or unix:PATH; the latter is for your own user only.",
)
@_JOBS
@click.pass_obj
def export_metrics(settings: Settings, /, *, place: Any, jobs: int) -> int:
    """Serve what `aemctl metrics` prints over HTTP, at /metrics, until SIGINT or SIGTERM.

    The daemon itself speaks no HTTP: this is a client like any other. Whoever can connect here is told
    what you may know; as root that is everybody's. A daemon that is away is a 503, and asked again with
    the next scrape.
    """
    from aemd.cli.scrape import Scraped, listen

    try:
        listener = listen(place)
    except OSError as error:
        raise Failure(
            f"{place}: {error.strerror or error}",
            reason="LISTEN_FAILED",
            hint="take another place with --listen",
        ) from error
    server = Scraped(listener, _Scrapes(settings, jobs))
    halt = Halt()
    with halt.armed():
        thread = threading.Thread(target=server.serve_forever, name="scrapes", daemon=True)
        thread.start()
        note(f"serving http://{place}/metrics" if not place.path else f"serving /metrics at {place}")
        try:
            halt.wait(thread.join)
        except Halted as halted:
            return Exit.OK if halted.reason == Exit.TERMINATED else halted.reason
        finally:
            server.server_close()
            if place.path:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(place.path)
    return Exit.OK


class _Scrapes:
    """Answers scrapes, with a client that is made anew when its daemon was away."""

    def __init__(self, settings: Settings, jobs: int) -> None:
        self._settings = settings
        self._jobs = jobs
        self._client: Any = None

    def __call__(self, accept: str) -> tuple[int, bytes, str]:
        """The answer to one scrape."""
        import aem

        from aemd.cli.exposition import exposition

        try:
            if self._client is None:
                self._client = aem.Client(
                    self._settings.address, label=f"aemctl[{os.getpid()}]", reconnect=False
                )
            body, content_type = exposition(self._client.metrics(self._jobs), accept)
        except aem.AemError as error:
            failure = failure_of(error, self._client.address if self._client is not None else "")
            if self._client is not None:
                self._client.close()
                self._client = None
            return 503, f"{failure.message}\n".encode(), "text/plain; charset=utf-8"
        return 200, body, content_type


VERBS: Sequence[click.Command] = (metrics, export_metrics)
