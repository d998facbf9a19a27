"""Student, teacher and scores: there, open to this login, whole, and of the kind that is needed."""

import re
from collections.abc import Iterable, Iterator

from safetensors import SafetensorError, safe_open

from sdsclip_hf import shapes
from sdsclip_hf.common.errors import expand
from sdsclip_hf.common.writing import size
from sdsclip_hf.data.scores import SCORES_FILE, portable_name, score_settings
from sdsclip_hf.doctor.case import Case
from sdsclip_hf.doctor.findings import Finding, Trouble
from sdsclip_hf.doctor.hub_access import Hub, Place
from sdsclip_hf.students.loading import load_processor, student_config
from sdsclip_hf.students.open_clip_checkpoints import find_open_clip, load_tokenizer
from sdsclip_hf.students.processor_files import VOCABULARIES
from sdsclip_hf.teachers.saved_pipeline import SavedPipeline

PROCESSOR = ("processor_config.json", "preprocessor_config.json")
TOKENIZER = ("tokenizer.json", *VOCABULARIES)
TEXTS = (".json", ".txt", ".model")  # small files beside the weights


def weights_of(files: Iterable[str], folder: str = "", variant: str | None = None) -> list[str]:
    """The weight files that ``from_pretrained`` reads in a folder, be they one or many; safetensors before others."""
    inside, named = re.escape(f"{folder}/") if folder else "", rf"\.{re.escape(variant)}" if variant else ""
    for stem, ending in (("(diffusion_pytorch_)?model", "safetensors"), ("(diffusion_)?pytorch_model", "bin")):
        pattern = re.compile(rf"{inside}{stem}{named}(-\d+-of-(?P<parts>\d+))?\.{ending}")
        found = [match for file in files if (match := pattern.fullmatch(file))]
        if found and all(match["parts"] is None or int(match["parts"]) <= len(found) for match in found):
            return [match[0] for match in found]
    return []


def _small(files: Iterable[str], folder: str = "") -> list[str]:
    return [file for file in files if file.rpartition("/")[0] == folder and file.endswith(TEXTS)]


def _check_readable(place: Place, weights: Iterable[str]) -> None:
    """Raise Trouble if a weight file on this machine is cut short, or a pointer of Git LFS in its place."""
    for file in weights if place.folder is not None else ():
        if file.endswith(".safetensors"):
            try:
                with safe_open(place.folder / file, "pt"):
                    pass
            except SafetensorError as error:
                raise Trouble(
                    f"{place.folder / file} cannot be read ({error}).",
                    "Fetch it anew; in a clone, `git lfs pull` fetches what stands behind pointers.",
                ) from error


def _check_whole(what: str, place: Place, missing: list[str], remedy: str) -> None:
    if missing:
        raise Trouble(f"{place.name} is no whole {what}: it has no {', no '.join(missing)}.", remedy)


def _told(case: Case, hub: Hub, place: Place, files: list[str], kind: str) -> str:
    """What was found of it, and, noted for later, what has to be downloaded."""
    told = f"{place.name}: {kind}, {place.told}"
    if place.folder is not None:
        return told
    to_download = place.to_download(files)
    case.disk.append((hub.cache, "downloads", to_download))
    return f"{told}; {f'{size(to_download)} to download' if to_download else 'in the cache'}"


def check_student(case: Case, hub: Hub) -> Iterator[Finding]:
    """The student: configuration, weights and processor."""
    case.missing.append("student")
    name, option = case.model.model_name_or_path, "--model_name_or_path"
    if checkpoint := find_open_clip(shapes.resolve(name)):
        config = student_config(name, options=case.model.open_clip)
        load_tokenizer(checkpoint, case.model.open_clip, config)
        case.missing.remove("student")
        yield Finding("ok", "student", f"{name}: a CLIP in open_clip's form, with {config.vision_config.hidden_act}")
        return
    place = hub.place(name, "model", option)
    weights, files = weights_of(place.files), place.files
    missing = [] if "config.json" in files else ["config.json"]
    missing += [] if weights else ["weights (model.safetensors)"]
    parts = (("image processor", PROCESSOR), ("tokenizer", TOKENIZER))
    missing += [f"{what} ({one_of[0]})" for what, one_of in parts if not set(one_of) & set(files)]
    _check_whole("student", place, missing, f"Give {option} what save_pretrained of the model and its processor wrote.")
    _check_readable(place, weights)
    resolved = expand(shapes.resolve(name))
    kind = student_config(resolved, options=case.model.open_clip).model_type
    if kind != "clip":
        load_processor(resolved)  # which may need a package that is not installed
    case.missing.remove("student")
    told = "a CLIP" if kind == "clip" else f"a dual encoder of type {kind}"
    yield Finding("ok", "student", _told(case, hub, place, [*weights, *_small(files)], told))


