"""The scorer against diffusers' own parts and plain loops, and its early stop against chance."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch._dynamo.utils import counters

from sdsclip_hf.scoring.arguments import ScoringArguments
from sdsclip_hf.scoring.caption_errors import (
    FEWEST_DRAWS,
    Candidates,
    CaptionErrors,
    certainty,
    student_t,
    visiting_order,
)
from sdsclip_hf.scoring.score_captions import Scoring
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher

CAPTIONS = ["a photo of a cat", "red dog on a blue mat", "a cat on a chair", "blue"]
ITEMS = [Candidates(0, CAPTIONS[:3]), Candidates(1, CAPTIONS[3:]), Candidates(1, CAPTIONS[2:]), Candidates(0, CAPTIONS)]


@pytest.fixture(scope="module")
def teacher(teacher_folder):
    return DiffusionTeacher.from_pretrained(teacher_folder, load_vae=True)


@pytest.fixture
def latents():
    return torch.randn(2, 4, 4, 4)


# The errors


@torch.no_grad()
@pytest.mark.parametrize("timestep_range", [None, (100, 700)])
def test_errors_equal_a_plain_loop_over_diffusers_parts(teacher_folder, teacher, latents, timestep_range):
    pipeline = StableDiffusionPipeline.from_pretrained(teacher_folder, safety_checker=None)
    first, last = timestep_range or (0, 999)
    noises = torch.randn(5, 4, 4, 4, generator=torch.Generator().manual_seed(7))
    found = CaptionErrors(teacher, 5, timestep_range, seed=7, batch_size=3).score(latents, ITEMS)
    assert [errors.shape for errors in found] == [(3, 5), (1, 0), (2, 5), (4, 5)]
    for item, errors in zip(ITEMS, found, strict=True):
        for caption, row in zip(item.captions, errors, strict=True):
            prompt, _ = pipeline.encode_prompt(caption, "cpu", 1, do_classifier_free_guidance=False)
            for draw, error in zip(visiting_order(5), row, strict=False):
                t = torch.tensor([round(first + (last - first) * draw / 4)])
                noisy = pipeline.scheduler.add_noise(latents[item.latent][None], noises[draw], t)
                predicted = pipeline.unet(noisy, t, encoder_hidden_states=prompt).sample[0]
                assert error == pytest.approx((predicted - noises[draw]).square().mean().item(), rel=1e-4)


def test_the_mean_of_all_draws_is_the_diffusion_score(teacher):
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    options = {"num_draws": 6, "timestep_range": (50, 900), "weighting": "velocity", "seed": 3}
    expected = teacher.diffusion_score(images, CAPTIONS, **options)
    items = [Candidates(place, CAPTIONS) for place in range(2)]
    found = CaptionErrors(teacher, **options).score(teacher.encode_images(images), items)
    np.testing.assert_allclose([errors.mean(1) for errors in found], expected, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_batch_size_does_not_change_the_errors(teacher, latents, batch_size):
    whole = CaptionErrors(teacher, 4).score(latents, ITEMS)
    parts = CaptionErrors(teacher, 4, batch_size=batch_size).score(latents, ITEMS)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_a_compiled_denoiser_scores_the_same_by_one_graph(teacher, latents, monkeypatch):
    expected = CaptionErrors(teacher, 4, batch_size=3).score(latents, ITEMS)
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(teacher.denoiser._call_impl, backend="eager", dynamic=False)
    monkeypatch.setattr(teacher.denoiser, "_compiled_call_impl", compiled)
    found = CaptionErrors(teacher, 4, batch_size=3).score(latents, ITEMS)  # by batches of 3, 3 and 3, of 9 pairs
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    CaptionErrors(teacher, 2, batch_size=3).score(latents, ITEMS[:1] + ITEMS[3:])  # and 1 of 7
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


def test_compiling_is_told_to_the_teacher_and_decides_no_scores(teacher_folder, pairs, tmp_path):
    told = {"output_dir": str(tmp_path / "scores"), "teacher_name_or_path": teacher_folder}
    settings = []
    for compiles in (False, True):
        teacher = DiffusionTeacher.from_pretrained(teacher_folder, load_vae=True)
        scoring = Scoring(ScoringArguments(**told, teacher_compile=compiles), teacher, pairs, None)
        assert teacher.is_compiled == compiles
        settings.append(scoring.settings())
    assert settings[0] == settings[1]
    with pytest.raises(
        ValueError, match=r"teacher_compile wants the whole denoiser .* leave --teacher_offload group out"
    ):
        ScoringArguments(**told, teacher_compile=True, teacher_offload="group")


def test_a_batch_that_does_not_fit_is_halved_until_it_does(teacher, latents, monkeypatch, caplog):
    expected, forward, seen = CaptionErrors(teacher, 4).score(latents, ITEMS), teacher.denoiser.forward, []

    def of_two(noisy, *given, **named):
        seen.append(len(noisy))
        if len(noisy) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(noisy, *given, **named)

    monkeypatch.setattr(teacher.denoiser, "forward", of_two)
    scorer = CaptionErrors(teacher, 4, batch_size=8)
    for one, other in zip(scorer.score(latents, ITEMS), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    assert scorer.batch_size == 2 and seen == [8, 4, *[2, 2, 2, 2, 1] * 4]
    assert "no room for a batch of 4; from here on it is 2." in caplog.text
    monkeypatch.setattr(teacher.denoiser, "forward", lambda *_, **__: of_two([1] * 3))
    with pytest.raises(torch.OutOfMemoryError):
        scorer.score(latents, ITEMS)


def test_errors_that_are_not_finite_raise_with_the_remedy(teacher):
    with pytest.raises(ValueError, match=r"not finite at timestep \d+.*--teacher_dtype"):
        CaptionErrors(teacher, 2).score(torch.full((1, 4, 4, 4), torch.inf), [Candidates(0, CAPTIONS)])


def test_a_range_outside_the_schedule_and_an_unknown_name_raise(teacher):
    with pytest.raises(ValueError, match="timestep_range 0 to 1000"):
        CaptionErrors(teacher, 2, (0, 1000))
    with pytest.raises(ValueError, match=r"unknown settled 'last'; choose from order, first_choice"):
        CaptionErrors(teacher, 2, settled="last")


# The order of the draws


@pytest.mark.parametrize("draws", [1, 2, 3, 7, 10, 11, 16, 32, 50])
def test_every_beginning_of_the_order_is_spread_over_the_range(draws):
    order = visiting_order(draws)
    assert sorted(order) == list(range(draws))
    for count in range(4, draws + 1):
        shares = [sum(place <= limit for place in order[:count]) / count for limit in range(draws)]
        expected = [(limit + 1) / draws for limit in range(draws)]
        assert max(abs(a - b) for a, b in zip(shares, expected, strict=True)) <= 1.5 / count + 1 / draws
    for count in range(2, draws, 2) if draws % 2 == 0 else ():
        assert np.mean(order[:count]) == (draws - 1) / 2


# The early stop


@pytest.mark.parametrize(
    ("degrees", "t", "probability"),  # from the usual table of quantiles
    [(1, 6.314, 0.95), (2, 4.303, 0.975), (3, 4.541, 0.99), (4, 2.132, 0.95), (9, 1.383, 0.9), (30, 2.042, 0.975)],
)
def test_student_s_t_is_that_of_the_tables(degrees, t, probability):
    assert student_t(t, degrees) == pytest.approx(probability, abs=2e-4)
    assert student_t(-t, degrees) == pytest.approx(1 - probability, abs=2e-4)
    assert student_t(0.0, degrees) == 0.5


def certainty_by_hand(errors, order, pairs) -> float:
    """Of captions that stand in the order of their means, for `pairs` of them (better, worse)."""
    total, count, doubt = len(order), errors.shape[1], 0.0
    seen = sorted(order[:count])
    for better, worse in pairs:
        gap = {place: errors[worse, order.index(place)] - errors[better, order.index(place)] for place in seen}
        squares, predicted = [], 0.0
        for a, b, c in zip(seen, seen[1:], seen[2:], strict=False):
            w = (c - b) / (c - a)
            squares.append((gap[b] - w * gap[a] - (1 - w) * gap[c]) ** 2 / (1 + w**2 + (1 - w) ** 2))
        for place in range(total):
            below = max((one for one in seen if one <= place), default=seen[0])
            above = min((one for one in seen if one >= place), default=seen[-1])
            share = 0 if below == above else (place - below) / (above - below)
            predicted += ((1 - share) * gap[below] + share * gap[above]) / total
        error = (sum(squares) / len(squares) * (1 / count - 1 / total)) ** 0.5
        t = torch.distributions.StudentT(count - 2.0)
        grid = torch.linspace(min(predicted, np.mean(list(gap.values()))) / error, 2000, 400_001, dtype=torch.float64)
        doubt += torch.trapezoid(t.log_prob(grid).exp(), grid).item()
    return 1 - doubt


@pytest.mark.parametrize("count", [4, 7])
def test_certainty_equals_the_formula_by_loops(count):
    order = visiting_order(10)
    errors = np.random.default_rng(1).normal(np.array([[0.0], [1.5], [3.0]]), 0.7, (3, count))
    assert (errors.mean(1).argsort() == range(3)).all()
    shuffled = errors[[2, 0, 1]]
    expected = certainty_by_hand(errors, order, [(0, 1), (1, 2)])
    assert certainty(shuffled, order) == pytest.approx(expected, abs=2e-3)
    expected = certainty_by_hand(errors, order, [(0, 1), (0, 2)])
    assert certainty(shuffled, order, "first_choice") == pytest.approx(expected, abs=2e-3)


def test_the_promise_holds_on_random_curves():
    """Gaps that change with the timestep, small against the noise: as often as promised the order stays."""
    rng, order, kept = np.random.default_rng(0), visiting_order(16), []
    for _ in range(1500):
        curve = rng.normal(0, 0.5) + rng.normal(0, 1) * np.linspace(-1, 1, 16)
        errors = np.stack([np.zeros(16), curve + rng.normal(0, 0.7, 16)])[:, order]
        for count in range(FEWEST_DRAWS, 16):
            if certainty(errors[:, :count], order) >= 0.95:
                kept.append((errors[:, :count].mean(1).argsort() == errors.mean(1).argsort()).all())
                break
    assert len(kept) > 300
    assert np.mean(kept) > 0.94


def test_ties_are_never_settled(teacher, latents):
    order = visiting_order(16)
    for count in range(FEWEST_DRAWS, 16):
        assert certainty(np.ones((3, count), np.float32), order) <= 0.5
    twins = [Candidates(0, ["a cat", "a cat"]), Candidates(1, ["a cat", "a dog", "a cat"])]
    found = CaptionErrors(teacher, 9, stop_confidence=0.9).score(latents, twins)
    assert [errors.shape for errors in found] == [(2, 9), (3, 9)]


def test_all_draws_are_certain():
    assert certainty(np.zeros((2, 5)), visiting_order(5)) == 1.0


class Tabled:
    """A teacher whose errors are given: of caption "k" in draw j at image i, table[i, k, j]."""

    dtype = torch.float32

    def __init__(self, table):
        self.table, self.calls = torch.from_numpy(table).float(), 0

    def draws(self, num_draws, timestep_range, seed):
        return torch.arange(num_draws), torch.zeros(num_draws)

    def encode_captions(self, captions, batch_size):
        return torch.tensor([int(text) for text in captions])

    def draw_errors(self, latents, prompts, latent_rows, prompt_rows, timestep, noise, **options):
        self.calls += len(latent_rows)
        return self.table[latents[latent_rows], prompts[prompt_rows], timestep]


@pytest.fixture
def table():
    """40 images, 3 captions, 16 draws; the gaps of the later images are lost in the noise."""
    rng = np.random.default_rng(5)
    gaps = np.array([0, 1, 2])[:, None] * np.geomspace(3, 0.02, 40)[:, None, None]
    return (gaps + rng.normal(0, 0.3, (40, 3, 16))).astype(np.float32)


def score_table(table, **options):
    teacher = Tabled(table)
    items = [Candidates(image, ["2", "0", "1"]) for image in range(len(table))]
    return CaptionErrors(teacher, 16, **options).score(torch.arange(len(table)), items), teacher.calls


def test_the_stop_saves_calls_and_keeps_what_was_scored(table):
    whole, all_calls = score_table(table)
    assert all_calls == table.size
    np.testing.assert_array_equal(np.stack(whole), table[:, [2, 0, 1]][:, :, visiting_order(16)])
    found, calls = score_table(table, stop_confidence=0.99)
    lengths = [errors.shape[1] for errors in found]
    assert calls == 3 * sum(lengths) < 0.75 * all_calls
    assert lengths[0] == FEWEST_DRAWS and lengths[-1] > 12
    for some, every in zip(found, whole, strict=True):
        np.testing.assert_array_equal(some, every[:, : some.shape[1]])
        assert (some.mean(1).argsort() == every.mean(1).argsort()).all()


def test_an_item_goes_on_until_it_is_certain(table):
    found, _ = score_table(table, stop_confidence=0.9)
    for errors in found:
        before = [certainty(errors[:, :count], visiting_order(16)) for count in range(FEWEST_DRAWS, errors.shape[1])]
        assert all(value < 0.9 for value in before)
        assert certainty(errors, visiting_order(16)) >= 0.9


def test_the_first_choice_is_settled_sooner(table):
    table[:, 2] = table[:, 1] + np.random.default_rng(6).normal(0, 0.3, (40, 16))
    order, order_calls = score_table(table, stop_confidence=0.95)
    first, first_calls = score_table(table, stop_confidence=0.95, settled="first_choice")
    assert first_calls < 0.8 * order_calls
    assert sum(a.mean(1).argmin() == b.mean(1).argmin() for a, b in zip(order, first, strict=True)) >= 38
