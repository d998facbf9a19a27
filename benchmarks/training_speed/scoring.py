"""The row that compares the scoring of candidate captions with the bare denoiser."""

import contextlib
import io
import statistics
import tempfile
import time
from functools import partial

import torch

from sdsclip_hf.scoring.score_captions import score_captions
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher
from training_speed.bench import Bench, photos
from training_speed.measure import in_fresh_process, in_turns, ratio, timed

BATCH_SIZES = (1, 2, 4)
BARE_SHARE = 4  # the bare denoiser gets every so manieth input, since its time is that number times as much


def scoring(bench: Bench) -> dict:
    """Scoring candidate captions by the command's own path against as many inputs of the bare denoiser."""
    return in_fresh_process(_scoring, bench)


def _scoring(bench: Bench) -> dict:
    pictures, draws = bench.size.scored
    teacher, data, inputs = bench.load_teacher(load_vae=True), photos(pictures), 4 * pictures * draws
    unpacked = {size: bare_seconds(teacher, size, 1) for size in (1, *BATCH_SIZES)}  # the first one warms up
    teacher.speed_up(packed=True)  # as the scoring has it
    by_batch = {}
    for size in BATCH_SIZES:
        bare_seconds(teacher, size, 1)  # packs for this size
        by_batch[size] = bare_seconds(teacher, size, 1)
    best = min(by_batch, key=by_batch.get)
    options = {"num_draws": draws, "stop_confidence": 0.0, "batch_size": best, "chunk_size": 1}
    options |= {"candidates": ["column"], "candidates_column": "others"}
    watch = DenoiserWatch(teacher)

    def score() -> None:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            score_captions(teacher, data, output_dir=folder, **options)

    calls = max(1, inputs // (BARE_SHARE * best))
    runs = {"bare": lambda: inputs * bare_seconds(teacher, best, calls), "scoring": partial(watch.seconds, score)}
    seconds = in_turns(bench.pairs, runs, warm_up=False)
    what = f"scoring, {pictures} pictures x 4 captions x {draws} draws, to the bare denoiser in batches of {best}"
    share = {"what": "share of the scoring's time inside the denoiser", "target": ">= 0.9"}
    share |= {"value": statistics.median(watch.shares), "pairs": watch.shares}
    return {
        "figures": [ratio(what, "<= 1.1", seconds["scoring"], seconds["bare"]), share],
        "seconds": seconds,
        "bare seconds an input by batch size": by_batch,
        "the same, weights not packed": unpacked,
    }


@torch.no_grad()
def bare_seconds(teacher: DiffusionTeacher, batch: int, calls: int) -> float:
    """Seconds of the bare denoiser for each of its inputs."""
    noisy, timesteps = torch.randn(batch, *teacher.latent_shape), torch.full((batch,), 500)
    (words,) = teacher.encode_captions(["a photo"]).values()
    prompts = torch.randn(batch, *words.shape[1:])
    return timed(lambda: [teacher.denoiser(noisy, timesteps, prompts) for _ in range(calls)]) / (calls * batch)


class DenoiserWatch:
    """What share of some runs' time a teacher's denoiser had, in ``shares``."""

    def __init__(self, teacher: DiffusionTeacher):
        self.denoiser, self.inside, self.shares = teacher.denoiser, 0.0, []

    def seconds(self, run) -> float:
        """Seconds of a run, whose share is noted."""
        self.inside = 0.0
        handles = [
            self.denoiser.register_forward_pre_hook(self._began),
            self.denoiser.register_forward_hook(self._ended),
        ]
        seconds = timed(run)
        for handle in handles:
            handle.remove()
        self.shares.append(self.inside / seconds)
        return seconds

    def _began(self, *_) -> None:
        self.inside -= time.perf_counter()

    def _ended(self, *_) -> None:
        self.inside += time.perf_counter()
