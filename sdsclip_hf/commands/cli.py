"""The command ``sdsclip``: the recipes' functions under one name."""

import sys

from sdsclip_hf.common.importing import import_quickly

COMMANDS = {
    "finetune": ("finetune", "fine-tune a CLIP by diffusion and ranking distillation"),
    "prompt-tune": ("prompt_tune", "learn prompts for a frozen CLIP from a few images of each class"),
    "describe-attributes": (
        "describe_attributes",
        "give each of labelled pictures an attribute to learn prompts from",
    ),
    "prompt-study": (
        "prompt_study",
        "compare ways to tune prompts over datasets and seeds, by the literature's protocols",
    ),
    "plan": ("plan", "tell what a run will need of memory and time, before it is started"),
    "doctor": ("doctor", "check this machine, the Hub and the data against a configuration, before a run"),
    "evaluate": ("evaluate", "score models on benchmarks, with intervals and paired differences"),
    "report": ("report", "show an evaluation item by item, in one HTML file"),
    "leaderboard": ("leaderboard", "make a table over evaluations, models in rows and benchmarks in columns"),
    "study": ("study", "compare arms over seeds, with intervals"),
    "teacher-report": ("teacher_report", "tell what a teacher is worth on known pairs, before it scores a dataset"),
    "score-captions": ("score_captions", "score candidate captions with a diffusion model, for --ranking_scores"),
    "join-negatives": ("join_negatives", "put wrong captions of another dataset beside pictures, by their ids"),
    "paint-negatives": ("paint_negatives", "have a diffusion model paint wrong pictures, for --negative_image_column"),
    "teachers": ("teachers", "list the diffusion models that can be teachers, and what they cost"),
    "export": ("export", "write a model in the form of open_clip, sentence-transformers or ONNX"),
    "push": ("push", "push a finished run to the Hub: the model, its card and its scores"),
    "env": ("env", "print what a bug report needs: versions, devices, settings"),
    "metrics": ("metrics", "let evaluate.load find the metrics by their names, here or on the Hub"),
    "demo": ("demo", "show a page on which the base and the tuned model choose between two captions"),
    "space": ("space", "put that page on the Hub, as a Space"),
}


def main() -> None:
    """Hand the rest of the command line to the command that is named first."""
    name, *rest = sys.argv[1:] or [""]
    if name not in COMMANDS:
        lines = [f"  {command:<15} {text}" for command, (_, text) in COMMANDS.items()]
        print("usage: sdsclip COMMAND [options]; sdsclip COMMAND --help tells the options\n\n" + "\n".join(lines))
        sys.exit(0 if name in ("-h", "--help") else f"error: unknown command {name!r}" if name else 2)
    sys.argv = [f"sdsclip {name}", *rest]
    import_quickly(f"sdsclip_hf.commands.{COMMANDS[name][0]}").main(rest)
