"""Score candidate captions of a dataset's pictures with a diffusion model, once, for training with --ranking_scores."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitInfo
from transformers import HfArgumentParser

from sdsclip_hf import shapes
from sdsclip_hf.data import load_image_captions
from sdsclip_hf.dual_encoder import load_dual_encoder
from sdsclip_hf.errors import expand
from sdsclip_hf.hub import HubError, claim_repo, push_folder
from sdsclip_hf.metrics.install import install_quietly
from sdsclip_hf.processes import end_process_group
from sdsclip_hf.ranking import LITTLE, SCORES_FILE
from sdsclip_hf.score_files import CARD_FILE, DATA, SURE
from sdsclip_hf.scorers import ClipScorer
from sdsclip_hf.scoring import Scoring, ScoringArguments, processes
from sdsclip_hf.teacher import DiffusionTeacher

logger = logging.getLogger(__name__)


def push(folder: Path, dataset_id: str, private: bool) -> CommitInfo:
    """Put a finished folder on the Hub, in one commit.

    Raises:
        HubError: it could not be reached, or refused.
    """
    data = f"{DATA}/*.parquet"
    try:
        return push_folder(
            folder,
            dataset_id,
            repo_type="dataset",
            private=private or None,
            message="Scores of candidate captions",
            allow_patterns=[CARD_FILE, SCORES_FILE, data],
            delete_patterns=[data],
        )
    except HubError as error:
        raise HubError(
            f"could not put the scores on the Hub. {error} They are whole in {folder}: give the same command again to push "
            "them.",
            error.passing,
        ) from error


def _load_and_run(arguments: ScoringArguments) -> dict:
    if arguments.push_to_hub and processes().is_main_process:
        claim_repo(arguments.hub_dataset_id, repo_type="dataset", private=arguments.private or None, needs_network=True)
    state = processes()
    teacher = embedder = None
    with state.main_process_first():
        dataset = load_image_captions(
            arguments.dataset_name,
            arguments.dataset_config_name,
            split=arguments.split,
            revision=arguments.dataset_revision,
            max_samples=arguments.max_samples,
        )
        if arguments.teacher_name_or_path is not None:
            teacher = DiffusionTeacher.from_pretrained(
                expand(shapes.resolve(arguments.teacher_name_or_path)),
                dtype=arguments.teacher_dtype,
                latent_size=arguments.latent_size,
                load_vae=True,
                revision=arguments.teacher_revision,
                variant=arguments.teacher_variant,
            )
    if "nearest" in arguments.sources and state.is_main_process:
        encoder = load_dual_encoder(arguments.model_name_or_path)
        embedder = ClipScorer(encoder.model, encoder.processor, arguments.batch_size)
    return Scoring(arguments, teacher, dataset, embedder).run()


def _report(scores: dict, folder: Path, dataset: str) -> None:
    print(
        f"{scores['items']:,} items, {scores['ranked_share']:.1%} of them with two or more candidates, are in {folder}."
    )
    if scores["teacher"] is not None:
        calls, saved = scores["denoiser_calls"], scores["denoiser_calls_saved"]
        print(f"Denoiser calls: {calls:,} made, {saved:,} ({saved / (calls + saved):.0%}) saved by stopping early.")
        _tell_signal(scores)
    print(
        f"Next: sdsclip finetune --dataset_name {dataset} --ranking_scores {folder} --lambda_rank 1 --lambda_sds 0\n"
        "with the model to fine-tune as --model_name_or_path."
    )


def _tell_signal(scores: dict) -> None:
    """How sure the teacher is, and how often right; a warning where that is little, or no more than by chance."""
    sure, own, chance = scores["sure_share"], scores["own_first_share"], scores["own_first_by_chance"]
    deviation = (chance * (1 - chance) / (scores["items"] * scores["ranked_share"])) ** 0.5
    for little, text in (
        (sure < LITTLE, f"the teacher is sure (confidence above {SURE}) of its first choice on {sure:.0%} of items"),
        (own < chance + 2 * deviation, f"it puts the picture's own caption first on {own:.0%}, by chance {chance:.0%}"),
    ):
        if little:
            print(f"warning: {text}: its scores carry little or no signal on this data.", file=sys.stderr)
        else:
            print(f"{text[0].upper()}{text[1:]}.")


def main(argv: Sequence[str] | None = None) -> None:
    """``recipes/score_captions.py`` and ``sdsclip score-captions``."""
    argv = sys.argv[1:] if argv is None else list(argv)
    install_quietly()
    try:
        parser = HfArgumentParser(ScoringArguments, description=__doc__)
        (arguments,) = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
        folder = Path(arguments.output_dir)
        was_finished = (folder / SCORES_FILE).is_file()
        scores = _load_and_run(arguments)
        if processes().is_main_process:
            if was_finished:
                print(f"{folder} is finished: it holds the scores of these settings.")
            _report(scores, folder, arguments.dataset_name)
            if arguments.push_to_hub:
                print(f"On the Hub: {push(folder, arguments.hub_dataset_id, arguments.private)}")
        end_process_group()
    except (ValueError, OSError, ImportError) as error:
        logger.debug("the traceback of the error below", exc_info=True)
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; type the same command again to go on from here")
