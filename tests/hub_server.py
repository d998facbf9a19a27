"""A read-only Hugging Face Hub on loopback, for the real clients to read from.

>>> with HubServer(root) as server:  # root/datasets/ORG/NAME, root/models/ORG/NAME, root/spaces/ORG/NAME
...     subprocess.run([sys.executable, "-c", code], env=hub_env(server))

Each folder is a repository of one commit on `main`. Its sha is a hash of the files: it changes with them, and the earlier
sha is no revision any more. A file `.gated` or `.private` in the folder keeps it for the token `ACCEPTED`.
"""

import hashlib
import json
import re
import threading
from datetime import datetime, timezone
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

ACCEPTED, STRANGER = "hf_accepted", "hf_stranger"
USERS = {ACCEPTED: "accepted", STRANGER: "stranger"}

API = r"/api/(?P<kind>models|datasets|spaces)/(?P<name>[^/]+/[^/]+)"
FILE = r"(?:/(?P<kind>datasets|spaces))?/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)"
ROUTES = (
    ("GET", r"/api/whoami-v2", "whoami"),
    ("GET", API + r"(?:/revision/(?P<revision>[^/]+))?", "info"),
    ("GET", API + r"/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?", "tree"),
    ("POST", API + r"/paths-info/(?P<revision>[^/]+)", "paths_info"),
    ("GET HEAD", FILE, "file"),
)


