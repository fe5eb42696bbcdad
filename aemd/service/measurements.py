"""What is counted, put together for whoever asks: AdminService.GetMetrics.

The counts themselves are plain numbers where things happen (`core/tally.py`, `sources/counts.py`, the loop,
the links); nothing is added up before somebody asks. Who is not the administrator is told of his own jobs and
sessions, and nothing from which anything could be learned of others: no sums, and nothing of the daemon.
"""

from __future__ import annotations

import os
import resource
from itertools import islice
from typing import TYPE_CHECKING

from aemd import __version__
from aemd.core.errors import invalid
from aemd.core.histogram import BOUNDS_NS, Histogram
from aemd.core.job import Job
from aemd.core.principal import Principal
from aemd.service.catalogue import BY_NAME
from aemd.service.commands import Result
from aemd.service.facts import descriptors_open, resident_bytes
from aemd.sources.counts import COUNTS
from aemd.v1 import admin_pb2, session_pb2

if TYPE_CHECKING:
    from aemd.service.daemon import Daemon

JOBS_MAX = 1_000  # told of one by one; AIP-158 pages are as long
SECOND = 1_000_000_000
# A series that begins with its first loss would hide just that from whoever looks at how it grows.
_NOTHING_LOST = {
    (session_pb2.STAGE_KERNEL, session_pb2.CAUSE_OVERFLOW): 0,
    (session_pb2.STAGE_SOURCE, session_pb2.CAUSE_SOURCE_FAILED): 0,
    (session_pb2.STAGE_JOB, session_pb2.CAUSE_OVERFLOW): 0,
    (session_pb2.STAGE_JOB, session_pb2.CAUSE_SUPERSEDED): 0,
    (session_pb2.STAGE_SESSION, session_pb2.CAUSE_STREAM_LOST): 0,
}
_BOUNDS = tuple(bound_ns / SECOND for bound_ns in BOUNDS_NS)


class _Samples:
    """The answer in the making."""

    def __init__(self, time_ns: int) -> None:
        self._time_ns = time_ns
        self._metrics: dict[str, admin_pb2.Metric] = {}

    def put(self, name: str, value: float, *labels: object) -> None:
        """A counter's or a gauge's value, with the values of the metric's labels in their order."""
        self._sample(name, labels).value = value

    def spread(self, name: str, histogram: Histogram, *labels: object) -> None:
        """A histogram, with the same."""
        told = self._sample(name, labels).distribution
        told.bounds.extend(_BOUNDS)
        told.counts.extend(histogram.counts)
        told.sum = histogram.sum_ns / SECOND

    def answer(self) -> admin_pb2.GetMetricsResponse:
        """All of it, by name."""
        metrics = [self._metrics[name] for name in sorted(self._metrics)]
        return admin_pb2.GetMetricsResponse(metrics=metrics, time_ns=self._time_ns)

    def _sample(self, name: str, labels: tuple[object, ...]) -> admin_pb2.Sample:
        metric = self._metrics.get(name)
        if metric is None:
            known = BY_NAME[name]
            metric = self._metrics[name] = admin_pb2.Metric(
                name=name, help=known.help, kind=known.kind, labels=known.labels
            )
        if len(labels) != len(metric.labels):
            raise ValueError(f"{name} has the labels {', '.join(metric.labels) or 'none'}, not {labels}")
        return metric.samples.add(labels=[str(label) for label in labels])


