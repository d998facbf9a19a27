"""What the Hub on loopback makes of what the real client writes: repositories, commits, branches, tags."""

import hashlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hub_client import add, ask, commit, contents, weights, write
from hub_repositories import Repository
from huggingface_hub import CommitOperationCopy, CommitOperationDelete, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError


@pytest.mark.parametrize(
    ("kind", "page", "options", "files"),
    [
        ("model", "", {}, [".gitattributes"]),
        ("dataset", "datasets/", {"private": True}, [".gitattributes"]),
        ("space", "spaces/", {"space_sdk": "gradio"}, [".gitattributes", "README.md"]),
    ],
)
def test_repositories_are_created_and_deleted(hub, api, kind, page, options, files):
    url = api.create_repo("org/name", repo_type=kind, **options)
    assert (url, url.repo_type, url.repo_id) == (f"{hub.url}/{page}org/name", kind, "org/name")
    info = api.repo_info("org/name", repo_type=kind)
    assert [file.rfilename for file in info.siblings] == files
    assert (info.private, getattr(info, "sdk", None)) == (options.get("private", False), options.get("space_sdk"))
    assert [entry.title for entry in api.list_repo_commits("org/name", repo_type=kind)] == ["initial commit"]
    assert api.create_repo("org/name", repo_type=kind, exist_ok=True, **options) == url
    with pytest.raises(HfHubHTTPError, match=f"You already created this {kind} repo") as error:
        api.create_repo("org/name", repo_type=kind, **options)
    assert error.value.response.status_code == 409
    api.delete_repo("org/name", repo_type=kind)
    assert not api.repo_exists("org/name", repo_type=kind)
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("org/name", repo_type=kind)
    api.delete_repo("org/name", repo_type=kind, missing_ok=True)


def test_a_repository_without_namespace_is_the_users(api):
    assert api.create_repo("name").repo_id == "org-writer/name"
    api.move_repo("org-writer/name", "org/moved")
    assert (api.repo_exists("org-writer/name"), api.repo_exists("org/moved")) == (False, True)


def test_every_commit_stays_readable(hub, api, tmp_path):
    api.create_repo("org/name")
    states, shas = [], []
    for step in range(3):
        folder = write(tmp_path / "run", **{f"checkpoint__{step}_txt": str(step), "model_safetensors": weights(step)})
        shas.append(api.upload_folder(repo_id="org/name", folder_path=folder, commit_message=f"step {step}").oid)
        states.append(contents(folder))
    assert len(states[2]) == 4
    for sha, state in zip(shas, states, strict=True):
        loaded = contents(api.snapshot_download("org/name", revision=sha, local_dir=tmp_path / sha))
        assert {path: loaded[path] for path in state} == state
        assert {path for path in loaded if not path.startswith(".")} == set(state)
        assert {path: hub.files("models", "org/name", sha)[path] for path in state} == state
        assert api.model_info("org/name", revision=sha).sha == sha
    told = api.list_repo_commits("org/name")
    assert [(one.commit_id, one.title, one.authors) for one in told[:3]] == [
        (sha, f"step {step}", ["org-writer"]) for step, sha in reversed(list(enumerate(shas)))
    ]
    history = hub.history("models", "org/name")
    assert [one.sha for one in history] == [one.commit_id for one in told]
    assert [one.parent for one in history] == [*history[1:], None]
    assert [one.created_at for one in told] == sorted((one.created_at for one in told), reverse=True)
    assert len(api.list_repo_commits("org/name", revision=shas[0])) == 2