class HubError(Exception):
    """An answer other than success; the clients tell errors apart by the code, which goes into a header."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}) | (headers or {})


@cache
def blob_id(path: Path, size: int, mtime_ns: int) -> str:
    """Git's name of a file's contents; size and time tell the cache when the file has changed."""
    return hashlib.sha1(b"blob %d\0" % size + path.read_bytes()).hexdigest()


class Repository:
    """A folder as it is now; `kind` is "models", "datasets" or "spaces", `name` is "ORG/NAME"."""

    def __init__(self, kind: str, name: str, folder: Path):
        self.kind, self.name = kind, name
        self.files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        self.gated, self.private = (self.files.pop(marker, None) is not None for marker in (".gated", ".private"))
        stats = {name: path.stat() for name, path in self.files.items()}
        self.sizes = {name: stat.st_size for name, stat in stats.items()}
        self.blobs = {name: blob_id(self.files[name], stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}
        self.folders = {parent.as_posix() for name in self.files for parent in Path(name).parents} - {"."}
        self.sha = hashlib.sha1(json.dumps(self.blobs).encode()).hexdigest()
        modified = max((stat.st_mtime for stat in stats.values()), default=0)
        self.modified = datetime.fromtimestamp(modified, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")

    def entry(self, path: str, expand: bool) -> dict:
        """What the Hub tells of a file or folder."""
        told = {"type": "directory", "path": path, "size": 0, "oid": self.sha}
        if path in self.files:
            told |= {"type": "file", "size": self.sizes[path], "oid": self.blobs[path]}
        commit = {"lastCommit": {"id": self.sha, "title": "initial commit", "date": self.modified}}
        return told | commit if expand else told


class HubServer(ThreadingHTTPServer):
    """Serves `root` inside the context; `requests` lists (method, path without the query) as they came."""

    def __init__(self, root: Path):
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.root = Path(root)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests: list[tuple[str, str]] = []

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self.shutdown()
        self.server_close()

    def repository(self, kind: str, name: str) -> Repository | None:
        folder = self.root / kind / name
        return Repository(kind, name, folder) if folder.is_dir() else None


class HubHandler(BaseHTTPRequestHandler):
    """One request. It stays with HTTP/1.0: connections kept alive would be answered after the server has closed."""

    server: HubServer
    wbufsize = -1  # header and body in one packet

    def respond(self) -> None:
        url = urlsplit(self.path)
        self.server.requests.append((self.command, unquote(url.path)))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.query = parse_qs(body.decode() if self.command == "POST" else url.query)
        self.flags = {name for name, values in self.query.items() if values[0].lower() == "true"}
        try:
            self.route(url.path)
        except HubError as error:
            self.answer({"error": str(error)}, error.status, error.headers)

    do_GET = do_HEAD = do_POST = respond

    def route(self, path: str) -> None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in USERS:
            raise HubError(401, "", "Invalid credentials in Authorization header")
        self.user = USERS.get(token)
        for methods, pattern, action in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in methods.split():
                parts = {key: unquote(value or "") for key, value in match.groupdict().items()}
                return getattr(self, action)(**(self.opened(**parts) if "name" in parts else parts))
        raise HubError(404, "", "Sorry, we can't find the page you are looking for.")

    def opened(self, kind: str, name: str, revision: str = "", **parts: str) -> dict:
        """The arguments of an action on a repository: itself, and the path if there is one."""
        repository = self.server.repository(kind or "models", name)
        if repository is None or (repository.private and self.user != USERS[ACCEPTED]):
            raise HubError(404 if self.user else 401, "RepoNotFound", "Repository not found")
        if revision not in ("", "main", repository.sha):
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return {"repository": repository, **parts}

    def whoami(self) -> None:
        if self.user is None:
            raise HubError(401, "", "Invalid username or password.")
        auth = {"type": "access_token", "accessToken": {"displayName": "tests", "role": "read"}}
        self.answer({"type": "user", "name": self.user, "fullname": self.user, "orgs": [], "auth": auth})

    def info(self, repository: Repository) -> None:
        """Shown to anyone, like the tree: of a gated repository only the files are kept."""
        blobs = {name: {"size": repository.sizes[name], "blobId": blob} for name, blob in repository.blobs.items()}
        plain = {"author": repository.name.split("/")[0], "disabled": False, "downloads": 0, "likes": 0, "tags": []}
        state = {"private": repository.private, "gated": "auto" if repository.gated else False}
        dates = {"createdAt": repository.modified, "lastModified": repository.modified}
        files = [{"rfilename": name} | (blobs[name] if "blobs" in self.flags else {}) for name in repository.files]
        self.answer({"id": repository.name, "sha": repository.sha, "siblings": files} | plain | state | dates)

    def check_access(self, repository: Repository) -> None:
        if not repository.gated or self.user == USERS[ACCEPTED]:
            return
        kept = f"Access to {repository.kind[:-1]} {repository.name} is restricted"
        if self.user is None:
            raise HubError(401, "GatedRepo", f"{kept}. You must have access to it and be authenticated to access it.")
        raise HubError(403, "GatedRepo", f"{kept} and you are not in the authorized list.")

    def tree(self, repository: Repository, path: str) -> None:
        if path and path not in repository.folders:
            raise HubError(404, "EntryNotFound", f"{path} does not exist on the revision")
        prefix = f"{path}/" if path else ""
        names = [name for name in (*sorted(repository.folders), *repository.files) if name.startswith(prefix)]
        if "recursive" not in self.flags:
            names = [name for name in names if "/" not in name.removeprefix(prefix)]
        self.answer([repository.entry(name, "expand" in self.flags) for name in names])

    def paths_info(self, repository: Repository) -> None:
        names = repository.folders.union(repository.files).intersection(self.query.get("paths", []))
        self.answer([repository.entry(name, "expand" in self.flags) for name in sorted(names)])

    def file(self, repository: Repository, path: str) -> None:
        self.check_access(repository)
        headers = {"X-Repo-Commit": repository.sha, "Accept-Ranges": "bytes"}
        if path not in repository.files:
            raise HubError(404, "EntryNotFound", "Entry not found", headers)
        content, headers["ETag"] = repository.files[path].read_bytes(), f'"{repository.blobs[path]}"'
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return self.answer(content, 200, headers)
        size, (first, last) = len(content), wanted.groups()
        start = int(first) if first else max(0, size - int(last))
        stop = min(int(last) + 1, size) if first and last else size
        if start >= stop:
            raise HubError(416, "", "Range Not Satisfiable", {"Content-Range": f"bytes */{size}"})
        self.answer(content[start:stop], 206, headers | {"Content-Range": f"bytes {start}-{stop - 1}/{size}"})

    def answer(self, body: bytes | dict | list, status: int = 200, headers: dict[str, str] | None = None) -> None:
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments) -> None:
        """Nothing on stderr: `HubServer.requests` tells."""
