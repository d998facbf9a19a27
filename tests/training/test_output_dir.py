"""The folder of a run: empty, its own, numbered, and never that of something else."""

from pathlib import Path

import pytest
from finetuning import error_of
from folders import contents

from sdsclip_hf.commands.finetune import main


def test_folder_of_another_run_is_kept_unless_told_otherwise(words):
    main(words())
    before = contents("out")
    message = error_of(words(seed=7))
    assert all(
        word in message for word in ("holds another run", "--resume_from_checkpoint last", "--overwrite_output_dir")
    )
    assert contents("out") == before
    Path("out/left_over.txt").write_text("old")
    main([*words(seed=7), "--overwrite_output_dir"])
    assert not Path("out/left_over.txt").exists()
    assert Path("out/model.safetensors").read_bytes() != before["model.safetensors"]


@pytest.mark.parametrize("resume", [[], ["--resume_from_checkpoint", "last"]])
def test_folder_of_something_else_is_never_deleted(words, resume):
    Path("out").mkdir()
    Path("out/thesis.tex").write_text("precious")
    message = error_of([*words(), "--overwrite_output_dir", *resume])
    assert "no run of this program wrote" in message
    assert Path("out/thesis.tex").read_text() == "precious"


def test_a_mistake_in_the_arguments_does_not_delete_the_run_to_be_overwritten(words):
    main(words())
    before = contents("out")
    error_of([*words(caption_column="txt"), "--overwrite_output_dir"])
    assert contents("out") == before


def test_empty_output_folder_is_used(words):
    Path("out").mkdir()
    main(words())
    assert Path("out/model.safetensors").exists()


def test_default_output_folders_are_numbered(words):
    Path("tiny.yaml").write_text("max_steps: 1")
    for expected in ("outputs/tiny", "outputs/tiny-2", "outputs/tiny-3"):
        main([*words(output_dir=None, max_steps=None), "--config", "tiny.yaml"])
        assert Path(expected, "model.safetensors").exists()
    assert sorted(path.name for path in Path("outputs").iterdir()) == ["tiny", "tiny-2", "tiny-3"]
    main([*words(output_dir=None, max_steps=None), "--config", "tiny.yaml", "--resume_from_checkpoint", "last"])
    assert sorted(path.name for path in Path("outputs").iterdir()) == ["tiny", "tiny-2", "tiny-3"]


def test_default_output_folder_is_named_finetune_without_a_configuration(words):
    main(words(output_dir=None))
    assert Path("outputs/finetune/model.safetensors").exists()
    assert not Path("trainer_output").exists()
