"""The embedded world: captioned scenes made by a seeded generator, and small trained models in the standard formats."""

from pathlib import Path

import datasets

from sdsclip_hf.shapes.scenes import SPLITS, captioned_images

MODELS = ("teacher", "student", "student_bag_of_words")
SCORES = "scores"
PICTURES_PER_SCENE = 8
FEATURES = datasets.Features({"image": datasets.Image(), "caption": datasets.List(datasets.Value("string"))})


def model_path(name: str) -> str:
    """The folder of one of the bundled models, or of the teacher's scores of the training pictures.

    Args:
        name: ``teacher``; ``student``, whose text tower knows word order and whose image tower does not;
            ``student_bag_of_words``, of which neither does; or ``scores``.

    Raises:
        ValueError: nothing of that name is bundled.

    Example:

    ```python
    from transformers import CLIPModel
    from sdsclip_hf.shapes import model_path

    clip = CLIPModel.from_pretrained(model_path("student"))
    print(clip.config.model_type)  # clip
    ```
    """
    if name not in (*MODELS, SCORES):
        raise ValueError(f"unknown bundled model {name!r}; choose from {', '.join([*MODELS, SCORES])}.")
    return str(Path(__file__).parent / name)


def resolve(name_or_path: str | Path) -> str:
    """``shapes/teacher`` and the like to the bundled folder; any other name as it is."""
    world, _, model = str(name_or_path).partition("/")
    return model_path(model) if world == "shapes" and model in (*MODELS, SCORES) else str(name_or_path)


def load_shapes(split: str = "train", per_scene: int = PICTURES_PER_SCENE, seed: int = 0) -> datasets.Dataset:
    """Pictures of a split's scenes with all their captions, as a dataset.

    Args:
        split: train, validation or test.
        per_scene: pictures of each scene.
        seed: of the placements and the order.

    Returns:
        A dataset with columns ``image`` and ``caption`` (a list of 12 strings).

    Example:

    ```python
    from sdsclip_hf.shapes import load_shapes

    dataset = load_shapes("train", per_scene=1)
    print(dataset[0]["image"].size, len(dataset[0]["caption"]))  # (32, 32) 12
    ```
    """
    rows = [{"image": row["image"], "caption": row["captions"]} for row in captioned_images(split, per_scene, seed)]
    return datasets.Dataset.from_list(rows, features=FEATURES)


__all__ = ["FEATURES", "MODELS", "SPLITS", "load_shapes", "model_path", "resolve"]
