"""Pictures as candidates: L_rank over the right and a wrong picture of a caption, and what is no wrong picture."""

import datasets
import pytest
import torch
from trainers import assert_same, first_batch, one_step
from transformers import CLIPModel

from sdsclip_hf.data.captioned_images import ImageCaptionDataset
from sdsclip_hf.data.images import BadImageError, BadImages

TERM = {"teacher": None, "lambda_sds": 0.0, "lambda_images": 0.7, "negative_image_column": "wrong", "trainable": "full"}


@pytest.fixture(scope="module")
def contrasted(pairs):
    """Each picture beside the next one; the first two rows have none."""
    wrong = [None, None, *pairs["image"][3:], pairs[0]["image"]]
    rows = [row | {"wrong": picture} for row, picture in zip(pairs, wrong, strict=True)]
    return datasets.Dataset.from_list(rows, features=datasets.Features(pairs.features | {"wrong": datasets.Image()}))


def test_the_term_is_the_cross_entropy_of_the_right_picture(make_trainer, contrasted, clip_folder):
    trainer = make_trainer(data=contrasted, **TERM)
    clip = CLIPModel.from_pretrained(clip_folder).eval()
    numbers = next(iter(trainer.get_train_dataloader().batch_sampler))
    while not {0, 1} & {*numbers}:
        numbers = [*numbers[1:], numbers[0] - 1]
    examples = [trainer.train_dataset[number] for number in numbers]
    total, agreed, count = 0.0, 0, 0
    for number, example in zip(numbers, examples, strict=True):
        row = contrasted[number]
        shown = [row["image"], *([] if row["wrong"] is None else [row["wrong"]])]
        inputs = trainer.processing_class(text=[example["caption"]], images=shown, return_tensors="pt")
        with torch.no_grad():
            logits = clip(**inputs).logits_per_text[0]
        total -= logits.log_softmax(0)[0].item()
        if len(shown) == 2:
            agreed, count = agreed + (logits[0] > logits[1]).item(), count + 1
    assert 0 < count < len(numbers)
    batch = trainer.data_collator(examples)
    output, embedded = trainer.encode(trainer.model.eval(), batch)
    terms = trainer.other_terms(output, embedded, batch)
    assert terms["ranking_images"].item() == pytest.approx(total / len(numbers), rel=1e-4)
    noted = trainer.train().metrics
    assert "train_loss" in noted and trainer.term_weights["ranking_images"] == 0.7
    logged = [row for row in trainer.state.log_history if "ranking_images" in row]
    assert logged and all(0 <= row["ranking_images_agreement"] <= 1 for row in logged)


def test_mini_batches_and_kept_pictures_change_nothing(make_trainer, contrasted):
    options = TERM | {"mask_duplicates": False, "data": contrasted}
    whole = one_step(make_trainer("whole", per_device_train_batch_size=12, **options))
    kept = one_step(make_trainer("kept", per_device_train_batch_size=12, keep_images_in_memory=True, **options))
    parts = one_step(make_trainer("parts", contrastive_batch_size=12, **options))
    without = one_step(make_trainer("none", per_device_train_batch_size=12, **(options | {"lambda_images": 0.0})))
    for other in (kept, parts):
        assert other[0] == pytest.approx(whole[0], rel=1e-5)
        assert_same(other[1], whole[1], 1e-3)
    assert without[0] != pytest.approx(whole[0], rel=1e-3)


def test_the_distillation_term_sees_the_own_pictures_alone(make_trainer, contrasted, teacher_folder):
    both = TERM | {"lambda_sds": 1.0, "teacher": teacher_folder, "data": contrasted}
    found = {}
    for name, options in {"with": both, "without": both | {"lambda_images": 0.0}}.items():
        trainer = make_trainer(name, **options)
        batch = first_batch(trainer)
        output, embedded = trainer.encode(trainer.model.eval(), batch)
        found[name] = trainer.other_terms(output, embedded, batch)["sds"].item()
    assert found["with"] == pytest.approx(found["without"], rel=1e-5)


def test_a_wrong_picture_that_is_the_own_one_or_broken_is_noted_or_refused(contrasted, tmp_path):
    own = datasets.Dataset.from_list(
        [row | {"wrong": row["image"] if number == 3 else row["wrong"]} for number, row in enumerate(contrasted)],
        features=contrasted.features,
    )
    with pytest.raises(BadImageError, match=r"row 3, column 'wrong'.* same picture as that of column 'image'"):
        ImageCaptionDataset(own, negative_column="wrong")[3]
    noted = BadImages(1, tmp_path / "bad_images.txt")
    assert ImageCaptionDataset(own, negative_column="wrong", bad_images=noted)[3]["negative"] is None
    assert "the same picture" in noted.path.read_text()


def test_what_does_not_fit_is_refused(make_trainer, contrasted):
    with pytest.raises(ValueError, match="negative image column 'nothing' not found"):
        make_trainer(data=contrasted, **(TERM | {"negative_image_column": "nothing"}))
    with pytest.raises(ValueError, match="lambda_images is above 0, but there are no wrong pictures"):
        make_trainer(data=contrasted, **(TERM | {"negative_image_column": None}))
