"""The benchmark of training: the plain loop that it compares with computes the same, and its rows run."""

import json
import os
import re
import sys
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch

from sdsclip_hf import SDSCLIPConfig, SDSCLIPTrainer

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import training as benchmark_training
from training_speed import measure
from training_speed.bench import Bench
from training_speed.measure import MemoryWatch, can_measure_memory, in_fresh_process, in_turns, ratio
from training_speed.plain_loop import PlainLoop
from training_speed.rows import all_rows, chosen

MIB = 2**20


# The plain loop


@pytest.fixture(params=["full", "stop_gradient"])
def both(request, clip_folder, teacher_folder, pairs, tmp_path):
    """Our trainer and the plain loop with the same weights."""
    config = SDSCLIPConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=6,
        use_cpu=True,
        sds_gradient=request.param,
        mapper_unit_rms=False,
        lambda_sds=1.0,
        health_steps=0,
    )
    trainer = SDSCLIPTrainer(clip_folder, config, teacher_folder, train_dataset=pairs)
    mapper = trainer.student.mapper
    return trainer, PlainLoop(clip_folder, teacher_folder, 4, mapper.as_linear())


def losses(trainer, plain, pairs):
    """Of the first six pairs with the same t and eps."""
    six = pairs.select(range(6))
    draws = trainer.distillation.draw(torch.empty(6, 4, 4, 4), (0, 0))
    ours = trainer.compute_loss(trainer.model, trainer.data_collator(list(six)))
    return ours, plain.loss(six["image"][:], six["caption"][:], *draws)


def test_the_plain_loop_has_our_loss_and_in_the_full_form_our_gradient(both, pairs):
    trainer, plain = both
    ours, theirs = losses(trainer, plain, pairs)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)
    for loss in (ours, theirs):
        loss.backward()
    mapper = trainer.student.mapper
    gradients = {name: (p.grad, plain.clip.get_parameter(name).grad) for name, p in trained(trainer.student.base_clip)}
    gradients["mapper"] = mapper.linear.weight.grad, plain.mapper.weight.grad @ mapper.axes
    assert {name for name, _ in trained(trainer.student.base_clip)} == {name for name, _ in trained(plain.clip)}
    differences = {name: (a - b).abs().max() / b.abs().max() for name, (a, b) in gradients.items()}
    if trainer.args.sds_gradient == "full":
        assert max(differences.values()) < 1e-4
    else:
        assert differences["mapper"] > 1e-2  # the same loss, and another gradient


def test_the_plain_loop_spares_nothing(both, pairs):
    trainer, plain = both
    _, loss = losses(trainer, plain, pairs)
    loss.backward()
    assert all(p.grad.any() for model in (plain.unet, plain.text_encoder) for p in model.parameters())
    assert all(p.grad is None for p in trainer.teacher.parameters())


def test_a_step_of_the_plain_loop_trains(both, pairs):
    plain = both[1]
    before = [parameter.detach().clone() for _, parameter in trained(plain.clip)]
    plain.step(pairs["image"][:6], pairs["caption"][:6])
    assert any((one != other).any() for one, (_, other) in zip(before, trained(plain.clip), strict=True))


def trained(module):
    return [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]


# How it is measured


def test_runs_take_turns_and_the_first_round_does_not_count():
    calls, results = [], iter(range(100))

    def run(name):
        calls.append(name)
        return next(results)

    found = in_turns(2, {"a": lambda: run("a"), "b": lambda: run("b")})
    assert "".join(calls) == "ababab"
    assert found == {"a": [2, 4], "b": [3, 5]}
    assert ratio("", "", [3.0, 8.0, 5.0], [1.0, 2.0, 5.0])["value"] == 3.0


def test_a_process_of_its_own_has_its_environment_and_its_errors_come_back():
    assert in_fresh_process(os.getenv, "OF_THE_CHILD", env={"OF_THE_CHILD": "here"}) == "here"
    assert "OF_THE_CHILD" not in os.environ
    assert in_fresh_process(os.getpid) != os.getpid()
    with pytest.raises(ZeroDivisionError):
        in_fresh_process(divmod, 1, 0)


@pytest.mark.skipif(not can_measure_memory(), reason="needs Linux's /proc")
def test_memory_is_what_a_step_holds_at_most_beyond_what_stays():
    watch, kept = MemoryWatch(), []
    watch.mark()
    for _ in range(2):
        passing = torch.ones(256 * MIB, dtype=torch.uint8)
        if not kept:
            kept.append(torch.ones(128 * MIB, dtype=torch.uint8))
        del passing
        watch.mark()
    found = watch.mib()
    assert found["step"] == pytest.approx(256, abs=16)
    assert found["training"] == pytest.approx(384, abs=16)
    assert found["peak"] > found["training"]


# The rows


class Here:
    """An executor that does it at once, in this process."""

    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, *arguments):
        done = Future()
        done.set_result(function(*arguments))
        return done


SOME = [
    "overhead/full",
    "plain_loop",
    "scoring",
    "grad_cache/gradient",
    "grad_cache/time",
    "option/distill_every",
    "growth/form=full/batch=2/latent=4",
]


@pytest.mark.slow
def test_rows_are_measured_once_and_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure, "ProcessPoolExecutor", Here)
    words = ["--size", "tiny", "--pairs", "1", "--output", str(tmp_path), "--rows"]
    names = chosen(SOME, all_rows(Bench(tmp_path, "tiny")))
    benchmark_training.main([*words, *names])
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["rows"]) == names and results["machine"]["cpus"] == os.cpu_count()
    for name, row in results["rows"].items():
        assert row["figures"], name
        for figure in row["figures"]:
            is_memory, limit = re.search("memory|peak", figure["what"]), 1e-4 if "difference" in figure["what"] else 1e4
            assert is_memory or 0 <= figure["value"] < limit, (name, figure)
    table = capsys.readouterr().out
    assert re.search(
        r"\| time of a step, plain loop to ours, full \| ≥ 1.3 \| \*\*\d+\.\d\d\*\* \(\d+\.\d\d\) \|", table
    )
    assert re.search(r"\| `distill_every=4` \| \*\*\d", table)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["growth.png", "options.png", "results.json"]

    def fail(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(measure, "ProcessPoolExecutor", fail)
    benchmark_training.main([*words, *names])
    assert json.loads((tmp_path / "results.json").read_text()) == results
    with pytest.raises(SystemExit):
        benchmark_training.main(["--output", str(tmp_path)])
    assert "is of other size: tiny, not real. Choose another --output" in capsys.readouterr().err


def test_rows_are_chosen_by_the_beginnings_of_their_names(tmp_path):
    rows = all_rows(Bench(tmp_path))
    assert chosen(None, rows) == list(rows)
    assert chosen(["grad_cache"], rows) == ["grad_cache/memory", "grad_cache/gradient", "grad_cache/time"]
    with pytest.raises(ValueError, match=r"there is no row 'speed'; choose from ranking/ViT-B/32/K=1, "):
        chosen(["speed"], rows)


@pytest.mark.slow
def test_rows_in_processes_of_their_own(tmp_path):
    names = ["stop_gradient", "processes/shapes", "option/teacher_compile", "growth/form=full/batch=4"]
    benchmark_training.main(["--size", "tiny", "--pairs", "1", "--output", str(tmp_path), "--rows", *names])
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert list(rows) == chosen(names, all_rows(Bench(tmp_path, "tiny")))
    assert all(figure["value"] > 0 for row in rows.values() for figure in row["figures"])
