"""The names of all metrics, with what they tell: the one place for them. docs/metrics.md is made from it.

Names follow https://prometheus.io/docs/practices/naming/: aemd_, the thing, the unit; a counter is given
without the _total that stands behind it in the exposition. The four stages at which events are lost have the
names that they have everywhere: kernel, source, job, session.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from aemd.v1 import admin_pb2

COUNTER = admin_pb2.METRIC_KIND_COUNTER
GAUGE = admin_pb2.METRIC_KIND_GAUGE
HISTOGRAM = admin_pb2.METRIC_KIND_HISTOGRAM


class Audience(Enum):
    """Who is told, and of whose."""

    CALLER = "everybody of what is the caller's own, the administrator of everybody's"
    JOB = "the same, on request, job by job"
    ADMINISTRATOR = "the administrator only"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric."""

    name: str
    kind: admin_pb2.MetricKind.ValueType
    help: str
    labels: tuple[str, ...] = ()
    audience: Audience = Audience.CALLER


_MODULE = ("module",)
_JOB = ("job", "module", "label")
_DAEMON = Audience.ADMINISTRATOR

METRICS = (
    # What fires, by event module.
    Metric("aemd_jobs", GAUGE, "Jobs.", _MODULE),
    Metric("aemd_job_fires", COUNTER, "Stimuli that hit an armed job.", _MODULE),
    Metric("aemd_job_merged", COUNTER, "Stimuli that went into an entry that waited already.", _MODULE),
    Metric(
        "aemd_job_paused", COUNTER, "How often a source was not read because its queue was full.", _MODULE
    ),
    Metric("aemd_job_failed", COUNTER, "Entries whose handler failed.", _MODULE),
    Metric("aemd_job_parked", COUNTER, "Entries that were put aside.", _MODULE),
    Metric("aemd_job_discarded", COUNTER, "Entries that were given up with their job.", _MODULE),
    Metric(
        "aemd_command_runs",
        COUNTER,
        "Runs of commands that are over: done, failed, late (time limit), not-executed, ended (with their job"
        " or the daemon), lost (for want of a process).",
        ("module", "result"),
    ),
    Metric("aemd_source_failed", COUNTER, "How often a job became DEGRADED: its source failed.", _MODULE),
    Metric(
        "aemd_lost",
        COUNTER,
        "Stimuli that were lost and reported in a Gap; an unknown number counts as 1.",
        ("module", "stage", "cause"),
    ),
    # What is delivered.
    Metric("aemd_session_delivered", COUNTER, "Entries delivered for the first time.", _MODULE),
    Metric("aemd_session_redelivered", COUNTER, "Entries delivered again.", _MODULE),
    Metric("aemd_session_acknowledged", COUNTER, "Entries that clients have dealt with.", _MODULE),
    Metric("aemd_session_event_bytes", COUNTER, "Bytes of events that were delivered.", _MODULE),
    Metric(
        "aemd_session_delivery_seconds",
        HISTOGRAM,
        "From when the kernel's event was read until it was handed to the front.",
        _MODULE,
    ),
    Metric(
        "aemd_session_acknowledgement_seconds",
        HISTOGRAM,
        "From when the kernel's event was read until its acknowledgement came.",
        _MODULE,
    ),
    Metric("aemd_sessions", GAUGE, "Sessions; those without a stream wait to be resumed.", ("connected",)),
    Metric("aemd_session_opened", COUNTER, "Sessions that were opened."),
    Metric("aemd_session_resumed", COUNTER, "How often a client came back to its session."),
    Metric("aemd_session_cut", COUNTER, "How often a session lost its stream."),
    Metric("aemd_session_frames", COUNTER, "Frames of clients, and messages for them.", ("direction",)),
    Metric("aemd_session_sent_bytes", COUNTER, "Bytes of messages for clients."),
    Metric("aemd_session_queued_bytes", GAUGE, "Bytes of events that wait to be sent."),
    # What users may have.
    Metric("aemd_quota_used", GAUGE, "What a user has of a resource.", ("uid", "resource")),
    Metric("aemd_quota_limit", GAUGE, "What a user may have of it.", ("uid", "resource")),
    Metric("aemd_quota_refused", COUNTER, "How often more was refused.", ("uid", "resource")),
    # Job by job.
    Metric("aemd_one_job_fires", COUNTER, "Stimuli that hit it.", _JOB, Audience.JOB),
    Metric("aemd_one_job_lost", COUNTER, "Stimuli of it that were lost.", (*_JOB, "stage"), Audience.JOB),
    Metric("aemd_one_job_delivered", COUNTER, "Entries delivered for the first time.", _JOB, Audience.JOB),
    Metric("aemd_one_job_acknowledged", COUNTER, "Entries dealt with.", _JOB, Audience.JOB),
    Metric("aemd_one_job_failed", COUNTER, "Entries whose handler failed.", _JOB, Audience.JOB),
    Metric("aemd_one_job_lag", GAUGE, "Stimuli that are not dealt with.", _JOB, Audience.JOB),
    Metric("aemd_one_job_queued", GAUGE, "Entries that wait.", _JOB, Audience.JOB),
    # What the kernel was asked.
    Metric("aemd_source_reads", COUNTER, "System calls that read.", ("source",), _DAEMON),
    Metric("aemd_source_events", COUNTER, "What they brought.", ("source",), _DAEMON),
    Metric("aemd_source_read_failures", COUNTER, "Those that failed.", ("source",), _DAEMON),
    # The way to the clients.
    Metric("aemd_connections", GAUGE, "Connections of clients.", (), _DAEMON),
    Metric("aemd_connections_accepted", COUNTER, "Connections that were taken.", (), _DAEMON),
    Metric("aemd_connections_refused", COUNTER, "Connections that were not, and why.", ("reason",), _DAEMON),
    Metric("aemd_accept_stopped", COUNTER, "How often accepting waited for descriptors.", (), _DAEMON),
    Metric("aemd_calls", COUNTER, "Calls, streams among them.", ("method",), _DAEMON),
    Metric("aemd_fronts", GAUGE, "Front processes.", (), _DAEMON),
    Metric(
        "aemd_fronts_replaced", COUNTER, "Fronts that died or were ended for what they said.", (), _DAEMON
    ),
    Metric("aemd_link_frames", COUNTER, "Frames between core and fronts.", ("direction",), _DAEMON),
    Metric("aemd_link_bytes", COUNTER, "Bytes between core and fronts.", ("direction",), _DAEMON),
    # The core itself.
    Metric("aemd_loop_turns", COUNTER, "Turns of the event loop.", (), _DAEMON),
    Metric("aemd_loop_wakeups", COUNTER, "How often it slept and was woken.", (), _DAEMON),
    Metric("aemd_loop_faults", COUNTER, "Callbacks that failed: bugs.", (), _DAEMON),
    Metric("aemd_loop_turn_seconds", HISTOGRAM, "How long turns took, awake.", (), _DAEMON),
    Metric("aemd_loop_turn_longest_seconds", GAUGE, "The longest turn so far.", (), _DAEMON),
    Metric("aemd_descriptors_open", GAUGE, "Descriptors that the core has open.", (), _DAEMON),
    Metric("aemd_descriptors_max", GAUGE, "How many it may have.", (), _DAEMON),
    Metric("aemd_resident_bytes", GAUGE, "The core's resident memory.", (), _DAEMON),
    Metric("aemd_cpu_seconds", COUNTER, "Processor time of the core.", (), _DAEMON),
    Metric("aemd_start_time_seconds", GAUGE, "When the daemon was started, Unix time.", (), _DAEMON),
    Metric("aemd_build_info", GAUGE, "1; says which daemon it is.", ("version", "kernel"), _DAEMON),
)

BY_NAME = {metric.name: metric for metric in METRICS}
