"""Runs to compare with: from the same start, beside the main run, kept by a resumed run."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from finetuning import error_of

from sdsclip_hf.commands.finetune import main
from sdsclip_hf.training import beside


def test_runs_to_compare_with_are_scored_from_the_same_start_and_only_scored(words, capsys):
    compare = "{contrastive only: {lambda_sds: 0}, + L_SDS 9: {lambda_sds: 9e0, max_steps: 3}}"
    main(words(test_benchmarks=["shapes:validation"], compare=compare, label="mine", learning_rate=0.05))
    results = json.loads(Path("out/results.json").read_text())
    assert list(results["compared"]) == ["contrastive only", "+ L_SDS 9"]
    main(words(test_benchmarks=["shapes:validation"], lambda_sds=0, learning_rate=0.05, output_dir="alone"))
    assert json.loads(Path("alone/results.json").read_text())["after"] == results["compared"]["contrastive only"]
    printed = capsys.readouterr().out
    table = printed.partition("Scores in %, with 95 % intervals:")[2].partition("The tuned")[0]
    assert re.findall(r"^(before|contrastive only|\+ L_SDS 9|mine) +\d", table, re.M) == [
        *("before", "contrastive only", "+ L_SDS 9", "mine")
    ]
    assert "3 runs from the same start: contrastive only, + L_SDS 9, mine." in printed
    assert not list(Path("out/compared").rglob("*.safetensors"))
    assert Path("out/compared/contrastive_only/losses.png").exists()


@pytest.mark.slow
def test_runs_beside_the_main_run_score_alike_and_their_failure_loses_nothing(words, monkeypatch):
    monkeypatch.setattr("sdsclip_hf.training.compared.STEPS_THAT_PAY", 1)
    monkeypatch.setattr("sdsclip_hf.training.compared.cores", lambda: 2)
    threads, compare = torch.get_num_threads(), "{as the main run: {}, lost: {learning_rate: 1.0e+30}}"
    with pytest.raises(SystemExit, match=r"term is (nan|inf)"):
        main(words(test_benchmarks=["shapes:validation"], compare=compare, learning_rate=0.05))
    results = json.loads(Path("out/results.json").read_text())
    assert results["compared"] == {"as the main run": results["after"]}
    assert results["after"] != results["before"] and Path("out/model.safetensors").exists()
    assert json.loads(Path("out/compared.json").read_text()) == results["compared"]
    assert torch.get_num_threads() == threads


@pytest.mark.slow
def test_a_process_beside_the_main_run_that_is_killed_is_told(words, monkeypatch):
    monkeypatch.setattr("sdsclip_hf.training.compared.STEPS_THAT_PAY", 1)
    monkeypatch.setattr("sdsclip_hf.training.compared.cores", lambda: 2)
    monkeypatch.setattr(beside, "_work", os._exit)  # which takes other arguments
    with pytest.raises(SystemExit, match="'other' was compared with in a process that ended with exit code"):
        main(words(compare="{other: {lambda_sds: 2.0}}"))
    assert json.loads(Path("out/results.json").read_text())["compared"] == {}


def test_resumed_run_keeps_the_scores_that_it_compares_with(words, monkeypatch):
    options = {"compare": "{contrastive only: {lambda_sds: 0}}", "save_strategy": "steps", "save_steps": 1}
    main(words(test_benchmarks=["shapes:validation"], **options))
    first = json.loads(Path("out/results.json").read_text())["compared"]
    trained, make = [], beside.make_trainer
    monkeypatch.setattr(beside, "make_trainer", lambda *parts, **more: trained.append(parts) or make(*parts, **more))
    main(words(test_benchmarks=["shapes:validation"], resume_from_checkpoint="last", **options))
    assert json.loads(Path("out/results.json").read_text())["compared"] == first
    assert not trained


@pytest.mark.parametrize(
    ("compare", "said"),
    [
        ("contrastive", "it must map names of runs to options"),
        ("{a: {lambda_sd: 0}}", "unknown options lambda_sd of 'a'"),
        ("{a: 3}", "it must map names of runs to options"),
        ("{a: {lambda_sds: much}}", "lambda_sds of 'a' is 'much'; it takes float values"),
        ("{a: {output_dir: elsewhere}}", "output_dir of 'a' cannot be set"),
        (
            "{a: {lambda_clip: 0, lambda_sds: 0}}",
            "compare: 'a': lambda_clip, lambda_sds, lambda_rank, lambda_images, lambda_cosine are all",
        ),
    ],
)
def test_mistakes_in_what_to_compare_with_are_named(words, compare, said):
    assert said in error_of(words(compare=compare))
