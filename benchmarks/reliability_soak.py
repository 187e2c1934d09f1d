"""`moeapps serve` for minutes beside clients that use it badly, for `reliability.py`.

Half of the clients predict: one keep-alive connection each, 1 to 4 rows a request, every answer compared with
`predict`. The others send what is no JSON, no table or no number (`serve_poison.poisons`), bodies above the limit, a
head or a body byte by byte, requests for paths that there are not, and hang up in the middle of a request.
"""

import http.client
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from serve_poison import JSON, Server, honest, poisons

BODY_LIMIT = 1 << 20
"""Bytes that the server takes; the rows of an honest client are far below."""


def _ask(port: int, method: str, path: str, body: str | bytes | None) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, JSON)
        answer = connection.getresponse()
        answer.read()
        return f"{answer.status // 100}xx"
    finally:
        connection.close()


def _head(path: str, length: int) -> bytes:
    lines = (f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {length}", "", "")
    return "\r\n".join(lines).encode()


def _status(connection: socket.socket) -> str:
    start = connection.recv(4096)
    return f"{start[9:10].decode()}xx" if start.startswith(b"HTTP/1.1 ") else "cut"


def nonsense(port: int, bodies: list[str], rng: random.Random) -> str:
    """A body that no model can take."""
    return _ask(port, "POST", "/predict", rng.choice(bodies))


def wrong_path(port: int, bodies: list[str], rng: random.Random) -> str:
    """A path or a method that there is not."""
    method, path = rng.choice(
        (("GET", f"/no/{rng.random()}"), ("PUT", "/predict"), ("POST", "/health"), ("GET", "/learn"))
    )
    return _ask(port, method, path, None)


def huge(port: int, bodies: list[str], rng: random.Random) -> str:
    """A body of twice the limit, with and without its length in the head."""
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        try:
            if rng.random() < 0.5:
                connection.sendall(_head("/predict", 2 * BODY_LIMIT) + b"[" * (2 * BODY_LIMIT))
            else:
                head = _head("/predict", 0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
                chunk = b"10000\r\n" + b"[" * 65536 + b"\r\n"
                connection.sendall(head + chunk * (2 * BODY_LIMIT // 65536) + b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):  # it need not read all of it to refuse it
            pass
        return _status(connection)


def slow(port: int, bodies: list[str], rng: random.Random) -> str:
    """A head, or a body, a few bytes at a time for two seconds, and then no more."""
    content = _head("/predict", 1000) + (b"[" * 900 if rng.random() < 0.5 else b"")
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        for first in range(0, min(len(content), 80), 4):
            connection.sendall(content[first : first + 4])
            time.sleep(0.1)
    return "cut"


def hang_up(port: int, bodies: list[str], rng: random.Random) -> str:
    """A request whose client is gone before its answer."""
    body = rng.choice(bodies).encode(errors="surrogatepass")
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        content = _head("/predict", len(body)) + body
        connection.sendall(content[: rng.randrange(len(content))])
    return "cut"


BAD: tuple[Callable[[int, list[str], random.Random], str], ...] = (nonsense, nonsense, wrong_path, huge, slow, hang_up)


def bad(port: int, row: Any, seed: int, stop: float, out: Counter[str]) -> None:
    """One bad request after the other."""
    rng, bodies = random.Random(seed), poisons("/predict", row)
    while time.time() < stop:
        request = rng.choice(BAD)
        try:
            found = request(port, bodies, rng)
        except (OSError, http.client.HTTPException):
            found = "cut"
        out[f"{request.__name__} {found}"] += 1


def soak(folder: Path, what: dict[str, Any], clients: int, seconds: float) -> dict[str, Any]:
    """Serve a table for so long.

    Parameters
    ----------
    folder : Path
        With ``predict.safetensors``.
    what : dict
        Rows, and the probabilities that ``predict_proba`` gives them.
    clients : int
        Half of them are honest.
    seconds : float
        How long.

    Returns
    -------
    dict
        Requests of honest clients, their times, wrong and refused ones; bad ones by kind and by what they got; memory
        of server and worker at a tenth, in the middle and at the end.
    """
    server = Server(folder / "predict.safetensors", "--max-body", BODY_LIMIT)
    out: list[Any] = []
    counts = [Counter[str]() for _ in range(clients // 2)]
    stop = time.time() + seconds
    threads = [
        threading.Thread(target=honest, args=(server.port, "/predict", what, seed, stop, out))
        for seed in range(clients - clients // 2)
    ]
    threads += [
        threading.Thread(target=bad, args=(server.port, what["rows"][0], seed, stop, count))
        for seed, count in enumerate(counts)
    ]
    for thread in threads:
        thread.start()
    memory = []
    for moment in (0.1, 0.5, 0.98):
        time.sleep(max(0.0, stop - (1 - moment) * seconds - time.time()))
        memory.append(server.memory())
    for thread in threads:
        thread.join()
    restarts = json.loads(server.ask("GET", "/info")[1])["restarts"]
    total = sum(counts, Counter[str]())
    times = np.concatenate([times for times, *_ in out])
    return {
        "clients": clients, "seconds": seconds, "requests": len(times),
        "p50_ms": 1000 * float(np.quantile(times, 0.5)), "p99_ms": 1000 * float(np.quantile(times, 0.99)),
        "failed": sum(failed for _, failed, *_ in out), "wrong": sum(wrong for _, _, wrong, _ in out),
        "bad": dict(sorted(total.items())),
        **{f"bad_{kind}": sum(n for name, n in total.items() if name.endswith(kind)) for kind in ("4xx", "5xx", "cut")},
        "mib": memory, "restarts": restarts, "exit_status": server.stop(),
    }  # fmt: skip
