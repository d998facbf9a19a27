"""The converter of npm's emoji package, on a made package of a dozen pictures."""

import importlib.util
import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
from folders import contents
from PIL import Image

from sdsclip_hf.data.loading import load_image_captions
from sdsclip_hf.data.streams import as_training_data
from sdsclip_hf.prompts.data.sources import load_labelled

SCRIPT = Path(__file__).parents[2] / "recipes" / "emoji_to_dataset.py"
_spec = importlib.util.spec_from_file_location("emoji_to_dataset", SCRIPT)
emoji = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(emoji)


def entry(code: str, name: str, short: str, category: str = "Objects", tones: tuple[str, ...] = (), **fields) -> dict:
    variants = {
        tone: {"image": f"{code}-{tone}.png".lower(), "has_img_google": tone != "1F3FD", "unified": f"{code}-{tone}"}
        for tone in tones
    }
    entry = {"unified": code, "name": name, "short_name": short, "short_names": [short], "category": category}
    entry |= {"subcategory": f"{category.split()[0].lower()}-{len(name) % 2}"}
    entry |= {"image": f"{code.lower()}.png", "has_img_google": True, **fields}
    return entry | ({"skin_variations": variants} if tones else {})


ENTRIES = [
    entry("1F600", "GRINNING FACE", "grinning", "Smileys & Emotion"),
    entry("1F436", "DOG FACE", "dog", "Animals & Nature"),
    entry("1F415", "DOG", "dog2", "Animals & Nature"),
    entry("2764", "HEAVY BLACK HEART", "heart", "Smileys & Emotion"),
    entry("1F408", "BLACK CAT", "black_cat", "Animals & Nature"),
    entry("1F1EB", "France Flag", "fr", "Flags"),
    entry("1F1EA", "Clipperton Island Flag", "flag-cp", "Flags"),
    entry("1F44D", "THUMBS UP SIGN", "+1", "People & Body", ("1F3FB", "1F3FD", "1F3FF")),
    entry("1F46D", "WOMEN HOLDING HANDS", "two-women", "People & Body", ("1F3FB-1F3FE",)),
    entry("1F935", "MAN IN TUXEDO", "man_in_tuxedo", "People & Body"),
    entry("1F936", "MAN IN TUXEDO", "person_in_tuxedo", "People & Body"),
    entry("1F46A", "FAMILY: MAN, BOY, BOY", "man-boy-boy", "People & Body"),
    entry("1F642", "SLIGHTLY SMILING FACE", "smile", "Smileys & Emotion"),
    entry("1F604", "SMILING FACE WITH OPEN MOUTH", "smile", "Smileys & Emotion"),
    entry("1F3FB", "EMOJI MODIFIER FITZPATRICK TYPE-1-2", "skin-tone-2", "Component"),
    entry("1F999", "DRAWN BY OTHERS ALONE", "others", has_img_google=False),
]
SAME_PICTURE = {"1f1ea.png": "1f1eb.png"}
PICTURES_WRITTEN = len(ENTRIES) - 3  # without the swatch, the one that Google has not drawn, and one that comes twice


def png(name: str) -> bytes:
    seed = list(SAME_PICTURE.get(name, name).encode())
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(buffer, "PNG")
    return buffer.getvalue()


def package_files(entries: list[dict] = ENTRIES) -> dict[str, bytes]:
    drawn = [*entries, *(variant for row in entries for variant in row.get("skin_variations", {}).values())]
    names = [row["image"] for row in drawn if row["has_img_google"]]
    about = {"name": "emoji-datasource-google", "version": "1.2.3"}
    files = {"package.json": json.dumps(about).encode(), "emoji.json": json.dumps(entries).encode()}
    files |= {f"img/google/64/{name}": png(name) for name in names}
    return files | {"img/google/sheets/64.png": b"not wanted", "README.md": b"not wanted"}


def write_archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


@pytest.fixture
def archive(tmp_path) -> Path:
    return write_archive(tmp_path / "emoji-datasource-google-1.2.3.tgz", package_files())


def metadata(folder: Path) -> dict[str, list[dict]]:
    paths = sorted(folder.glob("*/metadata.jsonl"))
    return {path.parent.name: [json.loads(line) for line in path.read_text().splitlines()] for path in paths}


def captions(folder: Path) -> dict[str, list[str]]:
    return {row["file_name"]: row["caption"] for rows in metadata(folder).values() for row in rows}


def test_the_archive_and_its_unpacked_folder_give_the_same_dataset(archive, tmp_path):
    folder = write_folder(tmp_path / "node_modules" / "emoji-datasource-google", package_files())
    counts = emoji.convert(archive, tmp_path / "one")
    assert emoji.convert(folder, tmp_path / "two") == counts
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert sum(counts.values()) == PICTURES_WRITTEN


