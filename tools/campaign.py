# /// script
# requires-python = ">=3.10"
# dependencies = ["sdsclip_hf[test]"]  # or from git: ["sdsclip_hf[test] @ git+https://github.com/OWNER/sdsclip_hf"]
# ///
"""Try hundreds of random inputs and kills, and print the table of docs/tried.md.

python tools/campaign.py --seed 0
python tools/campaign.py --seed 0 --only rows --first 17 --inputs 1 --kills 0    # one of them again
"""

import argparse
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from sweeps import TRIALS, kills


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (0)")
    parser.add_argument("--inputs", type=int, default=500, help="inputs, over all kinds (500)")
    parser.add_argument("--kills", type=int, default=200, help="runs that are killed, over all forms (200)")
    parser.add_argument("--only", help="one kind or form alone")
    parser.add_argument("--first", type=int, default=0, help="the number of the first of each kind (0)")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    forms = {form: kills.of(form) for form in kills.FORMS}
    heads = (
        "| kind | what is drawn | tried | how they went | faults |",
        "| run that is killed | tried | how they went | faults |",
    )
    tables, faults = [], 0
    for head, count, trials in zip(heads, (options.inputs, options.kills), (TRIALS, forms), strict=True):
        rows = []
        for number, (name, trial) in enumerate(trials.items()):
            share = count if options.only else (number + 1) * count // len(trials) - number * count // len(trials)
            if share and options.only in (None, name):
                told, wrong = tried(name, trial, options.seed, range(options.first, options.first + share))
                drawn = f" {sys.modules[trial.__module__].__doc__.splitlines()[0]} |" if trials is TRIALS else ""
                rows.append(f"| {name} |{drawn} {share} | {told} | {wrong} |")
                faults += wrong
        tables += ["\n".join([head, "|---" * head.count(" |") + "|", *rows])] if rows else []
    print("\n\n".join(tables))
    sys.exit(faults > 0)


def tried(name: str, trial: Callable, seed: int, numbers: range) -> tuple[str, int]:
    """Try the inputs of one kind: how they went, and the number of faults."""
    outcomes, faults, began = Counter(), 0, time.monotonic()
    for number in numbers:
        with tempfile.TemporaryDirectory() as folder:
            try:
                with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
                    outcomes[trial(np.random.default_rng([seed, *name.encode(), number]), Path(folder))] += 1
            except (Exception, SystemExit) as error:
                faults += 1
                print(f"{name}, number {number}: {type(error).__name__}: {error}", file=sys.stderr)
    print(
        f"{name}: {len(numbers)} tried, {faults} faults, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True
    )
    return ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items())) or "-", faults


if __name__ == "__main__":
    main()
