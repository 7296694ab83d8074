"""A hub on loopback that keeps what huggingface_hub uploads, as the endpoints of the Hugging Face Hub do."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from huggingface_hub import close_session, constants

TOKEN = "hf_a_token_of_the_tests"
LARGE = ".safetensors"


class Hub:
    """Repositories by name, and what happened to them.

    Attributes:
        files: Content of each committed file by its name, by repository.
        created: Payload of each repository that was created.
        refuses_writing: True: repositories cannot be created.
        address: URL of the server.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.created: list[dict[str, Any]] = []
        self.refuses_writing = False
        self.address = ""
        self._objects: dict[str, bytes] = {}

    def answer(self, method: str, path: str, body: bytes, is_known: bool) -> tuple[int, Any]:
        """Returns the status and the content of an answer."""
        if not is_known and method != "PUT":
            return 401, {"error": "Invalid credentials"}
        if path == "/api/whoami-v2":
            return 200, {"name": "me", "type": "user", "orgs": []}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if method == "PUT":
            self._objects[path.removeprefix("/objects/")] = body
            return 200, {}
        content = json.loads(body.splitlines()[0]) if body else {}
        if path == "/api/repos/create":
            if self.refuses_writing:
                return 403, {"error": "You may not write here"}
            self.created.append(content)
            name = f"{content.get('organization') or 'me'}/{content['name']}"
            self.files.setdefault(name, {})
            return 200, {"url": f"{self.address}/{name}", "id": name}
        if path.endswith("/objects/batch"):
            uploads = [
                {**each, "actions": {"upload": {"href": f"{self.address}/objects/{each['oid']}"}}}
                for each in content["objects"]
            ]
            return 200, {"transfer": "basic", "objects": uploads}
        name = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            modes = [(each["path"], "lfs" if each["path"].endswith(LARGE) else "regular") for each in content["files"]]
            return 200, {"files": [{"path": each, "uploadMode": mode, "shouldIgnore": False} for each, mode in modes]}
        if "/commit/" in path:
            self._commit(name, [json.loads(line) for line in body.splitlines()])
            return 200, {"commitUrl": f"{self.address}/{name}/commit/1", "commitOid": "1", "pullRequestUrl": None}
        return 404, {"error": f"{method} {path} is unknown"}

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.files[name][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[name][value["path"]] = self._objects[value["oid"]]


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Context with a running hub on a free port of loopback, which huggingface_hub uses with a token."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _handle(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            is_known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            status, content = hub.answer(self.command, self.path.split("?")[0], body, is_known)
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = _handle  # noqa: N815  names of http.server

        def log_message(self, format: str, *args: object) -> None:
            """Prints nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    close_session()
    try:
        yield hub
    finally:
        close_session()
        server.shutdown()
        server.server_close()
        thread.join()
