"""The embedded world: captioned scenes made by a seeded generator, and small trained models in the standard formats."""

from pathlib import Path

import datasets

from sdsclip_hf.shapes.scenes import SPLITS, captioned_images

MODELS = ("teacher", "student", "student_bag_of_words")
SCORES = "scores"
PICTURES_PER_SCENE = 8


def model_path(name: str) -> str:
    """The folder of one of the bundled models, or of the teacher's scores of the training pictures.

    Args:
        name: ``teacher``; ``student``, whose text tower knows word order and whose image tower does not;
            ``student_bag_of_words``, of which neither does; or ``scores``.

    Raises:
        ValueError: nothing of that name is bundled.
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
    """
    rows = [{"image": row["image"], "caption": row["captions"]} for row in captioned_images(split, per_scene, seed)]
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.List(datasets.Value("string"))})
    return datasets.Dataset.from_list(rows, features=features)


__all__ = ["MODELS", "SPLITS", "load_shapes", "model_path", "resolve"]
