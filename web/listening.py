"""Serving the page until it is stopped."""

import errno
import socket
from collections.abc import Callable

import uvicorn

from vocabseg.runtime.errors import ConfigurationError
from vocabseg.web.site import Site

# Seconds that answers under way are given at the end.
FINISHING = 2
CONNECTIONS = 100


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; raises ConfigurationError where the port is taken, or the address is not this machine's."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as error:
        code = getattr(error, "errno", None)
        if code == errno.EADDRINUSE:
            raise ConfigurationError(f"port {port} is taken: give another with --port, or 0 for a free one") from None
        if code == errno.EACCES:
            raise ConfigurationError(f"port {port} may not be used: give one from 1024 with --port") from None
        raise ConfigurationError(f"cannot listen on {host!r} ({error}): give an address of this machine") from None


def address_of(listener: socket.socket) -> str:
    """The page's address as a browser on this machine takes it."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def serve_page(site: Site, listener: socket.socket, host: str, ready: Callable[[], None]) -> None:
    """Answer on the socket until SIGINT or SIGTERM; `ready` is called once requests are answered."""
    names = {host, socket.gethostname()}
    settings = uvicorn.Config(
        site.application(names),
        lifespan="off",
        log_level="error",
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=FINISHING,
        limit_concurrency=CONNECTIONS,
    )
    server = _Server(settings)
    server.ready = ready
    server.run(sockets=[listener])


class _Server(uvicorn.Server):
    ready: Callable[[], None]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready()
