# /// script
# requires-python = ">=3.10"
# dependencies = ["sdsclip_hf"]  # or from git: ["sdsclip_hf @ git+https://github.com/OWNER/sdsclip_hf"]
# ///
"""What several GPUs will do in training, computed from what benchmarks/gpu.py measured on one and from the links' speed.

    python benchmarks/many_gpus.py --results outputs/gpu/results.json --gb_per_second 450 --between_nodes 50

Each GPU has the batch that one had. In a ring each sends its neighbour what [`sent_bytes`] tells; inside a node of eight at
one speed, between nodes at the other, shared by the eight. Two figures come out: with the exchange after the step, and with
that of the gradients during its backward pass, as DDP has it. Scoring exchanges nothing.
"""

import argparse
import json
from pathlib import Path

NODE = 8  # GPUs
FLOAT, KEY = 4, 8  # bytes


def sent_bytes(trained: int, pairs: int, width: int, processes: int, captions: int = 1) -> dict[str, float]:
    """What each process sends in a step, by rings.

    Args:
        trained: weights that train.
        pairs: of a process.
        width: D of the embeddings.
        processes: of the run.
        captions: that are known to be true of an image, for --mask_duplicates.

    Returns:
        Of ``gradients``, an all-reduce; of ``embeddings``, those of images and captions, which are gathered and whose
        gradients come back; and of ``keys``, by which duplicates are known.
    """
    others = processes - 1
    return {
        "gradients": 2 * others / processes * FLOAT * trained,
        "embeddings": 2 * 2 * others * FLOAT * pairs * width,
        "keys": others * KEY * pairs * (1 + captions),
    }


def projected(point: dict, processes: int, within: float, between: float) -> dict[str, float]:
    """Images a second of all GPUs, and the share that is lost to the exchange, at worst and at best.

    Args:
        point: of a training row of results.json.
        processes: GPUs.
        within, between: bytes a second of each GPU inside a node, and of a node to others.
    """
    speed = within if processes <= NODE else min(within, between / NODE)
    seconds = {name: count / speed for name, count in _of(point, processes).items()}
    alone, gradients = point["seconds"], seconds.pop("gradients")
    hidden = max(0.0, gradients - 2 / 3 * alone)  # two thirds of a step are its backward pass
    worst, best = (alone + sum(seconds.values()) + shown for shown in (gradients, hidden))
    images = processes * point["pairs"]
    return {"images/s at worst": images / worst, "images/s at best": images / best, "lost at worst": 1 - alone / worst}


def _of(point: dict, processes: int) -> dict[str, float]:
    return sent_bytes(point["trained"], point["pairs"], point["width"], processes)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("outputs/gpu/results.json"), help="of benchmarks/gpu.py")
    parser.add_argument("--gb_per_second", type=float, required=True, help="of a GPU's links inside a node, one way")
    parser.add_argument("--between_nodes", type=float, required=True, help="GB a second of a node's network, one way")
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64])
    args = parser.parse_args(argv)
    if not args.results.is_file():
        parser.error(f"{args.results} is not there; measure one GPU first: python benchmarks/gpu.py.")
    results = json.loads(args.results.read_text(encoding="utf-8"))
    speeds = args.gb_per_second * 1e9, args.between_nodes * 1e9
    print(f"From {results['machine']['device']}{', a rehearsal' if results['machine']['rehearsed'] else ''}:\n")
    heads = ("row", "GPUs", "MB sent a step", "images/s, worst", "images/s, best", "lost, worst")
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    for name, points in results["rows"].items():
        if name.startswith("training/") and points:
            point = max(points, key=lambda one: one["images/s"])
            for count in args.gpus:
                worst, best, lost = projected(point, count, *speeds).values()
                sent = sum(_of(point, count).values()) / 1e6
                print(f"| {name} | {count} | {sent:.1f} | {worst:.0f} | {best:.0f} | {lost:.1%} |")


if __name__ == "__main__":
    main()
