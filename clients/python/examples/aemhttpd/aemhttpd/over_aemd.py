"""The file server over aemd: the daemon accepts, reads and writes; two functions are the server.

`handle` gets each connection's events and answers with the bytes to write. A response longer than the
connection's room is continued by `go_on`, which is called when the daemon has sent enough to take more.
"""

from __future__ import annotations

from collections.abc import Callable

import aem

from aemhttpd.exchange import Exchange


def serve(
    client: aem.Client, listen: str, new_exchange: Callable[[], Exchange], announce: Callable[[str], None]
) -> None:
    """Serve until SIGINT or SIGTERM. Raises AemError if the daemon refuses."""
    exchanges: dict[bytes, Exchange] = {}

    def handle(event: aem.SocketEvent) -> aem.Reply | None:
        if event.type == "listening":
            announce(event.local)
        elif event.type == "accepted":
            exchanges[event.key] = new_exchange()
        elif event.type == "closed":
            exchanges.pop(event.key).close()
        else:  # "data", or "end" with none
            exchange = exchanges[event.key]
            exchange.receive(event.data)
            return _output(exchange, event.job.room(event.key))
        return None

    def go_on(key: bytes, room: int) -> aem.Reply | None:
        exchange = exchanges.get(key)
        return None if exchange is None else _output(exchange, room)

    def restart(gap: aem.Gap) -> None:
        """The daemon was restarted: the connections that it had are closed."""
        if gap.cause == "restart":
            for exchange in exchanges.values():
                exchange.close()
            exchanges.clear()

    with client:
        client.register("socket", handle, on_room=go_on, on_gap=restart, listen=listen, label="aemhttpd")
        client.run_forever()
    for exchange in exchanges.values():
        exchange.close()


def _output(exchange: Exchange, room: int) -> aem.Reply | None:
    data = exchange.output(room)
    if exchange.drained:
        return aem.Reply("write-close", data)
    return aem.Reply("write", data) if data else None