def test_large_files(hub, api):
    """Told by .gitattributes or by their size; their names are sha256, and what is there is not sent again."""
    api.create_repo("org/name")
    content, huge = weights(1), bytes(10 * 2**20 + 1)
    sha = commit(api, add("a/model.safetensors", content), add("small.txt", "text"), add("huge.txt", huge))
    assert hub.stages.count("lfs_upload") == hub.stages.count("lfs_verify") == 2
    files = {file.path: file for file in api.list_repo_tree("org/name", recursive=True) if hasattr(file, "lfs")}
    assert files["small.txt"].lfs is None
    assert files["small.txt"].blob_id == "f3a34851d44d6b97c90fbb99dd3d18c261b9a237"  # git hash-object
    assert (files["huge.txt"].lfs.size, files["huge.txt"].size) == (len(huge), len(huge))
    digest = hashlib.sha256(content).hexdigest()
    assert (files["a/model.safetensors"].lfs.sha256, files["a/model.safetensors"].lfs.pointer_size) == (digest, 131)
    told = get_hf_file_metadata(hf_hub_url("org/name", "a/model.safetensors", endpoint=hub.url))
    assert (told.etag, told.size, told.commit_hash) == (digest, len(content), sha)
    blobs = {file.rfilename: file for file in api.model_info("org/name", files_metadata=True).siblings}
    assert (blobs["huge.txt"].lfs.size, blobs["small.txt"].lfs) == (len(huge), None)
    commit(api, add("b/again.safetensors", content), add("small.txt", "other"))
    assert hub.stages.count("lfs_upload") == 2
    same = commit(api, add("small.txt", "other"), add("a/model.safetensors", content))
    assert same == hub.history("models", "org/name")[0].sha
    assert len(hub.history("models", "org/name")) == 3


def test_large_files_in_parts(hub, api):
    hub.part_size = 2**16
    api.create_repo("org/name")
    commit(api, add("model.safetensors", weights(1)), add("small.safetensors", weights(2, 2**16)))
    files = hub.files("models", "org/name")
    assert (files["model.safetensors"], files["small.safetensors"]) == (weights(1), weights(2, 2**16))
    assert (hub.stages.count("lfs_upload"), hub.stages.count("lfs_complete")) == (5 + 1, 1)
    ticket = next(ticket for ticket, upload in hub.uploads.items() if upload.parts)
    other = json.dumps({"parts": [{"partNumber": 1, "etag": "other"}]}).encode()
    assert ask(f"{hub.url}/lfs/{ticket}", "POST", other)[0] == 400


def test_operations(hub, api):
    api.create_repo("org/name")
    first = commit(api, *(add(name, name) for name in ("a/1", "a/2", "ab", "b/c/3")), add("x.bin", weights(1)))
    operations = [CommitOperationDelete("a/"), CommitOperationDelete("ab"), add("b/c/3", "new"), add("a/4", "4")]
    second = commit(api, *operations, CommitOperationCopy("x.bin", "y.bin"), CommitOperationCopy("a/1", "z", first))
    given = {"b/c/3": b"new", "a/4": b"4", "x.bin": weights(1), "y.bin": weights(1), "z": b"a/1"}
    files = hub.files("models", "org/name")
    assert files == given | {".gitattributes": files[".gitattributes"]}
    changes = {one.path: one.last_commit.oid for one in api.list_repo_tree("org/name", recursive=True, expand=True)}
    assert (changes["x.bin"], changes["y.bin"], changes["b"], changes["a"]) == (first, second, second, second)
    assert changes[".gitattributes"] == hub.history("models", "org/name")[-1].sha
    with pytest.raises(EntryNotFoundError, match="A file with this name doesn't exist"):
        commit(api, CommitOperationDelete("none"))
    with pytest.raises(EntryNotFoundError, match="A folder with this name doesn't exist"):
        commit(api, CommitOperationDelete("b/d/"))
    assert hub.repository("models", "org/name").sha == second


def test_patterns(hub, api, tmp_path):
    api.create_repo("org/name")
    folder = write(tmp_path / "run", _gitignore="*.log\nlogs/\n/top.txt\n", a_txt="a", sub__b_log="b", logs__c="c")
    write(folder, top_txt="t", sub__top_txt="t", big_log=weights(1), keep__d_json="d")
    api.upload_folder(repo_id="org/name", folder_path=folder, ignore_patterns="keep/*")
    assert sorted(hub.files("models", "org/name")) == [".gitattributes", ".gitignore", "a.txt", "sub/top.txt"]
    later = write(tmp_path / "later", b_txt="b")
    api.upload_folder(repo_id="org/name", folder_path=later, delete_patterns=["*.txt", ".git*"])
    assert sorted(hub.files("models", "org/name")) == [".gitattributes", "b.txt"]


