# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""Make a dataset of captioned or labelled pictures from Google's emoji, as npm ships them (emoji-datasource-google).

    npm pack emoji-datasource-google
    python recipes/emoji_to_dataset.py emoji-datasource-google-*.tgz --output_dir data/emoji
    accelerate launch recipes/finetune.py --config emoji

The unpacked folder, node_modules/emoji-datasource-google, will do as well. The result is an imagefolder with
train/, validation/ and test/, each with a metadata.jsonl that gives every picture a list of captions. With --label each
has a folder of pictures for every class instead, one of Unicode's groups:

    python recipes/emoji_to_dataset.py emoji-datasource-google-*.tgz --label category --output_dir data/emoji_groups
    sdsclip prompt-tune --dataset_name data/emoji_groups
"""

import argparse
import contextlib
import importlib
import json
import os
import random
import re
import shutil
import sys
import tarfile
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

PICTURES = "img/google/64/"
NEEDED = ("emoji.json", "package.json")
TONES = {"1F3FB": "light", "1F3FC": "medium-light", "1F3FD": "medium", "1F3FE": "medium-dark", "1F3FF": "dark"}
MADE_BY = "Made by `recipes/emoji_to_dataset.py`"
LABELS = ("category", "subcategory")
CAPTIONED = {
    "title": "Google emoji with captions",
    "tasks": "- zero-shot-image-classification\n- text-to-image",
    "has": "a list of captions made from\nits Unicode name and its short name",
    "columns": "`caption`, a list of strings; `name`; `category` and `subcategory`, Unicode's groups",
}
LABELLED = {
    "title": "Google emoji by {label}",
    "tasks": "- image-classification",
    "has": "one of {classes}\nclasses, Unicode's groups",
    "columns": "`label`, the {label}",
}
CARD = """\
---
pretty_name: {title}
license: apache-2.0
language: en
task_categories:
{tasks}
tags:
- emoji
---

# {title}

{rows:,} pictures of 64 x 64 pixels, most of them with a transparent background, each with {has}. {splits}.
Pictures of the same name stand in the same split (seed {seed}).

Columns: `image`; {columns}.

## Source and licence

{made_by} from npm's package {package}
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
    """One row a picture: ``file_name``, ``caption`` (a list), ``name``, ``category`` and ``subcategory``.

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
            about = {"name": name} | {label: entry[label] for label in LABELS}
            rows.append(_row(entry["image"], said, about))
            variants = entry.get("skin_variations", {}) if skin_tones else {}
            for code, variant in variants.items():
                if variant["has_img_google"]:
                    toned = [f"{wording} with {_tone(code)}" for wording in said]
                    rows.append(_row(variant["image"], toned, about))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"emoji.json is not as expected ({error!r}); give npm's emoji-datasource-google.") from error
    return rows


def _row(image: str, wordings: list[str], about: dict[str, str]) -> dict:
    captions = [caption for wording in wordings for caption in (f"an emoji of {wording}", wording)]
    return {"file_name": image, "caption": captions} | about


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


def split_classes(rows: list[dict], label: str, validation: float, test: float, seed: int) -> dict[str, list[dict]]:
    """As [`split_rows`], each class by itself, so that every split has pictures of it.

    Classes that have too few names for that are left out, which is printed.

    Raises:
        ValueError: the shares leave no name of a class for train.
    """
    parts: dict[str, list[dict]] = {}
    left_out = []
    for name in sorted({row[label] for row in rows}):
        of_class = [row for row in rows if row[label] == name]
        if len({row["name"] for row in of_class}) < 1 + (validation > 0) + (test > 0):
            left_out.append(name)
            continue
        for part, chosen in split_rows(of_class, validation, test, seed).items():
            parts.setdefault(part, []).extend(chosen)
    if left_out:
        print(f"Left out, with too few names for every split: {', '.join(left_out)}.", file=sys.stderr)
    return parts


def class_folder(name: str) -> str:
    """What the folder of a class is called, from which readers take its name: "smileys_and_emotion"."""
    return re.sub(r"\W+", "_", name.lower().replace("&", "and")).strip("_")


def write_dataset(
    folder: Path,
    parts: dict[str, list[dict]],
    files: dict[str, bytes],
    about: dict,
    seed: int,
    label: str | None = None,
) -> None:
    """Write pictures, metadata and card to an empty folder.

    Args:
        about: the package's package.json.
        label: make folders of classes by this field, in place of metadata.
    """
    for part, rows in parts.items():
        for row in rows:
            path = folder / part / (class_folder(row[label]) if label else "") / row["file_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(files[PICTURES + row["file_name"]])
        if label is None:
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / part / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    classes = len({row[label] for rows in parts.values() for row in rows}) if label else 0
    kind = {
        name: text.format(label=label, classes=classes) for name, text in (LABELLED if label else CAPTIONED).items()
    }
    card = CARD.format(
        **kind,
        made_by=MADE_BY,
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
    label: str | None = None,
    skin_tones: bool = False,
    validation: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, int]:
    """Convert the package, whole or not at all.

    Args:
        label: category or subcategory, to have folders of these classes; default: captions.

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
    shares = {"validation": validation, "test": test, "seed": seed}
    parts = split_classes(rows, label, **shares) if label else split_rows(rows, **shares)
    partial, replaced = (output_dir.with_name(f".{output_dir.name}.{kind}-{os.getpid()}") for kind in ("new", "old"))
    partial.mkdir(parents=True)
    try:
        write_dataset(partial, parts, files, about, seed, label)
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
    card = folder / "README.md"
    if not card.is_file() or MADE_BY not in card.read_text(encoding="utf-8", errors="replace"):
        raise ValueError(f"{folder} holds no dataset of this program, so --overwrite leaves it. Choose another folder.")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="The .tgz of emoji-datasource-google, or its unpacked folder.")
    parser.add_argument("--output_dir", type=Path, default=Path("emoji"), help="Folder of the dataset.")
    parser.add_argument("--label", choices=LABELS, help="Make folders of these classes, in place of captions.")
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
            label=args.label,
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
