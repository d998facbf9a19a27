"""The model card of a run, and its scores in the Hub's formats."""

import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import torch
import yaml
from huggingface_hub import (
    EvalResult,
    EvalResultEntry,
    ModelCard,
    ModelCardData,
    eval_result_entries_to_yaml,
)
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError
from transformers.trainer_utils import HubStrategy

from sdsclip_hf import shapes
from sdsclip_hf.cards.student_facts import StudentFacts
from sdsclip_hf.common.resources import git_revision, model_cards_dir, versions
from sdsclip_hf.common.writing import write_text
from sdsclip_hf.config import SDSCLIPConfig
from sdsclip_hf.data.scores import portable_name
from sdsclip_hf.evaluation.results import Results, labels
from sdsclip_hf.hub.commits import is_hub_id
from sdsclip_hf.reports.page import REPORT_FILE
from sdsclip_hf.students.sdsclip_model import MAPPER_FILE

TEMPLATE = "model_card.md.jinja"
CARD_FILE = "README.md"
EVAL_RESULTS = ".eval_results"
MODEL_NAME = "NAMESPACE/NAME"  # in a card that has not been pushed; pushing puts the repository's name in its place
PLOTS = {
    "scores.png": "Scores before and after, with 95 % intervals",
    "losses.png": "The terms of the loss over training",
}
REPORT_LINK = (
    f"[{REPORT_FILE}]({REPORT_FILE}) shows the items that were won and lost: download it and open it in a browser."
)
METRICS = {score: f"winoground_{score}_score" for score in ("text", "image", "group")}
STANDARD = {
    "winoground": "Winoground",
    "aro_": "ARO",
    "sugarcrepe": "SugarCrepe",
    "classification": "zero-shot classification of natural images",
    "retrieval": "retrieval",
}
IN_WORDS = {"L_CLIP": "the contrastive loss", "(1 - cos)": "a cosine term"}
TAGS = ["sdsclip_hf", "compositionality", "diffusion-distillation"]


@dataclass
class RunFacts:
    """What a card tells of a run.

    Args:
        config: the run's.
        base_name: the model that it started from; ``base_revision`` its commit on the Hub, where known.
        teacher_name: the diffusion model, where L_SDS used one.
        scores_teacher: the diffusion model, or other ranker, whose stored scores L_rank learns from.
        scores_are_errors: whether that is a diffusion model.
        counts: see [`SDSCLIPModel.count_parameters`].
        steps: optimiser steps taken, of ``max_steps``.
        processes: on how many processes.
        has_adapter, has_mapper: what lies beside the model.
        dataset_name, dataset_revision: what it was trained on, where known.
        scores: run (before, …, after) -> benchmark -> rows, see [`score_rows`]; the last is this model's.
        sources: benchmark -> what it was read from, see [`Benchmark`].
        commands: what was typed, the first one and those that went on from where it had stopped; none from Python.
        train_seconds: of the training loop; None where that is not known as a whole.
        unfinished: whether the training goes on.
        best_step: the step that the weights are of, where that is not the last.
        licence: what the base model's card tells, see [`find_licence`]; None where it could not be read.
        student: of what kind it is.
        overrides: front matter that takes the place of what is found, by the Hub's names: ``license``, ``tags``, ….
    """

    config: SDSCLIPConfig
    base_name: str
    base_revision: str | None
    teacher_name: str | None
    scores_teacher: str | None
    counts: dict[str, int]
    steps: int
    max_steps: int
    processes: int
    has_adapter: bool
    has_mapper: bool
    dataset_name: str | None = None
    dataset_revision: str | None = None
    scores: dict[str, Results] = field(default_factory=dict)
    sources: dict[str, dict] = field(default_factory=dict)
    commands: tuple[str, ...] = ()
    train_seconds: float | None = None
    unfinished: bool = False
    best_step: int | None = None
    licence: dict[str, str] | None = None
    student: StudentFacts = field(default_factory=StudentFacts)
    overrides: dict = field(default_factory=dict)
    scores_are_errors: bool = True

    @property
    def licence_is_known(self) -> bool:
        """Whether the card can name a licence."""
        return bool(self.config.hub_license or self.overrides.get("license") or self.licence)


def write_card(folder: Path, facts: RunFacts) -> None:
    """Write ``README.md``, and ``.eval_results/`` for the benchmarks that the Hub knows, into an export."""
    write_text(folder / CARD_FILE, str(model_card(facts, folder)))
    shutil.rmtree(folder / EVAL_RESULTS, ignore_errors=True)
    for name, content in eval_results_files(facts).items():
        path = folder / EVAL_RESULTS / name
        path.parent.mkdir(exist_ok=True)
        write_text(path, content)


