"""The Hub on loopback answering as one that is broken, and what the real client meets then."""

import contextlib
import json
import socket
import time
from pathlib import Path

import pytest
from hub_client import add, ask, commit, weights
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError


def some_commit(api: HfApi) -> None:
    commit(api, add("README.md", "---\nlicense: mit\n---\n"), add("x.bin", weights(1)))


STAGE_CALLS = {
    "whoami": lambda api: api.whoami(),
    "create": lambda api: api.create_repo("org/other"),
    "delete": lambda api: api.delete_repo("org/name"),
    "info": lambda api: api.model_info("org/name"),
    "refs": lambda api: api.list_repo_refs("org/name"),
    "branch": lambda api: api.create_branch("org/name", branch="side"),
    "tag": lambda api: api.create_tag("org/name", tag="v1"),
    "resolve": lambda api: api.hf_hub_download("org/name", "a", force_download=True),
    "validate_yaml": some_commit,
    "commit": some_commit,
}
CUT = ("ReadError", "WriteError", "RemoteProtocolError")  # of httpx or httpx2, as the client's version is
RETRIED = ("preupload", "lfs_batch", "lfs_upload", "lfs_verify")


@pytest.fixture
def name(hub, api, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    api.create_repo("org/name")
    commit(api, add("a", weights(0)))
    hub.stages.clear()
    return "org/name"


def cause(error: BaseException) -> BaseException:
    """What the client met before it raised something of its own."""
    return cause(error.__cause__) if error.__cause__ and not isinstance(error, HfHubHTTPError) else error


@pytest.mark.parametrize("status", [401, 403, 409, 429, 500, 502, 503])
@pytest.mark.parametrize("stage", STAGE_CALLS)
def test_statuses(hub, api, name, stage, status):
    fault = hub.fault(stage, status=status, message="Some reason")
    with pytest.raises(Exception) as error:
        STAGE_CALLS[stage](api)
    found = cause(error.value)
    assert isinstance(found, HfHubHTTPError), found
    assert found.response.status_code == status
    assert found.response.headers["X-Error-Message"] == "Some reason"
    assert (fault.fired, hub.stages.count(stage)) == (1, 1)
    assert len(hub.history("models", name)) == 2
    STAGE_CALLS[stage](api)


@pytest.mark.parametrize("stage", RETRIED)
def test_statuses_that_the_client_outlasts(hub, api, name, waits, stage):
    first = hub.fault(stage, status=503)
    second = hub.fault(stage, status=429, retry_after=6)
    some_commit(api)
    assert (first.fired, second.fired, waits) == (1, 1, [1, 7])
    always = hub.fault(stage, status=502, times=None)
    with pytest.raises(Exception) as error:
        commit(api, add("y.bin", weights(2)))
    assert cause(error.value).response.status_code == 502
    assert (always.fired, first.fired, second.fired) == (6, 1, 1)


@pytest.mark.parametrize("cut", ["silence", "upload", "answer"])
@pytest.mark.parametrize("stage", [*RETRIED, "validate_yaml"])
def test_cut_connections(hub, api, name, stage, cut):
    fault = hub.fault(stage, cut=cut)
    if stage == "validate_yaml":
        with pytest.raises(Exception) as error:
            some_commit(api)
        assert type(error.value).__name__ in CUT
    else:
        some_commit(api)
        assert hub.files("models", name)["x.bin"] == weights(1)
        assert len(hub.history("models", name)) == 3
        assert hub.stages.count(stage) == 2
    assert fault.fired == 1


@pytest.mark.parametrize(
    ("how", "applied"),
    [
        ({"cut": "silence"}, False),
        ({"cut": "upload"}, False),
        ({"status": 503}, False),
        ({"cut": "answer"}, True),
        ({"cut": "silence", "applied": True}, True),
        ({"status": 500, "applied": True}, True),
    ],
)
def test_a_commit_whose_answer_is_lost(hub, api, name, how, applied):
    """It may have been made or not; made again there is one all the same, as the client sees that nothing is new."""
    hub.fault("commit", **how)
    with pytest.raises(Exception) as error:
        some_commit(api)
    assert type(error.value).__name__ in (CUT if "cut" in how else ("HfHubHTTPError",))
    assert len(hub.history("models", name)) == 2 + applied
    some_commit(api)
    assert len(hub.history("models", name)) == 3
    assert hub.stages.count("commit") == (1 if applied else 2)
    assert hub.files("models", name)["x.bin"] == weights(1)


def test_an_upload_is_cut_in_its_middle(hub):
    """The server does not wait for the second half."""
    hub.fault("lfs_upload", cut="upload")
    with socket.create_connection(("127.0.0.1", hub.server_port), timeout=5) as connection:
        connection.sendall(b"PUT /lfs/abc HTTP/1.1\r\nContent-Length: 1000\r\n\r\n" + bytes(600))
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(100) == b""


def test_a_download_that_is_cut(hub, api, name):
    fault = hub.fault("resolve", method="GET", cut="answer", path=r"/resolve/[^/]+/a$")
    assert Path(api.hf_hub_download(name, "a")).read_bytes() == weights(0)
    assert (fault.fired, hub.stages.count("resolve")) == (1, 3)


def test_faults_are_chosen_and_counted(hub, api, name):
    fault = hub.fault("info", status=500, after=1, times=2)
    met = []
    for _ in range(5):
        try:
            api.model_info(name)
            met.append(False)
        except HfHubHTTPError:
            met.append(True)
    assert met == [False, True, True, False, False]
    assert fault.fired == 2
    hub.fault(status=503, method="POST", path="/tag/", times=None)
    api.create_branch(name, branch="side")
    with pytest.raises(HfHubHTTPError, match="503"):
        api.create_tag(name, tag="v1")
    hub.faults.clear()
    api.create_tag(name, tag="v1")
    coded = hub.fault("info", status=403, code="GatedRepo")
    with pytest.raises(GatedRepoError):
        api.model_info(name)
    assert coded.fired == 1


def test_late_answers(hub, api, name):
    hub.fault("info", delay=0.3)
    start = time.monotonic()
    assert api.model_info(name).id == name
    assert time.monotonic() - start >= 0.3
    hub.fault("info", delay=0.5)
    with pytest.raises(Exception) as error:
        api.model_info(name, timeout=0.1)
    assert type(error.value).__name__ == "ReadTimeout"
    assert api.model_info(name, timeout=0.4).id == name


def test_answers_of_any_form(hub, api, name):
    hub.fault("info", body=b"caf\xe9", headers={"Content-Type": "text/plain"})
    status, headers, content = ask(f"{hub.url}/api/models/{name}", "GET", None)
    assert (status, headers["Content-Type"], content) == (200, "text/plain", b"caf\xe9")
    hub.fault("info", status=301, headers={"Location": f"/api/models/{name}/refs"})
    status, _, content = ask(f"{hub.url}/api/models/{name}", "GET", None)
    assert status == 200 and "branches" in json.loads(content)
    hub.fault("info", status=204)
    assert ask(f"{hub.url}/api/models/{name}", "GET", None)[::2] == (204, b"")


def test_what_is_carried_out_behind_its_answer(hub, api, name):
    hub.fault("tag", status=504, late=True)
    with pytest.raises(HfHubHTTPError, match="504"):
        api.create_tag(name, tag="v1")
    assert not hub.repository("models", name).tags
    api.create_tag(name, tag="v2")
    assert list(hub.repository("models", name).tags) == ["v1", "v2"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"stage": "comit", "status": 500},
        {"stage": "commit"},
        {"cut": "all"},
        {"cut": "answer", "body": b""},
        {"status": 500, "late": True, "applied": True},
    ],
)
def test_wrong_faults(hub, wrong):
    with pytest.raises(ValueError):
        hub.fault(**wrong)
