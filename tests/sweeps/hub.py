"""A Hub that errs at any request, once or for good, before or after it has carried the request out.

>>> sweep(seed=3, inputs=200, folder=tmp_path)  # what went wrong, one line each
[]
"""

import contextlib
import itertools
import logging
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
from hub_repositories import File
from hub_server import WRITER, HubServer
from huggingface_hub import CommitInfo, constants
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

from sdsclip_hf.hub.attempts import HubError
from sdsclip_hf.hub.commits import check_holds_clip, push_files

LOOKING = ("tree", "resolve")  # of what makes sure that the repository holds a CLIP
STAGES = ("create", "auth_check", "branch", "info", "validate_yaml", "preupload", "lfs_batch", "lfs_upload")
STAGES += ("lfs_verify", "commit", *LOOKING)
STATUSES = (
    400,
    401,
    402,
    403,
    404,
    405,
    408,
    409,
    410,
    412,
    413,
    418,
    422,
    423,
    429,
    451,
    500,
    501,
    502,
    503,
    504,
    520,
)
HTML = {
    "body": b"<!DOCTYPE html><html><head><title>Sign in</title></head></html>",
    "headers": {"Content-Type": "text/html"},
}
BODIES = {
    "empty": b"",
    "garbage": bytes(range(256)) * 3,
    "not UTF-8": '{"url": "caf\xe9"}'.encode("latin-1"),
    "list": b"[]",
    "list of numbers": b"[1, 2]",
    "null": b"null",
    "number": b"3",
    "text": b'"yes"',
    "object": b"{}",
    "object of nulls": b'{"url": null, "files": null, "objects": null, "commitUrl": null, "commitOid": null, "id": null}',
    "half": b'{"url": "http',
    "deep": b"[" * 100_000,
}
KINDS: dict[str, dict] = {f"status {status}": {"status": status} for status in STATUSES}
KINDS |= {f"bare {status}": {"status": status, "body": b""} for status in (202, 204, 205, 301, 304, 400, 422, 503)}
KINDS |= {f"answer {name}": {"body": body} for name, body in BODIES.items()}
KINDS |= {
    f"{status} {name}": {"status": status, "body": BODIES[name]}
    for status in (400, 503)
    for name in ("not UTF-8", "garbage", "list", "number", "deep")
}
KINDS |= {"html": HTML, "502 html": HTML | {"status": 502}}
KINDS |= {"400 errors": {"status": 400, "body": b'{"errors": [1, null]}'}}
KINDS |= {"unpackable": {"body": b"no gzip", "headers": {"Content-Encoding": "gzip"}}}
KINDS |= {
    f"{status} to {name}": {"status": status, "headers": {"Location": to}}
    for status in (301, 303, 307)
    for name, to in {
        "itself": "?again",
        "nothing": "/login",
        "another": "/api/models/org/elsewhere",
        "nowhere": "http://127.0.0.1:9/",
        "nonsense": "ftp://[",
    }.items()
}
KINDS |= {"504 and late": {"status": 504, "late": True}, "cut and late": {"cut": "silence", "late": True}}
KINDS |= {f"cut {cut}": {"cut": cut} for cut in ("silence", "upload", "answer")} | {"late": {"delay": 0.01}}
SHA = b"f" * 40
LIES = {  # of the right form, and untrue
    "info": b'{"id": "org/x", "sha": "%s", "siblings": []}' % SHA,
    "preupload": b'{"files": [{"path": "README.md", "uploadMode": "regular", "shouldIgnore": true}]}',
    "lfs_batch": b'{"objects": [{"oid": "%s", "size": 1, "actions": {"upload": {"href": "http://127.0.0.1:9/"}}}]}'
    % SHA,
    "commit": b'{"success": true, "commitOid": "%s", "commitUrl": "https://huggingface.co/org/x/commit/%s"}'
    % (SHA, SHA),
}
OF_LFS = b'{"objects": [{"oid": "%s", "size": 1, "error": {"code": 422, "message": "Too many letters"}}]}' % SHA

