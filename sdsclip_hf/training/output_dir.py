"""The folder of a run: each run gets its own, and nothing of an earlier one is lost."""

from pathlib import Path

from sdsclip_hf.common.checkpoints import last_checkpoint
from sdsclip_hf.config import SDSCLIPConfig
from sdsclip_hf.data.images import BAD_IMAGES_FILE
from sdsclip_hf.training.arguments import DataArguments
from sdsclip_hf.training.hub_trainer import RUN_ARGUMENTS_FILE


def claim_output_dir(data: DataArguments, config: SDSCLIPConfig, name: str) -> None:
    """Settle ``config.output_dir`` and ``config.resume_from_checkpoint``, losing nothing of an earlier run.

    Without ``--output_dir`` each run gets a folder of its own: outputs/NAME, then outputs/NAME-2, and so on.

    Raises:
        ValueError: the folder holds another run.
    """
    resume = config.resume_from_checkpoint
    wants_last = str(resume).lower() in ("true", "last")
    if resume and not wants_last and not Path(resume).is_dir():
        raise ValueError(
            f"--resume_from_checkpoint {resume}: there is no such folder. Give a checkpoint-* folder, or last."
        )
    if config.output_dir is None:
        folders = [Path("outputs") / (name if number == 1 else f"{name}-{number}") for number in range(1, 10_000)]
        taken = [folder for folder in folders if folder.exists()]
        if resume and not wants_last:
            config.output_dir = str(Path(resume).parent)
        elif wants_last and taken:
            config.output_dir = str(taken[-1])
        else:
            config.output_dir = str(next(folder for folder in folders if not folder.exists()))
    folder = Path(config.output_dir)
    if resume:
        config.resume_from_checkpoint = last_checkpoint(folder) if wants_last else resume
        if config.resume_from_checkpoint is not None:
            return
        print(f"{folder} has no whole checkpoint yet: starting at step 0.", flush=True)
    if folder.exists() and any(BAD_IMAGES_FILE not in path.name for path in folder.iterdir()):
        if not (folder / RUN_ARGUMENTS_FILE).exists() and (data.overwrite_output_dir or not resume):
            raise ValueError(
                f"the output folder {folder} holds files that no run of this program wrote, and that none will delete. "
                "Choose another --output_dir."
            )
        if not data.overwrite_output_dir and not resume:
            raise ValueError(
                f"the output folder {folder} holds another run. Go on with it by --resume_from_checkpoint last, delete "
                "it by --overwrite_output_dir, or choose another --output_dir."
            )
