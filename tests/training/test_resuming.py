"""What a run goes on from: checkpoints whose every file is as it was saved, the same data, and no step too many."""

import json
import shutil
import sys
from pathlib import Path

import datasets
import pytest
import torch
from conftest import make_clip, make_processor
from damage import DAMAGE
from folders import contents
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from trainers import tiny_trainer

from sdsclip_hf import SDSCLIPTrainer
from sdsclip_hf.commands.finetune import main
from sdsclip_hf.common.checkpoints import RUN_FILE, damage, last_checkpoint


@pytest.fixture(scope="module")
def run(tmp_path_factory, clip_folder, pairs):
    """The folder of a run with a checkpoint after steps 2 and 4, and a maker of trainers like its own."""
    folder = tmp_path_factory.mktemp("run")

    def make(output_dir=folder, data=pairs, **options) -> SDSCLIPTrainer:
        settings = {"max_steps": 4, "trainable": "full", "save_strategy": "steps", "save_steps": 2, "lambda_sds": 0.0}
        return tiny_trainer(output_dir, clip_folder, None, data, **(settings | options))

    make().train()
    return folder, make


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, clip_folder, teacher_folder, pairs):
    """The last checkpoint of a run with a teacher."""
    folder = tmp_path_factory.mktemp("stopped")
    tiny_trainer(folder, clip_folder, teacher_folder, pairs, save_strategy="steps", save_steps=2).train()
    return str(folder / "checkpoint-2")


# Damage


def zeroed(path: Path) -> None:
    if path.suffix == ".safetensors":
        save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(path).items()}, path)
    else:
        path.write_bytes(bytes(path.stat().st_size))


KINDS = DAMAGE | {"zeros": zeroed}


@pytest.mark.parametrize("kind", KINDS)
def test_damage_to_any_file_is_named_and_the_checkpoint_before_is_taken(run, tmp_path, kind, caplog):
    folder, make = run
    trainer = make()
    names = [path.name for path in sorted((folder / "checkpoint-4").iterdir())]
    written = {"model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state.pth", RUN_FILE}
    assert written <= set(names)
    for name in names:
        copy = tmp_path / name / "run"
        shutil.copytree(folder, copy)
        KINDS[kind](copy / "checkpoint-4" / name)
        before = contents(copy)
        unsealed = (name, kind) == (RUN_FILE, "missing")
        told = f"not a whole checkpoint.*no {RUN_FILE}" if unsealed else f"checkpoint-4 is damaged: {name} is"
        with pytest.raises(ValueError, match=f"{told}.*--resume_from_checkpoint"):
            trainer.train(resume_from_checkpoint=str(copy / "checkpoint-4"))
        caplog.clear()
        assert last_checkpoint(copy) == str(copy / "checkpoint-2")
        assert unsealed or f"checkpoint-4 is damaged: {name}" in caplog.text
        assert contents(copy) == before


OLD = {"base_fingerprint": "0", "teacher_fingerprint": None, "settings": {}}
OF_OTHER_TYPES = [
    json.dumps(OLD | change) for change in ({"settings": []}, {"number": "7"}, {"files": {}}, {"seal": 3})
]


@pytest.mark.parametrize(
    "content", ["[]", "3", "null", '"x"', "{}", '{"number": 7}', "[" * 100_000, "\udcff", *OF_OTHER_TYPES]
)
def test_a_seal_of_another_form_seals_nothing(run, tmp_path, content):
    shutil.copytree(run[0] / "checkpoint-2", tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-2" / RUN_FILE).write_bytes(content.encode(errors="surrogateescape"))
    assert damage(tmp_path / "checkpoint-2") == f"{RUN_FILE} is not what was written"
    assert last_checkpoint(tmp_path) is None


@pytest.mark.parametrize(
    ("name", "value"), [("number", 9), ("base_fingerprint", "0"), ("settings", {}), ("files", {}), ("data", {})]
)
def test_a_seal_that_was_changed_is_damaged(run, tmp_path, name, value):
    shutil.copytree(run[0] / "checkpoint-2", tmp_path / "checkpoint-2")
    mark = json.loads((tmp_path / "checkpoint-2" / RUN_FILE).read_text())
    (tmp_path / "checkpoint-2" / RUN_FILE).write_text(json.dumps(mark | {name: value}))
    assert damage(tmp_path / "checkpoint-2") == f"{RUN_FILE} is not what was written"


def test_files_of_another_run_are_damage(run, tmp_path):
    folder, make = run
    make(tmp_path / "other", seed=5).train()
    shutil.copytree(folder / "checkpoint-4", tmp_path / "checkpoint-4")
    shutil.copy(tmp_path / "other/checkpoint-4/model.safetensors", tmp_path / "checkpoint-4")
    assert damage(tmp_path / "checkpoint-4") == "model.safetensors is not what was saved"


# The data


def other_pictures(pairs: datasets.Dataset) -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {"image": pairs["image"][::-1], "caption": pairs["caption"]}, features=pairs.features
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda pairs: pairs.select(range(len(pairs) - 1)), r"on \d+ rows, and there are \d+ now"),
        (lambda pairs: pairs.select(range(len(pairs))[::-1]), "on other captions, or on the same in another order"),
        (lambda pairs: pairs.map(lambda row: {"caption": row["caption"] + " x"}), "on other captions"),
        (other_pictures, "on other pictures"),
    ],
)
def test_a_run_on_other_data_does_not_go_on(run, pairs, change, told):
    folder, make = run
    with pytest.raises(ValueError, match=f"{told}.*Give the same data"):
        make(data=change(pairs)).train(resume_from_checkpoint=str(folder / "checkpoint-2"))


