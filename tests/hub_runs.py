"""A short run that is pushed, and the base model that it begins with on a Hub on loopback."""

import shutil

from hub_server import HubServer

from sdsclip_hf.shapes import model_path

FINISHED = (
    "finetune --model_name_or_path org/base --dataset_name shapes --test_benchmarks shapes_classes:validation=shape "
)
FINISHED += (
    "--lambda_sds 0 --max_train_samples 64 --max_steps 6 --save_steps 2 --per_device_train_batch_size 8 --use_cpu "
)
FINISHED += "--push_to_hub --hub_always_push --disable_tqdm true"


def lay_base(hub: HubServer, card: str = "---\nlicense: mit\n---\n") -> None:
    folder = hub.root / "models/org/base"
    shutil.copytree(model_path("student"), folder)
    (folder / "README.md").write_text(card)
