"""CandidateScores: what it reads, and what it refuses."""

import json
import math
import re
import shutil

import datasets
import numpy as np
import pytest
from conftest import make_scores

from sdsclip_hf.common.checkpoints import write_json
from sdsclip_hf.data.images import picture_digest
from sdsclip_hf.data.scores import SCORES_FILE, CandidateScores, content_fingerprint

ITEMS = [
    ("aa", "a cat", ["a dog", "a cat"], [[0.5, 0.7], [0.1, 0.2]]),
    ("aa", "one cat", ["one cat", "one dog", "one mat"], [[0.3, 0.3, 0.3], [0.5, 0.6, 0.7], [0.5, 0.1, 0.6]]),
    ("bb", "a mat", ["a mat"], [[]]),
]


@pytest.fixture
def folder(tmp_path):
    return make_scores(tmp_path / "scores", ITEMS)


def test_items_come_back_with_mean_errors(folder):
    scores = CandidateScores.load(folder)
    assert (len(scores), scores.max_candidates) == (3, 3)
    item = scores.item(1)
    assert (item.caption, item.candidates) == ("one cat", ["one cat", "one dog", "one mat"])
    assert item.errors == pytest.approx([0.3, 0.6, 0.4])
    assert list(scores.numbers_of("aa")) == [0, 1]
    assert scores.ranked.tolist() == [True, True, False]
    assert np.isnan(scores.item(2).errors).all() and scores.item(2).confidence == 0


def test_one_scored_candidate_is_no_order(tmp_path):
    lone = ("cc", "a dog", ["a dog"], [[0.1, 0.2]])
    scores = CandidateScores.load(make_scores(tmp_path / "lone", [ITEMS[0], lone]))
    assert scores.ranked.tolist() == [True, False] and scores.confidence[1] == 0


def test_confidence_is_by_the_draws_of_each_item(folder):
    scores = CandidateScores.load(folder)
    differences = np.array([0.2, -0.2, 0.3])  # of the two best of the second item
    z = differences.mean() / (differences.std(ddof=1) / math.sqrt(3))
    assert scores.confidence[1] == pytest.approx(math.erf(z / math.sqrt(2)), abs=1e-4)


def test_temperature_is_a_share_of_the_median_gap_of_what_is_ranked(folder):
    assert CandidateScores.load(folder).temperature(0.5) == pytest.approx(
        0.5 * 0.1
    )  # gaps .45 and .1, the lower median


def test_draw_gives_any_item_of_a_picture_and_as_many_others_as_asked_for(folder):
    scores, rng = CandidateScores.load(folder), np.random.default_rng(0)
    numbers = scores.numbers_of("aa")
    drawn = [scores.draw(numbers, rng, others=1) for _ in range(200)]
    assert {item.caption for item in drawn} == {"a cat", "one cat"}
    assert {tuple(item.candidates) for item in drawn if item.caption == "one cat"} == {
        ("one cat", "one dog"),
        ("one cat", "one mat"),
    }
    for item in drawn:
        whole = scores.item(["a cat", "one cat"].index(item.caption))
        expected = [whole.errors[whole.candidates.index(caption)] for caption in item.candidates]
        assert item.errors.tolist() == expected
    assert scores.draw(numbers, np.random.default_rng(1), others=9).errors.shape in ((2,), (3,))


def test_a_picture_that_was_not_scored_is_an_error(folder):
    with pytest.raises(ValueError, match=r"miss the picture with digest cc.*sdsclip score-captions"):
        CandidateScores.load(folder).numbers_of("cc")


def test_rows_without_a_scored_caption_are_an_error(folder):
    scores = CandidateScores.load(folder)
    scores.check_captions([["a cat"], ["a bird", "a mat"]])
    with pytest.raises(ValueError, match=r"miss row 1 of the dataset, captioned 'a bird'"):
        scores.check_captions([["a cat"], ["a bird"]])


@pytest.mark.parametrize("what", ["setting", "scores"])
def test_scores_that_are_not_what_they_say_are_refused(folder, what):
    if what == "setting":
        settings = json.loads((folder / SCORES_FILE).read_text())
        write_json(folder / SCORES_FILE, settings | {"num_draws": 99})
    else:
        other = [(*item[:3], [[error + 1e-3 for error in row] for row in item[3]]) for item in ITEMS]
        replaced = make_scores(folder.parent / "other", other)
        (replaced / "data").rename(folder / "other")
        for path in (folder / "data").iterdir():
            (folder / "other" / path.name).replace(path)
    with pytest.raises(ValueError, match="their fingerprint is"):
        CandidateScores.load(folder)


