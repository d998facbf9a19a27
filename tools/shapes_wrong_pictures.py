# /// script
# requires-python = ">=3.10"
# dependencies = ["sdsclip_hf"]  # or from git: ["sdsclip_hf @ git+https://github.com/OWNER/sdsclip_hf"]
# ///
"""Write the shapes world with a wrong picture beside each right one: ``python tools/shapes_wrong_pictures.py``.

The training scenes, each picture with one caption, and a caption of the same words with the picture that it tells: the two
colours exchanged, or where the caption tells a relation, in half of the rows the two things. Nothing else tells the two
pictures apart. Columns are those of ``sdsclip paint-negatives``.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np

from sdsclip_hf.common.writing import refuse_occupied, whole_file
from sdsclip_hf.scoring.painting import DATA, FEATURES
from sdsclip_hf.shapes import PICTURES_PER_SCENE
from sdsclip_hf.shapes.scenes import PLAIN_TEMPLATES, RELATION_TEMPLATES, Placement, render, scenes

TEMPLATES = RELATION_TEMPLATES + PLAIN_TEMPLATES


def rows(per_scene: int, seed: int) -> Iterator[dict]:
    """``per_scene`` pictures of every training scene, shuffled."""
    rng = np.random.default_rng([seed, 2])
    everything = [scene for scene in scenes("train") for _ in range(per_scene)]
    for number in rng.permutation(len(everything)):
        scene, placement = everything[number], Placement.draw(rng)
        told = scene.mirrored() if rng.random() < 0.5 else scene
        template = TEMPLATES[rng.integers(len(TEMPLATES))]
        exchanges_things = template in RELATION_TEMPLATES and rng.random() < 0.5
        wrong = told.swap_arguments() if exchanges_things else told.swap_attributes()
        yield {
            "image": render(told, placement),
            "caption": told.caption(template),
            "negative_caption": wrong.caption(template),
            "negative_image": render(wrong, placement),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/shapes_wrong_pictures"))
    parser.add_argument("--per_scene", type=int, default=PICTURES_PER_SCENE, help="pictures of each of 512 scenes")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        refuse_occupied(args.output_dir)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    dataset = datasets.Dataset.from_list(list(rows(args.per_scene, args.seed)), features=FEATURES)
    (args.output_dir / DATA).parent.mkdir(parents=True)
    with whole_file(args.output_dir / DATA) as partial:
        dataset.to_parquet(partial)
    print(f"{len(dataset):,} rows in {args.output_dir}")


if __name__ == "__main__":
    main()
