"""A folder of scores in a run: whether it goes with the data, the teacher and the checkpoint, and what its captions are."""

import shutil
from functools import partial
from pathlib import Path

import datasets
import pytest
from conftest import make_scores

from sdsclip_hf.common.checkpoints import fingerprint
from sdsclip_hf.data.images import picture_digest
from sdsclip_hf.data.scores import CandidateScores
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher


@pytest.fixture
def make_trainer(make_trainer, scores_folder):
    terms = {"lambda_sds": 0.0, "lambda_rank": 1.0, "ranking_scores": scores_folder}
    return partial(make_trainer, teacher=None, trainable="full", **terms)


def test_captions_are_those_that_were_scored_whatever_the_weights(tmp_path, make_trainer, pairs):
    captions = [[caption, "red " + caption] for caption in pairs["caption"]]
    data = pairs.remove_columns("caption").add_column("caption", captions)
    items = [
        (picture_digest(image), "red " + caption, ["red " + caption, "blue mat"], [[0.1, 0.1], [0.2, 0.3]])
        for image, caption in zip(pairs["image"], pairs["caption"], strict=True)
    ]
    folder = str(make_scores(tmp_path / "one", items))
    for weight in (0.0, 1.0):
        trainer = make_trainer(data=data, ranking_scores=folder, lambda_rank=weight)
        assert all(trainer.train_dataset[number]["caption"].startswith("red ") for number in range(24))
        assert ("item" in trainer.train_dataset[0]) == (weight > 0)


def test_scores_that_miss_a_row_are_refused_before_training(make_trainer, pairs):
    other = pairs.select([0, 1, 2, 3, 4]).map(lambda row, number: {"caption": f"new {number}"}, with_indices=True)
    with pytest.raises(ValueError, match="miss row 0 of the dataset, captioned 'new 0'"):
        make_trainer(data=other)


def test_scores_that_miss_a_picture_are_refused_before_training(make_trainer, pairs):
    turned = pairs.map(lambda row: {"image": row["image"].rotate(90, expand=True)})
    with pytest.raises(ValueError, match="miss the picture with digest"):
        make_trainer(data=turned)


def test_scores_of_another_teacher_are_refused(make_trainer, teacher_folder, scores_folder, tmp_path):
    items = [tuple(row.values()) for row in CandidateScores.load(scores_folder).data]
    mark = {"name": "org/other", "fingerprint": "0123456789abcdef"}
    folder = str(make_scores(tmp_path / "other", items, teacher=mark))
    with pytest.raises(ValueError, match=r"made by another teacher than .*: by 'org/other', whose weights differ"):
        make_trainer(ranking_scores=folder, teacher=teacher_folder, lambda_sds=1.0)


def test_resuming_with_other_scores_in_the_same_place_is_refused(make_trainer, scores_folder, tmp_path):
    items = [tuple(row.values()) for row in CandidateScores.load(scores_folder).data]
    folder = make_scores(tmp_path / "mine", items)
    make_trainer("stopped", save_strategy="steps", save_steps=2, ranking_scores=str(folder)).train()
    shutil.rmtree(folder)
    moved = [(*item[:3], [[1 - error for error in row] for row in item[3]]) for item in items]
    other = make_trainer(max_steps=4, ranking_scores=str(make_scores(folder, moved)))
    with pytest.raises(ValueError, match=r"other ranking scores.*--ranking_scores"):
        other.train(resume_from_checkpoint=str(tmp_path / "stopped/checkpoint-2"))


def test_a_teacher_of_another_name_is_refused_although_it_is_not_loaded(make_trainer, scores_folder, tmp_path):
    items = [tuple(row.values()) for row in CandidateScores.load(scores_folder).data]
    folder = str(make_scores(tmp_path / "marked", items, teacher={"name": "org/one", "fingerprint": "00"}))
    make_trainer(ranking_scores=folder, teacher="org/one")
    make_trainer(ranking_scores=folder)
    with pytest.raises(ValueError, match=r"made by the teacher 'org/one', not by 'org/other'.*leave --teacher_name"):
        make_trainer(ranking_scores=folder, teacher="org/other")


