"""Damage to a file of a saved dataset, parquet, an imagefolder or a tar, read whole or as a stream."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
from torch.utils.data import IterableDataset

from sdsclip_hf.data.loading import load_image_captions
from sdsclip_hf.data.streams import as_training_data
from sweeps import world
from sweeps.damage import damage

ROWS = 5


def write(folder: Path, form: str) -> None:
    data = world.pairs().select(range(ROWS))
    if form == "saved":
        data.save_to_disk(folder)
        return
    folder.mkdir()
    if form == "parquet":
        data.to_parquet(folder / "part-0.parquet")
        return
    lines, files = [], {}
    for number, row in enumerate(data):
        buffer = io.BytesIO()
        row["image"].save(buffer, "PNG")
        files[f"{number}.png"] = buffer.getvalue()
        files[f"{number}.txt"] = row["caption"].encode()
        lines.append(json.dumps({"file_name": f"{number}.png", "caption": row["caption"]}))
    if form == "imagefolder":
        for name, content in files.items():
            if name.endswith(".png"):
                (folder / name).write_bytes(content)
        (folder / "metadata.jsonl").write_text("\n".join(lines))
        return
    with tarfile.open(folder / "0.tar", "w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def trial(rng: np.random.Generator, folder: Path) -> str:
    form, streaming = str(rng.choice(["saved", "parquet", "imagefolder", "tar"])), bool(rng.integers(2))
    source = folder / "data"
    write(source, form)
    file = rng.choice(sorted(path for path in source.rglob("*") if path.is_file()))
    how = damage(file, rng)
    columns = {"image_column": "png", "caption_column": "txt"} if form == "tar" else {}
    try:
        data = as_training_data(load_image_captions(str(source), streaming=streaming), **columns)
        rows = list(data) if isinstance(data, IterableDataset) else [data[number] for number in range(len(data))]
    except (ValueError, OSError) as error:
        text = str(error)
        assert text and "\n" not in text.strip(), f"{form}, {file.name} {how}: {text!r}"
        assert not any(word in text for word in ("Traceback", "NoneType", "object at 0x")), text
        return "refused"
    finally:
        shutil.rmtree(source)
    assert 0 < len(rows) <= ROWS and all(row["image"].mode == "RGB" and row["caption"] for row in rows), how
    return "read"
