"""Whether the run may push where it is told to; nothing is made there."""

from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from sdsclip_hf.doctor.case import Case
from sdsclip_hf.doctor.findings import Finding, Trouble
from sdsclip_hf.doctor.hub_access import TIMEOUT, Hub, role
from sdsclip_hf.hub.commits import check_holds_clip, check_login, check_repo_id


def check_push(case: Case, hub: Hub) -> Iterator[Finding]:
    """The repository that the run pushes to, or the right to make it."""
    config = case.config
    if not config.push_to_hub:
        return
    check_login(config.hub_token)
    name = config.hub_model_id or Path(config.output_dir).absolute().name
    check_repo_id(name)
    if hub.token is False and not config.hub_token:
        yield Finding("warn", "push", f"{name}: not looked at, since the Hub refuses the token.", "Mend that first.")
        return
    known = hub.who(config.hub_token) if hub.unreachable is None else {}
    if hub.unreachable is not None:
        raise Trouble(
            f"{name} cannot be pushed to: {hub.unreachable}.",
            "Connect to the network, or train without --push_to_hub and push afterwards with `sdsclip push`.",
        )
    full = name if "/" in name else f"{known['name']}/{name}"
    api = HfApi(token=config.hub_token or hub.token)
    may_not = Trouble(
        f"{known['name']} may not write to {full} by this token, which is one to {role(known)}.",
        f"Use one to write ({constants.ENDPOINT}/settings/tokens), or a --hub_model_id in a namespace of your own.",
    )
    try:
        api.repo_info(full, timeout=TIMEOUT)
    except GatedRepoError:
        raise may_not from None
    except RepositoryNotFoundError:
        spaces = {known["name"], *(one["name"] for one in known.get("orgs", []))}
        if full.split("/")[0] not in spaces or role(known) == "read":
            raise may_not from None
        yield Finding("ok", "push", f"{full}: the first push will make it")
        return
    try:
        api.auth_check(full, write=True)
    except HfHubHTTPError:
        raise may_not from None
    if not config.hub_force:
        check_holds_clip(full, token=config.hub_token)
    yield Finding("ok", "push", f"{full}: it is there, and this token may write to it")
