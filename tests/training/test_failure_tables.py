"""What a model has wrong during training, as tables for trackio and wandb.

Neither is installed here: the stand-ins take what ``trackio/table.py`` and W&B's guide to tables say that they take.
"""

import sys
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
from PIL import Image
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from sdsclip_hf.benchmarks import Benchmark, Item, load_benchmark
from sdsclip_hf.evaluation.scorers import ClipScorer
from sdsclip_hf.reports.failures import failures

SHAPES = "shapes:validation"


class Shown:
    """An image as a tracker takes it."""

    def __init__(self, value: Image.Image, caption: str | None = None):
        assert isinstance(value, Image.Image)
        self.size = value.size


@pytest.fixture
def trackers(monkeypatch) -> dict[str, list[dict]]:
    """What each tracker was given to log."""
    logged = {}
    for name in ("trackio", "wandb"):
        logged[name] = []
        table = lambda dataframe: dataframe  # noqa: E731
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(Table=table, Image=Shown, log=logged[name].append))
        monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, name, TrainerCallback)
    return logged


def test_every_evaluation_logs_the_items_that_are_most_wrong(make_trainer, pairs, trackers):
    evaluations = {"eval_dataset": pairs, "eval_strategy": "steps", "eval_steps": 1, "benchmarks": [SHAPES]}
    options = {"lambda_sds": 0.0, "max_steps": 2, "trainable": "full", "learning_rate": 0.01}
    trainer = make_trainer(log_failures=5, report_to=["wandb", "trackio"], **evaluations, **options)
    trainer.train()
    for logged in trackers.values():
        first, second = logged
        assert [one["train/global_step"] for one in logged] == [1, 2]
        one, other = first[f"failures/{SHAPES}"], second[f"failures/{SHAPES}"]
        assert isinstance(other, pandas.DataFrame) and len(other) == 5
        assert one["margin before"].isna().all() and not other["margin before"].isna().any()
        assert all(isinstance(shown, Shown) and max(shown.size) <= 320 for shown in other["picture 2"])
    items = load_benchmark(SHAPES).items
    matrices = ClipScorer(trainer.whole_student().base_clip, trainer.processing_class).score(items)
    margin = [min(m[0, 0] - m[1, 0], m[1, 1] - m[0, 1], m[0, 0] - m[0, 1], m[1, 1] - m[1, 0]) for m in matrices]
    worst = np.argsort(margin, kind="stable")[:5]
    assert other["item"].tolist() == [items[number].identifier for number in worst]
    assert other["margin"].tolist() == pytest.approx([margin[number] for number in worst], abs=1e-5)
    assert other["captions"][0] == "\n".join(items[worst[0]].captions)


def test_rows_are_of_what_is_wrong_and_keep_to_licences():
    items = [Item(str(n), (Image.new("RGB", (700, 350)),), ("a", "b"), "tag") for n in range(4)]
    answers = [np.array([[0.5 + ahead], [0.5]], dtype=np.float32) for ahead in (0.25, -0.25, 0.0, -0.5)]
    rows = failures(Benchmark("sugarcrepe", "sugarcrepe", items, {}), answers, 16)
    assert [(row["item"], row["margin"]) for row in rows] == [("3", -0.5), ("1", -0.25), ("2", 0.0)]
    assert rows[0]["picture 1"].size == (320, 160) and rows[0]["scores"] == "0\n0.5"
    pairs = [Item("0", (items[0].images[0],) * 2, ("a", "b"))]
    (row,) = failures(Benchmark("winoground", "winoground", pairs, {}), [np.zeros((2, 2))], 16)
    assert not [column for column in row if column.startswith("picture")]
    classes = [item._replace(captions=()) for item in items]
    ranks = [np.array(rank) for rank in ([0, 0], [3, 3], [1, 0], [7, 7])]  # as the scorer gives them
    rows = failures(Benchmark("classification:test=x", "classification", classes, {}), ranks, 2)
    assert [(row["item"], row["places"], row["margin"]) for row in rows] == [("3", "8", -7), ("1", "4", -3)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"report_to": ["trackio"]}, "log_failures shows items of benchmarks, and there are none; give --benchmarks"),
        ({"report_to": "none", "benchmarks": [SHAPES]}, "report_to is none; set --report_to trackio"),
        ({"log_failures": -1}, "log_failures is -1; it must be zero or more"),
    ],
)
def test_tables_that_nobody_would_see_are_refused(make_trainer, trackers, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(**{"log_failures": 5, "lambda_sds": 0.0} | options)