FILES = {
    "README.md": b"---\nlicense: mit\n---\n",
    "config.json": b'{"model_type": "clip"}',
    "sub/model.safetensors": bytes(range(256)) * 64,
}
OLD = {
    "README.md": b"---\nlicense: mit\n---\nold\n",
    "config.json": b'{"model_type": "clip"} ',
    "notes.txt": b"stays",
    "gone.old": b"goes",
    "sub/stays.old": b"",
}
TITLE = "a push"
PYTHON = re.compile(
    r"object is not|has no attribute|NoneType|codec|Expecting|Extra data|line 1 column|Traceback|\w+Error\b|keyword argument"
    r"|subscriptable|iterable|improperly|local variable|recursion|indices must|: '\w*'\.|Malformed|not enough values"
    r"|\(char \d|Unterminated"
)
REMEDY = re.compile(
    r"[Tt]ry again later|Mend what is pushed|hf auth login|Check |token that may write|payment|Push smaller|push again"
)


@dataclass(frozen=True)
class Trial:
    """One push, and what befalls it.

    ``after`` requests of the stage pass first; ``times`` None: all that follow fail. Of those that are carried out although
    they fail, ``spared`` are not.
    """

    stage: str
    kind: str
    times: int | None
    applied: bool = False
    spared: int = 0
    after: int = 0
    before: str = "old"
    repo_type: str = "model"
    branch: str | None = None

    @property
    def options(self) -> dict:
        if self.kind == "lie":
            return {"body": LIES[self.stage]}
        return {"body": OF_LFS} if self.kind == "refused uploads" else KINDS[self.kind]

    @property
    def is_possible(self) -> bool:
        # Of these kinds it is known anyway what becomes of the request.
        known = self.kind in ("cut upload", "cut answer", "late") or "and late" in self.kind
        stages = {"lie": LIES, "refused uploads": ("lfs_batch",)}.get(self.kind, STAGES)
        return (
            self.stage in stages
            and (self.stage != "branch" or self.branch is not None)
            and (self.stage not in LOOKING or (self.before != "nothing" and self.repo_type == "model"))
            and not (self.applied and (known or self.stage in ("info", *LOOKING)))
            and not (self.spared and (self.after or not self.applied))
        )

    @property
    def is_deceived(self) -> bool:
        """Whether the Hub itself keeps telling another head than it has."""
        return self.stage == "info" and self.times is None and (self.kind == "lie" or "to another" in self.kind)


def grid() -> Iterator[Trial]:
    """Every stage with every fault, once and for good, carried out or not."""
    kinds = (*KINDS, "lie", "refused uploads")
    for stage, kind, times, applied in itertools.product(STAGES, kinds, (1, None), (False, True)):
        branch = "next" if stage == "branch" else None
        for after in (0, 1) if stage in ("info", "resolve") else (0,):
            for before in ("old", "nothing") if stage == "commit" else ("old",):
                for spared in (0, 1, 3) if stage == "commit" else (0,):
                    trial = Trial(stage, kind, times, applied, spared, after, before, branch=branch)
                    if trial.is_possible:
                        yield trial


def chosen(seed: int, inputs: int) -> list[Trial]:
    """Of the grid, and of what the repository is and holds before."""
    draw, trials = random.Random(seed), []
    while len(trials) < inputs:
        trial = Trial(
            stage=draw.choice(STAGES),
            kind=draw.choice([*KINDS, "lie", "refused uploads"]),
            times=draw.choice((1, 1, 2, None, None)),
            applied=draw.random() < 0.4,
            spared=draw.choice((0, 0, 0, 1, 3)),
            after=draw.choice((0, 0, 1)),
            before=draw.choice(("nothing", "old", "same")),
            repo_type=draw.choice(("model", "dataset", "space")),
            branch=draw.choice((None, "next")),
        )
        if trial.is_possible:
            trials.append(trial)
    return trials