def test_fingerprint_tells_captions_that_run_together_apart():
    one, other = (
        datasets.Dataset.from_dict(
            {"picture": ["a", "b"], "caption": captions, "candidates": [[], []], "errors": [[], []]}
        )
        for captions in (["x y", "z"], ["x", "y z"])
    )
    assert content_fingerprint(one, {}) != content_fingerprint(other, {})


def test_unfinished_scoring_is_named(tmp_path):
    (tmp_path / "scores").mkdir()
    with pytest.raises(OSError, match=re.escape(f"no {SCORES_FILE}")):
        CandidateScores.load(tmp_path / "scores")


def test_unscored_candidates_order_nothing(tmp_path):
    folder = make_scores(tmp_path / "scores", [("aa", "a cat", ["a cat", "a dog"], [[], []])])
    with pytest.raises(ValueError, match=r"order nothing.*score-captions --teacher_name_or_path"):
        CandidateScores.load(folder).check_ranked()


def test_a_teacher_without_signal_is_warned_of_with_the_shares(tmp_path, caplog):
    rng = np.random.default_rng(0)
    noise = [(f"{n}", "a cat", ["a cat", "a dog"], rng.normal(size=(2, 4)).tolist()) for n in range(50)]
    # sure of a caption whatever the picture: the own one comes first on every second
    likes = [(f"{n}", ("a cat", "a dog")[n % 2], ["a cat", "a dog"], [[0.1, 0.2], [1.1, 1.3]]) for n in range(50)]
    for name, items in (("noise", noise), ("likes", likes)):
        caplog.clear()
        CandidateScores.load(make_scores(tmp_path / name, items)).check_ranked()
        assert re.search(r"sure \(confidence above 0.9\) of its first choice on \d+ %", caplog.text), name
    assert "on 100 % of the items, and puts the image's own caption first on 50 % (by chance 50 %)" in caplog.text
    caplog.clear()
    good = [(f"{n}", "a cat", ["a cat", "a dog"], [[0.1, 0.2], [1.1, 1.3]]) for n in range(50)]
    CandidateScores.load(make_scores(tmp_path / "good", good)).check_ranked()
    assert not caplog.text


def test_digest_is_of_pixels_for_png_and_of_bytes_for_jpeg(tmp_path, pairs):
    image = pairs[0]["image"]
    image.save(tmp_path / "one.png", compress_level=0)
    image.save(tmp_path / "other.png", compress_level=9)
    image.save(tmp_path / "one.jpg")
    image.save(tmp_path / "other.jpg", quality=30)
    one = picture_digest(str(tmp_path / "one.png"))
    assert (
        one == picture_digest({"bytes": (tmp_path / "other.png").read_bytes(), "path": None}) == picture_digest(image)
    )
    assert picture_digest(tmp_path / "one.jpg") == picture_digest((tmp_path / "one.jpg").read_bytes())
    assert len({one, picture_digest(tmp_path / "one.jpg"), picture_digest(tmp_path / "other.jpg")}) == 3


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_damaged_file_of_scores_is_named(folder, tmp_path, share):
    shutil.copytree(folder, tmp_path / "copy")
    (file,) = (tmp_path / "copy" / "data").glob("*.parquet")
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(OSError, match=rf"{file.name} is damaged .*sdsclip score-captions again"):
        CandidateScores.load(tmp_path / "copy")


def test_a_byte_that_was_flipped_is_found(folder, tmp_path):
    content = next((folder / "data").glob("*.parquet")).read_bytes()
    for place in range(4, len(content) - 8, max(1, len(content) // 40)):
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(folder, tmp_path / "copy")
        (file,) = (tmp_path / "copy" / "data").glob("*.parquet")
        file.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        try:
            scores = CandidateScores.load(tmp_path / "copy")
        except (OSError, ValueError) as error:
            assert "damaged" in str(error) or "fingerprint" in str(error) or "scores" in str(error)
        else:  # a byte that says nothing, of padding or of metadata
            assert scores.data.to_dict() == CandidateScores.load(folder).data.to_dict()
