"""Score models on benchmarks: a table, every item's scores, a plot, and for several models the paired differences."""

import argparse
import hashlib
import json
import re
import shutil
from collections.abc import Collection, Hashable, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import torch
from tqdm.auto import tqdm

from sdsclip_hf import shapes
from sdsclip_hf.benchmarks import SUITES, Benchmark, Options, expand, load_benchmark
from sdsclip_hf.benchmarks.items import picture_state
from sdsclip_hf.common.checkpoints import fingerprint
from sdsclip_hf.common.errors import read_json
from sdsclip_hf.common.locks import working_in
from sdsclip_hf.common.precision import settled_dtype
from sdsclip_hf.common.resources import versions
from sdsclip_hf.common.writing import sweep, write_json
from sdsclip_hf.evaluation import plots
from sdsclip_hf.evaluation.answers import Answers, merge
from sdsclip_hf.evaluation.outcomes import Outcome, outcomes, refuse_nan
from sdsclip_hf.evaluation.results import Scorer, answer_chunks, check_speed, labels, score_rows, shared_keys
from sdsclip_hf.evaluation.scorers import ClassPrompts, ClipScorer, DiffusionScorer
from sdsclip_hf.evaluation.significance import compare
from sdsclip_hf.evaluation.tables import suite_scores, suite_table, table
from sdsclip_hf.students.dual_encoder import load_dual_encoder
from sdsclip_hf.students.open_clip_checkpoints import OpenClipOptions
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher

SETTINGS_FILE, RESULTS_FILE, SCORES_FILE, PLOT_FILE = "evaluation.json", "results.json", "scores.parquet", "scores.png"
PARTS = "parts"
ANEW = "Delete it and type the same command again, which makes it anew, or choose another --output_dir."


def evaluate_models(
    args: argparse.Namespace, command: str, prompts: ClassPrompts | None = None
) -> tuple[dict, dict[str, Benchmark]]:
    """Run what is missing of an evaluation, and return what ``results.json`` holds and the benchmarks that it is of.

    Args:
        args: from [`parse_arguments`].
        command: what was typed, for the record.
        prompts: by which classes are told.

    Raises:
        ValueError: an argument does not fit, or the output folder holds another evaluation.
        OSError: a model or a benchmark cannot be loaded.
    """
    folder = Path(args.output_dir)
    runs = name_runs([*args.model, *args.teacher])
    _open_clip_options(args)  # now, and not after other models
    specs = expand(args.benchmark, args.data)
    benchmarks = {spec: load_benchmark(spec, _benchmark_options(args)) for spec in specs}
    for benchmark in benchmarks.values() if args.teacher else ():
        check_speed(benchmark)  # now, and not after hours with other benchmarks
    if prompts is not None:
        _check_takes_prompts(args, benchmarks)
    with working_in(folder):
        return _evaluate(args, command, runs, benchmarks, prompts), benchmarks


def _check_takes_prompts(args: argparse.Namespace, benchmarks: dict[str, Benchmark]) -> None:
    """Raise ValueError unless all that is asked for is to tell classes by a dual encoder."""
    if args.teacher:
        raise ValueError(f"--prompts are of a CLIP, and {args.teacher[0]} is a diffusion model; leave --teacher out.")
    for benchmark in benchmarks.values():
        if benchmark.kind != "classification":
            raise ValueError(
                f"--prompts tell classes, and {benchmark.name} has captions; give --benchmark classification=SOURCE."
            )


