"""The page of a metric's Space: scores go in as JSON, a table and the raw result come out."""

import json
from pathlib import Path

import evaluate
import gradio as gr

FOLDER = Path(__file__).resolve().parent


def find_module(folder):
    """The file of the folder that defines a metric; a Space's folder is named otherwise than its metric."""
    files = (file for file in folder.glob("*.py") if file.name != Path(__file__).name)
    return next(file for file in files if "evaluate.Metric)" in file.read_text("utf-8"))


def card(folder):
    """README.md without its front matter."""
    return (folder / "README.md").read_text("utf-8").split("---\n", 2)[2]


def headers(confidence=0.95):
    """The table's columns."""
    return ["score", "%", f"{100 * confidence:g} % interval", "n"]


def rows(result, group=""):
    """The fractions of a result as rows of the table, those of its groups after its own."""
    intervals, counts = result.get("intervals", {}), result.get("counts", {})
    for name, value in result.items():
        if isinstance(value, float):
            interval = intervals.get(name) or result.get("interval")
            yield [f"{group}{name}", *cells(value, interval), str(counts.get(name, result["n"]))]
        elif isinstance(value, list):
            for number, share in enumerate(value, start=1):
                yield [f"{name}: {number}", *cells(share, None), str(result["n"])]
        elif isinstance(value, dict) and name not in ("intervals", "counts"):
            for label, inner in value.items():
                yield from rows(inner, f"{label}: ")


def cells(share, interval):
    """A share and its interval in per cent, as text."""
    return f"{100 * share:.1f}", "{:.1f} to {:.1f}".format(*(100 * end for end in interval)) if interval else ""


def as_text(inputs):
    """The inputs of a test case as JSON, an input a line, and an item a line where an item is a list."""
    lines = []
    for name, value in inputs.items():
        text = json.dumps(value)
        if isinstance(value, list) and isinstance(value[0], list):
            text = "[\n    " + ",\n    ".join(map(json.dumps, value)) + "\n  ]"
        lines.append(f"  {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}"


def read(text):
    """The metric's inputs from a JSON text."""
    try:
        inputs = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"The inputs are no JSON: {error}.") from error
    if not isinstance(inputs, dict) or not set(METRIC.features) <= set(inputs):
        raise ValueError(f"The inputs must be an object with {' and '.join(METRIC.features)}.")
    return inputs


def show(text):
    """The table and the raw result for inputs given as a JSON text."""
    try:
        inputs = read(text)
        result = METRIC.compute(**inputs)
    except (ValueError, TypeError) as error:
        raise gr.Error(str(error), duration=20, print_exception=False) from error
    return {"headers": headers(inputs.get("confidence", 0.95)), "data": list(rows(result))}, result


def build():
    """The page."""
    cases = json.loads((FOLDER / "test_cases.json").read_text("utf-8"))
    examples = [as_text(case["inputs"]) for case in cases]
    with gr.Blocks(title=NAME) as page:
        gr.Markdown(f"# {NAME}\n\n{METRIC.description.strip()}")
        with gr.Row():
            with gr.Column():
                inputs = gr.Code(
                    examples[0],
                    language="json",
                    label="inputs",
                    lines=8,
                    max_lines=24,
                    wrap_lines=True,
                    interactive=True,
                )
                button = gr.Button("Compute", variant="primary")
                gr.Examples([[text] for text in examples], inputs, example_labels=[case["name"] for case in cases])
            with gr.Column():
                table = gr.Dataframe(headers=headers(), label="scores", interactive=False, wrap=True)
                raw = gr.JSON(label="result")
        with gr.Accordion("About this metric", open=False):
            gr.Markdown(card(FOLDER))
        button.click(show, inputs, [table, raw])
    return page


MODULE = find_module(FOLDER)
NAME = MODULE.stem
METRIC = evaluate.load(str(MODULE), keep_in_memory=True)

if __name__ == "__main__":
    build().launch()
