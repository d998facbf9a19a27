"""What the real clients find of benchmarks on a Hub on loopback."""

import json
import subprocess
import sys
from pathlib import Path

from benchmark_copies import Expected
from conftest import hub_env
from hub_server import HubServer

ONLINE = """
import json, os, sys, time
time.sleep = lambda seconds: None  # the clients' waits between attempts
sys.path.insert(0, sys.argv[1])
from benchmark_copies import told
from sdsclip_hf.benchmarks import Options, load_benchmark

def found(spec, token=None, image_dir=None):
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    try:
        benchmark = load_benchmark(spec, Options(image_dir=image_dir))
    except (OSError, ValueError) as error:
        return [type(error).__name__, str(error)]
    return [benchmark.source, told(benchmark)]

print(json.dumps([found(*asked) for asked in json.loads(sys.argv[2])]))
"""


def found_by_clients(server: HubServer, asked: list, **settings: str) -> dict:
    command = [sys.executable, "-c", ONLINE, str(Path(__file__).parent), json.dumps(asked)]
    done = subprocess.run(command, env=hub_env(server, **settings), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return dict(zip(map(tuple, asked), json.loads(done.stdout.splitlines()[-1]), strict=True))


def listed(expected: list[Expected]) -> list:
    return json.loads(json.dumps(expected))
