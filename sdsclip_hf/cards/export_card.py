"""The model card of an export for another library: what it was made from, and the lines that load it."""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from sdsclip_hf.cards.model_card import CARD_FILE, find_licence
from sdsclip_hf.common.resources import versions
from sdsclip_hf.common.writing import write_text
from sdsclip_hf.data.scores import portable_name
from sdsclip_hf.hub.commits import is_hub_id
from sdsclip_hf.students.exports import FORMS

LIBRARIES = {"sentence_transformers": "sentence-transformers"}  # by the Hub's names, where they are others


def write_export_card(folder: Path, name: str, form: str) -> None:
    """Write ``README.md`` into an export.

    Args:
        folder: the export's.
        name: of the model that it was made from, a folder, a file or a Hub id.
        form: of ``FORMS``.
    """
    library, of_model = LIBRARIES.get(form, form), name if is_hub_id(name) else portable_name(name)
    data = ModelCardData(
        library_name=library,
        pipeline_tag="zero-shot-image-classification",
        tags=["clip", "sdsclip_hf"],
        base_model=name if is_hub_id(name) else None,
        **(find_licence(name) or {}),
    )
    text = (
        f"# {folder.name}\n\n`{of_model}` in the form of {library}, by `sdsclip export` of `sdsclip_hf` "
        f"{versions()['sdsclip_hf']}. `FOLDER` is where these files lie.\n\n```python\n{FORMS[form].loading}\n```\n"
    )
    write_text(folder / CARD_FILE, str(ModelCard(f"---\n{data}\n---\n\n{text}")))
