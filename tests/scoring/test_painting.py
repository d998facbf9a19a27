"""paint-negatives: what is painted and kept, that it goes on to the same bytes, and that training reads it."""

import datasets
import numpy as np
import pytest
import tiny_pipelines
import torch
from folders import contents

from sdsclip_hf.commands.paint_negatives import main
from sdsclip_hf.data.loading import load_image_captions
from sdsclip_hf.scoring import painting
from sdsclip_hf.scoring.arguments import ScoringArguments
from sdsclip_hf.scoring.painting import paint_negatives
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher

OPTIONS = {"candidates": ["swap:1"], "num_draws": 4, "seed": 5}


@pytest.fixture(scope="module")
def teacher(teacher_folder):
    return DiffusionTeacher.from_pretrained(teacher_folder, load_vae=True)


@pytest.fixture(scope="module")
def rows(pairs):
    """Twelve pictures, of which all but the first two have captions with words to swap."""
    texts = ["a cat", "a mat", *(f"a red cat on a blue mat {'abcdefgh'[number % 8]}" for number in range(10))]
    return pairs.select(range(12)).remove_columns("caption").add_column("caption", texts)


def paint(teacher, rows, folder, **options):
    return paint_negatives(teacher, rows, ScoringArguments(**OPTIONS | options, output_dir=str(folder)), 2)


@pytest.fixture(scope="module")
def painted(teacher, rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("painted") / "out"
    return paint(teacher, rows, folder), folder


def test_what_the_teacher_does_not_see_in_its_picture_is_left_out(painted, teacher, rows):
    told, folder = painted
    found = datasets.load_dataset("parquet", data_files=str(folder / "data/*.parquet"), split="train")
    assert found.features == painting.FEATURES and len(found) == 12
    assert told["painted"] == 10 and told["kept"] == sum(row["negative_image"] is not None for row in found)
    for row, source in zip(found, rows, strict=True):
        assert row["caption"] == source["caption"]
        assert (np.asarray(row["image"]) == np.asarray(source["image"])).all()
        assert (row["negative_image"] is None) == (row["negative_caption"] is None)
        if row["negative_image"] is None:
            continue
        wrong = row["negative_caption"]
        assert sorted(wrong.split()) == sorted(row["caption"].split()) and wrong != row["caption"]
        errors = teacher.diffusion_score([row["negative_image"]], [wrong, row["caption"]], num_draws=4, seed=5)[0]
        assert errors[0] < errors[1]
    assert 0 < told["kept"] < 10  # a random teacher agrees with itself now and then


def test_an_autoencoder_in_float32_paints_beside_a_denoiser_in_less(rows, tmp_path):
    folder = tiny_pipelines.save("stable_diffusion_xl", tmp_path)
    half = DiffusionTeacher.from_pretrained(folder, load_vae=True, latent_size=8, dtype="bfloat16")
    told = paint(half, rows.select(range(4)), tmp_path / "out")
    assert told["painted"] == 2 and half.dtype == torch.bfloat16 and half.vae.dtype == torch.float32
    with pytest.raises(RuntimeError, match="should be the same"):  # as it is for others
        half.vae.decode(torch.zeros(1, 4, 8, 8, dtype=half.dtype))


def test_after_a_kill_the_bytes_are_the_same_and_other_settings_are_refused(
    painted, teacher, rows, tmp_path, monkeypatch
):
    calls, whole = [], painting._Painter.rows

    def killed(self, *given):
        calls.append(0)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(self, *given)

    monkeypatch.setattr(painting._Painter, "rows", killed)
    with pytest.raises(KeyboardInterrupt):
        paint(teacher, rows, tmp_path / "out")
    with pytest.raises(ValueError, match="painted by other settings: its seed is 5, not 6"):
        paint(teacher, rows, tmp_path / "out", seed=6)
    told = paint(teacher, rows, tmp_path / "out")
    assert len(calls) == 3 and told == painted[0]
    assert contents(tmp_path / "out") == contents(painted[1])
    assert paint(teacher, rows, tmp_path / "out") == told and len(calls) == 3


def test_training_takes_what_the_command_wrote(rows, teacher_folder, tmp_path, make_trainer, capsys):
    rows.to_parquet(tmp_path / "rows.parquet")
    main(["--teacher_name_or_path", teacher_folder, "--dataset_name", str(tmp_path / "rows.parquet"), "--num_draws", "4",
          "--num_inference_steps", "2", "--output_dir", str(tmp_path / "out")])  # fmt: skip
    assert "10 pictures painted" in capsys.readouterr().out
    data = load_image_captions(str(tmp_path / "out"))
    assert data.column_names == list(painting.FEATURES)
    options = {"teacher": None, "lambda_sds": 0.0, "lambda_images": 1.0, "negative_image_column": "negative_image"}
    trainer = make_trainer(data=data, trainable="full", **options)
    trainer.train()
    assert any("ranking_images" in row for row in trainer.state.log_history)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--candidates", "nearest:1"], "the nearest captions tell of other pictures"),
        (["--max_samples", "2"], "none of the 2 captions has"),
    ],
)
def test_nothing_to_paint_is_refused(words, said, rows, teacher_folder, tmp_path):
    rows.to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(SystemExit, match=said):
        main(["--teacher_name_or_path", teacher_folder, "--dataset_name", str(tmp_path / "rows.parquet"), *words,
              "--output_dir", str(tmp_path / "out")])  # fmt: skip
