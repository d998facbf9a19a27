"""Putting the metrics on the Hub, each as the Space from which ``evaluate.load("ORG/NAME")`` takes it."""

from pathlib import Path

from sdsclip_hf.hub.commits import check_repo_id, push_folder
from sdsclip_hf.hub.spaces import STALE, check_space
from sdsclip_hf.metrics import path


def check_org(org: str) -> None:
    """Raise ValueError unless ``org`` is a name that an organisation or user can have."""
    try:
        check_repo_id(f"{org}/metric")
    except ValueError as error:
        raise ValueError(
            f"--org {org!r} is no name on the Hub; give that of an organisation or user alone, as in --org my-name."
        ) from error


def push(name: str, org: str, *, private: bool = False, force: bool = False, token: str | None = None) -> str:
    """Create or update the Space of a metric: then it holds the metric's folder, and nothing else.

    Args:
        name: of the metric.
        org: the organisation or user whose Space it is.
        private: whether a new Space is private.
        force: replace what is there, even if it is not this metric.
        token: default: that of the login.

    Returns:
        The commit's address.

    Raises:
        ValueError: there is no such metric, or no token, or the Space holds something else.
        OSError: the Hub could not be reached, or refused.
    """
    folder, space = Path(path(name)), f"{org}/{name}"
    check_space(space, f"{name}.py", f"the metric {name}", force, token)
    return push_folder(
        folder,
        space,
        repo_type="space",
        message=f"The metric {name}",
        token=token,
        private=private or None,
        allow_patterns=sorted(file.name for file in folder.iterdir()),
        delete_patterns=STALE,
        space_sdk="gradio",
    ).commit_url