class Measurements:
    """The metrics of one daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._engine = daemon.engine

    def collect(self, principal: Principal, jobs: int) -> admin_pb2.GetMetricsResponse:
        """What `principal` may know, and `jobs` of the jobs one by one; AemError if that is too many."""
        if not 0 <= jobs <= JOBS_MAX:
            raise invalid("jobs", f"is {jobs}, must be 0 to {JOBS_MAX}", value=jobs, limit=JOBS_MAX)
        samples = _Samples(self._engine.now.real_ns)
        self._modules(samples, principal)
        self._sessions(samples, principal)
        self._quotas(samples, principal)
        for job in islice(self._engine.jobs_of(principal), jobs):
            self._job(samples, job)
        if principal.administrator:
            self._sources(samples)
            self._clients(samples)
            self._core(samples)
        return samples.answer()

    def _modules(self, samples: _Samples, principal: Principal) -> None:
        sheet = self._engine.sheet(None if principal.administrator else principal.owner)
        for module in sorted({*sheet, *(loaded.description.name for loaded in self._daemon.registry)}):
            tally = sheet[module]
            samples.put("aemd_jobs", self._engine.job_count(principal, module), module)
            samples.put("aemd_job_fires", tally.fires, module)
            samples.put("aemd_job_merged", tally.merged, module)
            samples.put("aemd_job_paused", tally.paused, module)
            samples.put("aemd_job_failed", tally.failed, module)
            samples.put("aemd_job_parked", tally.parked, module)
            samples.put("aemd_job_discarded", tally.discarded, module)
            for result in Result:
                samples.put("aemd_command_runs", tally.runs[result], module, result)
            samples.put("aemd_source_failed", tally.source_failures, module)
            for (stage, cause), numbers in sorted((_NOTHING_LOST | tally.lost).items()):
                samples.put("aemd_lost", numbers, module, _stage(stage), _cause(cause))
            samples.put("aemd_session_delivered", tally.delivered, module)
            samples.put("aemd_session_redelivered", tally.redelivered, module)
            samples.put("aemd_session_acknowledged", tally.acknowledged, module)
            samples.put("aemd_session_event_bytes", tally.bytes, module)
            samples.spread("aemd_session_delivery_seconds", tally.delivery, module)
            samples.spread("aemd_session_acknowledgement_seconds", tally.acknowledgement, module)
        samples.put("aemd_session_opened", sheet.opened)
        samples.put("aemd_session_resumed", sheet.resumed)
        samples.put("aemd_session_cut", sheet.cut)
        samples.put("aemd_session_frames", sheet.frames_in, "in")
        samples.put("aemd_session_frames", sheet.frames_out, "out")
        samples.put("aemd_session_sent_bytes", sheet.bytes_out)

    def _sessions(self, samples: _Samples, principal: Principal) -> None:
        sessions = list(self._engine.sessions_of(principal))
        connected = sum(session.connected for session in sessions)
        samples.put("aemd_sessions", connected, "yes")
        samples.put("aemd_sessions", len(sessions) - connected, "no")
        samples.put("aemd_session_queued_bytes", sum(session.queued_bytes for session in sessions))

    def _quotas(self, samples: _Samples, principal: Principal) -> None:
        accounts = self._engine.accounts
        for account in accounts.seen_by(principal):
            for use in accounts.uses(account, self._engine.now.mono_ns):
                samples.put("aemd_quota_used", use.used, account.uid, use.resource)
                samples.put("aemd_quota_limit", use.limit, account.uid, use.resource)
                samples.put("aemd_quota_refused", use.refused, account.uid, use.resource)

    def _job(self, samples: _Samples, job: Job) -> None:
        labels = (job.id, job.traits.name, job.label)
        stats = job.stats
        samples.put("aemd_one_job_fires", stats.fires, *labels)
        for number, numbers in enumerate(stats.lost_at):
            if numbers:
                samples.put("aemd_one_job_lost", numbers, *labels, _stage(number))
        samples.put("aemd_one_job_delivered", stats.delivered, *labels)
        samples.put("aemd_one_job_acknowledged", stats.acknowledged, *labels)
        samples.put("aemd_one_job_failed", stats.failed, *labels)
        samples.put("aemd_one_job_lag", stats.lag, *labels)
        samples.put("aemd_one_job_queued", stats.queued, *labels)

    def _sources(self, samples: _Samples) -> None:
        for source, counted in sorted(COUNTS.items()):
            samples.put("aemd_source_reads", counted.reads, source)
            samples.put("aemd_source_events", counted.events, source)
            samples.put("aemd_source_read_failures", counted.failures, source)

    def _clients(self, samples: _Samples) -> None:
        daemon, peers = self._daemon, self._daemon.peers
        samples.put("aemd_connections", peers.connections)
        samples.put("aemd_connections_accepted", peers.accepted)
        for reason, times in sorted(peers.refusals.items()):
            samples.put("aemd_connections_refused", times, _word(reason))
        samples.put("aemd_accept_stopped", peers.laid_aside)
        for name, times in sorted(daemon.calls.items()):
            samples.put("aemd_calls", times, name)
        samples.put("aemd_fronts", peers.fronts)
        samples.put("aemd_fronts_replaced", peers.fronts_replaced)
        traffic = peers.traffic()
        samples.put("aemd_link_frames", traffic.frames_in, "in")
        samples.put("aemd_link_frames", traffic.frames_out, "out")
        samples.put("aemd_link_bytes", traffic.bytes_in, "in")
        samples.put("aemd_link_bytes", traffic.bytes_out, "out")

    def _core(self, samples: _Samples) -> None:
        daemon, loop = self._daemon, self._daemon.loop
        samples.put("aemd_loop_turns", loop.turns)
        samples.put("aemd_loop_wakeups", loop.wakeups)
        samples.put("aemd_loop_faults", loop.faults)
        samples.spread("aemd_loop_turn_seconds", loop.took)
        samples.put("aemd_loop_turn_longest_seconds", loop.longest_ns / SECOND)
        samples.put("aemd_descriptors_open", descriptors_open())
        samples.put("aemd_descriptors_max", daemon.descriptors.limit)
        samples.put("aemd_resident_bytes", resident_bytes())
        used = resource.getrusage(resource.RUSAGE_SELF)
        samples.put("aemd_cpu_seconds", used.ru_utime + used.ru_stime)
        samples.put("aemd_start_time_seconds", daemon.start_time_ns / SECOND)
        samples.put("aemd_build_info", 1, __version__, os.uname().release)


def _stage(number: int) -> str:
    return _word(session_pb2.Stage.Name(number).removeprefix("STAGE_"))  # type: ignore[arg-type]


def _cause(number: int) -> str:
    return _word(session_pb2.Cause.Name(number).removeprefix("CAUSE_"))  # type: ignore[arg-type]


def _word(name: str) -> str:
    """As SDK and `aemctl` write what the protocol numbers: kernel, stream-lost."""
    return name.lower().replace("_", "-")
