"""Recipes, configurations and documents agree with the code."""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from sdsclip_hf import SDSCLIPConfig
from sdsclip_hf.common.config_files import read_settings
from sdsclip_hf.common.resources import find_config, recipes_dir
from sdsclip_hf.prompts.data.templates import template_of
from sdsclip_hf.prompts.study.settings import check, tasks
from sdsclip_hf.study.settings import quick
from sdsclip_hf.study.study import Study
from sdsclip_hf.training.arguments import parse_arguments

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(
    path for path in (ROOT / "recipes/configs").glob("*.yaml") if not path.stem.startswith(("study", "prompts_"))
)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_parses(path):
    text = path.read_text()
    settings = yaml.safe_load(text)
    extra = ["--bf16", "false", "--use_cpu"] if settings.get("bf16") else []
    (model, data, config), name = parse_arguments(["--config", str(path), *extra])
    assert name == path.stem
    assert model.model_name_or_path == settings["model_name_or_path"]
    assert data.dataset_name == settings["dataset_name"]
    assert config.lambda_sds == settings["lambda_sds"]
    assert config.learning_rate == settings["learning_rate"]


@pytest.mark.parametrize("path", sorted((ROOT / "recipes/configs").glob("study_*.yaml")), ids=lambda path: path.stem)
def test_every_study_names_options_that_there_are_in_both_its_forms(path, tmp_path):
    settings = yaml.safe_load(path.read_text())
    if settings["dataset_name"].startswith("outputs/"):
        settings["dataset_name"] = "shapes"  # in place of what a tool makes
    for form in (settings, quick(settings)):
        study = Study(form, tmp_path)
        for arm in study.arms:
            for seed in study.seeds_of(arm):
                options = study.options(arm, seed)
                options = {name: value for name, value in options.items() if not name.endswith("name_or_path")}
                SDSCLIPConfig(output_dir=str(tmp_path), **options)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes/configs").glob("prompts_*.yaml")), ids=lambda path: path.stem)
def test_every_study_of_prompts_can_begin(path):
    settings = read_settings(path)
    check(settings)
    assert tasks(settings)
    assert all(template_of(options.get("template", "shapes")) for options in settings["datasets"].values())
    if "shapes" not in settings["datasets"]:
        assert "Not run by this project" in path.read_text()


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem.endswith("sd15")], ids=lambda path: path.stem)
def test_recipes_on_coco_say_what_the_paper_confirms(path):
    assert "confirmed" in path.read_text() and "ours" in path.read_text()


def test_no_configuration_names_a_deleted_checkpoint():
    for path in CONFIGS:
        assert not re.search(r"runwayml/|stabilityai/stable-diffusion-2", path.read_text()), path


def test_a_configuration_is_found_by_name_and_by_path():
    assert find_config("shapes") == find_config(str(recipes_dir() / "configs/shapes.yaml"))
    with pytest.raises(OSError, match=r"no-such.*shapes"):
        find_config("no-such")


def test_the_default_is_the_embedded_world_unless_a_model_or_dataset_is_named():
    (model, data, config), name = parse_arguments([])
    assert (name, model.teacher_name_or_path, data.dataset_name) == ("shapes", "shapes/teacher", "shapes")
    (_, _, other), name = parse_arguments(["--dataset_name", "somewhere"])
    assert name == "finetune" and other.max_steps != config.max_steps


def test_the_bundled_teacher_goes_with_a_bundled_student_alone():
    own_data, own_student = ["--dataset_name", "somewhere"], ["--model_name_or_path", "my/clip"]
    compared = ["--lambda_sds", "0", "--compare", "{with it: {lambda_sds: 1}}"]
    teachers = [
        parse_arguments(argv)[0][0].teacher_name_or_path
        for argv in (own_data, [*own_data, *compared], [*own_data, "--lambda_sds", "0"], own_data + own_student)
    ]
    assert teachers == ["shapes/teacher", "shapes/teacher", None, None]


def test_the_options_page_is_up_to_date():
    spec = importlib.util.spec_from_file_location("options", ROOT / "tools/options.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs/options.md").read_text() == module.options_page(), "python tools/options.py > docs/options.md"


def test_scripts_carry_inline_metadata_for_uv():
    for path in (ROOT / "recipes").glob("*.py"):
        text = path.read_text()
        assert text.startswith("# /// script\n") and "# requires-python" in text, path


def test_what_comes_with_the_package_is_ignored_by_no_rule():
    rules = (ROOT / ".gitignore").read_text().splitlines()
    files = [path for path in (ROOT / "sdsclip_hf/shapes").rglob("*.*") if path.suffix != ".pyc"]
    parts = {part for path in files for part in path.relative_to(ROOT).parts[:-1]}
    assert "data" in parts and not {f"{part}/" for part in parts} & set(rules)
    assert sorted(path.name for path in (ROOT / "sdsclip_hf/shapes/scores/data").iterdir()) == [
        "train-00000-of-00001.parquet"
    ]
