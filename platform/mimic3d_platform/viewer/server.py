"""viser's server as the viewer uses it: on one address and port, without a way to the internet."""

from __future__ import annotations

import contextlib
import io
import socket

import viser

from mimic3d_platform.errors import UserError

LOOPBACK = "127.0.0.1"


class Server(viser.ViserServer):
    """A viser server that never opens a tunnel: a page of any origin could ask it for one."""

    def request_share_url(self, verbose: bool = True) -> str | None:
        """No address: viser would open a tunnel to get one."""
        return None


def start_server(host: str, port: int) -> Server:
    """Serves on `host`, at `port` or, if that is 0, at a free one.

    Raises:
        UserError: the host is none of this machine's, or the port is taken.
    """
    # viser itself would try the next thousand ports, and then wait for ever.
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"cannot serve the viewer on {host}:{port}: {reason}; give another --port (0 takes a free one)"
            " or --host"
        ) from None
    with contextlib.redirect_stdout(io.StringIO()):  # viser prints a table of addresses.
        server = Server(host=host, port=port, verbose=False)
    if port and server.get_port() != port:
        server.stop()
        raise UserError(
            f"cannot serve the viewer on {host}:{port}: the port is taken; give another --port, or 0"
        )
    return server


def stop_server(server: Server) -> None:
    """Stops a server without its last words on standard output."""
    with contextlib.redirect_stdout(io.StringIO()):
        server.stop()


def url_of(server: Server) -> str:
    """The page's address: loopback where the server listens on every interface."""
    host = server.get_host()
    host = LOOPBACK if host in ("0.0.0.0", "::", "") else host
    return f"http://{f'[{host}]' if ':' in host else host}:{server.get_port()}"
