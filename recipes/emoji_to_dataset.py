# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""Make a dataset of captioned pictures from Google's emoji, as npm's package emoji-datasource-google ships them.

    npm pack emoji-datasource-google
    python recipes/emoji_to_dataset.py emoji-datasource-google-*.tgz --output_dir data/emoji
    accelerate launch recipes/finetune.py --config emoji

The unpacked folder, node_modules/emoji-datasource-google, will do as well. The result is an imagefolder with
train/, validation/ and test/, each with a metadata.jsonl that gives every picture a list of captions.
"""

import argparse
import contextlib
import importlib
import json
import os
import random
import re
import shutil
import tarfile
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

PICTURES = "img/google/64/"
NEEDED = ("emoji.json", "package.json")
TONES = {"1F3FB": "light", "1F3FC": "medium-light", "1F3FD": "medium", "1F3FE": "medium-dark", "1F3FF": "dark"}
CARD = """\
---
pretty_name: Google emoji with captions
license: apache-2.0
language: en
task_categories:
- zero-shot-image-classification
- text-to-image
tags:
- emoji
---

# Google emoji with captions

{rows:,} pictures of 64 x 64 pixels, most of them with a transparent background, each with a list of captions made from
its Unicode name and its short name. {splits}.
Pictures of the same name stand in the same split (seed {seed}).

Columns: `image`; `caption`, a list of strings; `name`; `category`, Unicode's group.

## Source and licence

