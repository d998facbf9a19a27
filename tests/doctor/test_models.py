"""`sdsclip doctor` before folders of models and scores: what is missing or does not go together, in one line."""

import json
import shutil
from importlib.util import find_spec

import pytest
from doctor_cases import failures, local, look, of, the_failure
from dual_encoders import make_dual_encoder

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_a_model_folder_without_weights_is_one_line(clip_folder, folder_of_pairs, tmp_path):
    shutil.copytree(clip_folder, tmp_path / "clip", ignore=shutil.ignore_patterns("*.safetensors"))
    failed = the_failure(*local(str(tmp_path / "clip"), folder_of_pairs))
    assert failed.what == "student" and "it has no weights (model.safetensors)" in failed.found


@pytest.mark.parametrize(
    "content", [b"version https://git-lfs.github.com/spec/v1\nsize 9\n", None], ids=["pointer", "cut"]
)
def test_weights_that_cannot_be_read_are_one_line(content, clip_folder, folder_of_pairs, tmp_path):
    shutil.copytree(clip_folder, tmp_path / "clip")
    weights = tmp_path / "clip/model.safetensors"
    weights.write_bytes(content or weights.read_bytes()[:-100])
    failed = the_failure(*local(str(tmp_path / "clip"), folder_of_pairs))
    assert failed.what == "student" and "cannot be read" in failed.found and "git lfs pull" in failed.remedy


def test_a_model_of_another_kind_is_one_line(teacher_folder, folder_of_pairs):
    failed = the_failure(*local(f"{teacher_folder}/text_encoder", folder_of_pairs))
    assert failed.what == "student"


@pytest.mark.parametrize("kind", ["chinese_clip", "siglip", "siglip of a package that is not installed"])
def test_other_kinds_of_students_are_ok_and_what_they_need_is_told(kind, folder_of_pairs, tmp_path):
    for part in make_dual_encoder(kind.split()[0]):
        part.save_pretrained(tmp_path / "student")
    argv = local(str(tmp_path / "student"), folder_of_pairs)
    if " " not in kind:
        assert of(look(*argv), "student").found.startswith(f"{tmp_path / 'student'}: a dual encoder of type {kind}")
        return
    (tmp_path / "student/tokenizer_config.json").write_text('{"tokenizer_class": "SiglipTokenizer"}')
    if find_spec("sentencepiece"):
        pytest.skip("it is installed")
    failed = the_failure(*argv)
    assert failed.what == "student" and "pip install sentencepiece" in failed.found


@pytest.mark.parametrize(
    "absent", ["unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json", "model_index.json"]
)
def test_a_teacher_that_is_not_whole_is_one_line(absent, teacher_folder, clip_folder, folder_of_pairs, tmp_path):
    shutil.copytree(teacher_folder, tmp_path / "teacher")
    (tmp_path / "teacher" / absent).unlink()
    argv = ("--model_name_or_path", clip_folder, "--dataset_name", str(folder_of_pairs))
    failed = the_failure(*argv, "--teacher_name_or_path", str(tmp_path / "teacher"))
    assert failed.what == "teacher" and absent.split("/")[0] in failed.found
    failed = the_failure(*argv)
    assert failed.what == "teacher" and "--teacher_name_or_path, or --lambda_sds 0" in failed.remedy


def test_the_variant_of_the_teacher_must_be_there(teacher_folder, folder_of_pairs):
    argv = ("--model_name_or_path", "shapes/student", "--dataset_name", str(folder_of_pairs))
    failed = the_failure(*argv, "--teacher_name_or_path", teacher_folder, "--teacher_variant", "fp16")
    assert "weights in unet of the variant 'fp16'" in failed.found and "--teacher_variant" in failed.remedy


def test_scores_of_another_teacher_are_one_line(scores_folder, clip_folder, teacher_folder, folder_of_pairs, tmp_path):
    shutil.copytree(scores_folder, tmp_path / "scores")
    settings = json.loads((tmp_path / "scores/scores.json").read_text())
    (tmp_path / "scores/scores.json").write_text(
        json.dumps(settings | {"teacher": {"name": "sd"}, "candidates": "swap:1"})
    )
    argv = local(clip_folder, folder_of_pairs, "--lambda_rank", "1", "--ranking_scores", str(tmp_path / "scores"))
    assert not failures(look(*argv))
    failed = the_failure(*argv, "--teacher_name_or_path", teacher_folder)
    assert failed.what == "scores" and "made by the teacher 'sd'" in failed.found
