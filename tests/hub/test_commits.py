"""Pushing files, by the real client against a Hub on loopback: one commit whatever is answered, or an error that helps."""

import json
from types import SimpleNamespace

import pytest
from hub_answers import Request
from hub_repositories import File
from hub_repositories import HubError as Refused
from hub_server import READER, STRANGER, WRITER, HubServer
from huggingface_hub import CommitInfo
from huggingface_hub.hf_api import BlobLfsInfo, RepoSibling
from sweeps.hub import BODIES, FILES, HTML, LIES, Trial, grid, sweep, swept

from sdsclip_hf.hub.attempts import HubError, insist
from sdsclip_hf.hub.commits import check_holds_clip, check_repo_id, is_hub_id, push_files, push_folder
from sdsclip_hf.hub.heads import Head, Wanted


def push_all(**options) -> CommitInfo:
    return push_files(FILES, "org/new", message="a push", **options)


def commits(hub: HubServer) -> list[str]:
    return [commit.title for commit in hub.history("models", "org/new")]


# Whatever the Hub answers


def test_pushes_to_a_hub_that_errs(tmp_path):
    assert sweep(seed=0, inputs=100, folder=tmp_path) == []


@pytest.mark.slow
def test_every_fault_at_every_stage(tmp_path):
    assert swept(list(grid()), tmp_path) == []


@pytest.mark.parametrize("stage", ["create", "preupload", "lfs_batch", "lfs_upload", "commit"])
def test_one_answer_that_could_be_another_ends_no_push(tmp_path, stage):
    kinds = ["bare 204", "bare 301", "301 to nothing", "answer garbage", "answer empty"]
    kinds += [f"status {status}" for status in (400, 402, 413, 422)]
    assert swept([Trial(stage, kind, times=1) for kind in kinds], tmp_path) == []


def test_the_sweep_sees_what_goes_wrong(tmp_path, monkeypatch):
    trial, url = Trial("commit", "status 503", times=1), "https://huggingface.co/org/n0/commit/abc"
    monkeypatch.setattr("sweeps.hub.push_files", lambda *_, **__: CommitInfo(url, "", "", "abc"))
    assert [wrong.rpartition(": ")[2] for wrong in swept([trial], tmp_path)] == ["told as made, and not whole"]
    monkeypatch.setattr("sdsclip_hf.hub.one_commit.OneCommit.settle", lambda *_: None)
    monkeypatch.setattr("sweeps.hub.push_files", push_files)
    assert (
        "told as failed, and whole" in swept([Trial("commit", "status 403", None, applied=True, spared=1)], tmp_path)[0]
    )


ACCEPTED = {
    "lost": {"cut": "silence", "applied": True},
    "cut": {"cut": "answer"},
    "empty": {"body": b"", "applied": True},
    "nonsense": {"body": BODIES["garbage"], "applied": True},
    "a page": HTML | {"applied": True},
    "another answer": {"body": b'{"commitUrl": 1, "commitOid": null}', "applied": True},
    "a refusal": {"status": 403, "applied": True},
    "a redirect": {"status": 307, "headers": {"Location": "?again"}, "applied": True},  # followed: sent twice
    "in vain": {"status": 504, "late": True},  # it is made when the next has come
}


@pytest.mark.parametrize("times", [1, None])
@pytest.mark.parametrize("answer", ACCEPTED)
def test_a_commit_that_is_made_although_nothing_tells_so_is_made_once(hub_here, waits, answer, times):
    hub_here.fault("commit", times=times, **ACCEPTED[answer])
    told = push_all()
    assert commits(hub_here) == ["a push", "initial commit"]
    assert told.oid == hub_here.repository("models", "org/new").sha
    assert told == f"{hub_here.url}/org/new/commit/{told.oid}" and told.commit_message == "a push"
    assert {path: hub_here.files("models", "org/new")[path] for path in FILES} == FILES


def test_the_last_attempt_is_looked_at_too(hub_here, waits):
    hub_here.fault("commit", status=403)
    hub_here.fault("commit", status=403, times=None, applied=True)
    assert push_all().oid == hub_here.repository("models", "org/new").sha
    assert commits(hub_here) == ["a push", "initial commit"] and waits == [1.0]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"status": 301}, r"POST /api/models/org/new/commit/main is redirected and not carried out \(status 301\)"),
        ({"status": 301, "headers": {"Location": "/login?next=x"}}, "Sorry, we can't find the page"),
        ({"body": LIES["commit"]}, "it told the commit as made, but the branch main lacks README.md, config.json"),
    ],
)
def test_a_commit_that_is_not_made_is_not_told_as_made(hub_here, waits, answer, reason):
    fault = hub_here.fault("commit", times=None, **answer)
    with pytest.raises(HubError, match=reason) as caught:
        push_all()
    assert commits(hub_here) == ["initial commit"] and not caught.value.unseen
    assert fault.fired == (2 if "Sorry" in reason else 4)


