# /// script
# requires-python = ">=3.10"
# dependencies = ["sdsclip_hf[candidates,demo,notebooks]"]  # or from git: ["sdsclip_hf[candidates,demo,notebooks] @ git+https://github.com/OWNER/sdsclip_hf"]
# ///
"""Run docs/notebooks from top to bottom, and keep the outputs: ``python tools/notebooks.py [NAME ...]``."""

import re
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parents[1] / "docs/notebooks"


def run(notebook: NotebookNode, folder: Path, timeout: int = 1800) -> NotebookNode:
    """The notebook, run in ``folder``; cells tagged ``skip-execution`` are left as they are.

    Args:
        notebook: its outputs are replaced.
        folder: the working directory, which receives what the cells write.
        timeout: seconds that a cell may take.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        coalesce_streams=True,
        record_timing=False,
        store_widget_state=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [_tidy(output) for output in cell.outputs]
    notebook.metadata.language_info = {"name": "python"}  # the version of Python does not matter
    return notebook


def _tidy(output: NotebookNode) -> NotebookNode:
    """Text as a terminal shows it in the end: of a line that was written over, what was written last."""
    if output.output_type == "stream":
        lines = output.text.replace("\r\n", "\n").split("\n")
        lines = [re.split("\r", line.rstrip("\r"))[-1] for line in lines]
        output.text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", "\n".join(lines))
    return output


def main() -> None:
    """Run all of them, or those that are named, in a folder that is thrown away, and write them with their outputs."""
    for path in [FOLDER / f"{name}.ipynb" for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb")):
        folder = Path(tempfile.mkdtemp(prefix="notebooks-"))
        try:
            notebook = run(nbformat.read(path, as_version=4), folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        path.write_text(nbformat.writes(notebook, indent=1) + "\n", encoding="utf-8")
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