def test_the_same_data_may_lie_elsewhere(run, pairs, tmp_path):
    pairs.save_to_disk(tmp_path / "copy")
    trainer = run[1](tmp_path / "run", data=datasets.load_from_disk(tmp_path / "copy"), max_steps=4)
    trainer.train(resume_from_checkpoint=str(run[0] / "checkpoint-2"))
    assert trainer.state.global_step == 4


# The options


def test_resuming_with_another_base_model_raises_with_both_names(make_trainer, stopped, clip_folder, tmp_path):
    torch.manual_seed(99)
    make_clip().save_pretrained(tmp_path / "other")
    make_processor().save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError) as error:
        make_trainer(model=str(tmp_path / "other"), max_steps=4).train(resume_from_checkpoint=stopped)
    assert clip_folder in str(error.value) and str(tmp_path / "other") in str(error.value)


@pytest.mark.parametrize(
    "option, value", [("lambda_sds", 2.0), ("trainable", "full"), ("seed", 7), ("timestep_range", [0, 10])]
)
def test_resuming_with_other_settings_raises_and_names_them(make_trainer, stopped, option, value):
    with pytest.raises(ValueError, match=f"other settings: --{option} was .* and is now"):
        make_trainer(max_steps=4, **{option: value}).train(resume_from_checkpoint=stopped)


def test_a_checkpoint_from_before_an_option_existed_had_its_default(make_trainer, stopped, tmp_path):
    old = str(shutil.copytree(stopped, tmp_path / "old"))
    seal = Path(old) / RUN_FILE
    identity = json.loads(seal.read_text())
    del identity["settings"]["lambda_clip"], identity["number"], identity["seal"], identity["files"], identity["data"]
    seal.write_text(json.dumps(identity))
    with pytest.raises(ValueError, match=r"--lambda_clip was 1.0 and is now 0.5"):
        make_trainer(max_steps=4, lambda_clip=0.5).train(resume_from_checkpoint=old)
    make_trainer(max_steps=4).train(resume_from_checkpoint=old)


def test_resuming_with_another_teacher_raises(make_trainer, stopped, velocity_teacher_folder):
    with pytest.raises(ValueError, match="teacher"):
        make_trainer(teacher=velocity_teacher_folder, max_steps=4).train(resume_from_checkpoint=stopped)
    with pytest.raises(ValueError, match="Give that --teacher_name_or_path in --teacher_dtype float32, or another"):
        make_trainer(teacher_dtype="bfloat16", max_steps=4).train(resume_from_checkpoint=stopped)


def test_resuming_with_what_is_only_watched_changed_is_allowed(make_trainer, stopped):
    trainer = make_trainer(max_steps=4, health_steps=1, gradient_norm_steps=1, logging_steps=2)
    trainer.train(resume_from_checkpoint=stopped)
    assert trainer.state.global_step == 4


def test_seal_tells_base_model_teacher_and_settings(stopped, clip_folder, teacher_folder):
    identity = json.loads((Path(stopped) / RUN_FILE).read_text())
    assert (identity["base_model"], identity["teacher"]) == (clip_folder, teacher_folder)
    assert identity["settings"]["lambda_sds"] == 1.0
    assert identity["settings"]["per_device_train_batch_size"] == 4


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("learning_rate", 1e-3),
        ("weight_decay", 0.5),
        ("adam_beta1", 0.5),
        ("optim", "sgd"),
        ("lr_scheduler_type", "constant"),
        ("warmup_steps", 3),
        ("gradient_accumulation_steps", 2),
        ("data_seed", 9),
    ],
)
def test_what_a_checkpoint_has_decided_is_refused_by_name(run, option, value):
    folder, make = run
    with pytest.raises(ValueError, match=f"other settings: --{option} was .* and is now"):
        make(**{option: value}).train(resume_from_checkpoint=str(folder / "checkpoint-2"))


