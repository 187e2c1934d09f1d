"""``moeapps serve``: a saved model behind HTTP, until a signal ends it.

1. The options are checked and the port is taken, so that a wrong one is named before the model is loaded.
2. A worker process loads the model.
3. uvicorn answers requests until SIGTERM or SIGINT; then running requests are answered and what was learned is saved.
   SIGHUP loads the model's file anew.
4. With ``--workers N`` there are N such servers behind one port, and this process starts them again when they end.
"""

import argparse
import asyncio
import errno
import ipaddress
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeapps.cli.arguments import add_trust, trust
from moeapps.core.checks import check_sizes
from moeapps.core.errors import ConfigError, MoEAppsError
from moeapps.core.packages import needs

if TYPE_CHECKING:
    from moeapps.serve.batching import ModelServer

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "answer requests over HTTP with a saved model"

_BACKLOG = 256
"""Connections that wait to be accepted."""

TOKEN = "MOEAPPS_TOKEN"
"""Environment variable of the token. An option would be visible to everyone on the machine."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", help="file that model.save wrote, or the checkpoint folder of a stream run")
    add_trust(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on; 0 for any free one")
    parser.add_argument(
        "--learn", metavar="FILE", help="offer /learn, and save what is learned to FILE; if it exists, it is served"
    )
    parser.add_argument(
        "--nodes",
        metavar="FILE",
        help="for a model of a graph in two tables, with --edges: the table of nodes. Requests then have ids only; the "
        "tables are read with the model, and again at a reload",
    )
    parser.add_argument("--edges", metavar="FILE", help="for a model of a graph in two tables: the table of edges")
    parser.add_argument("--save-every", type=float, default=30.0, help="seconds between two savings of what is learned")
    parser.add_argument(
        "--queue", type=int, default=256, help="requests that may wait; further ones are refused with 503"
    )
    parser.add_argument("--batch-rows", type=int, default=1024, help="rows that go to the model at once")
    parser.add_argument(
        "--max-body", type=int, help="bytes that a request may have (default: 1 MiB; 16 MiB for a classifier of images)"
    )
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds until a request is cancelled with 504")
    parser.add_argument(
        "--hang", type=float,
        help="seconds without an answer after which the worker is replaced; default: twice the timeout, at least 20",
    )  # fmt: skip
    parser.add_argument("--sample-images", type=int, default=64, help="images that one request may have generated")
    parser.add_argument("--sample-steps", type=int, default=250, help="steps of the sampler per request, at most")
    parser.add_argument(
        "--sample-work", type=int, default=20_000_000,
        help="images times steps times values of an image, twice with guidance, per request, at most",
    )  # fmt: skip
    parser.add_argument("--connections", type=int, default=1000, help="connections that may be open at once")
    parser.add_argument(
        "--connections-per-client", type=int, default=500, help="connections that one address may have open at once"
    )
    parser.add_argument(
        "--workers", type=int, default=1,
        help="servers behind the port, each with the model in memory; number k also listens at --port + k by itself, "
        "for its /metrics",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=int,
        help="threads with which each worker computes; default: OMP_NUM_THREADS, or the cores of this machine divided "
        "by --workers, less one for the server itself",
    )  # fmt: skip
    parser.add_argument("--token-file", help=f"file with the token that clients must send (or set {TOKEN})")


def _max_body(description: dict[str, Any]) -> int:
    """Bytes that a request may have unless the user says otherwise: a photo has several MiB."""
    return 16 * 2**20 if description["kind"] == "images" else 2**20


def run(options: argparse.Namespace) -> int:
    """Serve until a signal.

    Returns
    -------
    int
        0 after SIGTERM or SIGINT, when running requests were answered and what was learned is saved; 1 if some of it is
        only in the journal, since the model could not be saved.

    Raises
    ------
    ConfigError
        If an option has an impossible value or the extra is not installed.
    MoEAppsError
        If the model cannot be loaded.
    """
    check_sizes(
        workers=options.workers, threads=1 if options.threads is None else options.threads, queue=options.queue,
        batch_rows=options.batch_rows, connections=options.connections,
        max_body=1 if options.max_body is None else options.max_body,
        connections_per_client=options.connections_per_client, sample_images=options.sample_images,
        sample_steps=options.sample_steps, sample_work=options.sample_work,
    )  # fmt: skip
    for name in ("timeout", "save_every", "hang"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"--{name.replace('_', '-')} must be above 0, got {value!r}")
    if not 0 <= options.port <= 65535:
        raise ConfigError(f"--port must be 0 to 65535, got {options.port}")
    if options.workers > 1 and options.learn is not None:
        raise ConfigError(
            "--learn needs --workers 1: each worker would learn only what it is sent, and save over the others. Serve "
            "each partition of the events by a server of its own, with its own port and file"
        )
    if (options.nodes is None) != (options.edges is None):
        raise ConfigError(f"--{'nodes' if options.nodes is None else 'edges'} is missing: a graph is in two tables")
    token = _token(options.token_file)
    trust(options)
    _share_cores(options.workers, options.threads)
    with needs("serving", "moeapps[serve]"):
        import uvicorn  # noqa: F401

        from moeapps.serve.replicas import Replicas
    several = options.workers > 1
    with _listen(options.host, options.port, shared=several) as listener:
        if not several:
            return _serve(options, token, [listener], partial(_announce, options, token, listener))
        # Bound and not listening, it only keeps the port.
        from moeapps.serve.log import log_to_stderr

        log_to_stderr()
        replicas = Replicas(options.workers, partial(_serve_as_replica, options, token, listener.getsockname()[1]))
        _announce(options, token, listener, replicas.wait_ready())
        replicas.run()
    return 0


def _share_cores(workers: int, threads: int | None) -> None:
    """Let the processes that this one starts compute with so many threads, unless the environment says how many.

    Left alone, every worker would take all cores, and two of them would spend their time waiting for each other.
    """
    if threads is None and "OMP_NUM_THREADS" not in os.environ:
        from joblib import cpu_count  # type: ignore[import-untyped]  # knows the limits of a container

        threads = max(1, cpu_count() // workers - 1)
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)


def _announce(
    options: argparse.Namespace, token: str | None, listener: socket.socket, description: dict[str, Any]
) -> None:
    """Print where the model is served."""
    host, port = listener.getsockname()[:2]
    main = "/sample" if description["kind"] == "generator" else "/predict"
    more = "/recommend, " if "recommends" in description else "/learn, " if options.learn is not None else ""
    paths = f"{main}, {more}/docs, /health/ready, /info, /metrics"
    workers = f" by {options.workers} workers" if options.workers > 1 else ""
    print(f"{description['model']} on http://{_bracketed(host)}:{port}{workers} ({paths})", flush=True)
    if token is None and not ipaddress.ip_address(host).is_loopback:
        print(f"anyone who reaches {host} can use the model: set {TOKEN} or --token-file", file=sys.stderr, flush=True)


def _serve_as_replica(options: argparse.Namespace, token: str | None, port: int, number: int, pipe: Connection) -> None:
    """Serve as one of several processes; say through the pipe when, or why not."""
    from moeapps.serve.replicas import end_with_parent

    own = options.port + number + 1 if options.port else 0
    try:
        with _listen(options.host, port, shared=True) as listener, _listen(options.host, own) as alone:

            def ready(description: dict[str, Any]) -> None:
                pipe.send({"ready": description})
                end_with_parent(pipe)

            def reloaded() -> None:
                pipe.send({"reloaded": options.model})

            _serve(options, token, [listener, alone], ready, reloaded, f"worker {number}")
    except (MoEAppsError, OSError) as error:
        pipe.send({"failed": str(error)})
        sys.exit(1)


def _serve(
    options: argparse.Namespace, token: str | None, listeners: list[socket.socket],
    ready: Callable[[dict[str, Any]], None], reloaded: Callable[[], None] | None = None, name: str = "",
) -> int:  # fmt: skip
    """Serve with one worker process until a signal.

    ``ready`` is called when the model is loaded, ``reloaded`` when a client has had it loaded anew. ``name`` is that of
    this server in the log, where there are several.
    """
    early: list[int] = []
    signal.signal(signal.SIGHUP, lambda number, _: early.append(number))  # the file may be replaced while it is loaded
    import uvicorn

    from moeapps.serve.app import make_app
    from moeapps.serve.batching import Limits, ModelServer
    from moeapps.serve.connections import ConnectionLimits, limit_connections, raise_open_files
    from moeapps.serve.log import log_to_stderr
    from moeapps.serve.worker import Worker, WorkerDied, WorkerHung

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Stop on a signal; uvicorn's own would raise it again after all is done, and end with its number."""
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.handle_exit, number, None)
            loop.add_signal_handler(signal.SIGHUP, _reload, server)
            if early:
                _reload(server)
            yield

    limits = Limits(
        options.queue, options.batch_rows, options.timeout, options.save_every, options.hang,
        sample_images=options.sample_images, sample_steps=options.sample_steps, sample_work=options.sample_work,
    )  # fmt: skip
    connections = ConnectionLimits(raise_open_files(options.connections), options.connections_per_client)
    tables = None if options.nodes is None else (options.nodes, options.edges)
    server = ModelServer(options.model, options.learn, limits, partial(Worker, tables=tables))
    try:
        description = server.start()
    except (WorkerDied, WorkerHung) as error:
        raise MoEAppsError(f"{options.model} could not be loaded: {type(error).__name__}") from None
    try:
        for listener in listeners:
            listener.listen(_BACKLOG)  # from here on clients are not refused, only not answered yet
    except OSError as error:  # another server bound the port at the same time, and listened first
        asyncio.run(server.close())  # its worker would keep this process alive
        host, port = listener.getsockname()[:2]
        raise _port_error(host, port, error) from None
    ready(description)
    config = uvicorn.Config(
        make_app(server, description, options.max_body or _max_body(description), token, reloaded),
        http=limit_connections(connections), ws="none", log_config=None, access_log=False, server_header=False,
        backlog=_BACKLOG, timeout_graceful_shutdown=int(options.timeout) + 5, timeout_keep_alive=30,
    )  # fmt: skip
    log_to_stderr(name)

    async def serve() -> None:
        try:
            await Server(config).serve(sockets=listeners)
        finally:
            await server.close()  # uvicorn does not come to it where a signal ends its start

    asyncio.run(serve())
    return 1 if server.unsaved else 0


