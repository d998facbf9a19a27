"""How far a run is, with its terms' current values: one bar in a terminal, a line now and then elsewhere."""

import re
import sys
import time

from tqdm.auto import tqdm
from transformers import TrainerCallback

TERMS = ("contrastive", "sds", "ranking", "cosine")
TERMS += ("cross_entropy", "knowledge", "attribute", "regularizer")  # of prompt learning
SECONDS_BETWEEN_LINES = 20


class RunProgress(TrainerCallback):
    """Takes the place of Trainer's own bar, and of the dictionary that it prints at each log.

    Args:
        title: what to call the run.
        with_bar: whether bars are drawn; else lines are printed, at most one in twenty seconds beside the last.
    """

    def __init__(self, title: str = "training", with_bar: bool | None = None):
        self.title = title
        self.with_bar = sys.stderr.isatty() if with_bar is None else with_bar
        self.position = 0  # of its bar, where another process draws one, too
        self._bar: tqdm | None = None
        self._started = self._told = time.monotonic()
        self._first_step, self._held_out_step = 0, -1

    def on_train_begin(self, args, state, control, **kwargs):
        self._close()
        self._started, self._first_step, self._held_out_step = time.monotonic(), state.global_step, -1
        if self.with_bar and state.is_world_process_zero:
            self._open(self.title, state.max_steps, state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        self._advance(state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs:
            return
        if "warmup_step" in logs:
            self._tell_warmup(args, logs)
        elif "loss" in logs:
            self._tell(state, figures(logs))
        elif state.global_step != self._held_out_step:
            for prefix in [name.removesuffix("loss") for name in logs if re.fullmatch(r"eval_(\w+_)?loss", name)]:
                told = {name.removeprefix(prefix): value for name, value in logs.items() if name.startswith(prefix)}
                data = prefix.removeprefix("eval_").rstrip("_")
                self._tell(state, f"held out{f', {data}' if data else ''}: {figures(told)}", always=True)
                self._held_out_step = -1 if data else state.global_step  # of several sets each is told

    def on_train_end(self, args, state, control, **kwargs):
        self._close()

    def _tell(self, state, text: str, always: bool = False) -> None:
        if self._bar is not None and not always:
            self._bar.set_postfix_str(text)
        elif self._bar is not None:
            self._bar.write(f"{self.title}, step {state.global_step}: {text}", file=sys.stderr)
        elif always or self._is_time(state.global_step == state.max_steps):
            print(f"{self.title}, step {state.global_step}/{state.max_steps}{self._left(state)}: {text}", flush=True)

    def _tell_warmup(self, args, logs: dict[str, float]) -> None:
        title, step, last = f"{self.title}, mapper warm-up", logs["warmup_step"], args.mapper_warmup_steps
        text = f"sds {logs['warmup/sds']:.3g}"
        if not self.with_bar:
            print(f"{title}, step {step}/{last}: {text}", flush=True)
            return
        if self._bar is None:
            self._open(title, last, 0)
        self._advance(step)
        self._bar.set_postfix_str(text)

    def _is_time(self, is_last: bool) -> bool:
        now = time.monotonic()
        if now - self._told < SECONDS_BETWEEN_LINES and not is_last:
            return False
        self._told = now
        return True

    def _left(self, state) -> str:
        """What is left of the time, as the steps so far tell it."""
        done, left = state.global_step - self._first_step, state.max_steps - state.global_step
        if not done or not left:
            return ""
        seconds = (time.monotonic() - self._started) / done * left
        return f" ({tqdm.format_interval(seconds)} left)"

    def _open(self, title: str, total: int, initial: int) -> None:
        where = {"position": self.position, "leave": not self.position, "file": sys.stderr, "dynamic_ncols": True}
        self._bar = tqdm(desc=title, total=total, initial=initial, unit="step", **where)

    def _advance(self, step: int) -> None:
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def figures(logs: dict[str, float]) -> str:
    """The loss and, where there are several, its terms before their weights: "loss 0.34, contrastive 0.28, ranking 0.06"."""
    terms = {name: logs[name] for name in TERMS if name in logs}
    shown = {"loss": logs["loss"]} | (terms if len(terms) > 1 else {})
    return ", ".join(f"{name} {value:.3g}" for name, value in shown.items())
