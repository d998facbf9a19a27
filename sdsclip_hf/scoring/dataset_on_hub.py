"""A finished folder of scores as a dataset on the Hub."""

from pathlib import Path

from huggingface_hub import CommitInfo

from sdsclip_hf.data.scores import SCORES_FILE
from sdsclip_hf.hub.attempts import HubError
from sdsclip_hf.hub.commits import push_folder
from sdsclip_hf.scoring.folder import CARD_FILE, DATA


def push_scores(folder: Path, dataset_id: str, private: bool) -> CommitInfo:
    """Put a finished folder on the Hub, in one commit.

    Raises:
        HubError: it could not be reached, or refused.
    """
    data = f"{DATA}/*.parquet"
    try:
        return push_folder(
            folder,
            dataset_id,
            repo_type="dataset",
            private=private or None,
            message="Scores of candidate captions",
            allow_patterns=[CARD_FILE, SCORES_FILE, data],
            delete_patterns=[data],
        )
    except HubError as error:
        raise HubError(
            f"{'the scores may be missing on the Hub' if error.unseen else 'could not put the scores on the Hub'}. {error} "
            f"They are whole in {folder}: give the same command again to push them.",
            error.passing,
            error.unseen,
        ) from error
