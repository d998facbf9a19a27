# /// script
# requires-python = ">=3.10"
# dependencies = ["sdsclip_hf"]  # or from git: ["sdsclip_hf @ git+https://github.com/OWNER/sdsclip_hf"]
# ///
"""What training and scoring cost on this machine's CPU: medians of paired runs, with random models of real sizes.

    python benchmarks/training.py                           # everything, more than an hour
    python benchmarks/training.py --rows plain_loop option  # rows by the beginnings of their names

Each row is measured in processes of its own; the two sides of a comparison take turns, and the ratio is taken within each
pair. A row is written to results.json in the output folder as soon as it is measured; one that is there is not measured
again. Nothing else should run on the machine meanwhile. The models are Stable Diffusion 1.5's and ViT-B/32's size with
random weights, made in a temporary folder of 4.5 GB; the largest row takes about 16 GiB of memory.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

import torch
from training_speed.bench import SIZES, Bench
from training_speed.report import plot_all, tables
from training_speed.rows import all_rows, chosen
from transformers.utils import logging as transformers_logging

from sdsclip_hf.common.checkpoints import write_json
from sdsclip_hf.common.resources import versions
from sdsclip_hf.metrics.install import install_quietly

RESULTS_FILE = "results.json"


def machine(size: str) -> dict:
    """What the figures hold for: a folder of results belongs to one machine and one set of models."""
    model = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "processor": model[0].partition(":")[2].strip() if model else platform.processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "size": size,
        "versions": versions(),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).is_file() else []


def measured(folder: Path, here: dict) -> dict:
    """What the results of a folder hold: those of this machine, or none yet.

    Raises:
        ValueError: they are another machine's.
    """
    path = folder / RESULTS_FILE
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"machine": here, "rows": {}}
    changed = [name for name, value in here.items() if results["machine"].get(name) != value]
    if changed:
        then, now = results["machine"].get(changed[0]), here[changed[0]]
        raise ValueError(f"{path} is of other {changed[0]}: {then}, not {now}. Choose another --output.")
    return results


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="beginnings of rows' names; default: all")
    parser.add_argument("--list", action="store_true", help="print the names of the rows, and measure nothing")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of runs of each row")
    parser.add_argument("--size", choices=SIZES, default="real", help="of the models; tiny: to try the rows")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark_training"), help="a folder")
    args = parser.parse_args(argv)
    install_quietly()
    transformers_logging.set_verbosity_error()
    os.environ |= {"TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error"}
    args.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.output, prefix="models-") as folder:
        rows = all_rows(Bench(Path(folder), args.size, args.pairs))
        try:
            names, results = chosen(args.rows, rows), measured(args.output, machine(args.size))
        except ValueError as error:
            parser.error(str(error))
        if args.list:
            return print("\n".join(names))
        for name in names:
            if name not in results["rows"]:
                began = time.perf_counter()
                row = rows[name]()
                results["rows"][name] = row | {"took": time.perf_counter() - began}
                write_json(args.output / RESULTS_FILE, results)
                print(f"{name}, {results['rows'][name]['took']:.0f} s:\n{tables({name: row})}\n", flush=True)
    done = {name: results["rows"][name] for name in rows if name in results["rows"]}
    print(f"{json.dumps(results['machine'])}\n\n{tables(done)}")
    print("\n".join(str(path) for path in plot_all(done, args.output)))


if __name__ == "__main__":
    main()
