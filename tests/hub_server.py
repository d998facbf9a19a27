"""A Hugging Face Hub on loopback, for the real clients to read from and to write to.

>>> with HubServer(root) as server:  # root/datasets/ORG/NAME, root/models/ORG/NAME, root/spaces/ORG/NAME
...     fault = server.fault("commit", status=503)
...     subprocess.run([sys.executable, "-c", code], env=hub_env(server, HF_TOKEN=WRITER))
...     print(fault.fired, server.history("models", "org/name"), server.files("models", "org/name"))

Each folder under `root` is a repository, see `hub_repositories`; others the clients create. A file `.gated` or `.private` in
a folder keeps it for the token `ACCEPTED` and the members of its organisation. Nothing is written to disk.
"""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from hub_accounts import ACCEPTED, ACCOUNTS, READER, STRANGER, WRITER
from hub_answers import STAGES, Answer, Request, Upload, found
from hub_faults import Fault
from hub_repositories import Commit, Repositories, Repository

__all__ = ["ACCEPTED", "READER", "STAGES", "STRANGER", "WRITER", "Fault", "HubServer"]


class HubServer(ThreadingHTTPServer):
    """Serves `root` inside the context.

    `requests` lists (method, path without the query) as they came, `stages` what they were (names of `STAGES`). To
    `accounts` tests may add, by token. LFS files larger than `part_size` bytes are uploaded in parts.
    """

    def __init__(self, root: Path, part_size: int | None = None):
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.root, self.part_size, self.page_size = Path(root), part_size, 50
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories = Repositories(self.root)
        self.accounts = dict(ACCOUNTS)
        self.requests: list[tuple[str, str]] = []
        self.stages: list[str] = []
        self.faults: list[Fault] = []
        self.late: dict[str, tuple[Request, dict[str, str]]] = {}  # by stage: what is carried out behind its answer
        self.uploads: dict[str, Upload] = {}
        self.lock = threading.RLock()

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self.shutdown()
        self.server_close()

    def fault(self, stage: str | None = None, **options) -> Fault:
        """From now on requests of the stage (None: any) fail as the options of `Fault` say; of several the first holds."""
        if stage not in (None, *STAGES):
            raise ValueError(f"stage={stage!r} is none of {STAGES}")
        fault = Fault(stage, **options)
        with self.lock:
            self.faults.append(fault)
        return fault

    def repository(self, kind: str, name: str) -> Repository | None:
        with self.lock:
            return self.repositories.find(kind, name)

    def history(self, kind: str, name: str, revision: str = "main") -> list[Commit]:
        """The commits of a revision, newest first."""
        return self.repository(kind, name).revision(revision).history()

    def files(self, kind: str, name: str, revision: str = "main") -> dict[str, bytes]:
        files = self.repository(kind, name).revision(revision).files
        return {path: file.read() for path, file in files.items()}

    def noted(self, stage: str, method: str, path: str) -> Fault | None:
        """Writes the request down; tells the fault that it meets."""
        with self.lock:
            self.requests.append((method, path))
            self.stages.append(stage)
            return next((fault for fault in self.faults if fault.meets(stage, method, path)), None)

    def page(self, repository: Repository) -> str:
        return f"{self.url}/{'' if repository.kind == 'models' else repository.kind + '/'}{repository.name}"

    def handle_error(self, request, client_address) -> None:
        """A client that went away is no error of the server's."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class HubHandler(BaseHTTPRequestHandler):
    """One request. It stays with HTTP/1.0: connections kept alive would be answered after the server has closed."""

    server: HubServer
    wbufsize = -1  # header and body in one packet

    def respond(self) -> None:
        url = urlsplit(self.path)
        stage, parts = found(self.command, url.path)
        fault = self.server.noted(stage, self.command, unquote(url.path))
        size = int(self.headers.get("Content-Length", 0))
        if fault is not None and fault.cut == "upload":
            self.rfile.read(size // 2)
            return
        body = self.rfile.read(size)
        if len(body) < size:
            return  # the client went away
        request = Request(self.server, self.command, url.path, parse_qs(url.query), self.headers, body)
        self.carry_out_late(stage)
        if fault is None:
            self.send(self.answered(request, stage, parts))
        else:
            self.fail(fault, request, stage, parts)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = respond

    def answered(self, request: Request, stage: str, parts: dict[str, str]) -> Answer:
        with self.server.lock:
            return request.answer(stage, parts)

    def carry_out_late(self, stage: str) -> None:
        with self.server.lock:
            if stage in self.server.late:
                request, parts = self.server.late.pop(stage)
                request.answer(stage, parts)

    def fail(self, fault: Fault, request: Request, stage: str, parts: dict[str, str]) -> None:
        if not fault.applied:
            fault.wait()
        if fault.late:
            self.server.late[stage] = request, parts
        answer = self.answered(request, stage, parts) if fault.carried_out else None
        if fault.applied:
            fault.wait()
        if fault.cut == "silence":
            return
        if fault.status is not None:
            answer = fault.answer()
        self.send(answer, cut=fault.cut == "answer")

    def send(self, answer: Answer, cut: bool = False) -> None:
        is_file = isinstance(answer.body, bytes)
        body = answer.body if is_file else json.dumps(answer.body).encode()
        kind = "application/octet-stream" if is_file else "application/json"
        self.send_response(answer.status)
        for key, value in {"Content-Type": kind, "Content-Length": str(len(body)), **answer.headers}.items():
            self.send_header(key, " ".join(value.split()).encode("latin-1", "replace").decode("latin-1"))
        if cut and (not body or self.command == "HEAD"):
            return  # there is no half of nothing: not even the headers leave
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)

    def log_message(self, *arguments) -> None:
        """Nothing on stderr: `HubServer.requests` tells."""
