# /// script
# requires-python = ">=3.10"
# dependencies = ["sdsclip_hf"]  # or from git: ["sdsclip_hf @ git+https://github.com/OWNER/sdsclip_hf"]
# ///
"""Print OPTIONS.md, every option of the recipes finetune and score_captions: ``python tools/options.py > OPTIONS.md``."""

from dataclasses import fields

from transformers import TrainingArguments

from sdsclip_hf.config import SDSCLIPConfig
from sdsclip_hf.metrics.install import install_quietly
from sdsclip_hf.scoring.arguments import ScoringArguments
from sdsclip_hf.training.arguments import DataArguments, ModelArguments


def options_page() -> str:
    """The page as Markdown, from the dataclasses themselves."""
    lines = [
        "# Options of recipes/finetune.py and recipes/score_captions.py",
        "",
        "Made by `python tools/options.py > OPTIONS.md`. Beside its own, recipes/finetune.py has every option of",
        "[`transformers.TrainingArguments`](https://huggingface.co/docs/transformers/main_classes/trainer).",
    ]
    inherited = {entry.name: entry for entry in fields(TrainingArguments)}
    own = [entry for entry in fields(SDSCLIPConfig) if entry.name not in inherited]
    changed = [
        entry
        for entry in fields(SDSCLIPConfig)
        if entry.name in inherited and entry.default != inherited[entry.name].default
    ]
    for title, entries in (
        ("The method", own),
        ("TrainingArguments with another default", changed),
        ("Model", fields(ModelArguments)),
        ("Data and run", fields(DataArguments)),
        ("recipes/score_captions.py", fields(ScoringArguments)),
    ):
        lines += ["", f"## {title}", "", "| option | default | what it does |", "|---|---|---|"]
        lines += [f"| `--{entry.name}` | {_default(entry)} | {entry.metadata['help']} |" for entry in entries]
    return "\n".join(lines) + "\n"


def _default(entry) -> str:
    value = entry.default_factory() if callable(entry.default_factory) else entry.default
    if isinstance(value, list):
        value = " ".join(str(part) for part in value)
    return "none" if value is None or value == "" else f"`{value}`"


if __name__ == "__main__":
    install_quietly()
    print(options_page(), end="")