def model_card(facts: RunFacts, folder: Path | None = None) -> ModelCard:
    """The card, with the front matter that the Hub reads. ``folder`` is looked through for plots and a report."""
    config = facts.config
    licence = facts.overrides.get("license") or config.hub_license
    of_base = facts.licence or {}
    shown = {} if folder is None else {plot: text for plot, text in PLOTS.items() if (folder / plot).exists()}
    if not facts.scores:
        shown.pop("scores.png", None)  # of another run
    return ModelCard.from_template(
        _front_matter(facts, {"license": licence} if licence else of_base),
        template_path=str(model_cards_dir() / TEMPLATE),
        model_name=MODEL_NAME,
        student=facts.student,
        terms=[IN_WORDS.get(name, name) for name in _terms(config)],
        versions=versions(),
        unfinished=facts.unfinished,
        steps=facts.steps,
        max_steps=facts.max_steps,
        facts=_facts(facts),
        loss=_loss(config),
        symbols=list(_symbols(facts)),
        scores=_score_table(facts.scores),
        plots=shown,
        report_link=REPORT_LINK if folder is not None and (folder / REPORT_FILE).exists() else None,
        limits=list(_limits(facts)),
        commands=facts.commands,
        pickles=facts.config.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS),
        seed=config.seed,
        hardware=_hardware(config, facts.processes),
        duration=_duration(facts.train_seconds),
        git_revision=git_revision(),
        files=list(_files(facts)),
        license_note=_licence_note(facts.base_name, licence, of_base),
        ranking=bool(config.lambda_rank),
    )


def _front_matter(facts: RunFacts, licence: dict[str, str]) -> ModelCardData:
    evaluated = list(_eval_results(facts))
    base, dataset = is_hub_id(facts.base_name), facts.dataset_name and is_hub_id(facts.dataset_name)
    found = {
        "base_model": facts.base_name if base else None,
        "base_model_relation": "finetune" if base else None,
        "datasets": [facts.dataset_name] if dataset else None,
        "license": "unknown",
        "library_name": "transformers",
        "pipeline_tag": "zero-shot-image-classification",
        "metrics": list(dict.fromkeys(result.metric_type for result in evaluated)) or None,
        "tags": [facts.student.model_type, *TAGS],
        "model_name": MODEL_NAME if evaluated else None,
        "eval_results": evaluated or None,
    }
    return ModelCardData(**(found | licence | facts.overrides))


def _headlines(facts: RunFacts) -> Iterator[tuple[str, str, dict]]:
    """(benchmark, its label, row) of this model's headline scores."""
    results = list(facts.scores.values())[-1] if facts.scores else {}
    for spec, label in labels(results).items():
        yield from ((spec, label, row) for row in results[spec] if row["headline"])


def _eval_results(facts: RunFacts) -> Iterator[EvalResult]:
    for spec, label, row in _headlines(facts):
        source = facts.sources.get(spec, {})
        yield EvalResult(
            task_type="zero-shot-image-classification",
            task_name="Matching of images and captions",
            dataset_type=portable_name(source.get("name") or spec.partition(":")[0]),
            dataset_name=label,
            dataset_config=row["subset"],
            dataset_split=source.get("split"),
            dataset_revision=source.get("revision"),
            metric_type=_metric(row),
            metric_name=f"{row['score']} (%), {row['subset']}",
            metric_value=round(100 * row["value"], 2),
        )


def eval_results_files(facts: RunFacts) -> dict[str, str]:
    """Name -> content of the files of ``.eval_results/``, one for each benchmark on the Hub."""
    entries: dict[str, list[EvalResultEntry]] = {}
    for spec, label, row in _headlines(facts):
        source = facts.sources.get(spec, {})
        if not is_hub_id(source.get("name") or ""):
            continue
        low, high = (100 * bound for bound in row["interval"])
        subset = "" if row["subset"] == "all" else f"_{row['subset'].replace(' ', '_')}"
        entry = EvalResultEntry(
            dataset_id=source["name"],
            task_id=_metric(row) + subset,
            value=round(100 * row["value"], 2),
            dataset_revision=source.get("revision"),
            date=date.today().isoformat(),
            notes=f"{label}: {row['n']} items, in %, 95 % interval [{low:.1f}, {high:.1f}]; sdsclip_hf "
            f"{versions()['sdsclip_hf']}",
        )
        entries.setdefault(source["name"].replace("/", "__"), []).append(entry)
    return {
        f"{name}.yaml": yaml.safe_dump(eval_result_entries_to_yaml(found), sort_keys=False)
        for name, found in entries.items()
    }


