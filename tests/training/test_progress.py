"""RunProgress: bars in a terminal, few lines elsewhere, and nothing of what Trainer prints by itself."""

import io
import sys
from types import SimpleNamespace

import pytest
from transformers import PrinterCallback, ProgressCallback

from sdsclip_hf import SDSCLIPConfig, SDSCLIPTrainer
from sdsclip_hf.training import progress
from sdsclip_hf.training.progress import RunProgress, figures

LOGS = {"loss": 0.5, "contrastive": 0.375, "ranking": 0.125, "learning_rate": 1e-3, "epoch": 0.1}
ARGS = SimpleNamespace(mapper_warmup_steps=10)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def state(step: int) -> SimpleNamespace:
    return SimpleNamespace(global_step=step, max_steps=100, is_world_process_zero=True)


def run(told: RunProgress, every: int = 10) -> None:
    told.on_log(ARGS, state(0), None, {"warmup/sds": 1.25, "warmup_step": 10})
    told.on_train_begin(ARGS, state(0), None)
    for step in range(1, 101):
        told.on_step_end(ARGS, state(step), None)
        if step % every == 0:
            told.on_log(ARGS, state(step), None, LOGS)
    told.on_log(ARGS, state(100), None, {"eval_loss": 0.75, "eval_contrastive": 0.75})
    told.on_log(ARGS, state(100), None, {"eval_loss": 0.75, "eval_contrastive": 0.75})
    told.on_train_end(ARGS, state(100), None)


def test_elsewhere_lines_come_from_time_to_time_and_at_the_end(monkeypatch, capsys):
    clock = iter(range(10_000))  # a second passes with every look
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    run(RunProgress("mine", with_bar=False), every=1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "mine, mapper warm-up, step 10/10: sds 1.25"
    assert lines[-2] == "mine, step 100/100: loss 0.5, contrastive 0.375, ranking 0.125"
    assert lines[-1] == "mine, step 100/100: held out: loss 0.75"  # once, though told twice
    assert 4 < len(lines) < 20 and all("left)" in line for line in lines[1:-2])


def test_in_a_terminal_one_bar_shows_the_terms(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    run(RunProgress("mine"))
    text = terminal.getvalue()
    assert "mine: 100%" in text and "100/100" in text and "loss 0.5, contrastive 0.375, ranking 0.125" in text
    assert text.count("held out: loss 0.75") == 1 and capsys.readouterr().out == ""


def test_a_single_term_is_the_loss():
    assert figures({"loss": 0.5, "contrastive": 0.5}) == "loss 0.5"


@pytest.mark.parametrize("disabled", [True, False])
def test_the_trainer_tells_by_it_alone(clip_folder, pairs, tmp_path, disabled, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    args = SDSCLIPConfig(output_dir=str(tmp_path), lambda_sds=0, use_cpu=True, disable_tqdm=disabled)
    trainer = SDSCLIPTrainer(model=clip_folder, args=args, train_dataset=pairs)
    kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
    assert kinds.count(RunProgress) == 1 and not {PrinterCallback, ProgressCallback} & {*kinds}
    assert trainer.progress.with_bar is not disabled
