"""The settings of a study, as its yaml file has them."""

import re
from dataclasses import fields

from sdsclip_hf.config import SDSCLIPConfig
from sdsclip_hf.scoring.arguments import ScoringArguments
from sdsclip_hf.study.summary import BEFORE

SETTINGS = (
    "model_name_or_path",
    "teacher_name_or_path",
    "worlds",
    "dataset_name",
    "train_split_name",
    "benchmark",
    "figures",
    "retained",
    "skill_benchmark",
    "seeds",
    "baseline",
    "scoring",
    "scores",
    "common",
    "arms",
    "curves",
    "quick",
)
FIGURES = ("text", "image")  # of 2 x 2 items, beside the group score


def slug(name: str) -> str:
    return re.sub(r"\W+", "_", name).strip("_")


def fill_in(options: dict, world: dict) -> dict:
    try:
        return {key: value.format(**world) if isinstance(value, str) else value for key, value in options.items()}
    except KeyError as error:
        raise ValueError(
            f"an option names {{{error.args[0]}}}, which its world has not; it has {', '.join(world)}."
        ) from error


def check(settings: dict) -> None:
    """Raise ValueError for what would otherwise fail after hours: a missing part, a name that is no option."""
    models = () if settings.get("worlds") else ("model_name_or_path", "teacher_name_or_path")
    missing = [n for n in (*models, "dataset_name", "benchmark", "seeds", "baseline", "arms") if not settings.get(n)]
    if missing:
        raise ValueError(f"the study's settings lack {', '.join(missing)}; add them to the file that --config names.")
    strange = sorted(set(settings) - set(SETTINGS))
    if strange:
        raise ValueError(f"the study has no settings {', '.join(strange)}; choose from {', '.join(SETTINGS)}.")
    unknown = next((figure for figure in settings.get("figures") or [] if figure not in FIGURES), None)
    if unknown is not None:
        raise ValueError(f"unknown figure {unknown!r}; choose from {', '.join(FIGURES)}.")
    arms, curves, scores = settings["arms"], settings.get("curves") or {}, settings.get("scores") or {}
    if settings["baseline"] not in arms:
        raise ValueError(f"the baseline {settings['baseline']!r} is no arm; choose from {', '.join(arms)}.")
    if curves and not (scores and settings.get("skill_benchmark")):
        raise ValueError(
            "the study's curves need scores, and a skill_benchmark to measure their teachers on; add them, or take the "
            "curves out."
        )
    ranked = next((name for name, options in scores.items() if (options or {}).get("ranker")), None)
    if curves and ranked:
        raise ValueError(
            f"the study's curves measure diffusion teachers, but the scores {ranked!r} are a ranker's; take one of them out."
        )
    known = {entry.name for entry in fields(SDSCLIPConfig) if entry.init}
    known |= {"teacher_name_or_path", "model_name_or_path", "scores"}
    everything = {"common": settings.get("common"), **arms, **curves}
    for arm, options in everything.items():
        unknown = sorted(set(options or {}) - (known if arm == "common" else known | {"seeds"}))
        if unknown:
            raise ValueError(f"unknown options {', '.join(unknown)} of {arm}; see `sdsclip finetune --help`.")
        numbers = [name for name, value in (options or {}).items() if _looks_like_number(value)]
        if numbers:
            raise ValueError(f"{numbers[0]} of {arm} is text to yaml: {options[numbers[0]]!r}; write it as in 1.0e-3.")
        asked = (options or {}).get("scores")
        if asked and asked not in scores:
            raise ValueError(
                f"{arm} asks for the scores {asked!r}, which there are not; choose from {', '.join(scores)}."
            )
    known = {entry.name for entry in fields(ScoringArguments)}
    for name, options in {"scoring": settings.get("scoring"), **scores}.items():
        unknown = sorted(set(options or {}) - known)
        if unknown:
            raise ValueError(f"unknown options {', '.join(unknown)} of {name}; see `sdsclip score-captions --help`.")
    slugs = [slug(arm) for arm in [*arms, *(f"{curve}, {name}" for curve in curves for name in scores)]]
    taken = sorted({slug for slug in slugs if slugs.count(slug) > 1 or slug in (BEFORE, "skill")})
    if taken:
        raise ValueError(
            f"two arms, or an arm and the study's own files, would share the folder {', '.join(taken)}; rename one of them."
        )


def _looks_like_number(value) -> bool:
    try:
        return isinstance(value, str) and float(value) is not None
    except ValueError:
        return False


def quick(settings: dict) -> dict:
    """The small form: settings under ``quick`` take the place of the others, in ``common`` and ``scoring`` one by one."""
    changes = settings.get("quick")
    if not changes:
        raise ValueError("the study's settings have no quick form; leave --quick out.")
    merged = {name: value for name, value in settings.items() if name != "quick"}
    for name, value in changes.items():
        merged[name] = {**merged.get(name, {}), **value} if name in ("common", "scoring") else value
    return merged