def test_every_picture_stands_in_one_split_with_its_bytes_unchanged(archive, tmp_path):
    emoji.convert(archive, tmp_path / "out")
    written = list((tmp_path / "out").rglob("*.png"))
    assert sorted(path.name for path in written) == sorted(captions(tmp_path / "out"))
    assert all(path.read_bytes() == png(path.name) for path in written)


def test_captions_come_from_the_name_and_from_a_short_name_of_plain_words(archive, tmp_path):
    emoji.convert(archive, tmp_path / "out")
    said = captions(tmp_path / "out")
    assert said["1f600.png"] == ["an emoji of grinning face", "grinning face", "an emoji of grinning", "grinning"]
    assert said["1f44d.png"] == ["an emoji of thumbs up sign", "thumbs up sign"]


def test_unicode_s_words_for_filled_and_bold_are_left_out_unless_they_tell_the_colour(archive, tmp_path):
    emoji.convert(archive, tmp_path / "out")
    said = captions(tmp_path / "out")
    assert said["2764.png"] == ["an emoji of heart", "heart"]
    assert said["1f408.png"] == ["an emoji of black cat", "black cat"]


def test_short_names_that_are_codes_or_lists_are_left_out(archive, tmp_path):
    emoji.convert(archive, tmp_path / "out")
    said = captions(tmp_path / "out")
    assert said["1f46a.png"] == ["an emoji of family: man, boy, boy", "family: man, boy, boy"]
    assert not any("flag cp" in caption or caption == "fr" for several in said.values() for caption in several)


def test_a_short_name_that_others_go_by_too_is_left_out(archive, tmp_path):
    emoji.convert(archive, tmp_path / "out")
    said = captions(tmp_path / "out")
    assert said["1f642.png"] == ["an emoji of slightly smiling face", "slightly smiling face"]
    assert said["1f436.png"] == ["an emoji of dog face", "dog face"]
    assert said["1f415.png"] == ["an emoji of dog", "dog"]


def test_a_picture_that_comes_twice_is_one_row_with_all_captions(archive, tmp_path):
    emoji.convert(archive, tmp_path / "out")
    said = captions(tmp_path / "out")
    assert "1f1ea.png" not in said
    assert {"france flag", "clipperton island flag"} < set(said["1f1eb.png"])


def test_skin_tones_are_left_out_unless_asked_for(archive, tmp_path):
    emoji.convert(archive, tmp_path / "plain")
    emoji.convert(archive, tmp_path / "toned", skin_tones=True)
    plain, toned = captions(tmp_path / "plain"), captions(tmp_path / "toned")
    assert set(toned) - set(plain) == {"1f44d-1f3fb.png", "1f44d-1f3ff.png", "1f46d-1f3fb-1f3fe.png"}
    assert "thumbs up sign with light skin tone" in toned["1f44d-1f3fb.png"]
    assert "women holding hands with light and medium-dark skin tones" in toned["1f46d-1f3fb-1f3fe.png"]


def many(count: int) -> list[dict]:
    """Rows of ``count`` names, three of each."""
    return [{"file_name": f"{number}-{i}.png", "name": f"name {number}"} for number in range(count) for i in range(3)]


def test_shares_of_the_names_go_to_each_split():
    parts = emoji.split_rows(many(50), validation=0.1, test=0.2, seed=0)
    assert {part: len(rows) for part, rows in parts.items()} == {"train": 105, "validation": 15, "test": 30}
    few = emoji.split_rows(many(4), validation=0.1, test=0.1, seed=0)
    assert {part: len(rows) for part, rows in few.items()} == {"train": 6, "validation": 3, "test": 3}
    without = emoji.split_rows(many(50), validation=0, test=0.1, seed=0)
    assert {part: len(rows) for part, rows in without.items()} == {"train": 135, "test": 15}


def test_no_name_stands_in_two_splits(archive, tmp_path):
    parts = emoji.split_rows(many(50), validation=0.3, test=0.3, seed=0)
    names = [{row["name"] for row in rows} for rows in parts.values()]
    assert len(set.union(*names)) == sum(map(len, names)) == 50
    for seed in range(5):
        emoji.convert(archive, tmp_path / str(seed), skin_tones=True, validation=0.3, test=0.3, seed=seed)
        said = [{c for row in rows for c in row["caption"]} for rows in metadata(tmp_path / str(seed)).values()]
        assert len(said) == 3 and len(set.union(*said)) == sum(map(len, said))


