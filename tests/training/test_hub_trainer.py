"""Runs that push while they train, by the real clients against a Hub on loopback."""

import contextlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from benchmark_copies import winoground, write_parquet
from conftest import hub_env
from hub_runs import CLI, FINISHED, ask_errors, lay_base, run, titles
from hub_server import READER, STRANGER, WRITER, HubServer
from huggingface_hub import ModelCard

from sdsclip_hf.cards.push import model_files

TRAINABLE = ("layernorm", "lora", "full")
TRAIN = """
import os, sys
from pathlib import Path
import numpy as np, torch
from huggingface_hub import snapshot_download
from transformers import TrainerCallback
from sdsclip_hf import SDSCLIPConfig, SDSCLIPTrainer
from sdsclip_hf.hub.commits import push_files
from sdsclip_hf.shapes import load_shapes

torch.set_num_threads(1)
out, token = sys.argv[1:]
data = load_shapes("train", per_scene=1).select(range(32))
pictures, captions = [row["image"] for row in data.select(range(4))], [row["caption"][0] for row in data.select(range(4))]

class Record(TrainerCallback):
    def on_save(self, args, state, control, **kwargs):
        logits[f"step_{state.global_step}"] = look(trainer)

def look(trainer):
    inputs = trainer.processing_class(text=captions, images=pictures, return_tensors="pt", padding=True)
    with torch.no_grad():
        plain = trainer.student.merged_clip()(**inputs).logits_per_image
        inside = trainer.student.encode_images(inputs["pixel_values"]) @ trainer.student.encode_texts(
            inputs["input_ids"], inputs["attention_mask"]).T * trainer.student.base_clip.logit_scale.exp()
    return np.stack([plain.numpy(), inside.numpy()])

def make(trainable, output_dir, **options):
    args = SDSCLIPConfig(
        output_dir=output_dir, trainable=trainable, learning_rate=0.01, per_device_train_batch_size=8,
        hub_always_push=True, hub_token=token, use_cpu=True,
        report_to="none", disable_tqdm=True, health_steps=0,
        **{"max_steps": 4, "save_steps": 2, "push_to_hub": True, "hub_model_id": f"org/{trainable}"} | options)
    return SDSCLIPTrainer(model="org/base", teacher="shapes/teacher", args=args, train_dataset=data, callbacks=[Record()])

Path(out, "layernorm/push-9.elsewhere-1.partial").mkdir(parents=True)  # left by a run that was killed
os.utime(Path(out, "layernorm/push-9.elsewhere-1.partial"), (0, 0))
STRATEGIES = {"layernorm": "all_checkpoints", "lora": "every_save", "full": "checkpoint"}
before = {"config.json": b'{"model_type": "clip"}', "last-checkpoint/old.txt": b"of an earlier run"}
push_files(before, "org/full", message="before", token=token, private=True)
for trainable, strategy in STRATEGIES.items():
    logits = {}
    trainer = make(trainable, f"{out}/{trainable}", hub_strategy=strategy, hub_private_repo=trainable == "full")
    trainer.train()
    names = {"finetuned_from": "org/base", "model_name": "x", "dataset": ["A", "B"], "tags": "mine"}
    names["dataset_tags"] = "org/data"
    commit = trainer.push_to_hub(**(names if trainable == "layernorm" else {}))
    assert commit.oid
    logits["end"] = look(trainer)
    np.savez(f"{out}/{trainable}.npz", **logits)

logits = {}
trainer = make("full", f"{out}/disk", save_steps=1, max_steps=2, hub_model_id="org/disk")
merged_clip, calls = trainer.student.merged_clip, []
def full_disk():
    calls.append(0)
    if len(calls) == 1:
        raise OSError(28, "No space left on device")
    return merged_clip()
trainer.student.merged_clip = full_disk
trainer.train()
assert trainer.state.global_step == 2 and len(calls) > 1

folder = snapshot_download("org/full", allow_patterns="last-checkpoint/*", token=token)
trainer = make("full", f"{out}/resumed", push_to_hub=False, max_steps=6)
trainer.train(resume_from_checkpoint=f"{folder}/last-checkpoint")
assert trainer.state.global_step == 6
np.savez(f"{out}/inputs.npz", captions=captions, pictures=np.stack([np.asarray(p) for p in pictures]))
"""
LOAD = """
import json, logging, sys
sys.modules["sdsclip_hf"] = None  # whoever imports it gets an ImportError
import numpy as np, torch
from peft import PeftModel
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

torch.set_num_threads(1)
out, commits = sys.argv[1], json.loads(sys.argv[2])
inputs = np.load(f"{out}/inputs.npz")
pictures, captions = [Image.fromarray(p) for p in inputs["pictures"]], inputs["captions"].tolist()
told = {}
for name, of_repo in commits.items():
    for title, sha in of_repo.items():
        model, info = CLIPModel.from_pretrained(name, revision=sha, output_loading_info=True)
        processor = CLIPProcessor.from_pretrained(name, revision=sha)
        batch = processor(text=captions, images=pictures, return_tensors="pt", padding=True)
        with torch.no_grad():
            logits = model(**batch).logits_per_image
        found = {"info": {key: sorted(map(str, value)) for key, value in info.items()}, "logits": logits.tolist()}
        if name == "org/lora":
            tuned = PeftModel.from_pretrained(CLIPModel.from_pretrained("org/base"), name, subfolder="adapter", revision=sha)
            with torch.no_grad():
                found["adapter"] = tuned.eval()(**batch).logits_per_image.tolist()
        told[f"{name} {title}"] = found
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """Three runs, layernorm, lora and full, that pushed at steps 2 and 4 and at the end; and what loads from there."""
    folder = tmp_path_factory.mktemp("pushed")
    out = folder / "out"
    out.mkdir()
    with HubServer(folder / "hub") as hub:
        lay_base(hub)
        trained = run(TRAIN, str(out), WRITER, env=hub_env(hub))
        commits = {f"org/{name}": titles(hub, f"org/{name}") for name in TRAINABLE}
        fresh = hub_env(hub, HF_TOKEN=READER) | {"HF_HOME": str(folder / "empty")}
        loaded = run(LOAD, str(out), json.dumps(commits), env=fresh, anew=True)
        yield {"hub": hub, "out": out, "trained": trained, "loaded": loaded, "told": json.loads(loaded.stdout)}


@pytest.mark.parametrize("trainable", TRAINABLE)
def test_every_commit_loads_elsewhere_as_the_plain_model_that_the_trainer_had(pushed, trainable):
    had = np.load(pushed["out"] / f"{trainable}.npz")
    moments = {
        "step_2": "Training in progress, step 2",
        "step_4": "Training in progress, step 4",
        "end": "End of training",
    }
    if "End of training" not in titles(pushed["hub"], f"org/{trainable}"):
        raise AssertionError(titles(pushed["hub"], f"org/{trainable}"))
    assert set(titles(pushed["hub"], f"org/{trainable}")) == set(moments.values())
    for moment, title in moments.items():
        found = pushed["told"][f"org/{trainable} {title}"]
        plain, inside = had[moment]
        np.testing.assert_array_equal(np.float32(found["logits"]), plain)
        np.testing.assert_allclose(found["logits"], inside, rtol=1e-4, atol=1e-4)
        assert not any(found["info"].values()), found["info"]
    assert not np.allclose(had["step_2"], had["step_4"], atol=1e-3)  # there was something to tell apart


def test_loading_warns_of_nothing(pushed):
    """But for progress bars, and what transformers says of torchvision and of its own future."""
    lines = [line for line in re.split(r"[\r\n]+", pushed["loaded"].stderr) if line.strip()]
    known = r"it/s|B/s|requires torchvision|transformers/modeling_utils.py.*FutureWarning|^ *warnings.warn\(|\|"
    assert not [line for line in lines if not re.search(known, line)]


def test_the_adapter_on_the_base_is_the_merged_model(pushed):
    for title in titles(pushed["hub"], "org/lora"):
        found = pushed["told"][f"org/lora {title}"]
        scale = np.abs(found["logits"]).max()
        np.testing.assert_allclose(found["adapter"], found["logits"], atol=1e-5 * scale)


def test_what_is_pushed_is_what_belongs_there(pushed):
    common = {
        ".gitattributes",
        "README.md",
        "config.json",
        "model.safetensors",
        "run.yaml",
        "latent_mapper.safetensors",
    }
    common |= {"preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"}
    adapter = {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"}
    for name in TRAINABLE:
        for sha in titles(pushed["hub"], f"org/{name}").values():
            files = set(pushed["hub"].files("models", f"org/{name}", sha))
            checkpoint = {file for file in files if "checkpoint" in file}
            assert files - checkpoint == common | (adapter if name == "lora" else set())
    last = pushed["hub"].files("models", "org/full")
    assert json.loads(last["last-checkpoint/trainer_state.json"])["global_step"] == 4
    assert "last-checkpoint/sdsclip_run.json" in last  # it can be resumed
    assert "last-checkpoint/old.txt" not in last
    every = pushed["hub"].files("models", "org/layernorm")
    assert {name.partition("/")[0] for name in every if "checkpoint" in name} == {"checkpoint-2", "checkpoint-4"}
    assert not any("checkpoint" in name for name in pushed["hub"].files("models", "org/lora"))
    assert pushed["hub"].repository("models", "org/full").private
    config = pushed["hub"].files("models", "org/lora")["adapter/adapter_config.json"]
    assert json.loads(config)["base_model_name_or_path"] == "org/base"


def test_copies_for_pushing_are_gone(pushed):
    assert not list(pushed["out"].rglob("*push-*"))


def test_the_token_is_left_nowhere(pushed):
    secret = WRITER.encode()
    for path in pushed["out"].rglob("*"):
        assert not path.is_file() or secret not in path.read_bytes(), path
    for name in TRAINABLE:
        for commit in pushed["hub"].history("models", f"org/{name}"):
            for file, content in pushed["hub"].files("models", f"org/{name}", commit.sha).items():
                assert secret not in content, file
    assert WRITER not in pushed["trained"].stdout + pushed["trained"].stderr
    for process in Path("/proc").glob("[0-9]*/cmdline"):  # what the run left running
        with contextlib.suppress(OSError):
            assert secret not in process.read_bytes(), process


def test_the_card_has_what_the_hub_reads(pushed):
    card = ModelCard(pushed["hub"].files("models", "org/lora")["README.md"].decode())
    assert (card.data.base_model, card.data.base_model_relation) == ("org/base", "finetune")
    assert (card.data.license, card.data["library_name"]) == ("mit", "transformers")
    assert 'from_pretrained("org/lora")' in card.text and "NAMESPACE/NAME" not in card.content
    middle = pushed["hub"].files(
        "models", "org/lora", titles(pushed["hub"], "org/lora")["Training in progress, step 2"]
    )
    assert "after step 2 of 4" in middle["README.md"].decode()
    assert yaml.safe_load(middle["run.yaml"])["trainable"] == "lora"


def test_what_is_told_of_the_model_as_to_trainer_is_in_the_card(pushed):
    card = ModelCard(pushed["hub"].files("models", "org/layernorm")["README.md"].decode())
    assert (card.data.base_model, card.data.datasets, card.data.tags) == ("org/base", ["org/data"], ["mine"])
    assert "`A, B`" in card.text


def test_a_full_disk_costs_a_push_and_no_step(pushed):
    told = r"Step 1 is not pushed: \S+ could not be written: No space .* free in .*\)\. Make room, and the next"
    assert re.search(told, pushed["trained"].stderr)
    assert list(titles(pushed["hub"], "org/disk")) == ["Training in progress, step 2"]


@pytest.mark.slow
def test_the_snippet_of_the_card_runs_as_printed(pushed, tmp_path):
    content = pushed["hub"].files("models", "org/layernorm")["README.md"].decode()
    snippet = re.search(r"```python\n(.*?)```", content, re.DOTALL).group(1)
    env = hub_env(pushed["hub"]) | {"HF_HOME": str(tmp_path)}
    result = run("import sys; sys.modules['sdsclip_hf'] = None\n" + snippet, env=env, anew=True)
    assert re.match(r"tensor\(\[\[0\.\d+, 0\.\d+\]\]", result.stdout)


def finetune(hub: HubServer, folder: Path, *more: str, token: str = WRITER, expected: int = 0):
    argv = [*shlex.split(FINISHED), "--output_dir", str(folder), *more]
    return run(CLI, *argv, env=hub_env(hub, HF_TOKEN=token), code_expected=expected)


def test_a_run_meets_every_fault_once_and_loses_nothing(hub, tmp_path):
    lay_base(hub)
    answers = {"create": 503, "auth_check": 401, "tree": 429, "validate_yaml": 500, "preupload": 403, "lfs_batch": 409}
    answers |= {"lfs_upload": 502, "lfs_verify": 500, "commit": 503}
    elsewhere = ("create", "validate_yaml", "lfs_upload")  # the path does not tell the repository
    faults = [
        hub.fault(stage, status=status, path="" if stage in elsewhere else "org/tuned")
        for stage, status in answers.items()
    ]
    faults += [hub.fault("lfs_upload", cut="upload", after=1), hub.fault("commit", cut="silence", after=1)]
    faults += [hub.fault("commit", cut="answer", after=2), hub.fault("create", delay=0.5, after=2)]
    result = finetune(hub, tmp_path / "out", "--hub_model_id", "org/tuned")
    assert [fault.fired for fault in faults] == [1] * len(faults), faults
    assert "Trying again" in result.stderr
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["steps"] == 6
    found = list(titles(hub, "org/tuned"))
    assert (
        found[0] == "after, 6 steps" and "Training in progress, step 6" in found
    )  # earlier ones may have used up their tries
    assert found == sorted(found, key=lambda title: int(re.search(r"\d", title)[0]), reverse=True)
    files = hub.files("models", "org/tuned")
    local = model_files(tmp_path / "out", "org/tuned")
    assert {name: value if isinstance(value, bytes) else value.read_bytes() for name, value in local.items()} == {
        name: value for name, value in files.items() if name != ".gitattributes"
    }
    data = ModelCard(files["README.md"].decode()).data
    value = results["after"]["shapes_classes:validation=shape"][0]["value"]
    assert data.eval_results[0].metric_value == round(100 * value, 2)


@pytest.mark.slow
def test_while_a_push_is_under_way_others_are_left_out_but_the_last(hub, tmp_path):
    lay_base(hub)
    late = hub.fault("commit", delay=10, times=1)
    command = FINISHED.replace("--hub_always_push ", "")
    argv = [*shlex.split(command), "--output_dir", str(tmp_path / "out"), "--hub_model_id", "org/tuned"]
    run(CLI, *argv, env=hub_env(hub, HF_TOKEN=WRITER))
    assert late.fired == 1 and list(titles(hub, "org/tuned")) == ["after, 6 steps", "Training in progress, step 2"]


@pytest.mark.parametrize(
    "stage", ["commit", *(pytest.param(stage, marks=pytest.mark.slow) for stage in ("create", "lfs_upload"))]
)
def test_a_hub_that_stays_down_costs_no_step_and_one_command_finishes(hub, tmp_path, stage):
    lay_base(hub)
    hub.fault(stage, status=503, times=None)
    private = ["--hub_private_repo", "true", "--hub_revision", "next"]
    result = finetune(hub, tmp_path / "my out", "--hub_model_id", "org/tuned", *private, expected=1)
    assert json.loads((tmp_path / "my out/results.json").read_text())["steps"] == 6
    there = hub.repository("models", "org/tuned")
    assert not there or all(
        set(hub.files("models", "org/tuned", branch)) <= {".gitattributes"} for branch in there.branches
    )
    error = next(line for line in result.stderr.splitlines() if line.startswith("error: "))
    assert "“after, 6 steps” is missing on the Hub" in error and "model.safetensors" in error and "status 503" in error
    hub.faults.clear()
    command = shlex.split(error.partition("To push it, logged in: ")[2])
    assert command[:2] == ["sdsclip", "push"]
    run(CLI, *command[1:], env=hub_env(hub, HF_TOKEN=WRITER))
    assert hub.repository("models", "org/tuned").private
    assert (
        'from_pretrained("org/tuned", revision="next")'
        in hub.files("models", "org/tuned", "next")["README.md"].decode()
    )
    assert set(hub.files("models", "org/tuned", "next")) - {".gitattributes"} == set(
        model_files(tmp_path / "my out", "x/y")
    )


@pytest.mark.slow
def test_what_cannot_be_pushed_is_refused_before_training(hub, tmp_path):
    lay_base(hub)
    other = hub.root / "models/org/other"
    other.mkdir(parents=True)
    (other / "config.json").write_text('{"model_type": "bert"}')
    (hub.root / "models/org/notes").mkdir()
    (hub.root / "models/org/notes/letter.txt").write_text("dear")
    start = shlex.split(FINISHED)[1:]
    cases = {
        "no token": (None, "org/new", "hf auth login"),
        "a token for reading": (READER, "org/new", "role .* must be write"),
        "someone else's": (STRANGER, "org/new", "namespace of your own"),
        "malformed": (WRITER, "org/new/one", "NAMESPACE/NAME"),
        "malformed too": (WRITER, "org/n..w", "NAMESPACE/NAME"),
        "another model": (WRITER, "org/other", "'bert'.*--hub_force"),
        "no model": (WRITER, "org/notes", "letter.txt.*--hub_force"),
    }
    told = ask_errors(
        hub_env(hub),
        {
            name: ("finetune", token, [*start, "--hub_model_id", repo_id, "--output_dir", str(tmp_path / name)])
            for name, (token, repo_id, _) in cases.items()
        },
    )
    for name, (_, repo_id, remedy) in cases.items():
        assert re.search(remedy, told[name]) and (repo_id in told[name] or name == "no token"), (name, told[name])
        assert not (tmp_path / name).exists()
    assert hub.repository("models", "org/new") is None
    gone = HubServer(tmp_path / "gone")
    gone.server_close()
    argv = [*start, "--model_name_or_path", str(other.parent / "base"), "--hub_model_id", "org/new"]
    argv += ["--output_dir", str(tmp_path / "offline")]
    told = ask_errors(hub_env(gone), {"no network": ("finetune", WRITER, argv)})
    assert re.search("network connection.*sdsclip push", told["no network"])


@pytest.mark.slow
def test_a_busy_hub_at_the_start_is_no_way_into_a_foreign_repository(hub, tmp_path):
    lay_base(hub)
    other = hub.root / "models/org/other"
    other.mkdir(parents=True)
    (other / "config.json").write_text('{"model_type": "bert"}')
    hub.fault("create", status=503, times=4)
    result = finetune(hub, tmp_path / "out", "--hub_model_id", "org/other", "--max_steps", "2", expected=1)
    assert "Training begins all the same" in result.stderr
    error = next(line for line in result.stderr.splitlines() if line.startswith("error: "))
    assert "'bert'" in error and "--force" in error and "sdsclip push" in error
    assert set(hub.files("models", "org/other")) == {"config.json"}
    assert json.loads((tmp_path / "out/results.json").read_text())["steps"] == 2


def test_tokens_that_cannot_be_sent_and_abbreviated_options_are_refused(hub, tmp_path):
    start = [*shlex.split(FINISHED)[1:], "--model_name_or_path", "shapes/student", "--hub_model_id", "org/new"]
    told = ask_errors(
        hub_env(hub),
        {
            "line break": (
                "finetune",
                None,
                [*start, "--output_dir", str(tmp_path / "a"), "--hub_token", WRITER + "\n"],
            ),
            "abbreviated": ("finetune", None, [*start, "--output_dir", str(tmp_path / "b"), "--hub_tok", WRITER]),
            "compared": (
                "finetune",
                None,
                [*start, "--output_dir", str(tmp_path / "c"), "--compare", "{x: {hub_token: " + WRITER + "}}"],
            ),
        },
    )
    assert "a line break" in told["line break"] and "hub_token of 'x' cannot be set" in told["compared"]
    assert "unknown options --hub_tok; see --help" in told["abbreviated"]
    assert not any(WRITER in text for text in told.values())


@pytest.mark.slow
def test_scores_on_a_benchmark_of_the_hub_are_results_there_and_a_base_without_a_licence_is_told(hub, tmp_path):
    lay_base(hub, card="# nothing\n")
    (hub.root / "datasets/org").mkdir(parents=True)
    write_parquet(hub.root / "datasets/org/wino", winoground())
    options = ["--hub_model_id", "org/tuned", "--max_steps", "2", "--test_benchmarks", "winoground=org/wino"]
    result = finetune(hub, tmp_path / "out", *options, "--hub_strategy", "end")
    assert list(titles(hub, "org/tuned")) == ["after, 2 steps"]
    assert "'org/base' names no licence" in result.stderr and "--hub_license" in result.stderr
    files = hub.files("models", "org/tuned")
    data = ModelCard(files["README.md"].decode()).data
    assert data.license == "unknown"
    told = {row["task_id"]: row for row in map(flat, yaml.safe_load(files[".eval_results/org__wino.yaml"]))}
    rows = json.loads((tmp_path / "out/results.json").read_text())["after"]["winoground=org/wino"]
    group = next(row for row in rows if (row["subset"], row["score"]) == ("all", "group"))
    assert told["winoground_group_score"]["value"] == round(100 * group["value"], 2)
    assert told["winoground_group_score"]["revision"] == hub.repository("datasets", "org/wino").sha
    assert told["winoground_group_score"]["id"] == "org/wino"
    card = {(one.metric_type, one.dataset_config): one for one in data.eval_results}
    assert card["winoground_group_score", "all"].metric_value == round(100 * group["value"], 2)
    assert card["winoground_group_score", "all"].dataset_type == "org/wino"


def flat(entry: dict) -> dict:
    return entry["dataset"] | {name: value for name, value in entry.items() if name != "dataset"}


@pytest.mark.slow
def test_two_processes_push_one_model_and_go_on_from_where_they_stopped(hub, tmp_path):
    lay_base(hub)
    script = Path(__file__).parents[2] / "recipes/finetune.py"
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", str(script)]
    words = [*shlex.split(FINISHED)[1:], "--output_dir", str(tmp_path / "out"), "--hub_model_id", "org/two"]
    words += ["--hub_strategy", "checkpoint"]
    for more in ([], ["--resume_from_checkpoint", "last", "--max_steps", "8"]):
        env = hub_env(hub, HF_TOKEN=WRITER) | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run([*launch, *words, *more], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    pushed = [*(f"Training in progress, step {step}" for step in (2, 4, 6)), "after, 6 steps"]
    pushed += ["Training in progress, step 8", "after, 8 steps"]
    assert list(titles(hub, "org/two"))[::-1] == pushed
    files = hub.files("models", "org/two")
    assert {"last-checkpoint/rng_state_0.pth", "last-checkpoint/rng_state_1.pth"} <= set(files)
    commands = re.search(r"## How to reproduce\s+```bash\n(.*?)```", files["README.md"].decode(), re.DOTALL).group(1)
    assert commands.count("accelerate launch --num_processes 2") == 2 and "--resume_from_checkpoint last" in commands
    assert yaml.safe_load(files["run.yaml"])["max_steps"] == 8
