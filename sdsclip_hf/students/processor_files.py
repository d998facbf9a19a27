"""The processor's files of an export; of CLIP in the layout of the first ones, which old and new transformers read alike."""

import json
from pathlib import Path
from typing import Any, cast

from transformers import CLIPProcessor, ProcessorMixin

VOCABULARIES = ("vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")  # of all kinds


def save_processor(processor: ProcessorMixin, folder: Path) -> None:
    """Write ``preprocessor_config.json`` and the tokenizer's files; of other models than CLIP what transformers writes.

    Of a CLIP transformers 5 alone would write ``processor_config.json``, with which 4.49 makes no processor, even beside
    the other file; in ``tokenizer.json`` the merges as pairs, which those before 4.45 do not know; and neither
    ``vocab.json`` nor ``merges.txt``, which the slow tokenizers before 5 read.

    Args:
        processor: what is written.
        folder: exists.
    """
    processor.save_pretrained(folder)
    if not isinstance(processor, CLIPProcessor):
        return
    parts = cast(Any, processor)
    parts.image_processor.save_pretrained(folder)
    (folder / "processor_config.json").unlink(missing_ok=True)
    path = folder / "tokenizer.json"
    content: dict[str, Any] = (
        json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"model": {"type": None}}
    )
    model = content["model"]
    if model["type"] != "BPE" or any(" " in part for pair in model["merges"] for part in pair):
        return
    parts.tokenizer.backend_tokenizer.model.save(str(folder))
    model["merges"] = [" ".join(pair) for pair in model["merges"]]
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")
