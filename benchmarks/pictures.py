# /// script
# requires-python = ">=3.10"
# dependencies = ["sdsclip_hf"]  # or from git: ["sdsclip_hf @ git+https://github.com/OWNER/sdsclip_hf"]
# ///
"""What a picture costs a loader worker: reading a JPEG, and preparing it for CLIP by Pillow and by torchvision.

The latter where it is installed. One thread, as a worker has. The ways take turns; medians, and of the ratios of neighbours.
"""

import argparse
import io
import statistics
import time

import numpy as np
import torch
import transformers
from PIL import Image
from transformers.utils import is_torchvision_available

from sdsclip_hf.data.images import read_image


def jpeg(width: int, height: int) -> bytes:
    """A picture with as much detail as photographs have: about 1.5 bits a pixel."""
    coarse = np.random.default_rng(0).integers(0, 256, (height // 20, width // 20, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def seconds(work, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        work()
    return (time.perf_counter() - start) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=640, help="of the JPEG, in pixels")
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--size", type=int, default=224, help="of what the image tower takes")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    encoded = jpeg(args.width, args.height)
    image, sizes = read_image(encoded), {"size": {"shortest_edge": args.size}, "crop_size": args.size}
    processors = {"Pillow": transformers.CLIPImageProcessorPil(**sizes)}
    if is_torchvision_available():
        processors["torchvision"] = transformers.CLIPImageProcessor(**sizes)
    ways = {"read": lambda: read_image(encoded)}
    ways |= {
        f"prepare by {name}": lambda processor=processor: processor([image], return_tensors="pt")
        for name, processor in processors.items()
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(args.rounds + 1):
        for name, work in ways.items():
            taken = seconds(work, 10)
            if number:  # the first warms up
                times[name].append(taken)
    reading = statistics.median(times["read"])
    print(f"| a picture of {args.width} x {args.height} | ms | with its reading, pictures a second and worker |")
    print("|---|---|---|")
    for name, found in times.items():
        middle = statistics.median(found)
        rate = "" if name == "read" else f"{1 / (reading + middle):.0f}"
        print(f"| {name} | {1000 * middle:.2f} | {rate} |")
    if "torchvision" not in processors:
        print("\ntorchvision is not installed.")
        return
    pillow, torchvision, read = (times[name] for name in ("prepare by Pillow", "prepare by torchvision", "read"))
    ratios = [(one + own) / (other + own) for one, other, own in zip(pillow, torchvision, read, strict=True)]
    print(f"\nWith torchvision a worker reads and prepares {statistics.median(ratios):.2f} times as many.")


if __name__ == "__main__":
    main()
