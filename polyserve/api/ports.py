"""Taking a port to listen at, or saying in one line why it cannot be had."""

import socket

BACKLOG = 2048  # connections that wait to be accepted


class PortUnavailable(OSError):
    """The message says which address, and why."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that clients can connect to from now on. Raises PortUnavailable."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise PortUnavailable(f"{host!r} is no address to listen at: {error.strerror}") from error
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(BACKLOG)
    except OSError as error:
        opened.close()
        raise PortUnavailable(f"cannot listen at {authority(host, port)}: {error.strerror}") from error
    return opened


def authority(host: str, port: int) -> str:
    """Host and port as they stand in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
