"""Web server on the loopback interface that serves byte ranges of a folder's files and can inject faults."""

import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType


@dataclass
class Faults:
    """Faults to inject. GET requests are counted from 1.

    Attributes:
        cut_every: Interval of requests whose connection is cut in the middle of the body; 0 cuts none.
        unavailable: Numbers of requests that are answered with 503.
        short: Numbers of requests that are answered with half the bytes.
        hang: Numbers of requests that get no answer before the server is closed.
        statuses: {name: HTTP status} for files that the server refuses.
        ignore_range: True always sends the whole file.
    """

    cut_every: int = 0
    unavailable: frozenset[int] = frozenset()
    short: frozenset[int] = frozenset()
    hang: frozenset[int] = frozenset()
    statuses: dict[str, int] = field(default_factory=dict)
    ignore_range: bool = False


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Ignores clients that closed their connection."""


class RangeServer:
    """Server of the files in `folder`, used as a context manager.

    Attributes:
        faults: Faults to inject; may be replaced at any time.
        requests: (method, path, value of the header Range) of each request, in the order of arrival.
        encodings: Values of the header Accept-Encoding that clients sent.
        bytes_served: Number of bytes of all bodies.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults = Faults()
        self.requests: list[tuple[str, str, str | None]] = []
        self.encodings: set[str | None] = set()
        self.bytes_served = 0
        self.closed = threading.Event()
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> "RangeServer":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/{name}"

    def reset(self, **faults: object) -> None:
        """Clears the recorded requests and sets the faults."""
        self.faults, self.requests, self.bytes_served = Faults(**faults), [], 0

    def gets(self) -> list[tuple[str, str | None]]:
        return [(path, given) for method, path, given in self.requests if method == "GET"]

    def count(self, method: str, path: str, given: str | None, encoding: str | None) -> int:
        """Records a request, and returns the number of this GET, from 1."""
        with self._lock:
            self.requests.append((method, path, given))
            self.encodings.add(encoding)
            return len(self.gets())

    def served(self, num_bytes: int) -> None:
        with self._lock:
            self.bytes_served += num_bytes

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # keeps connections open, as real servers do
            wbufsize = -1  # sends the header and a short body in one packet

            def do_HEAD(self) -> None:
                self._answer(body=False)

            def do_GET(self) -> None:
                self._answer(body=True)

            def log_message(self, format: str, *args: object) -> None:
                pass

            def _answer(self, body: bool) -> None:
                faults, given = server.faults, self.headers.get("Range")
                number = server.count(self.command, self.path, given, self.headers.get("Accept-Encoding"))
                name = self.path.lstrip("/").partition("?")[0]
                file = server.folder / name
                if body and number in faults.hang:
                    server.closed.wait(30)
                    self.close_connection = True
                    return
                status = faults.statuses.get(name, 200 if file.is_file() else 404)
                if body and number in faults.unavailable:
                    status = 503
                content = file.read_bytes() if status == 200 else b"sorry"
                if status == 200 and given is not None and not faults.ignore_range:
                    first, last = (int(offset) for offset in given.removeprefix("bytes=").split("-"))
                    size = len(content)
                    content = content[first : last + 1]
                    status = 206 if content else 416
                if body and number in faults.short:
                    content = content[: len(content) // 2]
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                if status == 206:
                    self.send_header("Content-Range", f"bytes {first}-{first + len(content) - 1}/{size}")
                self.end_headers()
                if not body:
                    return
                if faults.cut_every and number % faults.cut_every == 0:
                    content = content[: len(content) // 2]
                    self.close_connection = True
                self.wfile.write(content)
                server.served(len(content))

        return Handler