def test_what_is_decided_anew_is_told(run, tmp_path, capsys):
    folder, make = run
    trainer = make(tmp_path, max_steps=5, max_grad_norm=0.5)
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    told = capsys.readouterr().out
    assert trainer.state.global_step == 5
    assert "--max_steps was 4 and is 5 from here on." in told and "--max_grad_norm was 1.0 and is 0.5 from" in told
    assert "--num_train_epochs was" not in told


def test_one_adapter_is_the_same_before_and_after_peft_has_used_it(run, tmp_path):
    _, make = run
    adapter = LoraConfig(r=2, target_modules=["fc1", "fc2"])
    before = adapter.to_dict()
    for steps in (2, 4):  # a notebook's cell, run again
        trainer = make(tmp_path, trainable="lora", peft_config=adapter, max_steps=steps)
        trainer.train(resume_from_checkpoint=True)
    assert adapter.to_dict() == before
    mark = json.loads((tmp_path / "checkpoint-4" / RUN_FILE).read_text())
    del mark["seal"], mark["files"], mark["settings"]["peft_config"]["use_dora"]  # by a PEFT that had no such field
    (tmp_path / "checkpoint-4" / RUN_FILE).write_text(json.dumps(mark))
    make(tmp_path, trainable="lora", peft_config=adapter).train(resume_from_checkpoint=True)
    other = LoraConfig(r=2, lora_alpha=3, target_modules=["fc1", "fc2"])
    with pytest.raises(ValueError, match=r"settings: peft_config\.lora_alpha was 8 and is now 3\. Use"):
        make(tmp_path, trainable="lora", peft_config=other).train(resume_from_checkpoint=True)


# The end


class KilledError(BaseException):
    """In the place of a kill, between two writes."""


armed = {"left": -1, "below": ""}


def _watch(event: str, details: tuple) -> None:
    if armed["left"] < 0 or event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"):
        return
    if event == "open" and not (isinstance(details[1], str) and set(details[1]) & set("wxa+")):
        return
    if not str(details[0]).startswith(armed["below"]):
        return
    armed["left"] -= 1
    if armed["left"] < 0:
        raise KilledError(f"{event} {details[0]}")


sys.addaudithook(_watch)


@pytest.fixture
def command(tmp_path, monkeypatch, clip_folder, pairs):
    monkeypatch.chdir(tmp_path)
    pairs.save_to_disk("data")

    def make(folder: str, *more: str) -> list[str]:
        return [
            *("--model_name_or_path", clip_folder, "--lambda_sds", "0", "--dataset_name", str(tmp_path / "data")),
            *(
                "--output_dir",
                str(tmp_path / folder),
                "--max_steps",
                "4",
                "--save_strategy",
                "steps",
                "--save_steps",
                "2",
            ),
            *(
                "--per_device_train_batch_size",
                "4",
                "--learning_rate",
                "1e-2",
                "--disable_tqdm",
                "True",
                "--use_cpu",
                "True",
            ),
            *("--trainable", "lora", "--lora_dropout", "0.5", "--test_benchmarks", "shapes:validation", *more),
        ]

    return make


def results_of(folder: Path) -> dict:
    results = json.loads((folder / "results.json").read_text())
    return {name: results[name] for name in ("before", "after", "steps", "captions_cut")}


@pytest.mark.slow
@pytest.mark.parametrize("every", [30, 1])
def test_a_run_killed_between_two_writes_of_its_end_is_ended_and_not_trained_on(command, tmp_path, monkeypatch, every):
    main(command("whole"))
    whole, sealed, killed = (tmp_path / name for name in ("whole", "sealed", "killed"))
    expected, results = contents(whole), results_of(whole)
    shutil.copytree(whole, sealed)
    for path in sealed.iterdir():  # as after the last checkpoint
        if path.is_file() and path.name not in ("run.yaml", "before.json"):
            path.unlink()
    steps, step = [], SDSCLIPTrainer.training_step
    monkeypatch.setattr(SDSCLIPTrainer, "training_step", lambda *args, **more: steps.append(1) or step(*args, **more))
    resume, moments = command("killed", "--resume_from_checkpoint", "last"), []
    for number in range(0, 1000, every):
        shutil.rmtree(killed, ignore_errors=True)
        shutil.copytree(sealed, killed)
        armed.update(left=number, below=str(killed))
        try:
            main(resume)
        except KilledError as moment:
            moments.append(str(moment))
        finally:
            ended, armed["left"] = armed["left"] >= 0, -1
        main(resume)
        assert not steps, moments[-1:]
        found = contents(killed)
        assert found.keys() == expected.keys(), moments[-1:]
        assert found["model.safetensors"] == expected["model.safetensors"], moments[-1:]
        assert results_of(killed) == results, moments[-1:]
        if ended:
            break
    assert ended and len(moments) >= max(1, 25 // every)  # how often libraries make sure of a folder is theirs
