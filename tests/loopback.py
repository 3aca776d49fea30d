"""A server on the loopback interface that answers, and stops, at once."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class _Server(ThreadingHTTPServer):
    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        # Else a body, sent after its headers, waits 40 ms for these to be acknowledged.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        return connection, address


@contextmanager
def answered_by(handler: type[BaseHTTPRequestHandler], **known: Any) -> Iterator[str]:
    """Answer requests from threads; yields the address, without a slash at its end.

    Args:
        handler: What answers.
        known: Attributes of the server, for the handler.
    """
    server = _Server(("127.0.0.1", 0), handler)
    for name, value in known.items():
        setattr(server, name, value)
    # Asked every 10 ms, not every half second, whether to stop.
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
