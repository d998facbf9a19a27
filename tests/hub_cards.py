"""What the Hub makes of the metadata at the beginning of a README.md, and what it refuses there."""

import re

import yaml

FRONT_MATTER = re.compile(r"^\s*---[\r\n]+([\S\s]*?)[\r\n]+---(?:\r\n|\n|$)")
MODEL_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
STRINGS = ("library_name", "pipeline_tag", "license_name", "license_link")
STRING_OR_ARRAY = ("license", "language", "tags", "datasets", "metrics", "base_model")
ARRAYS = ("model-index", "widget", "configs")
REQUIRED = ("task.type", "dataset.type", "dataset.name", "metrics")


def metadata(content: str) -> dict | None:
    """The mapping in front of a card. Raises ValueError where there is something else."""
    block = FRONT_MATTER.search(content)
    try:
        found = yaml.safe_load(block[1]) if block else None
    except yaml.YAMLError as error:
        raise ValueError(f"Invalid YAML in README.md: {error}") from error
    if found is not None and not isinstance(found, dict):
        raise ValueError(f"The metadata of README.md must be a mapping, not {type(found).__name__}")
    return found


def card_errors(content: str) -> list[str]:
    try:
        data = metadata(content) or {}
    except ValueError as error:
        return [str(error)]
    errors = [f'"{key}" must be a string' for key in STRINGS if not isinstance(data.get(key, ""), str)]
    errors += [f'"{key}" must be an array' for key in ARRAYS if not isinstance(data.get(key, []), list)]
    for key in STRING_OR_ARRAY:
        values = data.get(key, [])
        if not isinstance(values, str) and not (
            isinstance(values, list) and all(isinstance(one, str) for one in values)
        ):
            errors.append(f'"{key}" must be a string or an array of strings')
    return errors or wrong_bases(data) + missing_in_results(data.get("model-index", []))


def wrong_bases(data: dict) -> list[str]:
    bases = data.get("base_model", [])
    wrong = [base for base in ([bases] if isinstance(bases, str) else bases) if not MODEL_ID.fullmatch(base)]
    return [
        f'"base_model" with value "{base}" is not valid. Use a model id from https://hf.co/models.' for base in wrong
    ]


def missing_in_results(models: list) -> list[str]:
    """Of each result in a model-index the Hub wants the task, the dataset, and of each metric type and value."""
    errors = []
    for number, model in enumerate(models):
        for place, result in enumerate(model.get("results", [])):
            at = f"model-index[{number}].results[{place}]"
            wanted = [(result, at, field) for field in REQUIRED]
            for order, metric in enumerate(result.get("metrics", [])):
                wanted += [(metric, f"{at}.metrics[{order}]", field) for field in ("type", "value")]
            errors += [f'"{where}.{field}" is required' for part, where, field in wanted if not has(part, field)]
    return errors


def has(part: dict, field: str) -> bool:
    for key in field.split("."):
        part = part.get(key) if isinstance(part, dict) else None
    return part is not None