def _reload(server: "ModelServer") -> None:
    """Reload on SIGHUP; what is wrong is told in the log."""

    async def reload() -> None:
        try:
            await server.reload()
        except MoEAppsError as error:
            logging.getLogger("moeapps.serve").error("%s", error)

    task = asyncio.ensure_future(reload())
    _RELOADS.add(task)
    task.add_done_callback(_RELOADS.discard)


_RELOADS: set["asyncio.Future[None]"] = set()
"""The running ones: the loop itself does not keep them."""


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _token(path: str | None) -> str | None:
    if path is None:
        return os.environ.get(TOKEN) or None
    try:
        token = Path(path).read_text().strip()
    except FileNotFoundError:
        raise ConfigError(f"--token-file: {path} does not exist, expected a text file with the token") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token-file: {path} cannot be read: {error}") from None
    if not token:
        raise ConfigError(f"--token-file: {path} is empty")
    return token


def _listen(host: str, port: int, shared: bool = False) -> socket.socket:
    """Bind the port, of several processes together where it is shared; the socket listens once the model is loaded."""
    listener = None
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Head and body of an answer are two writes. Without this the second one waits for the client to acknowledge the
        # first, which takes it 40 ms. asyncio sets it by itself only where the listener names its protocol, as above.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind(address)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise _port_error(host, port, error) from None
    return listener


def _port_error(host: str, port: int, error: OSError) -> ConfigError:
    remedy = ": choose another --port, or --port 0 for any free one" if error.errno == errno.EADDRINUSE else ""
    return ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}{remedy}")