Made by `recipes/emoji_to_dataset.py` from npm's package {package}
(https://github.com/iamcal/emoji-data).
The pictures are Google's Noto emoji, under the Apache License 2.0
(https://github.com/googlefonts/noto-emoji/blob/main/LICENSE). The names are from emoji-data, copyright 2013 Cal
Henderson, under the MIT License.
"""


def read_package(path: Path) -> dict[str, bytes]:
    """The files that are needed, by their path inside the package.

    Args:
        path: the .tgz or the unpacked folder.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not that package.
    """
    if path.is_dir():
        wanted = [path / name for name in NEEDED] + sorted(path.glob(f"{PICTURES}*.png"))
        files = {file.relative_to(path).as_posix(): file.read_bytes() for file in wanted if file.is_file()}
    else:
        try:
            with tarfile.open(path, "r:gz") as archive:
                members = ((member.name.partition("/")[2], member) for member in archive if member.isfile())
                files = {name: archive.extractfile(member).read() for name, member in members if _is_needed(name)}
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise OSError(
                f"{path} cannot be read as a .tgz ({error}); fetch it with `npm pack emoji-datasource-google`."
            ) from error
    missing = [name for name in NEEDED if name not in files]
    if not any(name.startswith(PICTURES) for name in files):
        missing.append(f"{PICTURES}*.png")
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}; give npm's package emoji-datasource-google.")
    return files


def _is_needed(name: str) -> bool:
    return name in NEEDED or re.fullmatch(rf"{PICTURES}[\w-]+\.png", name) is not None


def emoji_rows(entries: list[dict], skin_tones: bool = False) -> list[dict]:
    """One row a picture: ``file_name``, ``caption`` (a list), ``name`` and ``category``.

    Args:
        entries: of emoji.json.
        skin_tones: whether to add the variants in five skin tones.

    Raises:
        ValueError: an entry lacks a field.
    """
    try:
        kept = [entry for entry in entries if entry["has_img_google"] and entry["category"] != "Component"]
        wordings = {entry["unified"]: _wordings(entry) for entry in kept}
        used = Counter(wording for several in wordings.values() for wording in set(several))
        rows = []
        for entry in kept:
            name, *others = wordings[entry["unified"]]
            # A short name that others go by too ("dog" for both the dog's face and the dog) would be ambiguous.
            said = [name, *(other for other in others if used[other] == 1)]
            rows.append(_row(entry["image"], said, name, entry["category"]))
            variants = entry.get("skin_variations", {}) if skin_tones else {}
            for code, variant in variants.items():
                if variant["has_img_google"]:
                    toned = [f"{wording} with {_tone(code)}" for wording in said]
                    rows.append(_row(variant["image"], toned, name, entry["category"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"emoji.json is not as expected ({error!r}); give npm's emoji-datasource-google.") from error
    return rows


def _row(image: str, wordings: list[str], name: str, category: str) -> dict:
    captions = [caption for wording in wordings for caption in (f"an emoji of {wording}", wording)]
    return {"file_name": image, "caption": captions, "name": name, "category": category}


def _wordings(entry: dict) -> list[str]:
    """The name in lower case, and the short name where it is plain words."""
    short = re.sub("[_-]", " ", entry["short_name"].lower())
    words = entry["name"].lower().split()
    # Unicode means filled, outlined and bold by these words, not colour and weight: the HEAVY BLACK HEART is red.
    name = " ".join(word for word in words if word not in ("black", "white", "heavy") or word in short.split())
    is_code = entry["category"] == "Flags" or name.startswith("family:") or not re.fullmatch("[a-z ]{3,}", short)
    return [name] if is_code or short == name else [name, short]


def _tone(code: str) -> str:
    tones = list(dict.fromkeys(TONES[part] for part in code.split("-")))
    return f"{' and '.join(tones)} skin tone{'s' * (len(tones) > 1)}"


def merge_same_pictures(rows: list[dict], files: dict[str, bytes]) -> list[dict]:
    """One row for pictures that are alike to the byte, as the flags of France and of Clipperton, with all captions.

    Raises:
        ValueError: a picture is missing in the package.
    """
    merged: dict[bytes, dict] = {}
    for row in rows:
        picture = files.get(PICTURES + row["file_name"])
        if picture is None:
            raise ValueError(
                f"the package has no picture {PICTURES}{row['file_name']} of {row['name']!r}; fetch it again."
            )
        first = merged.setdefault(picture, row)
        first["caption"] = list(dict.fromkeys(first["caption"] + row["caption"]))
    return list(merged.values())


def split_rows(rows: list[dict], validation: float, test: float, seed: int) -> dict[str, list[dict]]:
    """Deal the rows out to train, validation and test; those of one name stay together.

    Args:
        validation, test: shares of the names, from 0 to 1.

    Raises:
        ValueError: the shares leave no name for train.
    """
    names = sorted({row["name"] for row in rows})
    random.Random(seed).shuffle(names)
    sizes = [max(1, round(share * len(names))) if share > 0 else 0 for share in (validation, test)]
    if min(validation, test) < 0 or sum(sizes) >= len(names):
        raise ValueError(
            f"shares {validation} for validation and {test} for test leave none of {len(names)} names for train; "
            "choose shares from 0 that sum to less than 1."
        )
    first, second = sizes[0], sum(sizes)
    split_of = {name: "validation" if i < first else "test" if i < second else "train" for i, name in enumerate(names)}
    parts = {part: [row for row in rows if split_of[row["name"]] == part] for part in ("train", "validation", "test")}
    return {part: chosen for part, chosen in parts.items() if chosen}


def write_dataset(folder: Path, parts: dict[str, list[dict]], files: dict[str, bytes], about: dict, seed: int) -> None:
    """Write pictures, metadata and card to an empty folder; ``about`` is the package's package.json."""
    for part, rows in parts.items():
        (folder / part).mkdir()
        for row in rows:
            (folder / part / row["file_name"]).write_bytes(files[PICTURES + row["file_name"]])
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / part / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    card = CARD.format(
        rows=sum(map(len, parts.values())),
        splits=", ".join(f"{part.capitalize()}: {len(rows):,}" for part, rows in parts.items()),
        seed=seed,
        package=f"{about.get('name')} {about.get('version')}",
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def convert(
    package: Path,
    output_dir: Path,
    *,
    skin_tones: bool = False,
    validation: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, int]:
    """Convert the package, whole or not at all.

    Returns:
        How many rows each split has.

    Raises:
        OSError: the package cannot be read, or the output not be written.
        ValueError: it is not that package, or the output folder holds something.
    """
    _check_output(output_dir, overwrite)
    files = read_package(package)
    try:
        entries, about = (json.loads(files[name]) for name in NEEDED)
    except ValueError as error:
        raise ValueError(f"{' or '.join(NEEDED)} in {package} is no JSON ({error}); fetch it again.") from error
    rows = merge_same_pictures(emoji_rows(entries, skin_tones), files)
    parts = split_rows(rows, validation, test, seed)
    partial, replaced = (output_dir.with_name(f".{output_dir.name}.{kind}-{os.getpid()}") for kind in ("new", "old"))
    partial.mkdir(parents=True)
    try:
        write_dataset(partial, parts, files, about, seed)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if output_dir.exists():
        output_dir.rename(replaced)
    partial.rename(output_dir)
    shutil.rmtree(replaced, ignore_errors=True)
    return {part: len(rows) for part, rows in parts.items()}


def _check_output(folder: Path, overwrite: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise ValueError(f"{folder} is not empty. Choose another --output_dir, or replace it by --overwrite.")
    if not (folder / "train" / "metadata.jsonl").is_file():
        raise ValueError(f"{folder} holds no dataset of this program, so --overwrite leaves it. Choose another folder.")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="The .tgz of emoji-datasource-google, or its unpacked folder.")
    parser.add_argument("--output_dir", type=Path, default=Path("emoji"), help="Folder of the dataset.")
    parser.add_argument("--skin_tones", action="store_true", help="Add the variants in five skin tones.")
    parser.add_argument("--validation_share", type=float, default=0.1, help="Share of the names for validation.")
    parser.add_argument("--test_share", type=float, default=0.1, help="Share of the names for test.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the split.")
    parser.add_argument("--overwrite", action="store_true", help="Replace the dataset that --output_dir holds.")
    args = parser.parse_args(argv)
    try:
        counts = convert(
            args.package,
            args.output_dir,
            skin_tones=args.skin_tones,
            validation=args.validation_share,
            test=args.test_share,
            seed=args.seed,
            overwrite=args.overwrite,
        )
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    with contextlib.suppress(ImportError):  # as every recipe does where the package is installed
        importlib.import_module("sdsclip_hf.metrics.install").install_quietly()
    print(f"{args.output_dir}: {', '.join(f'{count} {part}' for part, count in counts.items())} rows.")


if __name__ == "__main__":
    main()
