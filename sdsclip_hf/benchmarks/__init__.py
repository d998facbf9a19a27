"""Benchmarks of composition, and of what fine-tuning may cost: each gives items; what is scored how is left to the caller.

A benchmark is asked for as ``NAME[:PART][=SOURCE[@REVISION]]``: ``winoground``, ``sugarcrepe:swap_obj``,
``aro_relation=data/aro``, ``classification:test=cifar10``, ``retrieval:test=shapes``,
``pairs=my/set?captions=c0,c1&images=i0,i1``.
"""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from sdsclip_hf.benchmarks import aro, classification, forms, presets, retrieval, shapes, sugarcrepe, winoground
from sdsclip_hf.benchmarks.forms import ColumnMap
from sdsclip_hf.benchmarks.items import Benchmark, ImageCell, ImageFile, Item, picture_key, read_picture
from sdsclip_hf.benchmarks.sources import Options

BENCHMARKS = {
    "winoground": winoground.load,
    "aro_relation": aro.load_relation,
    "aro_attribution": aro.load_attribution,
    "aro_coco_order": aro.load_coco_order,
    "aro_flickr30k_order": aro.load_flickr30k_order,
    "sugarcrepe": sugarcrepe.load,
    "shapes": shapes.load,
    "shapes_classes": shapes.load_classes,
    "classification": classification.load,
    "retrieval": retrieval.load,
    "pairs": partial(forms.load, "pairs"),
    "choices": partial(forms.load, "choices"),
    **{name: partial(presets.load, name) for name in presets.PRESETS},
}
HUB_IDS = {
    "winoground": winoground.HUB_ID,
    **aro.HUB_IDS,
    **{name: preset.source for name, preset in presets.PRESETS.items() if preset.source},
}
ARO = [name for name in BENCHMARKS if name.startswith("aro_")]
SUITES = {
    "composition": [
        *("winoground", *ARO, "sugarcrepe", "sugarcrepe_pp", "bivlc", "colorswap", "vismin", "mmvp_vlm"),
        *("naturalbench_retrieval", "valse", "whatsup", "spec", "crepe"),
    ]
}
GROUPS = {**SUITES, "aro": ARO}


def parse(spec: str) -> tuple[str, str, str]:
    """``NAME[:PART][=SOURCE]`` to name, part and source, the latter two perhaps empty.

    Raises:
        ValueError: there is no such benchmark.
    """
    head, _, source = spec.partition("=")
    name, _, part = head.partition(":")
    if name not in BENCHMARKS:
        raise ValueError(f"unknown benchmark {name!r}; choose from {', '.join([*BENCHMARKS, *GROUPS])}.")
    return name, part, source


def expand(specs: Sequence[str], data: str | None = None) -> list[str]:
    """Groups (``aro``, ``composition``) to their members, each with its place in the folder ``data`` where it names none."""
    members = []
    for spec in specs:
        name = re.split("[:=]", spec, maxsplit=1)[0]
        members += [member + spec.removeprefix(name) for member in GROUPS.get(name, [name])]
    return [_placed(spec, Path(data).expanduser()) if data else spec for spec in members]


def _placed(spec: str, data: Path) -> str:
    name, _, source = parse(spec)
    if source or name.startswith("shapes"):
        return spec
    return f"{spec}={data / name if (data / name).exists() else data}"


def load_benchmark(spec: str, options: Options | None = None) -> Benchmark:
    """The items of a benchmark.

    Args:
        spec: ``NAME[:PART][=SOURCE[@REVISION]]``. PART is a split, or a subset of SugarCrepe. SOURCE is a Hub id, a
            folder or a file; default: the copy on the Hub that the benchmark is known by. Of ``pairs`` and ``choices`` it
            may have a map of columns behind a question mark, see [`ColumnMap`].
        options: see [`Options`].

    Raises:
        ValueError: there is no such benchmark, part or column, or images are missing.
        OSError: the source cannot be loaded.

    Example:

    ```python
    from sdsclip_hf.benchmarks import load_benchmark

    benchmark = load_benchmark("shapes:test")
    print(benchmark.kind, len(benchmark.items))  # winoground 576
    print(benchmark.items[0].captions[0])  # a yellow circle and a purple star
    ```
    """
    name, part, source = parse(spec)
    return BENCHMARKS[name](spec, part, source, options or Options())


def places(spec: str) -> list[str]:
    """What a benchmark reads: folders, files, Hub ids (perhaps with ``@revision``), or ``shapes``, which the package makes.

    Raises:
        ValueError: there is no such benchmark or part, or it needs to be told where its items are.
    """
    name, part, source = parse(spec)
    if name == "sugarcrepe":
        return sugarcrepe.places(name, part, source)
    if name.startswith("shapes"):
        return ["shapes"]
    if name in forms.DEFAULTS:
        return [forms.read_map(name, spec, source)[0]]
    if not source and name not in HUB_IDS:
        raise ValueError(f"{spec} needs to know of what: give a dataset, as in {spec}=shapes or {spec}=FOLDER.")
    return [source or HUB_IDS[name]]


__all__ = [
    "ARO",
    "BENCHMARKS",
    "SUITES",
    "Benchmark",
    "ColumnMap",
    "ImageCell",
    "ImageFile",
    "Item",
    "Options",
    "expand",
    "load_benchmark",
    "picture_key",
    "places",
    "read_picture",
]