def test_a_commit_to_another_parent_is_refused(hub, api):
    api.create_repo("org/name")
    before = hub.repository("models", "org/name").sha
    after = commit(api, add("a", "a"), parent_commit=before)
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as error:
        commit(api, add("a", "b"), parent_commit=before)
    assert error.value.response.status_code == 412
    assert hub.repository("models", "org/name").sha == after
    with pytest.raises(HfHubHTTPError, match="501"):
        commit(api, add("a", "b"), create_pr=True)


def test_branches_and_tags(hub, api):
    api.create_repo("org/name")
    first = commit(api, add("a", "a"))
    second = commit(api, add("a", "b"))
    api.create_branch("org/name", branch="side/way", revision=first)
    api.create_branch("org/name", branch="side/way", exist_ok=True)
    api.create_tag("org/name", tag="v1", revision=first)
    third = commit(api, add("c", "c"), revision="side/way")
    refs = api.list_repo_refs("org/name")
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": second, "side/way": third}
    assert [(ref.ref, ref.target_commit) for ref in refs.tags] == [("refs/tags/v1", first)]
    assert hub.files("models", "org/name", "side/way")["a"] == b"a"
    assert "c" not in hub.files("models", "org/name")
    assert api.model_info("org/name", revision="v1").sha == first
    assert [one.commit_id for one in api.list_repo_commits("org/name", revision="side/way")][:2] == [third, first]
    for function, options, message in (
        (api.create_branch, {"branch": "side/way"}, "already exists"),
        (api.create_tag, {"tag": "v1"}, "already exists"),
        (api.delete_branch, {"branch": "main"}, "Cannot delete refs/heads/main"),
        (api.delete_branch, {"branch": "none"}, "Reference does not exist"),
        (api.delete_tag, {"tag": "none"}, "Reference does not exist"),
    ):
        with pytest.raises(HfHubHTTPError, match=message):
            function("org/name", **options)
    api.delete_branch("org/name", branch="side/way")
    api.delete_tag("org/name", tag="v1")
    assert api.model_info("org/name", revision=third).sha == third
    for revision in ("side/way", "v1", "0" * 40):
        with pytest.raises(RevisionNotFoundError, match=f"Invalid rev id: {revision}"):
            api.model_info("org/name", revision=revision)
    with pytest.raises(RevisionNotFoundError):
        commit(api, add("c", "d"), revision="side/way")


def test_many_commits(hub, api, monkeypatch):
    """Told in pages; made at the same time they follow one another all the same."""
    changed = Repository.changed
    monkeypatch.setattr(Repository, "changed", lambda *arguments: threading.Event().wait(0.01) or changed(*arguments))
    hub.page_size = 4
    api.create_repo("org/name")
    with ThreadPoolExecutor(6) as pool:
        shas = list(pool.map(lambda number: commit(api, add(f"{number}.bin", weights(number, 1000))), range(9)))
    told = [one.commit_id for one in api.list_repo_commits("org/name")]
    assert len(told) == len(set(told)) == 10
    assert set(told[:9]) == set(shas)
    assert len(hub.files("models", "org/name")) == 10
    assert hub.stages.count("commits") == 3


def test_a_folder_that_is_written(hub, api):
    """Its files become the first commit; from then on the folder has no say."""
    folder = write(hub.root / "models" / "org" / "name", a="a", b="b")
    before = hub.repository("models", "org/name").sha
    after = commit(api, add("a", "new"))
    write(folder, a="changed", c="c")
    assert [one.sha for one in hub.history("models", "org/name")] == [after, before]
    assert hub.files("models", "org/name", before) == {"a": b"a", "b": b"b"}
    assert hub.files("models", "org/name") == {"a": b"new", "b": b"b"}
    api.delete_repo("org/name")
    assert hub.repository("models", "org/name") is None
