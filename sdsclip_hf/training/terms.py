"""The terms that the trainer adds to the contrastive one, each with the figures that tell whether it is healthy."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdsclip_hf.common.compiling import filled_up
from sdsclip_hf.common.devices import sent
from sdsclip_hf.common.reading import CaptionReader
from sdsclip_hf.config import SDSCLIPConfig
from sdsclip_hf.data.collator import NEGATIVE, PROMPTS
from sdsclip_hf.data.scores import CandidateScores
from sdsclip_hf.losses import picture_ranking_loss, ranking_losses, rms, spread
from sdsclip_hf.students.sdsclip_model import SDSCLIPModel, SDSCLIPOutput
from sdsclip_hf.teachers.conditions import CAPTIONS, Conditions, as_captions, rolled, rows_of
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher

CONFIDENT = 0.5
CERTAIN = 100  # in temperatures: exp(-100) is nothing


class DistillationTerm:
    """L_SDS of latents and captions, as ``args`` ask for it.

    Args:
        teacher: whose denoiser and captions are used; neither trained nor saved.
        args: the readings, weightings and draws.
    """

    def __init__(self, teacher: DiffusionTeacher, args: SDSCLIPConfig):
        self.teacher, self.args = teacher, args

    def __call__(
        self,
        latents: Tensor,
        prompts: Conditions,
        draw_number: tuple[int, int],
        with_gap: bool = False,
        place: tuple[int, int] | None = None,
        fraction: float = 1.0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The term and its health figures.

        Args:
            latents: z0 = h_w(f(x)), (B, C, h, w).
            prompts: of B captions, see [`prompts_of`].
            draw_number: step and call, which decide t and eps; see [`draw`].
            with_gap: whether L_SDS under other images' captions is measured, too.
            place: the first row and the number of rows of the batch that these are a part of; default: they are all.
            fraction: of the images that the denoiser is called for, see [`chosen_rows`].

        Returns:
            L_SDS, scalar: the mean over the images, or with ``fraction`` an unbiased estimate of it; and ``latent_rms``,
            ``latent_spread`` and perhaps ``sds_gap``.
        """
        none = torch.full((), torch.nan, device=latents.device)  # logged as no figure at all
        alone = len(latents) == 1  # an image that no other is there to differ from
        figures = {"latent_rms": rms(latents.detach()).mean(), "latent_spread": spread(latents.detach())}
        figures |= {"latent_spread": none} if alone else {}
        rows = self.chosen_rows(latents, draw_number, place, fraction)
        timesteps, noise = (sent(drawn[rows], latents.device) for drawn in self.draw(latents, draw_number, place))
        if len(rows) == 0:  # every weight has a gradient, as DDP expects, and every process the same figures
            figures |= {"sds_gap": none} if with_gap else {}
            return 0.0 * latents.sum(), figures
        count, latents = fraction * len(latents), latents[sent(rows, latents.device)]
        shuffled = self.args.shuffle_captions
        true, other = self._encoded(prompts, rows, with_others=shuffled or with_gap)
        errors = self._errors(latents, other if shuffled else true, timesteps, noise)
        if with_gap:
            with torch.no_grad():
                gap = self._errors(latents, true if shuffled else other, timesteps, noise) - errors.detach()
            figures["sds_gap"] = none if alone else (-gap if shuffled else gap).mean()
        return errors.sum() / count, figures

    def _encoded(self, prompts: Conditions, rows: Tensor, with_others: bool) -> tuple[Conditions, Conditions | None]:
        """What the denoiser is told of the images ``rows``, and if asked for of the images before them."""

        def encode(prompts: Conditions) -> Conditions:
            return self.teacher.encode_captions(as_captions(prompts)) if CAPTIONS in prompts else prompts

        true = encode(rows_of(prompts, rows))
        if not with_others:
            return true, None
        are_all = len(rows) == len(next(iter(prompts.values())))
        return true, rolled(true) if are_all else encode(rows_of(rolled(prompts), rows))

    def _errors(self, latents: Tensor, prompts: Conditions, timesteps: Tensor, noise: Tensor) -> Tensor:
        return self.teacher.denoising_error(
            latents,
            prompts,
            timesteps,
            noise,
            reading=self.args.sds_reading,
            gradient=self.args.sds_gradient,
            weighting=self.args.sds_weighting,
            snr_gamma=self.args.snr_gamma,
        )

    def chosen_rows(
        self, latents: Tensor, number: tuple[int, int], place: tuple[int, int] | None, fraction: float
    ) -> Tensor:
        """Which of this process's rows L_SDS is computed on, on the CPU: each with probability ``fraction``, evenly spread.

        Systematic sampling: of the rows of all processes every (1 / fraction)-th, from a start that the seed and
        ``number`` (step, call) draw.
        """
        if fraction == 1:
            return torch.arange(len(latents))
        start, rows = place or (0, len(latents))
        generator = torch.Generator().manual_seed(_seed_of(self.args.seed, *number, 1))
        phase = torch.rand((), generator=generator, dtype=torch.float64)
        places = self.args.process_index * rows + start + torch.arange(len(latents) + 1)
        passed = (places * fraction + phase).floor()
        return (passed[1:] > passed[:-1]).nonzero()[:, 0]

    def draw(
        self, latents: Tensor, number: tuple[int, int], place: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """t and eps for this process's rows, or the part of them that ``place`` tells, on the CPU.

        They are drawn for the batch of all processes by the seed and ``number`` (step, call), so that neither the
        number of processes, nor mini-batches, nor a resumed run change them.
        """
        generator = torch.Generator().manual_seed(_seed_of(self.args.seed, *number))
        start, rows = place or (0, len(latents))
        world, rank = self.args.world_size, self.args.process_index
        first, last = self.args.timestep_range or self.teacher.schedule.default_range
        timesteps = torch.randint(first, last + 1, (world * rows,), generator=generator)
        noise = torch.randn((world * rows, *latents.shape[1:]), generator=generator)
        mine = slice(rank * rows + start, rank * rows + start + len(latents))
        return timesteps[mine], noise[mine]


def prompts_of(batch: dict[str, Tensor]) -> Conditions:
    """What a batch from [`ImageCaptionCollator`] holds of its captions for the teacher: encoded, or as bytes."""
    return {name.removeprefix(PROMPTS): values for name, values in batch.items() if name.startswith(PROMPTS)}


class RankingTerm:
    """L_rank of a batch with its candidates, as ``args`` ask for it.

    Args:
        scores: where the candidates come from; the temperature is fitted to them where none is given.
        args: temperatures, targets, weighting and form.

    Raises:
        ValueError: the weighting or the fit needs what the scores do not tell.
    """

    def __init__(self, scores: CandidateScores, args: SDSCLIPConfig):
        self.args = args
        self.temperature = args.ranking_temperature
        if self.temperature is None and args.ranking_targets == "labels":
            self.temperature = 1.0
        elif self.temperature is None and args.ranking_form == "likelihood":
            self.temperature = scores.calibrated_temperature()
        elif self.temperature is None:
            self.temperature = scores.temperature(args.ranking_temperature_share)
        if args.ranking_confidence and not scores.confidence.any():
            raise ValueError(
                f"--ranking_confidence weighs by the teacher's confidence, which the scores {scores.name!r} do not tell; "
                "give scores of two or more draws (sdsclip score-captions --num_draws), or leave it out."
            )

    def __call__(
        self, images: Tensor, candidates: Tensor, logit_scale: Tensor, batch: dict[str, Tensor], identities: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The term and its figures.

        Args:
            images: unit-length f(x), (B, D).
            candidates: unit-length g(c_k), (B, K, D).
            logit_scale: the student's, scalar.
            batch: from [`ImageCaptionCollator`].
            identities: a number for each distinct candidate, (B, K), on the CPU as the batch, by which images that share
                one are found.

        Returns:
            L_rank, scalar: the mean over the images, zero for those without two scored candidates; and
            ``ranking_agreement`` (how often the student's first choice is the one to learn) and
            ``ranking_confident_items`` (the share of images on which the teacher's confidence is above one half).
        """
        found, device = self._errors(batch), images.device
        ranked = ((~found.isnan()).sum(1) >= 2).nonzero()[:, 0]
        errors, confidence, rows = (sent(part, device) for part in (found, batch["candidate_confidence"], ranked))
        scale = logit_scale if self.args.ranking_logit_scale is None else self.args.ranking_logit_scale
        cosines = torch.einsum("bd,bkd->bk", images, candidates)
        losses = ranking_losses(cosines[rows], errors[rows], self.temperature, scale, self.args.ranking_form)
        weight = confidence[rows] if self.args.ranking_confidence else 1.0
        term = (weight * losses).sum() / len(images)
        best = errors.nan_to_num(nan=torch.inf).argmin(1)
        agrees = (cosines.masked_fill(errors.isnan(), -torch.inf).argmax(1) == best)[rows]
        figures = {
            "ranking_agreement": agrees.sum() / max(1, len(ranked)),
            "ranking_confident_items": (confidence > CONFIDENT).float().mean(),
        }
        if self.args.ranking_symmetric:
            over_images, shared = self._over_images(images, candidates, found, scale, identities)
            term, figures = (term + over_images) / 2, figures | {"ranking_shared_captions": shared}
        return term, figures

    def _errors(self, batch: dict[str, Tensor]) -> Tensor:
        """What the student shall order by, (B, K): the teacher's errors, or those of one that knows the labels."""
        if self.args.ranking_targets == "teacher":
            return batch["candidate_errors"]
        by_label = torch.where(batch["candidate_is_own"], 0.0, CERTAIN * self.temperature)
        return by_label.masked_fill(~batch["candidate_attention_mask"].any(-1), torch.nan)

    def _over_images(
        self, images: Tensor, candidates: Tensor, errors: Tensor, scale: Tensor | float, identities: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same over the images of each caption that two or more images have as a candidate; and how many such.

        Errors of different pictures differ in level, whatever the caption: each picture's own mean is taken off first.
        """
        relative = errors - errors.nanmean(1, keepdim=True)
        known = ~errors.isnan()
        distinct, caption = identities[known].unique(return_inverse=True)  # (M,), and (P,) for the P known pairs
        table = torch.full((len(distinct), len(images)), torch.nan)
        table[caption, known.nonzero()[:, 0]] = relative[known]
        first = torch.full_like(distinct, len(caption)).scatter_reduce(
            0, caption, torch.arange(len(caption)), "amin"
        )  # any place of a caption will do, but only one, or its gradient would come several times
        shared = ((~table.isnan()).sum(1) >= 2).nonzero()[:, 0]
        places = known.flatten().nonzero()[:, 0][first]
        embeds = candidates.flatten(0, 1)[sent(places, images.device)]  # (M, D)
        cosines = (embeds @ images.T)[sent(shared, images.device)]
        relative, form = sent(table[shared], images.device), self.args.ranking_form
        losses = ranking_losses(cosines, relative, self.temperature, scale, form)
        return losses.sum() / len(images), torch.tensor(float(len(shared)))


def rank_pictures(pairs: "Pairs", has_negative: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """L_rank over pictures by their labels, and its figure.

    Args:
        pairs: with wrong pictures.
        has_negative: which of the B captions have one, (B,).

    Returns:
        The mean over the B captions, zero for those without; and ``ranking_images_agreement``, how often of the others the
        own picture is closer.
    """
    pictures = torch.stack([pairs.images, pairs.negatives], 1)  # (B, 2, D)
    wrong_one = torch.where(has_negative, 0.0, torch.nan)
    right = torch.stack([torch.ones_like(wrong_one), wrong_one], 1)  # (B, 2)
    term = picture_ranking_loss(pictures, pairs.captions, right, pairs.logit_scale).mean()
    own, wrong = torch.einsum("bkd,bd->kb", pictures, pairs.captions)
    agree = (own > wrong) & has_negative
    return term, {"ranking_images_agreement": agree.sum() / has_negative.sum().clamp(min=1)}


def pictures_of(batch: dict[str, Tensor], student: SDSCLIPModel, with_negatives: bool = False) -> dict[str, Tensor]:
    """The tensors of a batch that the student's image tower takes, ``pixel_values`` for one.

    With negatives the wrong pictures follow where the batch has such: (2B, ...).
    """
    found = {name: batch[name] for name in student.image_inputs if name in batch}
    if not with_negatives or "has_negative" not in batch:
        return found
    return {name: torch.cat([value, batch[f"{NEGATIVE}{name}"]]) for name, value in found.items()}


class Texts(NamedTuple):
    """The texts of a batch, each once.

    Args:
        input_ids, attention_mask: the M distinct texts, (M, L); perhaps filled up behind.
        captions: which of them each image's caption is, (B,).
        candidates: which of them each candidate is, (B, K), any where there is none; None without candidates.
    """

    input_ids: Tensor
    attention_mask: Tensor
    captions: Tensor
    candidates: Tensor | None


def distinct_texts(batch: dict[str, Tensor], few_shapes: CaptionReader | None = None) -> Texts:
    """The captions and candidates of a batch from [`ImageCaptionCollator`], so that none is encoded twice.

    Args:
        batch: on the CPU.
        few_shapes: for a compiled student, which has a graph for each shape of the texts, how they are read: they come in
            few lengths, and in a multiple of the batch's images.
    """
    ids, mask = batch["input_ids"], batch["attention_mask"]
    count = len(ids)
    if "candidate_input_ids" not in batch:
        texts = Texts(ids, mask, torch.arange(count, device=ids.device), None)
    else:
        exists = batch["candidate_attention_mask"].any(-1)  # (B, K)
        ids = torch.cat([ids, batch["candidate_input_ids"][exists]])
        mask = torch.cat([mask, batch["candidate_attention_mask"][exists]])
        both, numbers = torch.stack([ids, mask], dim=1).unique(dim=0, return_inverse=True)  # (M, 2, L)
        candidates = numbers.new_zeros(exists.shape).masked_scatter(exists, numbers[count:])
        texts = Texts(both[:, 0], both[:, 1], numbers[:count], candidates)
    return texts if few_shapes is None else _in_few_shapes(texts, few_shapes)


def _in_few_shapes(texts: Texts, reader: CaptionReader) -> Texts:
    """Padded on, which no embedding sees, and filled up by the first, whose further embeddings nobody looks at."""
    ids, mask = reader.to_few_lengths(texts.input_ids, texts.attention_mask)
    count = len(ids) + -len(ids) % len(texts.captions)
    return texts._replace(input_ids=filled_up(ids, count), attention_mask=filled_up(mask, count))


class Pairs(NamedTuple):
    """The embeddings of a batch, image by image, in float32 and of unit length.

    What follows ``candidates`` is where the batch is: on the CPU, as the trainer has it.

    Args:
        images, captions: (B, D).
        logit_scale: the student's, scalar.
        logit_bias: the student's, scalar; None where it has none.
        candidates: (B, K, D), any where there is none; None without candidates.
        identities: a number for each distinct candidate, (B, K).
        is_negative: which candidates are wrong by their labels, (B, K): not those that the tokenizer cuts to the own
            caption's tokens.
        negatives: wrong pictures, (B, D), any where there is none; None without such.
        picture_keys, caption_keys, candidate_keys: those of [`ImageCaptionCollator`]; None where the batch has none.
    """

    images: Tensor
    captions: Tensor
    logit_scale: Tensor
    logit_bias: Tensor | None = None
    candidates: Tensor | None = None
    identities: Tensor | None = None
    is_negative: Tensor | None = None
    negatives: Tensor | None = None
    picture_keys: Tensor | None = None
    caption_keys: Tensor | None = None
    candidate_keys: Tensor | None = None


def pair_up(output: SDSCLIPOutput, texts: Texts, batch: dict[str, Tensor]) -> Pairs:
    """What the student has made of a batch, with each distinct text put where it belongs."""
    images, embeds = output.image_embeds.float(), output.text_embeds.float()
    images, negatives = images.split([len(batch["input_ids"]), len(images) - len(batch["input_ids"])])
    keys = {name: batch.get(name) for name in ("picture_keys", "caption_keys", "candidate_keys")}
    keys["negatives"] = negatives if len(negatives) else None
    captions = embeds[sent(texts.captions, embeds.device)]
    pairs = Pairs(images, captions, output.logit_scale, output.logit_bias, **keys)
    if texts.candidates is None:
        return pairs
    exists = batch["candidate_attention_mask"].any(-1)
    is_own = batch["candidate_is_own"] | (texts.candidates == texts.captions[:, None])
    candidates = embeds[sent(texts.candidates, embeds.device)]
    return pairs._replace(candidates=candidates, identities=texts.candidates, is_negative=exists & ~is_own)


def _seed_of(*words: int) -> int:
    """A 63-bit seed of its own for each tuple of integers."""
    low, high = np.random.SeedSequence([word % 2**32 for word in words]).generate_state(2)
    return int(high) << 31 ^ int(low)
