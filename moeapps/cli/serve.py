"""``moeapps serve``: a saved model behind HTTP, until a signal ends it.

1. The options are checked and the port is taken, so that a wrong one is named before the model is loaded.
2. A worker process loads the model.
3. uvicorn answers requests until SIGTERM or SIGINT; then running requests are answered and what was learned is saved.
"""

import argparse
import asyncio
import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moeapps.core.checks import check_sizes
from moeapps.core.errors import ConfigError, MoEAppsError

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "answer requests over HTTP with a saved model"

TOKEN = "MOEAPPS_TOKEN"
"""Environment variable of the token. An option would be visible to everyone on the machine."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", help="file that model.save wrote, or the checkpoint folder of a stream run")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on; 0 for any free one")
    parser.add_argument(
        "--learn", metavar="FILE", help="offer /learn, and save what is learned to FILE; if it exists, it is served"
    )
    parser.add_argument("--save-every", type=float, default=30.0, help="seconds between two savings of what is learned")
    parser.add_argument(
        "--queue", type=int, default=256, help="requests that may wait; further ones are refused with 503"
    )
    parser.add_argument("--batch-rows", type=int, default=1024, help="rows that go to the model at once")
    parser.add_argument("--max-body", type=int, default=1_048_576, help="bytes that a request may have")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds until a request is cancelled with 504")
    parser.add_argument("--token-file", help=f"file with the token that clients must send (or set {TOKEN})")


def run(options: argparse.Namespace) -> int:
    """Serve until a signal.

    Returns
    -------
    int
        0 after SIGTERM or SIGINT, when running requests were answered and what was learned is saved.

    Raises
    ------
    ConfigError
        If an option has an impossible value or the extra is not installed.
    MoEAppsError
        If the model cannot be loaded.
    """
    check_sizes(queue=options.queue, batch_rows=options.batch_rows, max_body=options.max_body)
    for name in ("timeout", "save_every"):
        if not getattr(options, name) > 0:
            raise ConfigError(f"--{name.replace('_', '-')} must be above 0, got {getattr(options, name)!r}")
    if not 0 <= options.port <= 65535:
        raise ConfigError(f"--port must be 0 to 65535, got {options.port}")
    token = _token(options.token_file)
    try:
        import uvicorn

        from moeapps.serve.app import make_app
        from moeapps.serve.batching import Limits, ModelServer
    except ImportError as error:
        raise ConfigError(f"serving needs {error.name}: pip install 'moeapps[serve]'") from None
    from moeapps.serve.worker import WorkerDied, WorkerHung

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Stop on a signal; uvicorn's own would raise it again after all is done, and end with its number."""
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.handle_exit, number, None)
            yield

    limits = Limits(options.queue, options.batch_rows, options.timeout, options.save_every)
    with _listen(options.host, options.port) as listener:
        server = ModelServer(options.model, options.learn, limits)
        try:
            description = server.start()
        except (WorkerDied, WorkerHung) as error:
            raise MoEAppsError(f"{options.model} could not be loaded: {type(error).__name__}") from None
        listener.listen(1024)  # from here on clients are not refused, only not answered yet
        host, port = listener.getsockname()[:2]
        print(f"{description['model']} on http://{host}:{port} (/predict, /docs, /health, /info, /metrics)", flush=True)
        if token is None and not ipaddress.ip_address(host).is_loopback:
            print(
                f"anyone who reaches {host} can use the model: set {TOKEN} or --token-file", file=sys.stderr, flush=True
            )
        config = uvicorn.Config(
            make_app(server, description, options.max_body, token), log_level="warning", access_log=False,
            server_header=False, timeout_graceful_shutdown=int(options.timeout) + 5, timeout_keep_alive=30,
        )  # fmt: skip
        asyncio.run(Server(config).serve(sockets=[listener]))
    return 0


def _token(path: str | None) -> str | None:
    if path is None:
        return os.environ.get(TOKEN) or None
    try:
        token = Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token-file: {error}") from None
    if not token:
        raise ConfigError(f"--token-file: {path} is empty")
    return token


def _listen(host: str, port: int) -> socket.socket:
    """Bind the port; the socket listens once the model is loaded."""
    listener = None
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    return listener
