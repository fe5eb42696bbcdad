import pytest
from google.rpc import error_details_pb2, status_pb2

from aemd.core.errors import AemError, Code, exhausted, invalid, not_found
from aemd.service import errors
from aemd.v1 import session_pb2


def google_status(error):
    """The bytes as a client with google.rpc reads them."""
    status = status_pb2.Status()
    status.ParseFromString(errors.status_of(error).SerializeToString())
    return status


def unpacked(any_message, kind):
    message = kind()
    assert any_message.Unpack(message)
    return message


def test_error_info_comes_first_with_reason_domain_and_facts():
    status = google_status(not_found("jobs/7"))
    assert (status.code, status.message) == (5, "jobs/7: not found")
    info = unpacked(status.details[0], error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == ("NOT_FOUND", "aemd")
    assert len(status.details) == 1


def test_wrong_field_becomes_bad_request():
    status = google_status(invalid("params.every", "'soon' is no time span", value="soon"))
    bad = unpacked(status.details[1], error_details_pb2.BadRequest)
    assert bad.field_violations[0].field == "params.every"
    assert "soon" in bad.field_violations[0].description
    assert unpacked(status.details[0], error_details_pb2.ErrorInfo).metadata["value"] == "soon"


def test_used_up_limit_becomes_quota_failure_with_limit_used_and_key():
    status = google_status(exhausted("uid 7", limit=3, used=3, key="limits.jobs", what="a job"))
    quota = unpacked(status.details[1], error_details_pb2.QuotaFailure)
    assert quota.violations[0].subject == "uid 7"
    facts = unpacked(status.details[0], error_details_pb2.ErrorInfo).metadata
    assert (facts["limit"], facts["used"], facts["key"]) == ("3", "3", "limits.jobs")


def test_limit_of_a_field_is_no_quota_failure():
    kinds = [detail.type_url for detail in google_status(invalid("n", "is 9", limit=8)).details]
    assert kinds == ["type.googleapis.com/google.rpc." + name for name in ("ErrorInfo", "BadRequest")]


def test_missing_kernel_feature_and_help_become_their_messages():
    error = AemError(
        Code.FAILED_PRECONDITION, "KERNEL_TOO_OLD", "needs 6.15", feature="PIDFD_INFO_EXIT", help="man:x(7)"
    )
    status = google_status(error)
    lack = unpacked(status.details[1], error_details_pb2.PreconditionFailure)
    assert (lack.violations[0].type, lack.violations[0].subject) == ("KERNEL_FEATURE", "PIDFD_INFO_EXIT")
    assert unpacked(status.details[2], error_details_pb2.Help).links[0].url == "man:x(7)"


def test_fault_tells_the_client_nothing_of_what_happened():
    status = google_status(errors.internal())
    assert status.code == 13
    assert unpacked(status.details[0], error_details_pb2.ErrorInfo).metadata == {}


def test_long_message_is_cut_so_that_trailers_stay_below_what_peers_take():
    encoded = errors.status_of(invalid("x", "y" * 100_000)).SerializeToString()
    assert len(encoded) < 4_096


@pytest.mark.parametrize("text", ["x", "\u00e9", "\u20ac", "\U0001f980", "\ud800"])
def test_cut_counts_the_bytes_of_a_message_and_leaves_room_for_the_details(text):
    status = errors.status_of(invalid("name", text * 5_000))
    assert len(status.message.encode()) <= errors.MESSAGE_BYTES_MAX
    assert status.message.endswith("\u2026")
    assert status.ByteSize() < 4_096  # STATUS_BYTES_MAX of peer/stream.py: longer ones are left out


def test_result_frames_parse_with_and_without_error():
    frame = session_pb2.ServerFrame()
    frame.ParseFromString(errors.result(7))
    assert (frame.request_id, frame.WhichOneof("frame"), frame.result.status.code) == (7, "result", 0)
    frame.ParseFromString(errors.result(8, not_found("it")))
    assert (frame.request_id, frame.result.status.code) == (8, 5)