def _metric(row: dict) -> str:
    return METRICS.get(row["score"], row["score"].replace(" ", "_"))


def _terms(config: SDSCLIPConfig) -> dict[str, float]:
    """The terms that are switched on, and their weights."""
    weights = {
        "L_CLIP": config.lambda_clip,
        "L_SDS": config.lambda_sds,
        "L_rank": config.lambda_rank,
        "L_images": config.lambda_images,
        "(1 - cos)": config.lambda_cosine,
    }
    return {name: weight for name, weight in weights.items() if weight}


def _loss(config: SDSCLIPConfig) -> str:
    terms = (
        name if (name, weight) == ("L_CLIP", 1) else f"{weight:g} * {name}" for name, weight in _terms(config).items()
    )
    return "L = " + " + ".join(terms)


def _symbols(facts: RunFacts) -> Iterator[str]:
    config = facts.config
    if config.lambda_clip:
        yield (
            f"`L_CLIP`: {facts.student.contrastive}"
            + (", with the candidate captions as further negatives, by their labels" if config.hard_negatives else "")
            + "."
        )
    if config.lambda_sds:
        noised = "z_t = alpha_t z0 + sigma_t eps" if config.sds_reading == "noised" else "z_t = z0, as printed"
        span = config.timestep_range
        yield (
            f"`L_SDS = E || eps_theta(z_t, t, c) - eps ||^2`, {noised}, `z0 = h_w(f(x))`: the error of the frozen denoiser "
            f"of {portable_name(facts.teacher_name)}, weighted {config.sds_weighting}, gradient {config.sds_gradient}, "
            f"{f'timesteps {span[0]} to {span[1]}' if span else 'all timesteps'}. h_w is linear in the image embedding."
        )
        if config.shuffle_captions:
            yield "**A control**: the denoiser was given captions of other images. Nothing should be learnt from it."
    if config.lambda_rank:
        made = "negative matching errors d(x, c_k) / tau that the diffusion model"
        made = made if facts.scores_are_errors else "scores -d(x, c_k) / tau that the ranker"
        order = (
            f"the softmax of the {made} {facts.scores_teacher or 'of the scores'} gave before training"
            if config.ranking_targets == "teacher"
            else "the labels (which caption is the image's own)"
        )
        ours = "the softmax of CLIP's scores over an image's candidate captions"
        if config.ranking_form == "divergence" or config.ranking_targets == "labels":
            yield f"`L_rank`: KL divergence from {order} to {ours}."
        else:
            yield (
                f"`L_rank = -log sum_k p_k q_k`, p {ours}, q {order}: its word is evidence that may be wrong. "
                + (
                    ""
                    if config.ranking_temperature
                    else "tau is fitted to how often the images' own captions come first."
                )
            ).rstrip()
    if config.lambda_images:
        yield "`L_images`: cross-entropy of the right picture of a caption beside a wrong one, by the dataset's labels."
    if config.lambda_cosine:
        yield "`cos`: of the embeddings of an image and its caption."


def _facts(facts: RunFacts) -> dict[str, str]:
    config = facts.config
    counts, batches = facts.counts, config.gradient_accumulation_steps
    base = facts.base_name if is_hub_id(facts.base_name) else portable_name(facts.base_name)
    found = {
        "base model": f"`{base}`" + (f" at {facts.base_revision}" if facts.base_revision else ""),
        "training data": "not recorded",
        "what trained": f"{config.trainable}: {counts['clip_trained']:,} of {counts['clip_all']:,} weights",
        "steps": (f"{facts.best_step:,} (the best of {facts.steps:,})" if facts.best_step else f"{facts.steps:,}")
        + f" of {config.contrastive_batch_size or config.per_device_train_batch_size * facts.processes} pairs"
        + f", gradients of {batches} such batches a step" * (batches > 1),
        "learning rate": f"{config.learning_rate:g}, {getattr(config.lr_scheduler_type, 'value', config.lr_scheduler_type)}",
        "precision": "bfloat16" if config.bf16 else "float16" if config.fp16 else "float32",
    }
    if config.wise_ft_alpha < 1 and not facts.unfinished:  # training goes back at its end
        found["weights"] = f"{config.wise_ft_alpha:g} of the way from the base model's to the trained ones (WiSE-FT)"
    if facts.dataset_name:
        found["training data"] = f"`{portable_name(facts.dataset_name)}`" + (
            f" at {facts.dataset_revision}" if facts.dataset_revision else ""
        )
    if config.lambda_sds:
        found["teacher of L_SDS"] = f"`{portable_name(facts.teacher_name)}`"
    if config.lambda_rank and config.ranking_targets == "teacher":
        found["teacher of L_rank"] = f"`{facts.scores_teacher}`, by the scores `{portable_name(config.ranking_scores)}`"
    return found