def test_a_teacher_in_another_number_format_than_the_scores_is_known_by_its_name(
    make_trainer, teacher_folder, scores_folder, tmp_path
):
    items = [tuple(row.values()) for row in CandidateScores.load(scores_folder).data]
    half = fingerprint(DiffusionTeacher.from_pretrained(teacher_folder, dtype="float16").denoiser)
    mark = {"name": "tiny", "fingerprint": half, "dtype": "float16"}
    folder = str(make_scores(tmp_path / "half", items, teacher=mark))
    with pytest.raises(
        ValueError, match=r"by the teacher 'tiny', not by .* \(--teacher_dtype float16 compares weights"
    ):
        make_trainer(ranking_scores=folder, teacher=teacher_folder, lambda_sds=1.0)
    mark["name"] = Path(teacher_folder).name
    named = str(make_scores(tmp_path / "named", items, teacher=mark))
    make_trainer(ranking_scores=named, teacher=teacher_folder, lambda_sds=1.0)
    make_trainer(ranking_scores=folder, teacher=teacher_folder, lambda_sds=1.0, teacher_dtype="float16")
    make_trainer(
        ranking_scores=folder, teacher=teacher_folder, lambda_sds=1.0, lambda_rank=0.0
    )  # only for the captions


def test_weighing_by_confidence_needs_scores_that_tell_it(make_trainer, scores_folder, tmp_path):
    items = [(*row.values(),) for row in CandidateScores.load(scores_folder).data]
    unscored = [(*item[:3], [[] for _ in item[3]]) for item in items]
    folder = str(make_scores(tmp_path / "unscored", unscored))
    with pytest.raises(ValueError, match=r"which the scores .* do not tell.*--num_draws"):
        make_trainer(ranking_scores=folder, ranking_confidence=True, ranking_targets="labels")
    make_trainer(ranking_scores=folder, ranking_targets="labels", max_steps=1).train()


@pytest.mark.parametrize("streaming", [False, True])
def test_scores_of_the_same_pictures_with_other_captions_are_refused(make_trainer, pairs, streaming):
    other = pairs.map(lambda row, number: {"caption": pairs["caption"][(number + 1) % 24]}, with_indices=True)
    trainer = make_trainer(data=other.to_iterable_dataset() if streaming else other)
    with pytest.raises(ValueError, match="which is none of its captions"):
        trainer.train()


def test_rows_that_share_a_picture_take_the_items_of_their_own_captions(make_trainer, pairs, scores_folder, tmp_path):
    """A captioned dataset with one row a caption, as Flickr30k and COCO often come."""
    items = [(*row.values(),) for row in CandidateScores.load(scores_folder).data]
    picture, _, _, errors = items[0]
    second = picture, "a second caption", ["a second caption", "another", "a third"], errors
    folder = str(make_scores(tmp_path / "scores", [*items, second]))
    rows = [*pairs.to_list(), pairs.to_list()[0] | {"caption": "a second caption"}]
    data = datasets.Dataset.from_list(rows, features=pairs.features)
    trainer = make_trainer(data=data, ranking_scores=folder, max_steps=1)
    trainer.train_dataset.check_scores()
    for epoch in range(5):
        trainer.train_dataset.set_epoch(epoch)
        for number in (0, 24):
            assert trainer.train_dataset[number]["caption"] == rows[number]["caption"]


def test_a_picture_or_a_caption_that_was_left_out_of_the_scores_is_passed_over(
    make_trainer, pairs, scores_folder, tmp_path
):
    cells = [
        {"bytes": row["bytes"], "path": None}
        for row in pairs.cast_column("image", datasets.Image(decode=False))["image"]
    ]
    cells[5]["bytes"] = cells[5]["bytes"][:60]
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    captions = [text if number != 7 else None for number, text in enumerate(pairs["caption"])]
    broken = datasets.Dataset.from_dict({"image": cells, "caption": captions}, features=features)
    items = [tuple(row.values()) for row in CandidateScores.load(scores_folder).data]
    kept = [item for item in items if item[1] not in (pairs["caption"][5], pairs["caption"][7])]
    folder = str(make_scores(tmp_path / "fewer", kept))
    make_trainer(data=broken, ranking_scores=folder, max_bad_images=2, max_steps=8).train()
    with pytest.raises(ValueError, match="miss row 5"):
        make_trainer("other", ranking_scores=folder)
