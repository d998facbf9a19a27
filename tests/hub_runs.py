"""Runs that are pushed to a Hub on loopback, and what came of them."""

import json
import shutil
import subprocess
import sys

from forking import run_forked
from hub_server import HubServer

from sdsclip_hf.shapes import model_path

FINISHED = (
    "finetune --model_name_or_path org/base --dataset_name shapes --test_benchmarks shapes_classes:validation=shape "
)
FINISHED += (
    "--lambda_sds 0 --max_train_samples 64 --max_steps 6 --save_steps 2 --per_device_train_batch_size 8 --use_cpu "
)
FINISHED += "--push_to_hub --hub_always_push --disable_tqdm true"
IMPATIENT = "import time; time.sleep = lambda seconds: None\n"  # the waits between attempts are told in the log
CLI = IMPATIENT + "from sdsclip_hf.commands.cli import main; main()"
ERRORS = """
import json, os, sys
from sdsclip_hf.commands import finetune, push
told = {}
for name, (command, token, argv) in json.loads(sys.argv[1]).items():
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    try:
        {"finetune": finetune, "push": push}[command].main(argv)
        told[name] = "no error"
    except SystemExit as error:
        told[name] = str(error)
print("TOLD" + json.dumps(told))
"""


def lay_base(hub: HubServer, card: str = "---\nlicense: mit\n---\n") -> None:
    folder = hub.root / "models/org/base"
    shutil.copytree(model_path("student"), folder)
    (folder / "README.md").write_text(card)


def run(
    code: str, *argv: str, env: dict, code_expected: int | None = 0, anew: bool = False
) -> subprocess.CompletedProcess:
    """Run a program by a fork, or ``anew`` by an interpreter that has imported nothing yet."""
    if anew:
        result = subprocess.run([sys.executable, "-c", code, *argv], env=env, capture_output=True, text=True)
    else:
        result = run_forked(code, *argv, env=env)
    assert code_expected in (None, result.returncode), (result.stdout + result.stderr)[-3000:]
    return result


def titles(hub: HubServer, name: str) -> dict[str, str]:
    first = ("initial commit", "before")
    return {commit.title: commit.sha for commit in hub.history("models", name) if commit.title not in first}


def ask_errors(env: dict, cases: dict) -> dict[str, str]:
    result = run(IMPATIENT + ERRORS, json.dumps(cases), env=env)
    return json.loads(result.stdout.partition("TOLD")[2])
