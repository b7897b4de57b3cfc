"""Serving: the address is taken first, then models are loaded, then the index grows behind the page.

A signal ends it gracefully: nothing new is accepted, what is being answered is finished, and what is indexed is kept.
"""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import uvicorn

from cloc.errors import ConfigError
from cloc.playground.settings import Settings

_GRACE = 20  # seconds that answers may still take when the server is told to end
_CONNECTIONS = 1000
_BACKLOG = 256


def serve(settings: Settings) -> None:
    """Serves until a signal ends it: SIGTERM returns, Ctrl-C raises KeyboardInterrupt, both when all is put away.

    Raises:
        ConfigError: the address cannot be taken, or a model cannot be loaded.
        DataError: the data is none.
    """
    with _listening(settings.host, settings.port) as listener:
        from cloc.playground.opening import opened  # seconds of imports, after the address is known to be free

        with opened(settings) as running:
            config = uvicorn.Config(
                running.app,
                log_level="warning",
                lifespan="off",
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=_GRACE,
                limit_concurrency=_CONNECTIONS,
                backlog=_BACKLOG,
            )
            _announce(settings, listener)
            if running.indexer:
                running.indexer.start()
            with _terminated_quietly():
                uvicorn.Server(config).run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    """The address, taken; who connects while models are loaded waits for them."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(f"--host {host}: no address of this machine ({error.strerror or error})") from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"--port {port}: {host}:{port} cannot be used ({os.strerror(error.errno or 0).lower()}); "
            "name another one, or 0 for any that is free"
        ) from None
    return listener


def _announce(settings: Settings, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    if not ip_address(host).is_loopback:
        print(
            f"warning: bound to {host}: everybody who reaches this machine can use these models and see this data",
            flush=True,
        )
    shown = f"[{host}]" if ":" in host else host
    print(f"playground: http://{shown}:{port} ({', '.join(settings.models)}); Ctrl-C ends it", flush=True)


@contextmanager
def _terminated_quietly() -> Iterator[None]:
    """SIGTERM, which uvicorn raises again when it has ended, does not kill: the index is yet to be put away."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
