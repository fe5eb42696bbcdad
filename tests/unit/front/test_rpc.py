from aemd.front.rpc import find_services
from aemd.front.server import options


def test_services_are_those_of_the_descriptors():
    services = find_services()
    assert set(services) == {
        "aem.v1.EventService",
        "aem.v1.JobService",
        "aem.v1.ModuleService",
        "aem.v1.AdminService",
    }
    assert services["aem.v1.EventService"] == {"Session": True}
    assert services["aem.v1.JobService"]["GetJob"] is False


def test_idle_clients_may_ping_as_often_as_they_like():
    chosen = dict(options(1 << 20))
    assert chosen["grpc.http2.max_ping_strikes"] == 0
    assert chosen["grpc.http2.min_recv_ping_interval_without_data_ms"] == 10_000
    assert chosen["grpc.keepalive_permit_without_calls"] == 1
    assert chosen["grpc.max_receive_message_length"] == 1 << 20