def _evaluate(
    args: argparse.Namespace,
    command: str,
    runs: dict[str, str],
    benchmarks: dict[str, Benchmark],
    prompts: ClassPrompts | None,
) -> dict:
    folder, specs = Path(args.output_dir), list(benchmarks)
    _claim(folder, args, benchmarks)
    finished = folder / RESULTS_FILE
    results = read_json(finished, ANEW) if finished.is_file() else None
    found: dict[str, dict[str, list[Outcome]]] = {spec: {} for spec in specs}
    models, parts, cut = {}, [], {spec: {} for spec in specs}
    shared = shared_keys(benchmarks.values()) if results is None else ()
    for run, name in runs.items():
        scorer, models[run] = _open_scorer(name, args, shared, prompts)
        _check_model(models[run], results and results["models"][run], folder / PARTS / _slug(run))
        for spec, benchmark in benchmarks.items() if results is None else ():
            answers = Answers(folder / PARTS / _slug(run) / _slug(spec), run, benchmark)
            found[spec][run] = outcomes(benchmark, _complete(answers, scorer))
            cut[spec][run] = _count_cut(scorer, benchmark)
            parts.append(answers.tables())
    if results is None:
        merge(chain.from_iterable(parts), folder / SCORES_FILE)
        by_benchmark = {
            spec: {"source": benchmark.source, "captions_cut": cut[spec], **_sum_up(found[spec])}
            for spec, benchmark in benchmarks.items()
        }
        results = {"command": command, "versions": versions(), "reading": asdict(_benchmark_options(args))}
        results |= {"models": models, "benchmarks": by_benchmark}
        results |= _sum_up_suites(args, by_benchmark, list(runs))
        write_json(finished, results)
    shutil.rmtree(folder / PARTS, ignore_errors=True)
    return results


def _sum_up(found: dict[str, list[Outcome]]) -> dict:
    """Each run's scores, and the differences of the others to the first."""
    first, *others = found
    return {
        "scores": {run: score_rows(outcome) for run, outcome in found.items()},
        "differences": {run: compare(found[first], found[run]) for run in others},
    }


def _sum_up_suites(args: argparse.Namespace, by_benchmark: dict[str, dict], runs: list[str]) -> dict:
    """Each run's main scores on the suites that were asked for, with their macro mean."""
    suites = {}
    for asked in args.benchmark:
        name = re.split("[:=]", asked, maxsplit=1)[0]
        if name in SUITES:
            specs = expand([asked], args.data)
            suites[name] = {
                run: suite_scores({spec: by_benchmark[spec]["scores"][run] for spec in specs}) for run in runs
            }
    return {"suites": suites} if suites else {}


def name_runs(names: Sequence[str]) -> dict[str, str]:
    """run -> model: the last part of each name, or all of it where that is not unique.

    Raises:
        ValueError: a model is named twice.
    """
    if len(set(names)) != len(names):
        raise ValueError(f"the models {', '.join(names)} name one twice; give each once.")
    short = [Path(name).name for name in names]
    return {name if short.count(last) > 1 else last: name for name, last in zip(names, short, strict=True)}


def _slug(name: str) -> str:
    """A name for a folder, of its own for each name."""
    return f"{re.sub(r'[^a-zA-Z0-9.=-]+', '_', name)[:60]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _benchmark_options(args: argparse.Namespace) -> Options:
    templates = args.templates
    if len(templates) == 1 and Path(templates[0]).is_file():
        lines = Path(templates[0]).read_text(encoding="utf-8").splitlines()
        templates = [line.strip() for line in lines if line.strip()]
    columns = {name: getattr(args, name) for name in ("image_column", "caption_column", "label_column")}
    return Options(args.allow_missing, args.image_dir, args.fetch_images, templates=tuple(templates), **columns)


def _settings(args: argparse.Namespace, benchmarks: dict[str, Benchmark]) -> dict:
    """What decides the scores."""
    names = ("model", "teacher", "dtype", "num_draws", "timestep_range", "weighting", "seed")
    names += ("image_dir", "image_column", "architecture", "processor", "checkpoint_key")
    names += tuple(name for name in ("teacher_quantization", "prompts", "preprocess_on_device") if getattr(args, name))
    sources = {f"benchmark {spec}": {"content": _digest(one)} | one.source for spec, one in benchmarks.items()}
    return json.loads(json.dumps({name: getattr(args, name) for name in names} | sources))


