"""What the Spaces that the package makes have in common: finding out what a name on the Hub holds already."""

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from sdsclip_hf.hub.attempts import insist
from sdsclip_hf.hub.commits import check_repo_id

EMPTY = {".gitattributes", "README.md"}  # what the Hub itself puts into a new Space
STALE = ("*", "*/*")  # all of it, at the top and below


def check_space(space: str, mark: str, what: str, force: bool = False, token: str | None = None) -> None:
    """Refuse a Space whose files a push would replace, although they are not of its kind.

    Args:
        space: NAMESPACE/NAME; it need not exist.
        mark: a file that every Space of the kind has.
        what: the kind, as errors call it.
        force: nothing is refused.
        token: default: that of the login.

    Raises:
        ValueError: the name cannot be one, or the Space holds something else.
        OSError: it could not be looked at.
    """
    check_repo_id(space)
    if space.count("/") != 1:
        raise ValueError(f"{space!r} names no namespace; give it as NAMESPACE/NAME.")
    if force:
        return

    def look() -> set[str]:
        try:
            return set(HfApi(token=token).list_repo_files(space, repo_type="space"))
        except RepositoryNotFoundError:
            return set()

    files = insist(look, space)
    if mark not in files and not files <= EMPTY:
        held = ", ".join(sorted(files - EMPTY)[:3])
        raise ValueError(
            f"the Space {space} holds something other than {what}: it has {held} and no {mark}. Give another name, or "
            "--force to replace its files (they stay in its history)."
        )
