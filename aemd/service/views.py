"""How jobs, sessions, principals and limits look on the wire."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple

from aemd.core.job import Job
from aemd.core.limits import Limits
from aemd.core.principal import Principal
from aemd.core.session import Session
from aemd.core.stats import Parked
from aemd.v1 import admin_pb2, job_pb2, session_pb2


def principal_view(principal: Principal, viewer: Principal) -> session_pb2.Principal:
    """A caller, as the kernel says it, with its pid as `viewer` knows it."""
    return session_pb2.Principal(
        uid=principal.uid,
        gid=principal.gid,
        groups=principal.groups,
        pid=principal.pid_for(viewer.owner),
        start_time_ticks=principal.start_time_ticks,
        administrator=principal.administrator,
        security_label=principal.security_label,
        executable=principal.executable,
        cgroup=principal.cgroup,
        unit=principal.unit,
        proven=principal.proven,
        not_administrator=principal.not_administrator,
    )


def limits_view(limits: Limits) -> session_pb2.Limits:
    """What one session may ask for."""
    return session_pb2.Limits(
        message_bytes=limits.message_bytes,
        session_credit=job_pb2.Credit(events=limits.session_events, bytes=limits.session_bytes),
        binding_credit=job_pb2.Credit(events=limits.binding_events, bytes=limits.binding_bytes),
        jobs=limits.jobs_per_session,
        unanswered=limits.unanswered,
        frames_per_second=limits.frames_per_second,
        payload_bytes=limits.payload_bytes,
    )


def session_view(session: Session, viewer: Principal) -> admin_pb2.SessionInfo:
    """A session, as lists show it to `viewer`."""
    stats = session.stats
    return admin_pb2.SessionInfo(
        name=f"sessions/{session.id}",
        id=session.id,
        principal=principal_view(session.principal, viewer),
        label=session.label,
        sdk=session.sdk,
        connected=session.connected,
        create_time_ns=session.create_time_ns,
        jobs=stats.jobs,
        delivered=stats.delivered,
        queued_bytes=stats.queued_bytes,
        credit=job_pb2.Credit(events=stats.credit_events, bytes=stats.credit_bytes),
        resumes=stats.resumes,
    )


def packed_params(params: Mapping[str, job_pb2.Value]) -> bytes:
    """A job's parameters as `job_view` takes them.

    Kept as bytes: the map that came with a Register keeps the whole message alive that it came in.
    """
    job = job_pb2.Job()
    for name, value in params.items():
        job.params[name].CopyFrom(value)
    return job.SerializeToString(deterministic=True)


def job_view(job: Job, viewer: Principal, details: Mapping[str, str]) -> job_pb2.Job:
    """A job, as lists show it to `viewer`."""
    assert isinstance(job.params, bytes)
    view = job_pb2.Job.FromString(job.params)
    stats = job.stats
    view.name = f"jobs/{job.id}"
    view.id = job.id
    view.module = job.traits.name
    view.options.CopyFrom(job.options.to_pb())
    view.state = job.state.wire
    view.reason = job.reason
    view.label = job.label
    view.uid = job.owner.uid
    view.pid = job.owner.pid_for(viewer.owner)
    view.session = f"sessions/{job.session.id}"
    view.create_time_ns = job.create_time_ns
    view.stats.CopyFrom(
        job_pb2.JobStats(
            fires=stats.fires,
            delivered=stats.delivered,
            redelivered=stats.redelivered,
            acknowledged=stats.acknowledged,
            failed=stats.failed,
            lost=stats.lost,
            queued=stats.queued,
            queued_bytes=stats.queued_bytes,
            in_flight=stats.in_flight,
            parked=stats.parked,
            last_fire_time_ns=stats.last_fire_time_ns,
            last_error=stats.last_error,
            last_error_time_ns=stats.last_error_time_ns,
            head=job_pb2.Cursor(epoch=stats.epoch, seq=stats.head),
            acked=job_pb2.Cursor(epoch=stats.epoch, seq=stats.acked),
            lag=stats.lag,
            lost_kernel=stats.lost_at[session_pb2.STAGE_KERNEL],
            lost_source=stats.lost_at[session_pb2.STAGE_SOURCE],
            lost_job=stats.lost_at[session_pb2.STAGE_JOB],
            lost_session=stats.lost_at[session_pb2.STAGE_SESSION],
        )
    )
    view.details.update(details)
    durable = job.durable
    if durable is not None:
        view.durable_name = durable.name
        view.keep.entries, view.keep.bytes, view.keep.age_ns = astuple(durable.keep)
        view.oldest.epoch, view.oldest.seq = durable.oldest
        view.readers = len(durable.readers)
        view.session = ""
    return view


def parked_view(parked: Parked) -> job_pb2.ParkedEntry:
    """An entry that was put aside."""
    return job_pb2.ParkedEntry(
        cursor=job_pb2.Cursor(epoch=parked.epoch, seq=parked.last),
        first=parked.first,
        attempts=parked.attempts,
        reason=parked.reason,
        event=parked.event or b"",
        kept=parked.event is not None,
    )