def _digest(benchmark: Benchmark) -> str:
    """Of all captions, tags, pictures and prompts, by which a copy is known that was changed, or read by other columns."""
    texts = [
        [item.identifier, item.tag, item.labels, item.captions, [picture_state(image) for image in item.images]]
        for item in benchmark.items
    ]
    return hashlib.sha256(json.dumps([texts, benchmark.classes]).encode()).hexdigest()[:16]


def _claim(folder: Path, args: argparse.Namespace, benchmarks: dict[str, Benchmark]) -> None:
    """Make the output folder this evaluation's, or see that it is."""
    sweep(folder, alone=True)
    now, path = _settings(args, benchmarks), folder / SETTINGS_FILE
    begun = (folder / RESULTS_FILE).is_file() or any((folder / PARTS).rglob("*.parquet"))
    if path.is_file() and not begun:  # it failed before it had scored anything, perhaps for a mistake in an argument
        shutil.rmtree(folder / PARTS, ignore_errors=True)
    elif path.is_file():
        then = read_json(path, f"Delete {folder}, or choose another --output_dir.")
        changed = [name for name in {**then, **now} if then.get(name) != now.get(name)]
        if changed:
            raise ValueError(
                f"{folder} holds another evaluation: its {changed[0]} is {then.get(changed[0])!r:.200}, not "
                f"{now.get(changed[0])!r:.200}. Choose another --output_dir."
            )
    elif any((folder / name).exists() for name in (RESULTS_FILE, SCORES_FILE, PLOT_FILE, PARTS)):
        raise ValueError(f"{folder} holds the results of another run. Choose another --output_dir.")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, now)


