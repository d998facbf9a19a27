# /// script
# requires-python = ">=3.10"
# dependencies = ["sdsclip_hf"]  # or from git: ["sdsclip_hf @ git+https://github.com/OWNER/sdsclip_hf"]
# ///
"""What training, scoring and evaluation reach on this machine's GPU, in five minutes on a card of 80 GB.

    python benchmarks/gpu.py --output_dir outputs/gpu
    python benchmarks/gpu.py --rehearse --output_dir outputs/rehearsed   # all of it on a CPU, with tiny models

Nothing is downloaded: models of real sizes are made of their configurations, with random weights. First losses, gradients
and scores are compared with the CPU's; then each row is timed, and written to results.json as soon as it is measured. A row
for which no time is left is named; --rows NAME measures it alone. MFU is against what the card reaches on products of
matrices. Nothing else should run on the card meanwhile.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from gpu_speed.models import SIZES, Bench
from gpu_speed.report import plots, table
from gpu_speed.rows import all_rows, correctness
from gpu_speed.timing import matrix_rate
from transformers.utils import logging as transformers_logging

from sdsclip_hf.common.checkpoints import write_json
from sdsclip_hf.common.devices import gpu_names, refuse_old_driver
from sdsclip_hf.common.precision import mixed_precision
from sdsclip_hf.common.resources import versions
from sdsclip_hf.metrics.install import install_quietly

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, None: torch.float32}


@dataclass(frozen=True)
class Machine:
    """What the figures hold for."""

    device: str
    memory_gib: float | None
    driver: str | None
    cuda: str | None
    python: str
    precision: str
    matrix_tflops: float
    rehearsed: bool
    versions: dict[str, str]


def describe(bench: Bench, rehearsed: bool) -> Machine:
    on_gpu = bench.device.type == "cuda"
    memory = torch.cuda.get_device_properties(bench.device).total_memory / 2**30 if on_gpu else None
    name = gpu_names()[bench.device.index or 0] if on_gpu else platform.processor() or platform.machine()
    precision = str(bench.dtype).removeprefix("torch.")
    driver, rate = _driver() if on_gpu else None, bench.rate / 1e12
    return Machine(
        name, memory, driver, torch.version.cuda, platform.python_version(), precision, rate, rehearsed, versions()
    )


def _driver() -> str | None:
    path = Path("/proc/driver/nvidia/version")
    return path.read_text(encoding="utf-8").splitlines()[0] if path.is_file() else None


def measure(bench: Bench, names: list[str] | None, limit: float, results: dict, folder: Path) -> None:
    """Measure the rows whose names begin so, until the time is used up."""
    began = time.perf_counter()
    for name, row in all_rows(bench).items():
        if names and not any(name.startswith(start) for start in names):
            continue
        if time.perf_counter() - began > limit:
            results["left out"].append(name)
            continue
        at = time.perf_counter()
        try:
            results["rows"][name] = row()
        except (RuntimeError, ValueError) as error:  # the others are measured all the same
            results["failed"][name] = f"{type(error).__name__}: {str(error).splitlines()[0]:.200}"
        results["took"][name] = time.perf_counter() - at
        write_json(folder / "results.json", results)
        print(f"{name}: {results['took'][name]:.1f} s", flush=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/gpu"), help="receives results.json and plots")
    parser.add_argument(
        "--rehearse", action="store_true", help="on a CPU, with tiny models: tries the code, not the card"
    )
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="beginnings of rows' names; default: all")
    parser.add_argument("--seconds", type=float, default=240, help="after which no further row is begun")
    args = parser.parse_args(argv)
    if not args.rehearse and not torch.cuda.is_available():
        refuse_old_driver(on_cpu="--rehearse")
        print("not measured: PyTorch finds no GPU here. --rehearse tries the code on the CPU.")
        return
    install_quietly()
    transformers_logging.set_verbosity_error()
    device = torch.device("cpu") if args.rehearse else torch.device("cuda", 0)
    dtype = torch.float32 if args.rehearse else DTYPES[mixed_precision()]
    size = SIZES["tiny" if args.rehearse else "real"]
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.output_dir, prefix="runs-") as runs:
        rate = matrix_rate(device, dtype, size.matrix)
        bench = Bench(device, size, Path(runs), dtype, rate, *((1, 0) if args.rehearse else ()))
        results = {
            "machine": asdict(describe(bench, args.rehearse)),
            "rows": {},
            "took": {},
            "failed": {},
            "left out": [],
        }
        try:
            results["differences from the CPU"] = correctness(bench)
        except ValueError as error:
            sys.exit(f"error: {error} Nothing was timed.")
        measure(bench, args.rows, args.seconds, results, args.output_dir)
    write_json(args.output_dir / "results.json", results)
    text = f"```json\n{json.dumps(results['machine'])}\n```\n\n{table(results['rows'])}\n"
    for name, error in results["failed"].items():
        text += f"\n{name} failed: {error}"
    text += f"\nNo time was left for: {', '.join(results['left out'])}\n" if results["left out"] else ""
    (args.output_dir / "table.md").write_text(text, encoding="utf-8")
    print(text, *plots(results["rows"], args.output_dir), sep="\n")


if __name__ == "__main__":
    main()