def test_files_that_the_repository_ignores_are_missed(hub_here, waits):
    push_files({".gitignore": b"*.safetensors\n"}, "org/new", message="ignore")
    with pytest.raises(
        HubError, match=r"the branch main lacks sub/model.safetensors\. Take them out of .* \.gitignore"
    ):
        push_all()


def test_what_cannot_be_seen_is_told_as_such(hub_here, waits):
    hub_here.fault("commit", status=500, times=None, applied=True)
    hub_here.fault("info", body=b"no", after=1, times=None)
    with pytest.raises(HubError) as caught:
        push_all(revision="next")
    told = str(caught.value)
    assert (
        caught.value.unseen
        and caught.value.passing
        and "Whether it made the commit all the same cannot be seen" in told
    )
    assert "revision/next cannot be understood: “no” (status 200)" in told
    assert f"Look at {hub_here.url}/org/new/commits/next, or push again: what is there is not pushed twice." in told
    hub_here.faults.clear()
    head = hub_here.repository("models", "org/new").branches["next"]
    assert push_all(revision="next").oid == head.sha
    assert [commit.title for commit in head.history()] == ["a push", "initial commit"]


def test_a_file_that_vanishes_under_the_push(hub_here, waits, tmp_path, monkeypatch):
    """What it held is not known any more, so neither is whether the branch holds it."""
    (tmp_path / "config.json").write_bytes(b"{}")

    def gone(*_, **__):
        (tmp_path / "config.json").unlink()
        raise Refused(503, "", "Service Unavailable")

    monkeypatch.setattr(Request, "commit", gone)
    with pytest.raises(HubError, match=r"No such file .*config.json.* cannot be seen") as caught:
        push_folder(tmp_path, "org/new", message="a push", allow_patterns=["config.json"])
    assert caught.value.unseen and not caught.value.passing and waits == [1.0]


def test_a_push_costs_two_looks_and_one_that_changes_nothing_one(hub_here):
    push_all()
    sending = ["validate_yaml", "preupload", "lfs_batch", "lfs_upload", "lfs_verify", "commit"]
    assert hub_here.stages == ["create", "auth_check", "info", *sending, "info"]
    hub_here.stages.clear()
    push_all()
    assert hub_here.stages == ["create", "auth_check", "info"]


def test_a_commit_on_top_of_which_somebody_puts_another_is_not_made_again(hub_here, monkeypatch):
    """Nor is it put on top of one that came in between the look and the commit, without another look."""
    commit = Request.commit

    def busy(request: Request, repository, branch: str):
        made = commit(request, repository, branch)
        repository.add(branch, {"README.md": File.regular(b"theirs")}, "theirs", "", "org")
        return made

    monkeypatch.setattr(Request, "commit", busy)
    told = push_all()
    assert commits(hub_here) == ["theirs", "a push", "initial commit"]
    assert told.oid == hub_here.history("models", "org/new")[1].sha


@pytest.mark.parametrize(
    ("stage", "answer", "words"),
    [
        ("create", {"status": 402}, r"Payment required \(status 402\)\. The Hub wants a payment: see https"),
        ("create", {"body": b""}, r"the answer to POST /api/repos/create is empty \(status 200\)\. Check that no proxy"),
        ("create", HTML, r"the answer to POST /api/repos/create cannot be understood: “Sign in” \(status 200\)"),
        ("preupload", {"status": 413}, r"Payload too large \(status 413\)\. Push smaller files"),
        ("preupload", {"body": bytes(range(256))}, r"/preupload/main cannot be understood: 256 bytes that are no text"),
        ("preupload", {"body": b"[7]"}, r"cannot be understood: “\[7\]” \(status 200\)"),
        ("lfs_batch", {"status": 422, "body": b'{"errors": [{"message": "a"}, {"message": "b"}]}'}, r"a; b \(status 422\)"),
        ("lfs_batch", {"body": b"no gzip", "headers": {"Content-Encoding": "gzip"}}, r"answer to POST /org/.* be unpacked"),
        ("lfs_upload", {"cut": "silence"}, r" \(at PUT /lfs/[0-9a-f]+\)\. Try again later"),
        ("validate_yaml", {"status": 503, "body": b"caf\xe9"}, r"4 bytes that are no text \(status 503\)"),
        ("commit", {"status": 400, "body": b""}, r"commit/main failed without a reason \(status 400\)"),
    ],
)  # fmt: skip
def test_the_hub_is_quoted(hub_here, waits, stage, answer, words):
    hub_here.fault(stage, times=None, **answer)
    with pytest.raises(HubError, match=words):
        push_all()