def _open_scorer(
    name: str, args: argparse.Namespace, shared: Collection[Hashable], prompts: ClassPrompts | None
) -> tuple[Scorer, dict]:
    """The scorer of a model, and what is recorded of it; the keys tell what several benchmarks share."""
    if name in args.model:
        base, _, revision = (name, "", "") if Path(name).exists() else name.partition("@")
        encoder = load_dual_encoder(base, revision or None, args.dtype, options=_open_clip_options(args)[name])
        options = {"num_workers": args.num_workers, "remembered": shared, "prompts": prompts}
        options["preprocess_on_device"] = args.preprocess_on_device
        scorer = ClipScorer(encoder.model, encoder.processor, args.batch_size or 128, **options)
        record = {"name": name, "kind": "dual encoder", "fingerprint": encoder.fingerprint()}
        record |= {"prompts": prompts.fingerprint} if prompts is not None else {}
        return scorer, record | ({"open_clip": encoder.read_as} if encoder.read_as else {})
    dtype = settled_dtype(args.dtype)
    teacher = DiffusionTeacher.from_pretrained(
        shapes.resolve(name), load_vae=True, dtype=dtype, quantization=args.teacher_quantization
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher.place(device, args.teacher_offload).speed_up(packed=True)
    options = {key: getattr(args, key) for key in ("num_draws", "timestep_range", "weighting", "seed")}
    scorer = DiffusionScorer(teacher, batch_size=args.batch_size or 16, **options)
    record = {"name": name, "kind": "diffusion model", "fingerprint": fingerprint(teacher)}
    return scorer, record | ({"dtype": dtype} if dtype != "float32" else {})  # as records tell it from the beginning


def _open_clip_options(args: argparse.Namespace) -> dict[str, OpenClipOptions]:
    """What is told of each model in open_clip's form: one architecture for all files of weights, or one for each."""
    files = [name for name in args.model if Path(name).expanduser().is_file()]
    told = args.architecture or []
    if len(told) > 1 and len(told) != len(files):
        raise ValueError(
            f"there are {len(told)} architectures for {len(files)} files of weights; give --architecture one for all, or "
            "one for each file in its order."
        )
    of_file = dict(zip(files, told if len(told) > 1 else told * len(files), strict=bool(told)))
    return {
        name: OpenClipOptions(of_file.get(name, next(iter(told), None)), args.processor, args.checkpoint_key)
        for name in args.model
    }


def _check_model(record: dict, finished: dict | None, parts: Path) -> None:
    """Note which weights the parts come from; raise ValueError if they come from others."""
    path = parts / "model.json"
    earlier = finished or (read_json(path, f"Delete {parts}.") if path.is_file() else record)
    if earlier != record:
        then, now = (one.get("dtype", "float32") for one in (earlier, record))
        in_dtype = "" if then == now else f", which were {then} and are {now} on this machine"
        raise ValueError(
            f"the weights of {record['name']} are not those that {parts.parent.parent} was begun with{in_dtype}. Choose "
            "another --output_dir."
        )
    if not finished:
        parts.mkdir(parents=True, exist_ok=True)
        write_json(path, record)


def _count_cut(scorer: Scorer, benchmark: Benchmark) -> int | None:
    """How many captions are longer than the text tower reads; None of a diffusion model."""
    if not hasattr(scorer, "encoder"):
        return None
    captions = {caption for item in benchmark.items for caption in item.captions}
    return scorer.encoder.count_cut(sorted(captions.union(*benchmark.classes.values())))


def _complete(answers: Answers, scorer: Scorer) -> list:
    """The answers that are on disk, and those that are still missing."""
    known = answers.read()
    total = len(answers.benchmark.items)
    with tqdm(total=total, initial=len(known), desc=f"{answers.model}, {answers.benchmark.name}", unit="item") as bar:
        if len(known) < total:
            for chunk in answer_chunks(scorer, answers.benchmark, len(known)):
                items = answers.benchmark.items[len(known) : len(known) + len(chunk)]
                refuse_nan(answers.benchmark.name, items, chunk)  # now, and not after hours
                answers.append(len(known), chunk)
                known += chunk
                bar.update(len(chunk))
    return known


def report(results: dict, folder: Path) -> None:
    benchmarks = results["benchmarks"]
    runs = {run: {spec: one["scores"][run] for spec, one in benchmarks.items()} for run in results["models"]}
    differences = None
    if len(runs) == 2:
        differences = {spec: next(iter(one["differences"].values())) for spec, one in benchmarks.items()}
    print(f"\nScores in % with 95 % intervals; a tie counts as wrong:\n{table(runs, differences)}\n")
    for name, scores in results.get("suites", {}).items():
        print(f"{name}, the main score of each in %:\n{suite_table(scores)}\n")
    for run, record in results["models"].items():
        if read := record.get("open_clip"):
            print(
                f"{run}: read as {read['architecture']} with {read['activation']}, as {read['activation_told_by']} tells."
            )
    for spec, label in labels(benchmarks).items():
        print(_tell_source(label, benchmarks[spec]["source"], benchmarks[spec]["scores"]))
        for run, count in benchmarks[spec]["captions_cut"].items():
            if count:
                print(f"  {count} captions are longer than {run} reads, and were cut.")
    plots.plot_scores(runs, folder / PLOT_FILE)
    print(f"\n{RESULTS_FILE}, {SCORES_FILE} (every item) and {PLOT_FILE} are in {folder}.")


def _tell_source(label: str, source: dict, scores: dict) -> str:
    at = f" at {source['revision']}" if source["revision"] else ""
    split = f", split {source['split']}" if source["split"] else ""
    text = f"{label}: {source['items']} items of {source['name']}{split}{at}"
    if source["published_items"] not in (None, source["items"]):
        text += f"; the published benchmark has {source['published_items']}"
    if source["missing_images"]:
        text += f"; {source['missing_images']} left out, since their images are missing"
    rows = next(iter(scores.values()))
    if rows[0]["score"] == "micro accuracy":
        why = "it does not tell relations, attributes or subsets" if len(rows) == 1 else "no group is one that counts"
        text += f"; {why}, so there is no macro accuracy"
    return text + "."
