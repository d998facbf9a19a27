# /// script
# requires-python = ">=3.10"
# dependencies = ["sdsclip_hf"]  # or from git: ["sdsclip_hf @ git+https://github.com/OWNER/sdsclip_hf"]
# ///
"""Print docs/options.md, every option of the commands that train, score and plan.

python tools/options.py > docs/options.md
"""

from dataclasses import fields

from transformers import TrainingArguments

from sdsclip_hf.config import SDSCLIPConfig
from sdsclip_hf.metrics.install import install_quietly
from sdsclip_hf.planning.plan import PlanArguments
from sdsclip_hf.prompts.arguments import PromptArguments
from sdsclip_hf.prompts.config import PromptConfig
from sdsclip_hf.scoring.arguments import ScoringArguments
from sdsclip_hf.training.arguments import DataArguments, ModelArguments


def options_page() -> str:
    """The page as Markdown, from the dataclasses themselves."""
    lines = [
        "# Options",
        "",
        "`sdsclip COMMAND --help` prints the same. Those of `sdsclip finetune` are all options of the recipe",
        "`recipes/finetune.py`, and keys of a `--config` file; beside them it has every option of",
        "[`transformers.TrainingArguments`](https://huggingface.co/docs/transformers/main_classes/trainer).",
        "This page is made by `python tools/options.py > docs/options.md`.",
    ]
    inherited = {entry.name: entry for entry in fields(TrainingArguments)}

    def split(config: type) -> tuple[list, list]:
        """The options that a configuration adds, and those whose default it changes."""
        own = [entry for entry in fields(config) if entry.name not in inherited]
        known = [entry for entry in fields(config) if entry.name in inherited]
        return own, [entry for entry in known if entry.default != inherited[entry.name].default]

    (own, changed), (of_prompts, changed_for_prompts) = split(SDSCLIPConfig), split(PromptConfig)
    for title, entries in (
        ("sdsclip finetune: the method", own),
        ("sdsclip finetune: TrainingArguments with another default", changed),
        ("sdsclip finetune: model", fields(ModelArguments)),
        ("sdsclip finetune: data and run", fields(DataArguments)),
        ("sdsclip prompt-tune: the methods", of_prompts),
        ("sdsclip prompt-tune: TrainingArguments with another default", changed_for_prompts),
        ("sdsclip prompt-tune: model, data and run", fields(PromptArguments)),
        ("sdsclip score-captions", fields(ScoringArguments)),
        ("sdsclip plan, beside all of sdsclip finetune", fields(PlanArguments)),
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
