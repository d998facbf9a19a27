"""The teacher's prompts of a dataset's captions, encoded once, kept on disk and read from there as they are needed."""

import hashlib
import json
import logging
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import datasets
import pyarrow as pa
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors.torch import load, save
from tqdm.auto import tqdm

from sdsclip_hf.common.checkpoints import fingerprint
from sdsclip_hf.common.errors import read_json
from sdsclip_hf.common.writing import sweep, whole_file, write_json
from sdsclip_hf.teachers.conditions import Conditions, joined, row_of
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
SETTINGS_FILE = "prompts.json"
CHUNK = 256  # captions of a file; of the largest teachers one takes 16 MB
SCHEMA = pa.schema({"caption": pa.string(), "prompt": pa.binary(), "checksum": pa.uint32()})


class PromptCache:
    """Reads from the memory-mapped Arrow files that [`build`] wrote what the denoiser is told of captions.

    A row is a caption, its tensors in the safetensors format without their masked places, and a checksum of those bytes.

    Args:
        folder: of a finished cache.

    Raises:
        OSError: the folder holds none.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        settings = json.loads((self.folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        self.mask = settings["mask"]
        chunks = [_chunk(self.folder, number) for number in range(-(-settings["captions"]["count"] // CHUNK))]
        missing = [path.name for path in chunks if not path.is_file()]
        if missing:
            raise OSError(
                f"the prompts in {self.folder} lack {missing[0]}; all processes must see one folder. Give another "
                "--prompt_cache_dir."
            )
        self.data = datasets.concatenate_datasets([datasets.Dataset.from_file(str(path)) for path in chunks])
        self.row_of = {caption: row for row, caption in enumerate(self.data["caption"])}

    @classmethod
    @torch.no_grad()
    def build(
        cls, folder: str | Path, teacher: DiffusionTeacher, captions: Iterable[str], batch_size: int = 64
    ) -> "PromptCache":
        """The cache of some captions, made as far as it is not there; to be called by all processes, which share the work.

        A cache of another teacher, tokenizer or set of captions is told, and made anew.

        Args:
            folder: receives ``prompts.json`` and the Arrow files. All processes must see it.
            teacher: encodes; its dtype is the cache's.
            captions: those that will be asked for.
            batch_size: captions encoded at once.

        Raises:
            ValueError: the folder holds Arrow files that are no such cache.
        """
        folder, state = Path(folder), PartialState()
        captions = list(dict.fromkeys(captions))
        missing = None
        if state.is_main_process:
            _claim(folder, _settings(teacher, captions))
            missing = [n for n in range(-(-len(captions) // CHUNK)) if not _is_whole(folder, n, len(captions))]
        missing = broadcast_object_list([missing])[0]
        mine = missing[state.process_index :: state.num_processes]
        for number in tqdm(mine, "encoding captions", disable=None if state.is_main_process and mine else True):
            part = captions[number * CHUNK : (number + 1) * CHUNK]
            rows = []
            for start in range(0, len(part), batch_size):
                prompts = teacher.encode_captions(part[start : start + batch_size])
                count = len(part[start : start + batch_size])
                rows += [save(row_of(prompts, row, teacher.family.mask)) for row in range(count)]
            columns = {"caption": part, "prompt": rows, "checksum": [zlib.crc32(row) for row in rows]}
            _write_whole(pa.table(columns, SCHEMA), _chunk(folder, number))
        state.wait_for_everyone()
        return cls(folder)

    def __call__(self, captions: Sequence[str]) -> Conditions:
        """What the denoiser is told of N captions, as [`DiffusionTeacher.encode_captions`] gave it.

        Raises:
            ValueError: a caption is not in the cache, or its bytes are not those that were written.
        """
        unknown = [caption for caption in captions if caption not in self.row_of]
        if unknown:
            raise ValueError(
                f"the prompts in {self.folder} lack the caption {unknown[0]!r:.200}: they were made of other captions. Give "
                "another --prompt_cache_dir, or none."
            )
        rows = [self.row_of[caption] for caption in captions]
        stored = self.data[rows]
        for row, prompt, checksum in zip(rows, stored["prompt"], stored["checksum"], strict=True):
            if zlib.crc32(prompt) != checksum:
                path = _chunk(self.folder, row // CHUNK)
                raise ValueError(f"{path} is not what was written: delete it, and the same command makes it anew.")
        return joined([load(prompt) for prompt in stored["prompt"]], self.mask)


def _settings(teacher: DiffusionTeacher, captions: Sequence[str]) -> dict:
    """What decides the prompts."""
    tokenizers = []
    for tokenizer in teacher.tokenizers.values():
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        padding = [tokenizer.model_max_length, tokenizer.pad_token]
        tokenizers.append(backend | {"truncation": None, "padding": padding})  # in place of those of the last call
    encoders = teacher.text_encoders
    return {
        "sdsclip_hf_format": FORMAT_VERSION,
        "dtype": str(next(iter(encoders.values())).dtype).removeprefix("torch."),
        "teacher": {
            "name": teacher.name_or_path,
            "text_encoder": "+".join(fingerprint(encoder) for encoder in encoders.values()),
        },
        "tokenizer": hashlib.sha256(json.dumps(tokenizers).encode()).hexdigest()[:16],
        "family": [type(teacher.family).__name__, teacher.family.version],
        "captions": {"count": len(captions), "sha256": hashlib.sha256(repr(captions).encode()).hexdigest()[:16]},
        "mask": teacher.family.mask,
    }


def _claim(folder: Path, settings: dict) -> None:
    """Make the folder that of a cache by ``settings``; what it holds by others goes."""
    path, parts = folder / SETTINGS_FILE, list(folder.glob("*.arrow"))
    if not path.is_file() and parts:
        raise ValueError(f"{folder} holds {parts[0].name}, which is no prompt; choose another --prompt_cache_dir.")
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    then = _read(path) if path.is_file() else settings
    changed = [name for name, value in settings.items() if then.get(name) != value]
    if then.get("teacher", {}).get("text_encoder") == settings["teacher"]["text_encoder"]:
        changed = [name for name in changed if name != "teacher"]  # the same by another name
    if changed:
        logger.warning(
            "the prompts in %s are of another %s (%.200r, not %.200r): they are made anew.",
            folder,
            changed[0],
            then.get(changed[0]),
            settings[changed[0]],
        )
        for part in parts:
            part.unlink()
    write_json(path, settings)


def _read(path: Path) -> dict:
    """What a file of settings holds; nothing where it is damaged, so that the cache is made anew."""
    try:
        return read_json(path, "")
    except ValueError:
        return {}


def _is_whole(folder: Path, number: int, captions: int) -> bool:
    """Whether a file is there and has its rows, of so many captions in all; one that has not is told and removed."""
    path, rows = _chunk(folder, number), min(CHUNK, captions - number * CHUNK)
    if not path.is_file():
        return False
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
            is_whole = reader.read_all().num_rows == rows
    except (pa.ArrowException, OSError):
        is_whole = False
    if not is_whole:
        logger.warning(f"{path} is not what was written: it is made anew.")
        path.unlink()
    return is_whole


def _chunk(folder: Path, number: int) -> Path:
    return folder / f"prompts-{number:06d}.arrow"


def _write_whole(table: pa.Table, path: Path) -> None:
    with (
        whole_file(path, table.nbytes) as partial,
        pa.OSFile(str(partial), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as writer,
    ):
        writer.write_table(table)
