"""The model card of learned prompts."""

from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from sdsclip_hf.cards.model_card import CARD_FILE, MODEL_NAME, find_licence
from sdsclip_hf.common.resources import versions
from sdsclip_hf.common.writing import write_text
from sdsclip_hf.data.scores import portable_name
from sdsclip_hf.hub.commits import is_hub_id
from sdsclip_hf.prompts.methods import LABELS, method_of
from sdsclip_hf.prompts.saved import CONFIG_FILE, WEIGHTS_FILE, PromptRecord

PAPERS = {"coop": "2109.01134", "cocoop": "2203.05557", "kgcoop": "2303.13283", "intcoop": "2406.13683"}
MOST_NAMES = 20


@dataclass
class CardFacts:
    """What a card tells of a run.

    Args:
        record: of the prompts.
        images, shots: trained on, altogether and of each class at most.
        epochs: passes over them.
        seed: of the run.
        licence: as it was given; default: that of the base model's card.
        scores: what was scored -> ``zero_shot`` and ``prompts``, accuracies as fractions, and ``images``.
        dataset_name: folder or Hub id of the data.
    """

    record: PromptRecord
    images: int
    shots: int
    epochs: float
    seed: int
    licence: str | None = None
    scores: dict[str, dict] = field(default_factory=dict)
    dataset_name: str | None = None


def write_card(folder: Path, facts: CardFacts) -> None:
    """Write ``README.md`` beside saved prompts."""
    write_text(folder / CARD_FILE, str(ModelCard(f"---\n{_front_matter(facts)}\n---\n\n{_text(facts)}")))


def _front_matter(facts: CardFacts) -> ModelCardData:
    base, dataset = facts.record.base_model, facts.dataset_name
    licence = {"license": facts.licence} if facts.licence else find_licence(base) or {}
    return ModelCardData(
        base_model=base if is_hub_id(base) else None,
        base_model_relation="adapter" if is_hub_id(base) else None,
        datasets=[dataset] if dataset and is_hub_id(dataset) else None,
        library_name="sdsclip_hf",
        pipeline_tag="zero-shot-image-classification",
        tags=["clip", "prompt-tuning", "few-shot", facts.record.settings.method],
        **({"license": "unknown"} | licence),
    )


def _text(facts: CardFacts) -> str:
    record, settings = facts.record, facts.record.settings
    method, names = LABELS[settings.method], record.class_names
    shown = ", ".join(names[:MOST_NAMES]) + (f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else "")
    data = f" of `{portable_name(facts.dataset_name)}`" if facts.dataset_name else ""
    reading = ", as it is read from its abstract and reviews" if settings.method == "intcoop" else ""
    return f"""# {MODEL_NAME}

Prompts of [{method}](https://arxiv.org/abs/{PAPERS[settings.method]}){reading}, learned by `sdsclip_hf`
{versions()["sdsclip_hf"]} for the frozen CLIP `{portable_name(record.base_model)}`: no weight of it was changed.

```python
from PIL import Image
from sdsclip_hf import PromptedCLIP

prompted = PromptedCLIP.from_pretrained("{MODEL_NAME}")
image = Image.new("RGB", (224, 224), "red")  # or Image.open(...)
print(prompted(image, candidate_labels={names[:2]!r}))  # the likeliest first
```

{_use(facts)}

## Training

{facts.images} images{data}, at most {facts.shots} of each class, {facts.epochs:g} epochs, seed {facts.seed}.

Classes: {shown}.

## Scores

{_scores(facts)}

## Files

`{WEIGHTS_FILE}`: the tensors that were trained. `{CONFIG_FILE}`: the method and its options, the classes, the CLIP and a
fingerprint of its text tower, without which they are refused.
"""


def _use(facts: CardFacts) -> str:
    if facts.record.settings.class_specific:
        return "The context is class-specific: the prompts serve the classes below alone."
    if method_of(facts.record.settings.method).of_image:
        return "Any classes can be given, also others than those of training. Each image has prompts of its own."
    return (
        "Any classes can be given, also others than those of training. `prompted.export_text_features(class_names)` gives a "
        "matrix\nwith which a plain `CLIPModel` classifies."
    )


def _scores(facts: CardFacts) -> str:
    if not facts.scores:
        return "None."
    lines = ["| among | images | zero-shot | these prompts |", "|---|---|---|---|"]
    for name, row in facts.scores.items():
        lines.append(f"| {name} | {row['images']} | {100 * row['zero_shot']:.1f} | {100 * row['prompts']:.1f} |")
    return "Accuracy in %, of one run.\n\n" + "\n".join(lines)
