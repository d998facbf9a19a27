# /// script
# requires-python = ">=3.10"
# dependencies = ["sdsclip_hf"]  # or from git: ["sdsclip_hf @ git+https://github.com/OWNER/sdsclip_hf"]
# ///
"""Print the table of preset benchmarks of docs/evaluating.md, from sdsclip_hf/benchmarks/presets.yaml.

python tools/presets_table.py
"""

from sdsclip_hf.benchmarks.presets import PRESETS, Preset

HEAD = [
    "| benchmark | items | form | headline | source by default | licence |",
    "|---|---|---|---|---|---|",
]


def presets_table() -> str:
    """The table as Markdown."""
    return "\n".join([*HEAD, *(_line(name, preset) for name, preset in PRESETS.items())])


def _line(name: str, preset: Preset) -> str:
    items = f"{preset.items:,}" if preset.items else ""
    source = preset.source or f"none: give `=FOLDER` of [the authors' files]({preset.files.split()[0]})"
    if preset.source.startswith("https://"):
        source = f"[{preset.source.split('/')[3]}/{preset.source.split('/')[4]}]({preset.source})"
    cells = [
        f"`{name}`: {preset.title}",
        items,
        preset.form,
        f"[{preset.headline}]({preset.rule})",
        source,
        preset.licence,
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print(presets_table())