# What a branch holds


def sibling(path: str, content: bytes) -> RepoSibling:
    file = (File.large if path.endswith("bin") else File.regular)(content)
    lfs = file.lfs() and BlobLfsInfo(size=file.size, sha256=file.sha256, pointer_size=100)
    return RepoSibling(path, size=file.size, blob_id=file.oid, lfs=lfs)


def test_what_a_branch_lacks_is_found_by_digests(tmp_path):
    for name in ("a.txt", "b.bin"):
        (tmp_path / name).write_bytes(b"same")
    files = {"a.txt": tmp_path / "a.txt", "b.bin": tmp_path / "b.bin", "c.txt": b"bytes", "empty": b""}
    wanted = Wanted(files, ["*.old"])
    held = {"a.txt": b"same", "b.bin": b"same", "c.txt": b"bytes", "empty": b"", "d.txt": b"?", "sub/x.old": b""}

    def lacking(**changed: bytes | None) -> set[str]:
        there = {name: content for name, content in (held | changed).items() if content is not None}
        return set(wanted.lacking(Head("f" * 40, {name: sibling(name, content) for name, content in there.items()})))

    assert sibling("empty", b"").blob_id == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"  # as git names it
    assert lacking() == set()
    assert lacking(**{"a.txt": b"Same"}) == {"a.txt"} and lacking(**{"b.bin": b"Same"}) == {"b.bin"}
    assert lacking(**{"c.txt": None, "empty": b"."}) == {"c.txt", "empty"}
    assert lacking(**{"x.old": b""}) == {"the removal of x.old"}
    (tmp_path / "a.txt").write_bytes(b"more")
    assert lacking() == {"a.txt"}


# Attempts


def refusal(status: int, **headers: str) -> OSError:
    error = OSError("the client's words")
    request = SimpleNamespace(method="GET", url=SimpleNamespace(path="/api"))
    body = {"content": b"", "history": [], "request": request}
    error.response = SimpleNamespace(status_code=status, headers={"X-Error-Message": "Its words.", **headers}, **body)
    return error


def failing(*errors: Exception):
    """An attempt that fails so often, each time for the next reason, and for the last one ever after."""
    left = list(errors)

    def attempt():
        raise left.pop(0) if len(left) > 1 else left[0]

    return attempt


@pytest.mark.parametrize(
    ("error", "tries", "remedy"),
    [
        (refusal(400), 2, "Mend what is pushed; if nothing is wrong with it, try again later."),
        (refusal(401), 2, "hf auth login"),
        (refusal(403), 2, "namespace of your own"),
        (refusal(404), 2, "that the branch exists"),
        (refusal(409), 4, "Try again later."),
        (refusal(412), 4, "Try again later."),
        (refusal(422), 2, "Mend what is pushed;"),
        (refusal(429), 4, "try again later."),
        (refusal(500), 4, "Try again later."),
        (FileNotFoundError("no such file"), 1, "Mend what is pushed."),
        (ValueError("LFS batch API returned errors:\nToo\nlarge"), 2, "Mend what is pushed;"),
        (OSError("the line is cut"), 4, "Try again later."),
        (OSError(28, "No space left on device"), 1, "type the same command again."),
    ],
)  # fmt: skip
def test_what_may_pass_is_tried_often_and_a_refusal_once_more(waits, error, tries, remedy):
    with pytest.raises(HubError) as caught:
        insist(failing(error), "org/x")
    told = str(caught.value)
    assert (told.startswith("org/x on the Hub: ") and told.endswith(remedy)) or remedy in told
    status = getattr(error, "response", None) and error.response.status_code
    assert status is None or f"Its words (status {status})." in told
    assert waits == [1.0, 5.0, 20.0][: tries - 1] and caught.value.passing == (tries == 4)


