"""Which model another one was tuned from: what its card or its run's options say."""

from pathlib import Path

import yaml
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError

from sdsclip_hf.common.errors import expand
from sdsclip_hf.hub.attempts import HubError, insist

CARD, OPTIONS = "README.md", "run.yaml"


def find_base(model: str) -> str:
    """The one base model of a tuned one: ``base_model`` of its card, or of a run's folder what its options started from.

    Args:
        model: a folder or a Hub id.

    Raises:
        ValueError: there is none, or there are several.
    """
    name = expand(model)
    if Path(name).is_dir():
        found, looked = _of_folder(Path(name)), f"neither {CARD} (base_model) nor {OPTIONS} in {name} names"
    else:
        found, looked = _of_hub(model), f"the card of {model} names no base_model, so it does not tell"
    if not found:
        raise ValueError(f"{looked} the model that it was tuned from; give it as --base.")
    if len(found) > 1:
        raise ValueError(f"{model} has several base models ({', '.join(found)}); give one of them as --base.")
    return found[0]


def _of_folder(folder: Path) -> list[str]:
    card, options = folder / CARD, folder / OPTIONS
    named = _of_card(card.read_text(encoding="utf-8")) if card.is_file() else []
    if not named and options.is_file():
        named = _as_list(_mapping(options.read_text(encoding="utf-8")).get("model_name_or_path"))
    return named


def _of_hub(model: str) -> list[str]:
    def look() -> list[str]:
        try:
            return _of_card(Path(hf_hub_download(model, CARD)).read_text(encoding="utf-8", errors="replace"))
        except RemoteEntryNotFoundError:
            return []

    try:
        return insist(look, model)
    except HubError as error:
        raise HubError(
            f"the card of {model}, which names its base model, could not be read: {error} Or give the base model as --base.",
            error.passing,
        ) from error


def _of_card(text: str) -> list[str]:
    """The ``base_model`` of a card's front matter."""
    parts = text.split("---\n", 2)
    return _as_list(_mapping(parts[1]).get("base_model")) if len(parts) == 3 and not parts[0].strip() else []


def _mapping(text: str) -> dict:
    try:
        read = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return read if isinstance(read, dict) else {}


def _as_list(value) -> list[str]:
    return [value] if isinstance(value, str) and value else [str(name) for name in value] if value else []
