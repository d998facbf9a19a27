"""Two processes train as one run: what they read and write, and what is left when they are killed."""

import json
from pathlib import Path

import pytest
import torch
from launching import accelerate_launch, launch
from safetensors.torch import load_file

from sdsclip_hf.shapes import model_path

COMMON = """
import json, os, signal, sys
from pathlib import Path
import torch
from accelerate import PartialState
from datasets import load_from_disk
from transformers import TrainerCallback
from sdsclip_hf import SDSCLIPConfig, SDSCLIPTrainer

clip, teacher, data, out = sys.argv[1:]
rank, data = int(os.environ["RANK"]), load_from_disk(data)

def make(folder, shards=0, **options):
    settings = {"per_device_train_batch_size": 2, "learning_rate": 1e-2, "max_steps": 8, "save_strategy": "steps",
        "save_steps": 2, "logging_steps": 1, "disable_tqdm": True, "output_dir": f"{out}/{folder}"}
    if shards:
        settings |= {"shuffle_buffer_size": 5, "dataloader_num_workers": 2}
    else:
        settings |= {"trainable": "lora", "lora_r": 2, "lora_dropout": 0.2}
    source = data.to_iterable_dataset(num_shards=shards) if shards else data
    args = SDSCLIPConfig(**(settings | options))
    return SDSCLIPTrainer(clip, args, teacher, train_dataset=source, eval_dataset=data)

def keep(trainer, name):
    torch.save(trainer.student.state_dict(), f"{out}/{name}-{rank}.pt")
"""

BEGUN = (
    COMMON
    + """
for name, shards in (("rows", 0), ("stream", 4)):
    trainer = make(name, shards)
    trainer.train()
    keep(trainer, name)

Path(f"{out}/files-{rank}").mkdir()
os.chdir(f"{out}/files-{rank}")
trainer = make("", output_dir="run", max_steps=2, eval_strategy="steps", eval_steps=1, report_to="tensorboard",
    benchmarks=["shapes:validation"])
trainer.train()
trainer.save_model("run/export")
trainer.create_model_card()

class Kill(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

trainer = make("killed")
trainer.add_callback(Kill())
trainer.train()
"""
)

GONE_ON = (
    COMMON
    + """
for name, checkpoint, shards in (("rows", True, 0), ("stream", f"{out}/stream/checkpoint-4", 4)):
    trainer = make("killed" if checkpoint is True else "again", shards)
    trainer.train(resume_from_checkpoint=checkpoint)
    keep(trainer, f"{name}-again")

import sdsclip_hf.data.captioned_images
data = data.map(lambda row: {"caption": row["caption"][:1]})
read, found, count = sdsclip_hf.data.captioned_images.read_image, {}, [0]

def counted(cell):
    count[0] += 1
    return read(cell)

sdsclip_hf.data.captioned_images.read_image = counted
for shards in (4, 3):
    for workers in (0, 1):
        trainer = make("shares", shards, max_steps=6, dataloader_num_workers=workers)
        count[0], loader = 0, iter(trainer.get_train_dataloader())
        batches = [next(loader)["input_ids"].tolist() for _ in range(6)]
        found[f"{shards}, {workers}"] = [trainer.processing_class.tokenizer.batch_decode(ids, True) for ids in batches]
        if workers == 0:
            found[f"{shards} decoded"] = count[0]
print(json.dumps(found))
"""
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, clip_folder, teacher_folder, several_captions) -> tuple[Path, list[str]]:
    """The folder of runs that were killed and gone on with, and what the processes printed in the end."""
    folder = tmp_path_factory.mktemp("runs")
    several_captions.save_to_disk(folder / "data")
    words = clip_folder, teacher_folder, folder / "data", folder
    launch(BEGUN, *words, expected=-9)
    assert {path.name for path in (folder / "killed").glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    return folder, launch(GONE_ON, *words)


def same(one: Path, other: Path) -> bool:
    one, other = (torch.load(path, weights_only=True) for path in (one, other))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rows", "stream"])
def test_a_killed_run_goes_on_as_if_it_had_not_been(runs, name):
    folder, _ = runs
    assert same(folder / f"{name}-0.pt", folder / f"{name}-1.pt")
    for rank in (0, 1):
        assert same(folder / f"{name}-{rank}.pt", folder / f"{name}-again-{rank}.pt")
    assert not same(folder / "rows-0.pt", folder / "stream-0.pt")


@pytest.mark.slow
def test_the_first_process_alone_writes(runs):
    written = [
        {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        for folder in (runs[0] / "files-0", runs[0] / "files-1")
    ]
    assert written[1] == {"run/checkpoint-2/rng_state_1.pth"}
    expected = {"run/checkpoint-2/rng_state_0.pth", "run/checkpoint-2/sdsclip_run.json", "run/export/model.safetensors"}
    assert expected | {"run/README.md", "run/run.yaml"} <= written[0]


@pytest.mark.slow
@pytest.mark.parametrize("shards", [4, 3])  # of two processes: whole shards, or rows
@pytest.mark.parametrize("workers", [0, 1])
def test_each_process_reads_a_share_of_a_stream_in_full_batches(runs, shards, workers):
    of_each = [json.loads(text.splitlines()[-1]) for text in runs[1]]
    rows = [[caption for batch in found[f"{shards}, {workers}"] for caption in batch] for found in of_each]
    assert [len(of_one) for of_one in rows] == [12, 12]
    assert len(set(rows[0]) | set(rows[1])) == 24
    for found in of_each:
        assert 12 <= found[f"{shards} decoded"] <= 14  # one batch is read ahead


RECIPE = """
import os, sys
from sdsclip_hf.commands.finetune import main
os.makedirs(f"{sys.argv[1]}/{os.environ.get('RANK', 'one')}")
os.chdir(f"{sys.argv[1]}/{os.environ.get('RANK', 'one')}")
main(sys.argv[2:])
"""
WORDS = """--model_name_or_path shapes/student --teacher_name_or_path shapes/teacher --max_train_samples 64 --max_steps 3
    --trainable lora --save_strategy steps --save_steps 2 --eval_split_name validation --max_eval_samples 64
    --test_benchmarks shapes:validation --report_to tensorboard --output_dir run"""


@pytest.mark.slow
def test_the_recipe_on_two_cpu_processes_ends_like_one_and_the_first_alone_writes(tmp_path):
    (tmp_path / "script.py").write_text(RECIPE)
    batch = "--per_device_train_batch_size", "--per_device_eval_batch_size"
    for config, size, processes in (("cpu", 16, 1), ("multi_cpu", 8, 2)):
        words = [tmp_path, *WORDS.split(), batch[0], size, batch[1], size]
        accelerate_launch(config, tmp_path / "script.py", *words, processes=processes)
    written = [{path.name for path in (tmp_path / rank).rglob("*") if path.is_file()} for rank in ("one", "0", "1")]
    assert written[2] == {"rng_state_1.pth"}
    assert written[1] >= (written[0] - {"rng_state.pth"} | {"rng_state_0.pth"}) - {
        name for name in written[0] if "tfevents" in name
    }
    one, two = (load_file(tmp_path / rank / "run/model.safetensors") for rank in ("one", "0"))
    start = load_file(f"{model_path('student')}/model.safetensors")
    assert any((one[name] - start[name]).abs().max() > 1e-5 for name in start)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-6, msg=name)
    results = [json.loads((tmp_path / rank / "run/results.json").read_text()) for rank in ("one", "0")]
    assert results[0]["after"] == results[1]["after"]
    assert results[1]["evaluation"]["eval_loss"] == pytest.approx(results[0]["evaluation"]["eval_loss"], rel=1e-4)