def test_each_refusal_has_its_second_attempt(waits):
    with pytest.raises(HubError, match="status 403"):
        insist(failing(refusal(401), refusal(403), OSError("cut"), refusal(403)), "org/x")
    assert waits == [1.0, 5.0, 20.0]


def test_the_hub_is_given_the_time_that_it_asks_for(waits):
    left = [refusal(429, **{"Retry-After": "7"}), refusal(503, **{"Retry-After": "600"}), refusal(500)]
    assert insist(lambda: failing(left.pop(0))() if left else "done", "org/x") == "done" and waits == [7.0, 60.0, 20.0]


def test_no_connection_is_tried_again_but_before_training(waits):
    class ConnectError(Exception):
        pass

    with pytest.raises(HubError, match="Check the network connection") as caught:
        insist(failing(ConnectError("refused")), "org/x", needs_network=True)
    assert not caught.value.passing and not waits
    with pytest.raises(HubError) as caught:
        insist(failing(ConnectError("refused")), "org/x")
    assert caught.value.passing and waits == [1.0, 5.0, 20.0]


# Who may push what, and where to


@pytest.fixture
def log_in(hub_here, tmp_path, monkeypatch):
    """As whom this process pushes: with that token, or with none."""
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    return lambda token: monkeypatch.setenv("HF_TOKEN", token or "")


def test_who_may_not_write_is_told_so(hub_here, log_in, waits):
    log_in(None)
    with pytest.raises(ValueError, match="a push needs a login on the Hub"):
        push_all()
    remedies = {READER: "must be write", STRANGER: "must be write", "hf_nobody": "hf auth login"}
    for token, remedy in remedies.items():
        log_in(token)
        with pytest.raises(HubError, match=f"^org/new on the Hub: .*{remedy}"):
            push_all()
    log_in(WRITER)
    with pytest.raises(ValueError, match="NAMESPACE/NAME"):
        push_files({}, "a/b/c", message="")
    assert hub_here.repository("models", "org/new") is None


def test_what_a_branch_holds_is_looked_at_there(hub_here):
    for model_type, revision in (("clip", None), ("siglip", "another"), ("bert", "other")):
        content = json.dumps({"model_type": model_type}).encode()
        push_files({"config.json": content}, "org/mixed", message="a push", revision=revision)
    check_holds_clip("org/mixed")
    check_holds_clip("org/mixed", revision="another")
    with pytest.raises(ValueError, match="a model of type 'bert'"):
        check_holds_clip("org/mixed", revision="other")


def test_a_folder_is_pushed_without_what_is_hidden_and_what_is_stale_goes(hub_here, tmp_path):
    folder = tmp_path / "folder"
    for name in ("app.py", ".secret", "__pycache__/app.pyc", "sub/data.json", "old.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    space = {"repo_id": "org/space", "repo_type": "space", "space_sdk": "gradio", "message": "a"}
    fresh = {".gitattributes", "README.md"}  # what the Hub puts into a new Space
    told = push_folder(folder, **space, private=True)
    assert told == f"{hub_here.url}/spaces/org/space/commit/{hub_here.repository('spaces', 'org/space').sha}"
    assert set(hub_here.files("spaces", "org/space")) == {*fresh, "app.py", "old.json", "sub/data.json"}
    assert hub_here.repository("spaces", "org/space").private
    push_folder(folder, **space, allow_patterns=["*.py", "sub/*"], delete_patterns=["*.json"])
    assert set(hub_here.files("spaces", "org/space")) == {*fresh, "app.py", "sub/data.json"}
    push_folder(
        folder, **space, allow_patterns=["app.py"], delete_patterns=["*.json"]
    )  # without a slash: at the top alone
    assert "sub/data.json" in hub_here.files("spaces", "org/space")


@pytest.mark.parametrize("name", ["a/b/c", "a..b", "-a/b", "a b", "x" * 97, ""])
def test_what_is_no_name(name):
    with pytest.raises(ValueError, match="NAMESPACE/NAME"):
        check_repo_id(name)


def test_hub_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    (tmp_path / "org/local").mkdir()
    assert is_hub_id("openai/clip-vit-base-patch32") and is_hub_id("org/other")
    assert not any(map(is_hub_id, ("org/local", "shapes/student", "/tmp/x", "a/b/c", "shapes", str(tmp_path))))
