"""A CLIP with learned prompts, for use: any pictures among any classes."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

from sdsclip_hf import shapes
from sdsclip_hf.data.pixels import to_rgb
from sdsclip_hf.prompts.learner import PromptLearner
from sdsclip_hf.prompts.methods import make_learner
from sdsclip_hf.prompts.saved import PromptRecord, check_same_clip, find_prompts, load_trained, read_record
from sdsclip_hf.students.loading import load_clip

Images = Image.Image | Sequence[Image.Image]
DEFAULT_BATCH = 64


class PromptedCLIP:
    """Classifies pictures by learned prompts.

    Args:
        learner: the prompts and their CLIP.
        processor: the CLIP's.
        record: what the prompts are.

    Example:

    ```python
    from sdsclip_hf import PromptConfig, PromptedCLIP, PromptTrainer
    from sdsclip_hf.prompts.data.shapes import load_labelled_shapes

    data = load_labelled_shapes("train").select(range(64))
    trainer = PromptTrainer("shapes/student", PromptConfig(output_dir="outputs/prompts", max_steps=2), data)
    trainer.train()
    trainer.save_model()
    prompted = PromptedCLIP.from_pretrained("outputs/prompts")
    print(prompted.export_text_features(["circle", "square"]).shape)  # torch.Size([2, 128])
    ```
    """

    def __init__(self, learner: PromptLearner, processor: CLIPProcessor, record: PromptRecord):
        self.learner, self.processor, self.record = learner.eval(), processor, record

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        model: CLIPModel | str | Path | None = None,
        processor: CLIPProcessor | None = None,
        revision: str | None = None,
        device: str | torch.device | None = None,
    ) -> "PromptedCLIP":
        """Saved prompts with their CLIP.

        Args:
            name_or_path: the folder or Hub id of the prompts.
            model: the CLIP, or where it is; default: as the prompts name it.
            processor: of a ``model`` that is given loaded.
            revision: branch, tag or commit of the prompts on the Hub.
            device: default: the GPU if there is one, or where a loaded ``model`` is.

        Raises:
            OSError: prompts or model cannot be loaded.
            ValueError: the prompts are not whole, or belong to another CLIP.
        """
        folder = find_prompts(name_or_path, revision)
        record = read_record(folder)
        if isinstance(model, CLIPModel):
            if processor is None:
                raise ValueError("processor is missing; give the one that goes with the model.")
            clip, device = model, device or model.device
        else:
            commit = record.base_revision if model is None else None
            clip, own = load_clip(shapes.resolve(model or record.base_model), commit)
            processor = processor or own
        check_same_clip(record, clip)
        learner = make_learner(clip, processor.tokenizer, record.class_names, record.settings)
        load_trained(learner, folder)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(learner.to(device), processor, record)

    @torch.inference_mode()
    def probabilities(
        self, images: Images, class_names: Sequence[str] | None = None, batch_size: int = DEFAULT_BATCH
    ) -> Tensor:
        """How likely each class is for each image, (N, C), on the CPU.

        Args:
            images: N pictures, or one.
            class_names: C classes; default: those of training.
            batch_size: images at once.

        Raises:
            ValueError: the classes cannot be, or the prompts are of other classes alone.
        """
        pictures = [to_rgb(image) for image in ([images] if isinstance(images, Image.Image) else images)]
        device, found = self.learner.context.device, []
        with self.learner.for_classes(class_names or self.record.class_names):
            for start in range(0, len(pictures), batch_size):
                part = self.processor.image_processor(pictures[start : start + batch_size], return_tensors="pt")
                found.append(self.learner(part["pixel_values"].to(device)).logits.softmax(-1).cpu())
            return torch.cat(found) if found else torch.empty(0, len(self.learner.class_names))

    def predict(self, images: Images, class_names: Sequence[str] | None = None) -> list[str]:
        """The likeliest class of each image; see [`probabilities`]."""
        names = list(class_names or self.record.class_names)
        return [names[number] for number in self.probabilities(images, names).argmax(-1).tolist()]

    def __call__(self, images: Images, candidate_labels: Sequence[str] | None = None) -> list:
        """As transformers' pipeline ``zero-shot-image-classification``: of each image a list of ``score`` and ``label``, the
        likeliest first; of one image its list alone."""
        names = list(candidate_labels or self.record.class_names)
        rows = [
            sorted(({"score": score, "label": name} for score, name in zip(row, names, strict=True)), key=_falling)
            for row in self.probabilities(images, names).tolist()
        ]
        return rows[0] if isinstance(images, Image.Image) else rows

    @torch.inference_mode()
    def export_text_features(self, class_names: Sequence[str] | None = None) -> Tensor:
        """The classes as unit-length features (C, D): a plain CLIPModel classifies by logit_scale * images @ features.T.

        Raises:
            ValueError: the prompts hang on the image, or the classes cannot be.
        """
        with self.learner.for_classes(class_names or self.record.class_names):
            return F.normalize(self.learner.fixed_text_embeds()[0], dim=-1).cpu()


def _falling(row: dict) -> float:
    return -row["score"]
