"""Whom the Hub on loopback lets read and write, and what it refuses to keep."""

import hashlib
import json
import re
import tempfile
from pathlib import Path

import pytest
from hub_client import add, ask, commit
from hub_server import ACCEPTED, READER, STRANGER, WRITER
from huggingface_hub import HfApi
from huggingface_hub.errors import BadRequestError, GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

ACTIONS = {
    "create": lambda api: api.create_repo("org/other"),
    "commit": lambda api: commit(api, add("a", "b")),
    "branch": lambda api: api.create_branch("org/name", branch="side"),
    "tag": lambda api: api.create_tag("org/name", tag="v1"),
    "settings": lambda api: api.update_repo_settings("org/name", private=True),
    "move": lambda api: api.move_repo("org/name", "org/other"),
    "delete": lambda api: api.delete_repo("org/name"),
}


@pytest.mark.parametrize("token", [READER, STRANGER, False, "hf_wrong"])
@pytest.mark.parametrize("action", ACTIONS)
def test_who_may_not_write(hub, api, action, token):
    api.create_repo("org/name")
    before = vars(hub.repository("models", "org/name")).copy()
    with pytest.raises(HfHubHTTPError) as error:
        ACTIONS[action](HfApi(endpoint=hub.url, token=token))
    rights = 'You don\'t have the rights to create a model under the namespace "org"'
    status, message = {
        False: (401, "Invalid username or password."),
        "hf_wrong": (401, "Invalid credentials in Authorization header"),
    }.get(token, (403, rights if action == "create" else "Authorization error."))
    assert error.value.response.status_code == status
    assert message in str(error.value)
    assert vars(hub.repository("models", "org/name")) == before
    assert hub.repository("models", "org/other") is None


def test_a_stranger_writes_at_home(hub, api):
    stranger = HfApi(endpoint=hub.url, token=STRANGER)
    stranger.create_repo("stranger/name")
    commit(stranger, add("a", "a"), name="stranger/name")
    with pytest.raises(HfHubHTTPError, match="403 Forbidden: Authorization error"):
        commit(api, add("a", "b"), name="stranger/name")
    with pytest.raises(HfHubHTTPError, match="403 Forbidden: Authorization error"):
        stranger.move_repo("stranger/name", "org/name")
    assert hub.files("models", "stranger/name")["a"] == b"a"


def test_who_reads_what_was_made_private(hub, api, tmp_path):
    api.create_repo("org/name", private=True)
    commit(api, add("a", "a"))

    def read(token: str | bool) -> str:
        cache = tempfile.mkdtemp(dir=tmp_path)
        return Path(api.hf_hub_download("org/name", "a", token=token, cache_dir=cache)).read_text()

    assert [read(token) for token in (WRITER, READER, ACCEPTED)] == ["a"] * 3
    for token in (STRANGER, False):
        with pytest.raises(RepositoryNotFoundError):
            read(token)
        with pytest.raises(RepositoryNotFoundError):
            commit(HfApi(endpoint=hub.url, token=token), add("a", "b"))
    api.update_repo_settings("org/name", private=False, gated="auto")
    assert [read(token) for token in (WRITER, READER, ACCEPTED)] == ["a"] * 3
    for token in (STRANGER, False):
        with pytest.raises(GatedRepoError):
            read(token)
    api.update_repo_settings("org/name", gated=False)
    assert read(STRANGER) == read(False) == "a"


def test_tokens(hub, api):
    told = {token: api.whoami(token=token) for token in (WRITER, READER, STRANGER, ACCEPTED)}
    roles = {token: one["auth"]["accessToken"]["role"] for token, one in told.items()}
    assert roles == {WRITER: "write", READER: "read", STRANGER: "write", ACCEPTED: "read"}
    assert [one["name"] for one in told.values()] == ["org-writer", "org-writer", "stranger", "accepted"]
    assert [org["name"] for org in told[WRITER]["orgs"]] == ["org"]
    api.create_repo("org/name")
    api.auth_check("org/name", write=True)
    with pytest.raises(HfHubHTTPError, match="403"):
        api.auth_check("org/name", token=READER, write=True)


