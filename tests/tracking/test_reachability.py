"""The reachability of W&B's server: servers that refuse, are silent, answer with errors, or are behind a proxy."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from framework.tracking.reachability import why_unreachable


@contextmanager
def answering(answer: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """Runs a server that answers each connection with some bytes; yields host and port, and its requests."""
    requests: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                requests.append(connection.recv(1_000))
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}", requests
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


@pytest.mark.parametrize("status", [b"200 OK", b"302 Found\r\nLocation: http://nowhere.invalid/", b"503 Busy"])
def test_any_answer_counts_as_reachable(status):
    with answering(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n") as (address, requests):
        assert why_unreachable(f"http://{address}", {}, 5.0) is None
    assert requests[0].startswith(b"HEAD / HTTP/1.1\r\n")


def test_answers_without_http_or_with_another_certificate_are_left_to_wandb():
    with answering(b"no protocol\r\n") as (address, _):
        assert why_unreachable(f"http://{address}", {}, 5.0) is None
        assert why_unreachable(f"https://{address}", {}, 5.0) is None
    assert why_unreachable("no url", {}, 5.0) is None


def test_a_server_that_refuses_is_detected_immediately():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    begun = time.monotonic()
    assert why_unreachable(f"http://user:secret@{address}", {}, 60.0) == f"{address}: [Errno 111] Connection refused"
    assert time.monotonic() - begun < 30


def test_a_silent_server_costs_the_time_limit():
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts connections and never answers
        address, begun = f"127.0.0.1:{server.getsockname()[1]}", time.monotonic()
        problem = why_unreachable(f"http://{address}", {}, 0.5)
        assert problem is not None and problem.startswith(address)
    assert 0.4 < time.monotonic() - begun < 30


def test_a_name_that_never_resolves_costs_the_time_limit(monkeypatch):
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait(60) and [])
    assert why_unreachable("http://far.example", {}, 0.5) == "far.example does not answer within 0.5 s"
    released.set()


def test_a_proxy_is_used_unless_the_server_is_on_this_host(monkeypatch):
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as (proxy, requests):
        assert why_unreachable("http://wandb.invalid", {"http": f"http://{proxy}"}, 5.0) is None
        assert requests[0].startswith(b"HEAD http://wandb.invalid")
        problem = why_unreachable("http://127.0.0.1:9", {"http": f"http://{proxy}"}, 5.0)
    assert problem is not None and "refused" in problem and len(requests) == 1
