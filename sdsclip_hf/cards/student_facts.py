"""What a card tells of the student's kind: its classes, how captions are given to it, and its form of L_CLIP."""

from dataclasses import dataclass

from sdsclip_hf.students.exports import FORMS, loading_lines


@dataclass(frozen=True)
class StudentFacts:
    """The student as its user meets it.

    Args:
        model_class: of transformers.
        model_type: by which the Hub knows it.
        full_length: to which captions are padded; None where the longest of a batch will do.
        lower: whether captions are put in small letters first.
        form: of L_CLIP, ``softmax`` or ``sigmoid``.
    """

    model_class: str = "CLIPModel"
    model_type: str = "clip"
    full_length: int | None = None
    lower: bool = False
    form: str = "softmax"

    @property
    def name(self) -> str:
        """What it is called in a sentence."""
        return self.model_class.removesuffix("Model")

    @property
    def classes(self) -> tuple[str, str]:
        """Of the model and of the processor, as they are imported."""
        return ("CLIPModel", "CLIPProcessor") if self.model_type == "clip" else ("AutoModel", "AutoProcessor")

    @property
    def exports(self) -> dict[str, str]:
        """By form the lines that load an export for another library from the folder that the card's command writes."""
        forms = [form for form in FORMS if form != "transformers"] if self.model_type == "clip" else []
        return {form: loading_lines(form, f"exported-{form}") for form in forms}

    @property
    def padding(self) -> str:
        """What the processor is told of padding."""
        if self.full_length is None:
            return "padding=True"
        return f'padding="max_length", max_length={self.full_length}, truncation=True'

    @property
    def contrastive(self) -> str:
        """L_CLIP in words."""
        if self.form == "sigmoid":
            return "the sigmoid loss of each picture and caption of a batch, with the model's bias"
        return "the symmetric contrastive loss of a batch's pairs"