def test_the_seed_tells_the_split():
    def tests(seed: int) -> set[str]:
        return {row["name"] for row in emoji.split_rows(many(50), 0.1, 0.2, seed)["test"]}

    assert tests(1) == tests(1) != tests(2)
    backwards = emoji.split_rows(many(50)[::-1], 0.1, 0.2, 1)["test"]
    assert {row["name"] for row in backwards} == tests(1)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.9, 0.9), (-0.1, 0.1)])
def test_shares_that_leave_no_training_rows_are_an_error(shares):
    with pytest.raises(ValueError, match=f"{shares[0]} for validation and {shares[1]} for test"):
        emoji.split_rows(many(10), *shares, seed=0)


def test_the_package_reads_what_is_written(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    counts = emoji.convert(archive, tmp_path / "out")
    for part, count in counts.items():
        source = load_image_captions(str(tmp_path / "out"), split=part)
        assert len(source) == count
        assert source.features["caption"] == datasets.List(datasets.Value("string"))
        rows = {row["file_name"]: row for row in metadata(tmp_path / "out")[part]}
        dataset = as_training_data(source)
        by_file = {Path(cell["path"]).name: number for number, cell in enumerate(dataset.source["image"])}
        assert set(by_file) == set(rows)
        for name, number in by_file.items():
            values = np.asarray(Image.open(io.BytesIO(png(name)))).astype(float)
            on_white = (values[..., :3] * values[..., 3:] + 255 * (255 - values[..., 3:])) / 255
            assert np.abs(np.asarray(dataset[number]["image"]) - on_white).max() <= 1
            assert dataset[number]["caption"] in rows[name]["caption"]


@pytest.fixture
def grouped(tmp_path) -> Path:
    """A package of two categories with three subcategories of four, six and eight names, and of a flag."""
    groups = {
        ("Food & Drink", "food-fruit"): 4,
        ("Food & Drink", "drink"): 6,
        ("Symbols", "arrow"): 8,
        ("Flags", "flag"): 1,
    }
    entries = [
        entry(f"1F{place}{number:02}", f"{group[1]} NUMBER {number}", "x", group[0], subcategory=group[1])
        for place, (group, count) in enumerate(groups.items())
        for number in range(count)
    ]
    return write_archive(tmp_path / "grouped.tgz", package_files(entries))


@pytest.mark.parametrize(
    ("label", "classes"),
    [
        ("category", {"food and drink": (8, 1, 1), "symbols": (6, 1, 1)}),
        ("subcategory", {"arrow": (6, 1, 1), "drink": (4, 1, 1), "food fruit": (2, 1, 1)}),
    ],
)
def test_groups_are_classes_that_prompt_tuning_reads(label, classes, grouped, tmp_path, monkeypatch, capsys):
    """Every split has pictures of all classes; a class of one name is left out. Captions may take the folder's place."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    emoji.main([str(grouped), "--label", label, "--output_dir", str(tmp_path / "out")])
    told = capsys.readouterr()
    assert f"every split: {'Flags' if label == 'category' else 'flag'}.\n" in told.err
    for place, part in enumerate(("train", "validation", "test")):
        loaded = load_labelled(str(tmp_path / "out"), part)
        names = loaded.features["label"].names
        assert names == list(classes) and loaded.column_names == ["image", "label"]
        assert Counter(names[label] for label in loaded["label"]) == {name: n[place] for name, n in classes.items()}
    card = (tmp_path / "out/README.md").read_text()
    first = f"# Google emoji by {label}\n\n18 pictures of 64 x 64"
    assert first in card and f"one of {len(classes)}\nclasses" in card
    emoji.convert(grouped, tmp_path / "out", overwrite=True)
    assert not list((tmp_path / "out/train").glob("*/")) and len(captions(tmp_path / "out")) == 19


def test_the_card_tells_source_licence_and_sizes(archive, tmp_path):
    emoji.convert(archive, tmp_path / "out", seed=3)
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\n") and "license: apache-2.0" in card
    assert "emoji-datasource-google 1.2.3" in card and "Noto" in card and "MIT License" in card
    sizes = {part: len(rows) for part, rows in metadata(tmp_path / "out").items()}
    assert f"{PICTURES_WRITTEN} pictures" in card and "seed 3" in card
    assert f"Train: {sizes['train']}, Validation: {sizes['validation']}, Test: {sizes['test']}." in card


def test_a_folder_that_holds_something_is_left_as_it_is(archive, tmp_path):
    output = write_folder(tmp_path / "out", {"mine.txt": b"precious"})
    with pytest.raises(ValueError, match=r"out is not empty.*--overwrite"):
        emoji.convert(archive, output)
    with pytest.raises(ValueError, match="holds no dataset of this program"):
        emoji.convert(archive, output, overwrite=True)
    assert contents(output) == {"mine.txt": b"precious"}


def test_an_empty_folder_is_filled_and_an_earlier_dataset_replaced_when_asked(archive, tmp_path):
    (tmp_path / "out").mkdir()
    emoji.convert(archive, tmp_path / "out", skin_tones=True)
    before = contents(tmp_path / "out")
    with pytest.raises(ValueError, match="--overwrite"):
        emoji.convert(archive, tmp_path / "out")
    assert contents(tmp_path / "out") == before
    emoji.convert(archive, tmp_path / "out", overwrite=True)
    assert len(captions(tmp_path / "out")) == PICTURES_WRITTEN
    assert {path.name for path in tmp_path.iterdir()} == {archive.name, "out"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failure_half_way_leaves_everything_as_it_was(overwrite, archive, tmp_path, monkeypatch):
    if overwrite:
        emoji.convert(archive, tmp_path / "out")
    before = contents(tmp_path)
    whole_write = Path.write_text

    def fail_at_the_test_part(path, *args, **options):
        if path.parent.name == "test":
            raise OSError("No space left on device")
        return whole_write(path, *args, **options)

    monkeypatch.setattr(Path, "write_text", fail_at_the_test_part)
    with pytest.raises(OSError, match="No space left"):
        emoji.convert(archive, tmp_path / "out", overwrite=overwrite)
    assert contents(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir()} == {archive.name} | ({"out"} if overwrite else set())


@pytest.mark.parametrize("missing", ["emoji.json", "package.json", "img/google/64/"])
@pytest.mark.parametrize("write", [write_archive, write_folder])
def test_a_package_without_a_part_is_an_error_that_names_it(write, missing, tmp_path):
    files = {name: data for name, data in package_files().items() if not name.startswith(missing)}
    with pytest.raises(ValueError, match=f"given.tgz has no .*{missing}.*emoji-datasource-google"):
        emoji.convert(write(tmp_path / "given.tgz", files), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_picture_is_an_error_that_names_it(tmp_path):
    files = {name: data for name, data in package_files().items() if not name.endswith("/1f600.png")}
    with pytest.raises(ValueError, match=r"no picture img/google/64/1f600\.png of 'grinning face'"):
        emoji.convert(write_archive(tmp_path / "given.tgz", files), tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"[{", "is no JSON"),
        (b'[{"name": "X"}]', "not as expected"),
        (b'{"a": 1}', "not as expected"),
        (b"3", "not as"),
    ],
)
def test_a_spoiled_emoji_json_is_an_error(content, told, tmp_path):
    with pytest.raises(ValueError, match=f"emoji.json.*{told}"):
        emoji.convert(write_archive(tmp_path / "a.tgz", package_files() | {"emoji.json": content}), tmp_path / "out")


def test_a_picture_outside_its_folder_is_not_taken(tmp_path):
    evil = "img/google/64/../../../../../evil.png"
    entries = [*ENTRIES, entry("1F480", "SKULL", "skull", image="../../../../../evil.png")]
    files = package_files(entries)
    assert evil in files
    with pytest.raises(ValueError, match="has no picture"):
        emoji.convert(write_archive(tmp_path / "a.tgz", files), tmp_path / "out")


def test_what_is_no_whole_archive_is_an_error_that_tells_how_to_fetch_it(archive, tmp_path):
    whole = archive.read_bytes()
    spoiled = {"cut": whole[:800], "text": b"words", "mixed": whole[:500] + bytes(range(256)) * 8 + whole[2548:]}
    paths = [tmp_path / f"{name}.tgz" for name in spoiled]
    for path, data in zip(paths, spoiled.values(), strict=True):
        path.write_bytes(data)
    for path in (*paths, tmp_path / "absent.tgz"):
        with pytest.raises(OSError, match=rf"{path.name} .*npm pack emoji-datasource-google"):
            emoji.convert(path, tmp_path / "out")


def test_the_command_line_prints_the_sizes_and_reports_errors_without_a_traceback(archive, tmp_path, capsys):
    emoji.main([str(archive), "--output_dir", str(tmp_path / "out"), "--seed", "1", "--test_share", "0.2"])
    sizes = {part: len(rows) for part, rows in metadata(tmp_path / "out").items()}
    assert sum(sizes.values()) == PICTURES_WRITTEN
    told = capsys.readouterr().out
    assert f"{sizes['train']} train, {sizes['validation']} validation, {sizes['test']} test rows" in told
    with pytest.raises(SystemExit) as stopped:
        emoji.main([str(archive), "--output_dir", str(tmp_path / "out")])
    assert stopped.value.code == 1
    assert capsys.readouterr().err.startswith("error: ")