def test_uploads_are_checked(hub, api):
    """What is not what its sha256 and size say is in no commit."""
    api.create_repo("org/name")
    head = hub.repository("models", "org/name").sha
    sha256, git = hashlib.sha256(b"right").hexdigest(), f"{hub.url}/org/name.git/info/lfs/objects"
    signed = {"Authorization": f"Bearer {WRITER}"}

    def post(url: str, *lines: dict) -> tuple[int, dict]:
        status, _, content = ask(url, "POST", b"\n".join(json.dumps(line).encode() for line in lines), **signed)
        return status, json.loads(content)

    def committed(size: int = 5) -> tuple[int, dict]:
        file = {"key": "lfsFile", "value": {"path": "x.bin", "algo": "sha256", "oid": sha256, "size": size}}
        return post(f"{hub.url}/api/models/org/name/commit/main", {"key": "header", "value": {"summary": "x"}}, file)

    def batch() -> dict:
        wanted = {"operation": "upload", "transfers": ["basic"], "objects": [{"oid": sha256, "size": 5}]}
        return post(f"{git}/batch", wanted)[1]["objects"][0]

    assert committed()[0] == 400
    address = batch()["actions"]["upload"]["href"]
    for sent, status in ((b"wrong", 400), (b"right", 200)):
        assert ask(address, "PUT", sent)[0] == 200
        assert post(f"{git}/verify", {"oid": sha256, "size": 5})[0] == status
        assert ("actions" in batch()) == (status == 400)
        if status == 400:
            assert committed()[0] == 400
    assert ask(f"{hub.url}/lfs/abcdef", "PUT", b"right")[0] == 403
    assert committed(size=6)[0] == 400
    assert hub.repository("models", "org/name").sha == head
    assert committed()[0] == 200
    assert hub.files("models", "org/name")["x.bin"] == b"right"


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("---\nlicense: 3\n---\n", '"license" must be a string'),
        ("---\n- a\n- b\n---\n", "must be a mapping, not list"),
        ("---\na: [\n---\n", "Invalid YAML in README.md"),
        ("---\ndatasets:\n- null\n---\n", '"datasets" must be a string or an array of strings'),
        ("---\nbase_model: /outputs/run\n---\n", '"base_model" with value "/outputs/run" is not valid'),
        ("---\nmodel-index: a\n---\n", '"model-index" must be an array'),
        (
            "---\nmodel-index:\n- name: a\n  results:\n  - task: {type: b}\n    metrics: [{type: c}]\n---\n",
            '"model-index[0].results[0].dataset.type" is required',
        ),
    ],
)
def test_wrong_cards(hub, api, card, message):
    api.create_repo("org/name")
    with pytest.raises(ValueError, match=re.escape(message)):
        commit(api, add("README.md", card))
    assert "commit" not in hub.stages
    api._validate_yaml = lambda *arguments, **options: None
    with pytest.raises(BadRequestError, match=re.escape(message)):
        commit(api, add("README.md", card))
    assert "README.md" not in hub.files("models", "org/name")


def test_right_cards(hub, api):
    api.create_repo("org/name")
    card = "---\nlicense: [mit]\nbase_model: org/clip\ntags: [a]\nlibrary_name: transformers\nmodel-index:\n- name: x\n"
    card += (
        "  results:\n  - {task: {type: a}, dataset: {type: b, name: c}, metrics: [{type: d, value: 1.5}]}\n---\n# X\n"
    )
    commit(api, add("README.md", card))
    info = api.model_info("org/name")
    assert (info.card_data.base_model, info.card_data.license, info.tags) == ("org/clip", ["mit"], ["a"])
    assert (vars(info)["library_name"], info.card_data.eval_results[0].metric_value) == ("transformers", 1.5)
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        commit(api, add("README.md", "# X"))
