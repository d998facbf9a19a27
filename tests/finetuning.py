"""What tests of `sdsclip finetune` share; conftest.py makes a plugin of it."""

import pytest

from sdsclip_hf.commands.finetune import main


@pytest.fixture(scope="session")
def parquet(tmp_path_factory, pairs):
    path = tmp_path_factory.mktemp("parquet") / "pairs.parquet"
    pairs.to_parquet(path)
    return str(path)


@pytest.fixture
def words(work_folder, clip_folder, teacher_folder, parquet):
    """A command line of a short run, with options replaced, added or (None) left out; the working folder is empty."""

    def make(**options):
        defaults = {
            "model_name_or_path": clip_folder,
            "teacher_name_or_path": teacher_folder,
            "dataset_name": parquet,
            "output_dir": "out",
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
        }
        line = []
        for name, value in (defaults | options).items():
            if value is not None:
                line += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
        return line

    return make


def error_of(line: list[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(line)
    assert isinstance(stop.value.code, str), f"exit code {stop.value.code!r} without a message"
    return stop.value.code