def _score_table(runs: dict[str, Results]) -> str:
    if not runs or not any(runs.values()):
        return ""
    first = next(iter(runs.values()))
    lines = [f"| benchmark | subset | score | items | {' | '.join(runs)} |", "|---" * (4 + len(runs)) + "|"]
    for spec, label in labels(first).items():
        for place, row in enumerate(first[spec]):
            if row["headline"]:
                cells = [_cell(results[spec][place]) for results in runs.values()]
                lines.append(f"| {label} | {row['subset']} | {row['score']} | {row['n']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: dict) -> str:
    low, high = (100 * bound for bound in row["interval"])
    return f"{100 * row['value']:.1f} [{low:.1f}, {high:.1f}]"


def _limits(facts: RunFacts) -> Iterator[str]:
    scored = list(facts.sources)
    missing = [name for prefix, name in STANDARD.items() if not any(spec.startswith(prefix) for spec in scored)]
    if missing:
        yield f"Not scored: {', '.join(missing)}."
    if any(spec.startswith("shapes") or "=shapes" in spec for spec in scored):
        yield "The shapes world is a toy of two coloured things; its scores tell nothing of natural pictures."
    yield "One seed; other seeds may score differently."
    yield (
        "Biases of the base model, of the diffusion model and of the captions are passed on; they were not looked into. Do "
        "not use it to decide about people."
    )


def _files(facts: RunFacts) -> Iterator[str]:
    yield "`config.json`, `model.safetensors` and the processor's files: the model"
    if facts.has_adapter:
        base = facts.base_name if is_hub_id(facts.base_name) else "BASE"
        yield (
            f"`adapter/`: the LoRA alone; `PeftModel.from_pretrained({facts.student.classes[0]}.from_pretrained"
            f'("{base}"), "{MODEL_NAME}", '
            'subfolder="adapter")` is the same model'
        )
    if facts.has_mapper:
        yield f"`{MAPPER_FILE}`: h_w, of which only training has use"
    yield "`run.yaml`, `results.json`: arguments and figures of the run"


def _hardware(config: SDSCLIPConfig, processes: int) -> str:
    device = torch.device(config.device)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{device.type.upper()}, {platform.machine()}, {torch.get_num_threads()} threads"
    return f"{processes} x {name}" if processes > 1 else name


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def find_licence(base_name: str) -> dict[str, str] | None:
    """What a model's card tells of its licence.

    Returns:
        ``license``, and ``license_name`` and ``license_link`` where there are such; nothing where the card names none; None
        where it could not be read now.
    """
    if shapes.resolve(base_name) != base_name:
        return {"license": "apache-2.0"}
    folder = Path(base_name).expanduser()
    if not folder.is_dir() and not is_hub_id(base_name):
        return {}
    try:
        card = ModelCard.load(folder / CARD_FILE if folder.is_dir() else base_name, ignore_metadata_errors=True)
    except LocalEntryNotFoundError:  # no network
        return None
    except (RemoteEntryNotFoundError, FileNotFoundError, ValueError):
        return {}
    except Exception:  # a busy Hub, whatever the client makes of it
        return None
    names = ("license", "license_name", "license_link")
    return {name: getattr(card.data, name) for name in names if getattr(card.data, name, None)}


def _licence_note(base_name: str, given: str | None, of_base: dict[str, str]) -> str:
    base = base_name if is_hub_id(base_name) else portable_name(base_name)
    if given:
        return f"{given}, as given for this model. The base model `{base}` has its own: {of_base.get('license', 'unknown')}."
    if of_base:
        named = of_base.get("license_name") or of_base["license"]
        return f"That of the base model `{base}`: {named if isinstance(named, str) else ', '.join(named)}."
    return f"Unknown: the card of the base model `{base}` could not be read, or names none. Ask its authors before use."