def check_teacher(case: Case, hub: Hub) -> Iterator[Finding]:
    """The diffusion model, where a run has L_SDS: layout, weights, tokenizer and noise schedule."""
    name, option = case.model.teacher_name_or_path, "--teacher_name_or_path"
    if not case.needs_teacher:
        yield Finding("ok", "teacher", "none is loaded, since lambda_sds is 0")
        return
    case.missing.append("teacher")
    if name is None:
        raise Trouble("lambda_sds is above 0, but there is no teacher.", f"Give {option}, or --lambda_sds 0.")
    wanted = {(one.teacher_revision, one.teacher_variant) for one in case.configs.values() if one.lambda_sds}
    for revision, variant in sorted(wanted, key=str):
        place = hub.place(name, "model", option, revision)
        unlike = [] if "model_index.json" in place.files else ["model_index.json"]
        remedy = f"Give {option} what save_pretrained of a text-to-image pipeline wrote; `sdsclip teachers` lists them."
        _check_whole("diffusion model", place, unlike, remedy)
        saved = SavedPipeline(expand(shapes.resolve(name)), revision, variant)
        files = _teacher_files(place, saved, option)
        yield Finding("ok", "teacher", _told(case, hub, place, files, f"a {saved.kind}"))
        if saved.is_distilled:
            told = f"{name} is a distilled checkpoint, whose errors may order captions less well."
            yield Finding("warn", "teacher", told, "Score with the one that it was distilled from.")
    case.missing.remove("teacher")


def _teacher_files(place: Place, saved: SavedPipeline, option: str) -> list[str]:
    """What of it is read; raises Trouble where some of it is not there."""
    chosen, missing, variant = ["model_index.json"], [], saved.variant
    for folder in saved.weighty:
        weights = weights_of(place.files, folder, variant)
        if not weights:
            missing.append(f"weights in {folder}" + (f" of the variant {variant!r}" if variant else ""))
        missing += [] if f"{folder}/config.json" in place.files else [f"{folder}/config.json"]
        chosen += [*weights, *_small(place.files, folder)]
    for folder in saved.small:
        found = _small(place.files, folder)
        missing += [] if found else [folder]
        chosen += found
    other = "leave --teacher_variant out" if variant else "--teacher_variant, if its weights are named by one"
    _check_whole("diffusion model", place, missing, f"Give {option} a whole checkpoint, or {other}.")
    _check_readable(place, (file for file in chosen if "." in file))
    return chosen


def check_scores(case: Case, hub: Hub) -> Iterator[Finding]:
    """The candidates' scores that ranking learns from, and whose they are."""
    wanted = {(one.ranking_scores, one.ranking_scores_revision) for one in case.configs.values() if one.ranking_scores}
    for name, revision in sorted(wanted, key=str):
        case.missing.append("scores")
        place = hub.place(name, "dataset", "--ranking_scores", revision)
        tables = [file for file in place.files if file.endswith(".parquet")]
        missing = [*([] if SCORES_FILE in place.files else [SCORES_FILE]), *([] if tables else ["data/*.parquet"])]
        _check_whole("folder of scores", place, missing, "Give --ranking_scores what sdsclip score-captions wrote.")
        _check_same_teacher(case, name, score_settings(name, revision))
        case.missing.remove("scores")
        yield Finding("ok", "scores", _told(case, hub, place, [SCORES_FILE, *tables], "scored candidates"))


def _check_same_teacher(case: Case, name: str, settings: dict) -> None:
    """By name, as training does where the teacher is not loaded; otherwise it compares the weights."""
    by, teacher = (settings.get("teacher") or {}).get("name"), case.model.teacher_name_or_path
    learns = any(
        one.lambda_rank and one.ranking_targets == "teacher" and not one.lambda_sds for one in case.configs.values()
    )
    if learns and by is not None and teacher is not None and portable_name(teacher) != by:
        raise Trouble(
            f"{name} was made by the teacher {by!r}, not by {teacher!r}.",
            "Give scores of this teacher, or leave --teacher_name_or_path out, since L_rank needs none.",
        )
