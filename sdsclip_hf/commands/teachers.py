"""``sdsclip teachers``: which diffusion models can be teachers, and what a call of them costs."""

import argparse
from collections.abc import Sequence

from sdsclip_hf.commands.ending import one_line_errors
from sdsclip_hf.teachers.families.catalogue import FAMILIES

HEADS = ("pipeline", "a checkpoint of it", "weights", "a call at 512 px", "licence")


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    argparse.ArgumentParser(prog="sdsclip teachers", description=__doc__).parse_args(argv)
    rows = [HEADS]
    for family in FAMILIES:
        pipelines = " / ".join(pipeline.removesuffix("Pipeline") for pipeline in family.pipelines)
        for known in family.known:
            rows.append((pipelines, known.name, f"{known.weights:g} B", f"{known.cost:g} TFLOP", known.licence))
            pipelines = ""
        if not family.known:
            rows.append((pipelines, "", "", "", ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(
        "\nAll of them score captions and give L_SDS. Weights and cost are the denoiser's. Read licences on their own pages."
        "\nDistilled checkpoints (Turbo, schnell, klein without base) work, with a warning: score with their originals."
        "\nA repository without model_index.json is none of these."
    )
