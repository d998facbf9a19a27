"""What the main job tells: before it begins, and when it is done, in the terminal and in files to read."""

import importlib.util
import shlex
from dataclasses import asdict
from pathlib import Path

from sdsclip_hf import shapes
from sdsclip_hf.common.errors import read_json
from sdsclip_hf.common.writing import write_text
from sdsclip_hf.config import SDSCLIPConfig
from sdsclip_hf.data.images import tell_bad_images
from sdsclip_hf.evaluation import plots
from sdsclip_hf.evaluation.tables import main_table, markdown
from sdsclip_hf.training.arguments import DataArguments, ModelArguments

REPORT_FILE, MAIN_PLOT, WHOLE_PLOT, LOSSES_PLOT = "results.md", "scores.png", "scores_all.png", "losses.png"


def announce(model: ModelArguments, data: DataArguments, config: SDSCLIPConfig, rows: int | None, pairs: int) -> None:
    """Tell what is about to be done, and how long it takes where the configuration knows it.

    Args:
        rows: of the training data; None of a stream.
        pairs: of one optimiser step, over all processes.
    """
    runs = [*(data.compare or {}), data.label] if data.compare else []
    length = f"{config.max_steps} steps" if config.max_steps > 0 else f"{config.num_train_epochs:g} epochs"
    pictures = "as they come" if rows is None else f"{rows:,} rows"
    lines = [f"Fine-tuning {model.model_name_or_path} on {data.dataset_name} ({pictures}), {length} of {pairs} pairs."]
    if runs:
        lines.append(f"{len(runs)} runs from the same start: {', '.join(runs)}.")
    if data.test_benchmarks:
        lines.append(f"Scored before and after on {', '.join(data.test_benchmarks)}.")
    if config.resume_from_checkpoint:
        lines.append(f"Going on from {config.resume_from_checkpoint}.")
    if data.about:
        lines.append(data.about)
    print("\n".join([*lines, f"Everything goes to {config.output_dir}.", ""]), flush=True)


def report(results: dict, runs: dict, log_history: list[dict], folder: Path, steps: list[str]) -> None:
    """Print the scores that count most and where the rest is; write ``results.md`` and the plots.

    Args:
        results: what ``results.json`` holds.
        runs: run -> benchmark -> rows of scores, "before" first, the main one last.
        log_history: of the main run.
        folder: the run's.
        steps: commands that may be typed next.
    """
    plots.plot_losses(log_history, folder / LOSSES_PLOT)
    if results["after"]:
        plots.plot_main_scores(runs, folder / MAIN_PLOT)
        plots.plot_scores(runs, folder / WHOLE_PLOT)
        write_text(folder / REPORT_FILE, _as_markdown(results, runs, folder))
        print(f"\nScores in %, with 95 % intervals:\n\n{main_table(runs)}\n")
    for note in _notes(results, folder):
        print(note)
    made = [
        name for name in (REPORT_FILE, "results.json", MAIN_PLOT, WHOLE_PLOT, LOSSES_PLOT) if (folder / name).exists()
    ]
    kind = read_json(folder / "config.json", "Train anew.").get("model_type")
    loads = "CLIPModel" if kind == "clip" else "AutoModel"
    print(f'The tuned model is in {folder}: {loads}.from_pretrained("{folder}"). Beside it: {", ".join(made)}.')
    print("\n".join(["Next:", *(f"  {step}" for step in steps)]), flush=True)


def next_steps(model: ModelArguments, data: DataArguments, folder: Path) -> list[str]:
    """Three commands that work as they stand."""
    base, tuned = shlex.quote(model.model_name_or_path), shlex.quote(str(folder))
    is_bundled = shapes.resolve(model.model_name_or_path) != model.model_name_or_path
    benchmarks = data.test_benchmarks or ([] if is_bundled else ["winoground"])
    benchmarks = "".join(f" --benchmark {shlex.quote(one)}" for one in benchmarks)
    told = "".join(f" --{name} {shlex.quote(value)}" for name, value in asdict(model.open_clip).items() if value)
    compare = f"sdsclip evaluate --model {base} --model {tuned}{told}{benchmarks} --output_dir {tuned}-compared"
    install = "" if importlib.util.find_spec("gradio") else 'pip install "sdsclip_hf[demo]" && '
    demo = f"{install}sdsclip demo --model {tuned}"
    if is_bundled:
        return [compare, demo, "sdsclip doctor --config lora_vit_b32_coco_sd15  # what is missing here for a real one"]
    return [compare, demo, f"sdsclip finetune --config {tuned}/run.yaml --seed 1 --output_dir {tuned}-seed-1"]


def _notes(results: dict, folder: Path) -> list[str]:
    notes = []
    if results["captions_cut"]:
        notes.append(f"{results['captions_cut']} captions were longer than the text tower reads, and were cut.")
    if results["captions_empty"]:
        notes.append(f"{results['captions_empty']} captions were empty. Mend the rows, or leave them out.")
    skipped = tell_bad_images(folder)
    return notes if skipped is None else [*notes, skipped]


def _as_markdown(results: dict, runs: dict, folder: Path) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts = [
        "# Results",
        f"`sdsclip {results['command']}`",
        f"{results['steps']} steps of the main run. Scores in %, with 95 % intervals; a tie counts as wrong.",
        markdown(runs),
        f"![scores]({MAIN_PLOT})",
        f"![all scores]({WHOLE_PLOT})",
        *([f"![losses]({LOSSES_PLOT})"] if (folder / LOSSES_PLOT).exists() else []),
        *_notes(results, folder),
        f"Made with {versions}.",
    ]
    return "\n\n".join(parts) + "\n"
