"""Running the server: address, signals and shutdown."""

from __future__ import annotations

import errno
import signal
import socket
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any

from st_prompteol.extras import missing_extra

if TYPE_CHECKING:
    from st_prompteol.model import PromptEOL


def serve(
    open_model: Callable[[], PromptEOL],
    name: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    batch_size: int = 32,
    normalize: bool = False,
    max_inputs: int = 2048,
    api_key: str | None = None,
    show: Callable[[str], None] = print,
) -> None:
    """Serves a model until SIGTERM or SIGINT, then completes the running requests and returns.

    Args:
        open_model: Loads the model; called after the address was found to be free.
        name: The name of the model in requests.
        host: The address to listen on.
        port: The port to listen on; 0 for any free port.
        batch_size: The number of sentences per forward pass, from one or several requests.
        normalize: Whether to normalize embeddings to length 1.
        max_inputs: The maximum number of sentences per request.
        api_key: The bearer token that requests must send. Defaults to None: no authentication.
        show: Receives a line with the server's address. Defaults to `print`.

    Raises:
        ImportError: If fastapi or uvicorn is missing.
        OSError: If the server cannot listen at the address.
        ValueError: If the key is blank.
    """
    try:
        import uvicorn

        from st_prompteol.server.app import make_app
    except ImportError as error:
        raise missing_extra("The server", str(error.name), "serve") from error
    if api_key is not None and not api_key.strip():
        raise ValueError(f"The API key {api_key!r} is blank: choose another, or leave it out.")
    with closing(_bind(host, port)) as listener:
        app = make_app(
            open_model(), name, batch_size=batch_size, normalize=normalize, max_inputs=max_inputs, api_key=api_key
        )
        server = uvicorn.Server(uvicorn.Config(app, lifespan="on", ws="none", log_config=None, access_log=False))

        def stop(*_: Any) -> None:
            server.should_exit = True

        # uvicorn raises a signal again after its shutdown; with these handlers the exit code is 0
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            listener.listen(server.config.backlog)
            show(
                f"{name!r} is served at {_url(listener)}/v1, {'without an' if api_key is None else 'with an'} API key"
            )
            server.run(sockets=[listener])
        except OSError as error:  # another server started at the same time
            raise _explained(error, host, port) from error
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _bind(host: str, port: int) -> socket.socket:
    """Reserves the address without listening, so that connections are refused until the model is loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise _explained(error, host, port) from error
    return listener


def _explained(error: OSError, host: str, port: int) -> OSError:
    if error.errno == errno.EADDRINUSE:
        return OSError(f"Port {port} of {host} is in use: choose another, or stop the program that listens there.")
    if error.errno == errno.EACCES:
        return OSError(f"Port {port} of {host} needs privileges: choose one above 1023.")
    return OSError(f"{host!r} is not an address of this machine ({error.strerror}): choose 127.0.0.1 or 0.0.0.0.")


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
