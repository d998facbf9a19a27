"""The folder of a run: each run gets its own, and nothing of an earlier one is lost."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sdsclip_hf.common.checkpoints import last_checkpoint, sweep_run
from sdsclip_hf.common.locks import LOCK_FILES, working_in
from sdsclip_hf.common.writing import remove
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
    _choose(config, name)
    _settle(data, config)


@contextmanager
def own_output_dir(data: DataArguments, config: SDSCLIPConfig, name: str) -> Iterator[None]:
    """[`claim_output_dir`], with the folder made, and for this process alone. It goes again where nothing comes into it.

    Of runs that choose a free name at the same moment each gets another one.

    Raises:
        ValueError: the folder holds another run.
        OSError: another process works there.
    """
    is_free = _choose(config, name)
    while is_free and not _made(Path(config.output_dir)):
        config.output_dir = None
        _choose(config, name)
    folder = Path(config.output_dir)
    is_new = is_free or _made(folder)
    try:
        with working_in(folder):
            sweep_run(folder, alone=True)
            _settle(data, config)
            yield
    finally:
        if is_new:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def clear(folder: Path) -> None:
    """Remove what is in a folder, but for what tells that this process works there."""
    for path in folder.iterdir():
        if path.name not in LOCK_FILES:
            remove(path)


def _choose(config: SDSCLIPConfig, name: str) -> bool:
    """Settle ``config.output_dir``; whether that is a name because nothing of it was there."""
    resume = config.resume_from_checkpoint
    if resume and not _wants_last(config) and not Path(resume).is_dir():
        raise ValueError(
            f"--resume_from_checkpoint {resume}: there is no such folder. Give a checkpoint-* folder, or last."
        )
    if config.output_dir is not None:
        return False
    folders = [Path("outputs") / (name if number == 1 else f"{name}-{number}") for number in range(1, 10_000)]
    taken = [folder for folder in folders if folder.exists()]
    if resume and not _wants_last(config):
        config.output_dir = str(Path(resume).parent)
    elif resume and taken:
        config.output_dir = str(taken[-1])
    else:
        config.output_dir = str(next(folder for folder in folders if not folder.exists()))
        return True
    return False


def _made(folder: Path) -> bool:
    """Make a folder; False where it was there."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def _settle(data: DataArguments, config: SDSCLIPConfig) -> None:
    """Settle ``config.resume_from_checkpoint`` by what is in the folder."""
    folder, resume = Path(config.output_dir), config.resume_from_checkpoint
    if resume:
        config.resume_from_checkpoint = last_checkpoint(folder) if _wants_last(config) else resume
        if config.resume_from_checkpoint is not None:
            return
        print(f"{folder} has no whole checkpoint yet: starting at step 0.", flush=True)
    if folder.exists() and any(_counts(path) for path in folder.iterdir()):
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


def _wants_last(config: SDSCLIPConfig) -> bool:
    return str(config.resume_from_checkpoint).lower() in ("true", "last")


def _counts(path: Path) -> bool:
    """Whether a file of the folder is the work of somebody."""
    return BAD_IMAGES_FILE not in path.name and path.name not in LOCK_FILES
