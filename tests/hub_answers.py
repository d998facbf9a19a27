"""What the Hub of the tests answers to each kind of request; nothing here knows of sockets or faults."""

import fnmatch
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs, unquote

from hub_accounts import Account
from hub_cards import card_errors, metadata
from hub_repositories import ATTRIBUTES, Commit, File, HubError, Repository

if TYPE_CHECKING:
    from hub_server import HubServer

LARGE_SIZE = 10 * 2**20

API = r"/api/(?P<kind>models|datasets|spaces)/(?P<name>[^/]+/[^/]+)"
PAGE = r"(?:/(?P<kind>datasets|spaces))?/(?P<name>[^/]+/[^/]+?)"
ROUTES = (
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("POST", r"/api/repos/create", "create"),
    ("DELETE", r"/api/repos/delete", "delete"),
    ("POST", r"/api/repos/move", "move"),
    ("PUT", API + r"/settings", "settings"),
    ("GET", API + r"/auth-check(?P<write>/write)?", "auth_check"),
    ("GET", API + r"(?:/revision/(?P<revision>[^/]+))?", "info"),
    ("GET", API + r"/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?", "tree"),
    ("POST", API + r"/paths-info/(?P<revision>[^/]+)", "paths_info"),
    ("GET", API + r"/refs", "refs"),
    ("GET", API + r"/commits/(?P<revision>[^/]+)", "commits"),
    ("POST", API + r"/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", API + r"/commit/(?P<branch>[^/]+)", "commit"),
    ("POST DELETE", API + r"/branch/(?P<branch>[^/]+)", "branch"),
    ("POST DELETE", API + r"/tag/(?P<tag>[^/]+)", "tag"),
    ("POST", PAGE + r"\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/lfs/(?P<ticket>[0-9a-f]+)(?:/(?P<part>\d+))?", "lfs_upload"),
    ("POST", r"/lfs/(?P<ticket>[0-9a-f]+)", "lfs_complete"),
    ("POST", PAGE + r"\.git/info/lfs/objects/verify", "lfs_verify"),
    ("GET HEAD", PAGE + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
)
STAGES = tuple(stage for _, _, stage in ROUTES)
WRITING = {"settings", "preupload", "commit", "branch", "tag", "lfs_batch", "lfs_verify"}


def found(method: str, path: str) -> tuple[str, dict[str, str]]:
    """(stage, parts of the path); the stage is empty where there is no such page."""
    for methods, pattern, stage in ROUTES:
        match = re.fullmatch(pattern, path)
        if match and method in methods.split():
            return stage, {key: unquote(value or "") for key, value in match.groupdict().items()}
    return "", {}


class Answer(NamedTuple):
    body: bytes | dict | list
    status: int = 200
    headers: dict[str, str] = {}  # noqa: RUF012 (nobody writes to it)

    @classmethod
    def of_error(cls, error: HubError) -> "Answer":
        return cls({"error": str(error)}, error.status, error.headers)


@dataclass
class Upload:
    """What an upload address is good for; it needs no token."""

    repository: Repository
    sha256: str
    parts: dict[int, bytes] = field(default_factory=dict)


@dataclass
class Request:
    """One request to the Hub. The methods named as the stages carry it out, under the server's lock."""

    hub: "HubServer"
    method: str
    path: str
    query: dict[str, list[str]]
    headers: Mapping[str, str]
    body: bytes
    account: Account | None = None

    def answer(self, stage: str, parts: dict) -> Answer:
        try:
            return self.carried_out(stage, parts)
        except HubError as error:
            return Answer.of_error(error)

    def carried_out(self, stage: str, parts: dict) -> Answer:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.accounts:
            raise HubError(401, "", "Invalid credentials in Authorization header")
        self.account = self.hub.accounts.get(token)
        if not stage:
            raise HubError(404, "", "Sorry, we can't find the page you are looking for.")
        if "Transfer-Encoding" in self.headers:
            raise HubError(411, "", "Length Required")
        if "name" in parts:
            parts["repository"] = repository = self.visible(parts.pop("kind") or "models", parts.pop("name"))
            if stage in WRITING:
                self.check_writer(repository)
                self.hub.repositories.take_over(repository)
            if "revision" in parts:
                parts["commit"] = repository.revision(parts.pop("revision") or "main")
        return getattr(self, stage)(**parts)

    def json(self) -> dict:
        return json.loads(self.body)

    def flag(self, name: str) -> bool:
        return self.query.get(name, [""])[0].lower() in ("true", "1")

    def visible(self, kind: str, name: str) -> Repository:
        repository = self.hub.repositories.find(kind, name)
        if repository and (not repository.private or (self.account and self.account.reads(repository))):
            return repository
        raise HubError(404 if self.account else 401, "RepoNotFound", "Repository not found")

    def signed_in(self, code: str = "") -> Account:
        if self.account is None:
            raise HubError(401, code, "Invalid username or password.")
        return self.account

    def check_writer(self, repository: Repository) -> None:
        # The client takes a 401 of the real Hub's address for a repository not found; elsewhere it needs the code for it.
        if not self.signed_in("RepoNotFound").writes_in(repository.name.split("/")[0]):
            raise HubError(403, "", "Authorization error.")

    def check_access(self, repository: Repository) -> None:
        if not repository.gated or (self.account and self.account.reads(repository)):
            return
        kept = f"Access to {repository.kind[:-1]} {repository.name} is restricted"
        if self.account is None:
            raise HubError(401, "GatedRepo", f"{kept}. You must have access to it and be authenticated to access it.")
        raise HubError(403, "GatedRepo", f"{kept} and you are not in the authorized list.")

    def check_no_pull_request(self) -> None:
        if self.flag("create_pr"):
            raise HubError(501, "", "This Hub has no pull requests")

    def auth_check(self, repository: Repository, write: str) -> Answer:
        self.check_access(repository)
        if write:
            self.check_writer(repository)
        return Answer({})

    def whoami(self) -> Answer:
        account = self.signed_in()
        token = {"displayName": "tests", "role": account.role}
        organizations = [
            {"type": "org", "name": name, "fullname": name, "roleInOrg": "write"} for name in account.organizations
        ]
        told = {"type": "user", "name": account.name, "fullname": account.name, "orgs": organizations}
        return Answer(told | {"auth": {"type": "access_token", "accessToken": token}})

    def create(self) -> Answer:
        account, asked = self.signed_in(), self.json()
        kind, namespace = f"{asked.get('type') or 'model'}s", asked.get("organization") or account.name
        if not account.writes_in(namespace):
            message = f'You don\'t have the rights to create a {kind[:-1]} under the namespace "{namespace}"'
            raise HubError(403, "", message)
        name = f"{namespace}/{asked['name']}"
        repository = self.hub.repositories.find(kind, name)
        if repository is not None:
            message = f"You already created this {kind[:-1]} repo"
            told = {"error": message, "url": self.hub.page(repository)}
            return Answer(told, 409, {"X-Error-Message": message})
        if kind == "spaces" and not asked.get("sdk"):
            raise HubError(400, "", '"sdk" is required')
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        settings = {"private": private, "sdk": asked.get("sdk")}
        repository = self.hub.repositories.create(kind, name, account.name, **settings)
        return Answer({"url": self.hub.page(repository), "name": name, "id": name})

    def delete(self) -> Answer:
        asked = self.json()
        name = f"{asked.get('organization') or self.signed_in().name}/{asked['name']}"
        repository = self.visible(f"{asked.get('type') or 'model'}s", name)
        self.check_writer(repository)
        self.hub.repositories.delete(repository)
        return Answer({})

    def move(self) -> Answer:
        asked = self.json()
        kind, name = f"{asked.get('type') or 'model'}s", asked["toRepo"]
        repository = self.visible(kind, asked["fromRepo"])
        self.check_writer(repository)
        if not self.account.writes_in(name.split("/")[0]):
            raise HubError(403, "", "Authorization error.")
        if self.hub.repositories.find(kind, name) is not None:
            raise HubError(409, "", "A repository with this name already exists")
        self.hub.repositories.move(repository, name)
        return Answer({})

    def settings(self, repository: Repository) -> Answer:
        asked = self.json()
        if "visibility" in asked or "private" in asked:
            repository.private = bool(asked.get("private")) or asked.get("visibility") == "private"
        repository.gated = asked.get("gated", repository.gated)
        return Answer({"private": repository.private, "gated": repository.gated})

    def branch(self, repository: Repository, branch: str) -> Answer:
        if self.method == "DELETE":
            if branch == "main":
                raise HubError(403, "", "Cannot delete refs/heads/main")
            if repository.branches.pop(branch, None) is None:
                raise HubError(404, "", "Reference does not exist")
            return Answer({})
        if branch in repository.branches:
            raise HubError(409, "", f"Reference refs/heads/{branch} already exists")
        repository.branches[branch] = repository.revision(self.json().get("startingPoint") or "main")
        return Answer({})

    def tag(self, repository: Repository, tag: str) -> Answer:
        """To make a tag is asked of the revision, to delete it of itself."""
        if self.method == "DELETE":
            if repository.tags.pop(tag, None) is None:
                raise HubError(404, "", "Reference does not exist")
            return Answer({})
        commit, name = repository.revision(tag), self.json()["tag"]
        if name in repository.tags:
            raise HubError(409, "", f"Tag reference refs/tags/{name} already exists")
        repository.tags[name] = commit
        return Answer({})

    def refs(self, repository: Repository) -> Answer:
        def told(prefix: str, commits: dict[str, Commit]) -> list[dict]:
            return [
                {"name": name, "ref": prefix + name, "targetCommit": commit.sha} for name, commit in commits.items()
            ]

        branches, tags = told("refs/heads/", repository.branches), told("refs/tags/", repository.tags)
        return Answer({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})

    def info(self, repository: Repository, commit: Commit) -> Answer:
        """Shown to anyone, like the tree: of a gated repository only the files are kept."""
        files = []
        for path, file in commit.files.items():
            blob = {"size": file.size, "blobId": file.oid, "lfs": file.lfs()}
            files.append({"rfilename": path} | (blob if self.flag("blobs") else {}))
        card = card_data(commit)
        plain = {"author": repository.name.split("/")[0], "disabled": False, "downloads": 0, "likes": 0}
        state = {"private": repository.private, "gated": repository.gated, "tags": card.get("tags") or []}
        dates = {"createdAt": commit.history()[-1].date, "lastModified": commit.date}
        kind = {"sdk": repository.sdk} if repository.kind == "spaces" else {}
        kind |= {
            key: card[key] for key in ("library_name", "pipeline_tag") if key in card and repository.kind == "models"
        }
        told = {"id": repository.name, "sha": commit.sha, "siblings": files, "cardData": card} | plain | state | dates
        return Answer(told | kind)

    def tree(self, repository: Repository, commit: Commit, path: str) -> Answer:
        if path and path not in commit.folders:
            raise HubError(404, "EntryNotFound", f"{path} does not exist on the revision")
        prefix = f"{path}/" if path else ""
        names = [name for name in (*sorted(commit.folders), *commit.files) if name.startswith(prefix)]
        if not self.flag("recursive"):
            names = [name for name in names if "/" not in name.removeprefix(prefix)]
        return Answer([entry(commit, name, self.flag("expand")) for name in names])

    def paths_info(self, repository: Repository, commit: Commit) -> Answer:
        self.query = parse_qs(self.body.decode())
        names = commit.folders.union(commit.files).intersection(self.query.get("paths", []))
        return Answer([entry(commit, name, self.flag("expand")) for name in sorted(names)])

    def commits(self, repository: Repository, commit: Commit) -> Answer:
        page, size = int(self.query.get("p", ["0"])[0]), self.hub.page_size
        history = commit.history()
        told = [
            {
                "id": one.sha,
                "title": one.title,
                "message": one.message,
                "date": one.date,
                "authors": [{"user": one.author}],
            }
            for one in history[page * size : (page + 1) * size]
        ]
        following = f'<{self.hub.url}{self.path}?p={page + 1}>; rel="next"'
        return Answer(told, 200, {"Link": following} if (page + 1) * size < len(history) else {})

    def resolve(self, repository: Repository, commit: Commit, path: str) -> Answer:
        self.check_access(repository)
        headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        if path not in commit.files:
            raise HubError(404, "EntryNotFound", "Entry not found", headers)
        file = commit.files[path]
        headers["ETag"], content, size = f'"{file.etag}"', file.read(), file.size
        if file.sha256:
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(size)}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return Answer(content, 200, headers)
        first, last = wanted.groups()
        start = int(first) if first else max(0, size - int(last))
        stop = min(int(last) + 1, size) if first and last else size
        if start >= stop:
            raise HubError(416, "", "Range Not Satisfiable", {"Content-Range": f"bytes */{size}"})
        return Answer(content[start:stop], 206, headers | {"Content-Range": f"bytes {start}-{stop - 1}/{size}"})

    def validate_yaml(self) -> Answer:
        content = self.json()["content"]
        errors = [{"message": message} for message in card_errors(content)]
        if errors:
            message = "\n".join(error["message"] for error in errors)
            return Answer({"error": message, "errors": errors, "warnings": []}, 400)
        missing = [] if metadata(content) else [{"message": "empty or missing yaml metadata in repo card"}]
        return Answer({"errors": [], "warnings": missing})

    def preupload(self, repository: Repository, commit: Commit) -> Answer:
        self.check_no_pull_request()
        asked = self.json()
        ignored = asked.get("gitIgnore") or text(commit.files.get(".gitignore"))
        told = []
        for file in asked["files"]:
            path, known = file["path"], commit.files.get(file["path"])
            mode = "lfs" if file["size"] > LARGE_SIZE or is_large_kind(commit, path) else "regular"
            oid = {"oid": known.etag} if known else {}
            told.append({"path": path, "uploadMode": mode, "shouldIgnore": is_ignored(ignored, path)} | oid)
        return Answer({"files": told})

    def lfs_batch(self, repository: Repository) -> Answer:
        asked = self.json()
        if asked["operation"] != "upload":
            raise HubError(501, "", "This Hub's large files are downloaded from /resolve")
        in_parts = self.hub.part_size is not None and "multipart" in asked["transfers"]
        objects = [self.instructed(repository, one["oid"], one["size"], in_parts) for one in asked["objects"]]
        return Answer({"transfer": "multipart" if in_parts else "basic", "objects": objects})

    def instructed(self, repository: Repository, sha256: str, size: int, in_parts: bool) -> dict:
        """Where the client shall upload an object; nothing of the kind where it is already there."""
        told = {"oid": sha256, "size": size, "authenticated": True}
        if repository.uploaded(sha256, size):
            return told
        ticket = secrets.token_hex(16)
        self.hub.uploads[ticket] = Upload(repository, sha256)
        href, header, part_size = f"{self.hub.url}/lfs/{ticket}", {}, self.hub.part_size
        if in_parts and size > part_size:
            header = {"chunk_size": str(part_size)}
            header |= {str(part): f"{href}/{part}" for part in range(1, -(-size // part_size) + 1)}
        verify = {"href": f"{self.hub.page(repository)}.git/info/lfs/objects/verify"}
        return told | {"actions": {"upload": {"href": href, "header": header}, "verify": verify}}

    def ticketed(self, ticket: str) -> Upload:
        if ticket not in self.hub.uploads:
            raise HubError(403, "", "Request has expired")
        return self.hub.uploads[ticket]

    def lfs_upload(self, ticket: str, part: str) -> Answer:
        upload = self.ticketed(ticket)
        if part:
            upload.parts[int(part)] = self.body
        else:
            upload.repository.uploads[upload.sha256] = self.body
        return Answer(b"", 200, {"ETag": f'"{File.regular(self.body).oid}"'})

    def lfs_complete(self, ticket: str) -> Answer:
        upload = self.ticketed(ticket)
        told = {part["partNumber"]: part["etag"] for part in self.json()["parts"]}
        if told != {part: f'"{File.regular(content).oid}"' for part, content in upload.parts.items()}:
            raise HubError(400, "", "The parts are not those that were uploaded")
        upload.repository.uploads[upload.sha256] = b"".join(content for _, content in sorted(upload.parts.items()))
        return Answer({})

    def lfs_verify(self, repository: Repository) -> Answer:
        asked = self.json()
        if repository.uploaded(asked["oid"], asked["size"]) is None:
            raise HubError(400, "", f"The upload is not what its sha256 and size say: {asked['oid']}")
        return Answer({})

    def commit(self, repository: Repository, branch: str) -> Answer:
        self.check_no_pull_request()
        lines = [json.loads(line) for line in self.body.split(b"\n") if line]
        header = lines[0]["value"] if lines and lines[0]["key"] == "header" else {}
        if not header.get("summary"):
            raise HubError(400, "", "A commit begins with a header, and that has a summary")
        tip = repository.tip(branch)
        if header.get("parentCommit") not in (None, tip.sha):
            raise HubError(412, "", "A commit has happened since. Please refresh and try again.")
        files = repository.changed(tip.files, [(line["key"], line["value"]) for line in lines[1:]])
        card = files.get("README.md")
        errors = card_errors(text(card)) if card and card != tip.files.get("README.md") else []
        if errors:
            raise HubError(400, "", "; ".join(errors))
        message = header.get("description") or ""
        commit = repository.add(branch, files, header["summary"], message, self.account.name)
        url = f"{self.hub.page(repository)}/commit/{commit.sha}"
        return Answer({"success": True, "commitOid": commit.sha, "commitUrl": url, "hookOutput": ""})


def text(file: File | None) -> str:
    return file.read().decode(errors="replace") if file else ""


def card_data(commit: Commit) -> dict:
    try:
        data = metadata(text(commit.files.get("README.md"))) or {}
    except ValueError:
        return {}
    return json.loads(json.dumps(data, default=str))


def entry(commit: Commit, path: str, expand: bool) -> dict:
    """What the Hub tells of a file or folder."""
    told = {"type": "directory", "path": path, "size": 0, "oid": commit.sha}
    if path in commit.files:
        file = commit.files[path]
        told |= {"type": "file", "size": file.size, "oid": file.oid} | ({"lfs": file.lfs()} if file.sha256 else {})
    if expand:
        change = commit.last_change(path)
        told["lastCommit"] = {"id": change.sha, "title": change.title, "date": change.date}
    return told


def is_large_kind(commit: Commit, path: str) -> bool:
    """Whether .gitattributes give the file to LFS."""
    lines = (text(commit.files.get(".gitattributes")) or ATTRIBUTES).splitlines()
    patterns = [line.split()[0] for line in lines if "filter=lfs" in line]
    return any(fnmatch.fnmatch(path if "/" in pattern else path.split("/")[-1], pattern) for pattern in patterns)


def is_ignored(patterns: str, path: str) -> bool:
    """Whether .gitignore keeps the file out; of its rules the plain patterns are known, no `!` and no `**`."""
    names = path.split("/")
    places = ["/".join(names[:count]) for count in range(1, len(names) + 1)]
    for line in patterns.splitlines():
        pattern = line.strip().strip("/")
        known = names if "/" not in line.strip().rstrip("/") else places
        known = known[:-1] if line.strip().endswith("/") else known
        if pattern and not pattern.startswith("#") and any(fnmatch.fnmatch(name, pattern) for name in known):
            return True
    return False
