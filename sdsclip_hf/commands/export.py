"""Write a model in the form of another library: open_clip, sentence-transformers, ONNX, or transformers' own."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from sdsclip_hf.cards.export_card import write_export_card
from sdsclip_hf.commands.ending import one_line_errors
from sdsclip_hf.common.terminal import hush_libraries
from sdsclip_hf.students.dual_encoder import load_dual_encoder
from sdsclip_hf.students.exports import FORMS, export, loading_lines
from sdsclip_hf.students.open_clip_checkpoints import OpenClipOptions


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """``sdsclip export``."""
    parser = argparse.ArgumentParser(prog="sdsclip export", description=__doc__)
    add = parser.add_argument
    add("model", help="the output folder of a run, a Hub id, a LoRA adapter, or a checkpoint in open_clip's form")
    add("--format", required=True, choices=FORMS, help="the library that is to load it")
    add("--output_dir", type=Path, help="receives it, new or empty; default: MODEL-FORMAT beside the model's folder")
    add("--architecture", help="of a file of weights, e.g. ViT-B-32-quickgelu")
    add("--processor", help="whose tokenizer goes with open_clip's form; default: the one beside it, or OpenAI's")
    add("--checkpoint_key", help="under which a file of weights holds the model, e.g. ema; default: looked for")
    args = parser.parse_args(argv)
    hush_libraries()
    name = args.model.rstrip("/")
    folder = args.output_dir or Path(f"{name if Path(name).exists() else Path(name).name}-{args.format}")
    options = OpenClipOptions(args.architecture, args.processor, args.checkpoint_key)
    encoder = load_dual_encoder(name, device="cpu", options=options)
    export(encoder, folder, args.format)
    write_export_card(folder, name, args.format)
    print(f"{name} is in {folder}, and loads by\n\n{loading_lines(args.format, folder)}")
