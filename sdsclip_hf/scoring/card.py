"""The dataset card of a folder of scores."""

from huggingface_hub import DatasetCard, DatasetCardData

from sdsclip_hf.data.scores import ranked_by

HOW = {
    "column": "given by the dataset",
    "swap": "words of the caption exchanged by rule",
    "nearest": "the nearest other captions by a CLIP's text embeddings",
    "batch": "other captions at random",
}
CARD = """---
{data}
---

# {title}

{about}

| | |
|---|---|
{table}

A row is a picture with its caption among candidates: `picture` (a digest of its content), `caption`, `candidates` (K
captions in random order, the caption among them) and `errors` (K lists{errors}). The pictures are not in here.

To train by them, with the Python package `sdsclip_hf`:

```bash
sdsclip finetune --dataset_name DATASET --ranking_scores FOLDER_OR_HUB_ID --lambda_rank 1 --lambda_sds 0
```

In Python: `sdsclip_hf.CandidateScores.load("FOLDER_OR_HUB_ID")`.
"""
SCORED = (
    "Errors of the diffusion model {name} on candidate captions of the pictures of {dataset}: "
    "d(x, c) = E || eps_theta(z_t, t, c) - eps ||^2, lower where caption and picture match better, with the same draws of "
    "(t, eps) for all candidates."
)
RANKED = (
    "Scores of the ranker {name} ({kind}) of candidate captions of the pictures of {dataset}: d = -score, lower where "
    "caption and picture match better."
)
UNSCORED = "Candidate captions of the pictures of {dataset}. No teacher has scored them."
CONTROL = (
    "\n\n**Control experiment:** each item was scored with another row's picture. Nothing should be learnt from it."
)


def render_card(settings: dict) -> str:
    """``README.md`` for what ``scores.json`` holds, front matter included."""
    teacher, ranker, dataset = settings["teacher"], settings.get("ranker"), settings["dataset"]["name"]
    name = ranked_by(settings)
    text = SCORED if teacher else RANKED if ranker else UNSCORED
    about = text.format(name=name, dataset=dataset, kind=ranker and ranker["kind"])
    data = DatasetCardData(  # without `configs`, by which the cache of `datasets` would take two folders of one name for one
        pretty_name=f"Candidate captions of {dataset}" + (f", scored by {name}" if name else ""),
        tags=["sdsclip_hf", "ranking-distillation", "compositionality", "clip"],
        task_categories=["zero-shot-image-classification"],
    )
    rows = [f"| {name} | {value} |" for name, value in _facts(settings).items()]
    errors = ", the teacher's error in each draw" if teacher else ", of d alone" if ranker else ", empty here"
    card = CARD.format(
        data=data.to_yaml(),
        title=data.pretty_name,
        about=about + (CONTROL if settings["control"] else ""),
        table="\n".join(rows),
        errors=errors,
    )
    return str(DatasetCard(card))


def _facts(settings: dict) -> dict[str, str]:
    teacher, data = settings["teacher"], settings["dataset"]
    source = ", ".join(str(part) for part in (data["name"], data["config"], data["split"], data["revision"]) if part)
    facts = {
        "dataset": source,
        "items": f"{settings['items']:,}, of which {settings['ranked_share']:.1%} with two or more candidates",
        "captions a picture": settings["captions_per_image"],
        "candidates": "; ".join(_tell_source(text) for text in settings["candidates"]),
        "seed": settings["seed"],
    }
    if settings["nearest_by"]:
        facts["nearest by"] = f"{settings['nearest_by']['name']}, fingerprint {settings['nearest_by']['fingerprint']}"
    if teacher:
        first, last = settings["timestep_range"]
        stop, settled = settings["stop_confidence"], settings["settled"].replace("_", " ")
        calls, saved = settings["denoiser_calls"], settings["denoiser_calls_saved"]
        facts |= {
            "teacher": f"{teacher['name']}, fingerprint {teacher['fingerprint']}, {teacher['dtype']}",
            "draws an item": f"at most {settings['num_draws']}, timesteps {first} to {last}",
            "weighting of the error": settings["weighting"],
            "stops early": f"when the {settled} is that of all draws with probability {stop}" if stop else "never",
            "denoiser calls": f"{calls:,} made, {saved:,} saved by stopping early",
            "the teacher's mean confidence in its first choice": settings["mean_confidence"],
            "its first choice is the picture's own caption": f"on {settings['own_first_share']:.1%} of items, by chance "
            f"{settings['own_first_by_chance']:.1%}",
        }
    if fitted := settings.get("timestep_weights"):
        pairs = sorted(zip(fitted["timesteps"], fitted["weights"], strict=True))
        facts["weights of the timesteps"] = ", ".join(f"{timestep}: {weight:.2f}" for timestep, weight in pairs)
        facts["fitted on"] = (
            f"{fitted.get('source', 'own captions')}, {fitted['labelled']} in all: right in {fitted['accuracy']:.1%} of "
            f"pairs (cross-validated), with equal weights in {fitted['uniform_accuracy']:.1%}"
        )
    if ranker := settings.get("ranker"):
        facts |= {name: value for name, value in ranker.items() if value is not None and name != "name"}
        facts |= {
            "ranker": ranker["name"],
            "its first choice is the picture's own caption": f"on {settings['own_first_share']:.1%} of items, by chance "
            f"{settings['own_first_by_chance']:.1%}",
            "items whose candidates it scores alike": settings["tied_items"],
        }
        facts["fingerprint of the ranker"] = facts.pop("fingerprint", "none")
    if combined := settings.get("combined"):
        facts |= _facts_of_parts(combined)
    return facts | {"fingerprint": settings["fingerprint"]}


def _facts_of_parts(combined: dict) -> dict[str, str]:
    """Which scores were combined, and how."""
    facts = {}
    for number, part in enumerate(combined["parts"]):
        alone = f"; alone right in {combined['alone'][number]:.1%} of pairs" if "alone" in combined else ""
        weights = ", ".join(f"{weight:.2f}" for weight in part["weights"])
        facts[f"part {number + 1}"] = f"{part['name']}, fingerprint {part['fingerprint']}, weights {weights}{alone}"
    if "labelled" in combined:
        facts["fitted on"] = (
            f"the own captions of {combined['labelled']} pictures: right in {combined['accuracy']:.1%} of pairs "
            f"(cross-validated), with equal weights in {combined['uniform_accuracy']:.1%}"
        )
    return facts


def _tell_source(text: str) -> str:
    source, _, count = text.partition(":")
    return f"{source}, up to {count}: {HOW[source]}"