@contextlib.contextmanager
def erring_hub(folder: Path) -> Iterator[HubServer]:
    """A Hub that this process takes for the Hub, logged in as one who may write there; nobody waits between attempts."""
    folder.mkdir(parents=True, exist_ok=True)
    with HubServer(folder / "hub") as server, contextlib.ExitStack() as stack:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
        changed = {"ENDPOINT": server.url, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_DISABLE_XET": True}
        changed |= {"HF_HUB_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": False}
        stack.enter_context(mock.patch.multiple(constants, **changed))
        stack.enter_context(mock.patch.dict("os.environ", {"HF_TOKEN": WRITER}))
        stack.enter_context(mock.patch("time.sleep"))
        disable_progress_bars()
        stack.callback(enable_progress_bars)
        logging.disable(logging.WARNING)
        stack.callback(logging.disable, logging.NOTSET)
        server.repositories.create("models", "org/elsewhere", "org")
        yield server


def sweep(seed: int, inputs: int, folder: Path) -> list[str]:
    """What goes wrong in so many pushes, chosen by the seed; nothing should."""
    return swept(chosen(seed, inputs), folder)


def trial(rng: np.random.Generator, folder: Path) -> str:
    """One push to a Hub that errs."""
    wrong = sweep(int(rng.integers(2**31)), 1, folder)
    assert not wrong, "\n".join(wrong)
    return "held whole, or told as failed"


def swept(trials: list[Trial], folder: Path) -> list[str]:
    with erring_hub(folder) as server:
        return [
            f"{trial}: {wrong}"
            for number, trial in enumerate(trials)
            for wrong in tried(server, trial, f"org/n{number}")
        ]


def tried(server: HubServer, trial: Trial, name: str) -> list[str]:
    """What goes wrong in one push to a repository of that name."""
    kind, branch = f"{trial.repo_type}s", trial.branch or "main"
    if trial.before != "nothing":
        repository = server.repositories.create(kind, name, "org", sdk="gradio")
        content = OLD if trial.before == "old" else FILES
        files = {
            path: (File.large if path.endswith("safetensors") else File.regular)(data) for path, data in content.items()
        }
        repository.add(branch, repository.head.files | files, "before", "", "org")
    if trial.spared:
        server.fault(trial.stage, times=trial.spared, **trial.options)
    server.fault(trial.stage, times=trial.times, after=trial.after, applied=trial.applied, **trial.options)
    told: CommitInfo | Exception
    try:
        if trial.stage in LOOKING:
            check_holds_clip(name, revision=trial.branch)
        told = push_files(
            FILES, name, repo_type=trial.repo_type, message=TITLE, revision=trial.branch, space_sdk="gradio"
            if trial.repo_type == "space" else None, delete_patterns=["*.old"],
        )  # fmt: skip
    except Exception as error:
        told = error
    fired = sum(fault.fired for fault in server.faults)
    server.faults.clear()
    server.late.clear()
    there = server.repository(kind, name)
    history = server.history(kind, name, branch) if there and branch in there.branches else []
    held = server.files(kind, name, branch) if history else {}
    whole = {path: held.get(path) for path in FILES} == FILES and "gone.old" not in held
    return [*wrong_in_history(trial, history, held), *wrong_in_what_is_told(trial, told, whole, history, fired)]


def wrong_in_history(trial: Trial, history: list, held: dict[str, bytes]) -> Iterator[str]:
    made = [commit for commit in history if commit.title == TITLE]
    if len(made) > 1:
        yield f"{len(made)} commits for one push"
    if any(commit.parent and commit.files == commit.parent.files for commit in made):
        yield "a commit that changes nothing"
    if (
        trial.before == "old"
        and not {"notes.txt", "sub/stays.old"} <= set(held)
        and history[0].title != "initial commit"
    ):
        yield "a file is gone that was to stay"


def wrong_in_what_is_told(
    trial: Trial, told: CommitInfo | Exception, whole: bool, history: list, fired: int
) -> Iterator[str]:
    if isinstance(told, CommitInfo):
        if not whole:
            yield "told as made, and not whole"
        elif told.oid != history[0].sha or not told.commit_url.endswith(f"/commit/{told.oid}"):
            yield f"told as {told.commit_url}, which is not the head"
        return
    text = str(told)
    if not isinstance(told, HubError):
        yield f"{type(told).__name__}: {text}"
        return
    if fired == 1:
        yield f"one fault ends the push: {text}"
    if PYTHON.search(text) or "\n" in text or WRITER in text or not text.isprintable():
        yield f"an error that is no message: {text}"
    if not REMEDY.search(text):
        yield f"an error without a remedy: {text}"
    if told.unseen != ("cannot be seen" in text) or (told.unseen and "/commits/" not in text):
        yield f"an error that does not tell how to look: {text}"
    if whole and trial.before != "same" and not told.unseen and not trial.is_deceived:
        yield f"told as failed, and whole: {text}"
