"""Scorers: CLIP's cosines and the teacher's errors, against the models' own outputs one pair at a time."""

from functools import wraps
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from conftest import make_processor, make_rows
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPProcessor

from sdsclip_hf.benchmarks import ImageCell, ImageFile, Item
from sdsclip_hf.evaluation import scorers
from sdsclip_hf.evaluation.scorers import ClipScorer, DiffusionScorer, RememberingClipScorer
from sdsclip_hf.teachers.diffusion_teacher import DiffusionTeacher


@pytest.fixture(scope="module")
def clip(clip_folder):
    return CLIPModel.from_pretrained(clip_folder).eval()


@pytest.fixture(scope="module")
def processor(clip_folder):
    return CLIPProcessor.from_pretrained(clip_folder)


@pytest.fixture(scope="module")
def teacher(teacher_folder):
    return DiffusionTeacher.from_pretrained(teacher_folder, load_vae=True)


@pytest.fixture(scope="module")
def items():
    """Items that share pictures and captions of very different lengths."""
    rows = make_rows(6)
    images, captions = [row["image"] for row in rows], [row["caption"] for row in rows]
    captions[1] = "cat"
    captions[3] = "a photo of a red cat on a blue mat on a chair"
    return [
        Item("0", (images[0], images[1]), (captions[0], captions[1])),
        Item("1", (images[1], images[2]), (captions[1], captions[2])),
        Item("2", (images[3], images[0]), (captions[3], captions[0])),
        Item("3", (images[4],), (captions[3], captions[4], captions[5])),
        Item("4", (images[5],), (captions[0], captions[3])),
    ]


@pytest.fixture
def folder(tmp_path):
    """Pictures of noise, 0.png to 6.png."""
    rng = np.random.default_rng(3)
    for number in range(7):
        pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return tmp_path


def one_by_one(clip, processor, item) -> np.ndarray:
    """Cosines by CLIPModel.forward for each picture and caption on its own, without padding."""
    rows = []
    for caption in item.captions:
        row = []
        for image in item.images:
            inputs = processor(text=[caption], images=[image], return_tensors="pt")
            with torch.no_grad():
                output = clip(**inputs)
            row.append((output.logits_per_text / clip.logit_scale.exp()).item())
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("batch_size", [1, 3, 128])
def test_clip_scores_equal_the_model_s_own_logits_one_pair_at_a_time(clip, processor, items, batch_size):
    scores = ClipScorer(clip, processor, batch_size).score(items)
    assert [matrix.shape for matrix in scores] == [(2, 2), (2, 2), (2, 2), (3, 1), (2, 1)]
    for item, matrix in zip(items, scores, strict=True):
        np.testing.assert_allclose(matrix, one_by_one(clip, processor, item), atol=1e-5)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("batch_size", [2, 128])
@pytest.mark.parametrize("chunk_size", [1, 2, 4096])
def test_no_way_of_working_changes_the_scores(clip, processor, items, batch_size, num_workers, chunk_size):
    plain = ClipScorer(clip, processor, batch_size=1).score(items)
    chunks = list(ClipScorer(clip, processor, batch_size, num_workers, chunk_size).score_chunks(items))
    assert [len(chunk) for chunk in chunks[:-1]] == [chunk_size] * (len(chunks) - 1)
    for one, other in zip(plain, (matrix for chunk in chunks for matrix in chunk), strict=True):
        assert other.dtype == np.float32
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def test_padding_does_not_change_an_embedding(clip, processor):
    scorer = ClipScorer(clip, processor)
    alone = scorer.embed_captions(["cat"])
    padded = scorer.embed_captions(["a photo of a red cat on a blue mat on a chair", "cat"])
    torch.testing.assert_close(padded[1:], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("window", [1, 2, 3, 16_384])
def test_captions_keep_their_order_and_have_unit_length(clip, processor, monkeypatch, window):
    monkeypatch.setattr(scorers, "CAPTION_WINDOW", window)
    captions = ["a red cat on a mat", "dog", "blue chair", "a photo of a dog", "dog on mat"]
    embeds = ClipScorer(clip, processor, batch_size=2).embed_captions(captions)
    for caption, embed in zip(captions, embeds, strict=True):
        inputs = processor.tokenizer([caption], return_tensors="pt")
        with torch.no_grad():
            alone = clip.get_text_features(**inputs).pooler_output[0]
        torch.testing.assert_close(embed, alone / alone.norm(), rtol=0, atol=1e-6)
    torch.testing.assert_close(embeds.norm(dim=1), torch.ones(5))


def test_pictures_keep_their_order_and_have_unit_length(clip, processor, items):
    images = [image for item in items for image in item.images]
    embeds = ClipScorer(clip, processor, batch_size=3, num_workers=2).embed_images(images)
    decoded = ClipScorer(clip, processor, batch_size=3, num_workers=2, preprocess_on_device=True).embed_images(images)
    assert torch.equal(decoded, embeds)
    for image, embed in zip(images, embeds, strict=True):
        torch.testing.assert_close(embed, ClipScorer(clip, processor).embed_images([image])[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(embeds.norm(dim=1), torch.ones(len(images)))
    assert not embeds.requires_grad


def test_caption_longer_than_the_text_tower_is_cut(clip, processor):
    scorer = ClipScorer(clip, processor)
    long = "red " * 40
    torch.testing.assert_close(scorer.embed_captions([long]), scorer.embed_captions(["red " * 18]))


@pytest.fixture
def seen(clip, monkeypatch):
    """How many pictures and captions went through the towers."""
    counts = {"images": 0, "captions": 0}
    for method, name, part in (
        ("get_image_features", "images", "pixel_values"),
        ("get_text_features", "captions", "input_ids"),
    ):
        original = getattr(clip, method)

        def counted(inputs, original=original, name=name, part=part):
            counts[name] += len(inputs[part])
            return original(**inputs)

        monkeypatch.setattr(clip, method, wraps(original)(lambda counted=counted, **inputs: counted(inputs)))
    return counts


def test_what_is_remembered_is_encoded_once_over_calls_and_scores_the_same(clip, processor, items, seen):
    scorer = RememberingClipScorer(clip, processor, batch_size=4)
    found = [scorer.score(items) for _ in range(2)]
    pictures = [item.images[0] for item in reversed(items)]
    embeds = scorer.embed_images(pictures), scorer.embed_captions([item.captions[-1] for item in reversed(items)])
    assert seen == {"images": 6, "captions": 6}
    plain = ClipScorer(clip, processor)
    for one, other, expected in zip(*found, plain.score(items), strict=True):
        assert np.array_equal(one, other)
        np.testing.assert_allclose(one, expected, atol=1e-6)
    torch.testing.assert_close(embeds[0], plain.embed_images(pictures), atol=1e-6, rtol=0)
    captions = [item.captions[-1] for item in reversed(items)]
    torch.testing.assert_close(embeds[1], plain.embed_captions(captions), atol=1e-6, rtol=0)


def test_captions_of_the_same_tokens_tie_though_one_is_remembered(clip, processor, items, monkeypatch):
    """As if each call of the model rounded otherwise."""
    scorer = ClipScorer(clip, processor, remembered={"the red cat"})
    original = scorer.encoder.embed_tokens
    monkeypatch.setattr(scorer.encoder, "embed_tokens", lambda ids: original(ids) + torch.rand(1) / 1000)
    first, other = (
        scorer.embed_captions(["a dog", "the red cat"]),
        scorer.embed_captions(["the  red cat", "the red cat"]),
    )
    assert torch.equal(other[0], other[1]) and torch.equal(first[1], other[1])
    assert not torch.equal(scorer.embed_captions(["a dog"])[0], first[0])


def test_captions_are_compared_with_one_another_when_asked_for(clip, processor, items):
    scorer = ClipScorer(clip, processor, batch_size=2)
    (whole,) = scorer.score_chunks(items, with_captions=True)
    for item, matrix, plain in zip(items, whole, scorer.score(items), strict=True):
        texts = scorer.embed_captions(item.captions)
        assert np.array_equal(matrix[:, : len(item.images)], plain)
        np.testing.assert_allclose(matrix[:, len(item.images) :], texts @ texts.T, atol=1e-6)


@pytest.mark.parametrize("chunk_size", [1, 2, 4096])
def test_each_distinct_picture_and_caption_is_encoded_once(clip, processor, items, seen, chunk_size):
    ClipScorer(clip, processor, batch_size=2, chunk_size=chunk_size).score(items)
    assert seen == {"images": 6, "captions": 6}


def test_a_clip_encodes_its_captions_and_none_to_try_padding_with(clip, processor, items, monkeypatch):
    counts, original = [], clip.get_text_features

    def counted(input_ids, attention_mask):
        counts.append(len(input_ids))
        return original(input_ids=input_ids, attention_mask=attention_mask)

    scorer = ClipScorer(clip, processor, batch_size=2)
    monkeypatch.setattr(clip, "get_text_features", counted)
    scorer.score(items)
    assert sum(counts) == 6


def test_files_are_distinct_by_path_and_box_and_cells_by_content(clip, processor, folder, seen):
    path, other = str(folder / "0.png"), str(folder / "1.png")
    column = datasets.Dataset.from_dict({"image": [path, path, other]}).cast_column(
        "image", datasets.Image(decode=False)
    )
    half, rest = (0.0, 0.0, 12.0, 20.0), (12.0, 0.0, 24.0, 20.0)
    picture = make_rows(1)[0]["image"]
    pictures = [
        ImageFile(path),
        ImageFile(str(folder / "0.png")),
        ImageFile(path, half),
        ImageFile(path, (0.0, 0.0, 12.0, 20.0)),
        ImageFile(path, rest),
        ImageFile(other),
        ImageCell(column, 0, b"same"),
        ImageCell(column, 1, b"same"),
        ImageCell(column, 1, b"same", half),
        ImageCell(column, 2, b"other"),
        picture,
        picture,
        picture.copy(),
    ]
    items = [Item(str(number), (one,), ("cat", "dog")) for number, one in enumerate(pictures)]
    scores = ClipScorer(clip, processor, batch_size=4).score(items)
    assert seen == {"images": 4 + 3 + 2, "captions": 2}
    for one, other in [(0, 1), (2, 3), (0, 6), (6, 7), (2, 8), (5, 9), (10, 11), (10, 12)]:
        np.testing.assert_allclose(scores[one], scores[other], rtol=0, atol=1e-6)
    for one, other in [(0, 2), (2, 4), (0, 5), (6, 9)]:
        assert np.abs(scores[one] - scores[other]).max() > 1e-4


@pytest.mark.parametrize("num_workers", [0, 2])
def test_image_that_cannot_be_read_is_named_after_the_scores_before_it(clip, processor, folder, num_workers):
    (folder / "5.png").write_bytes(b"no picture")
    items = [Item(str(n), (ImageFile(str(folder / f"{n}.png")),), ("cat", "dog")) for n in range(7)]
    scorer = ClipScorer(clip, processor, batch_size=2, num_workers=num_workers, chunk_size=2)
    found = []
    with pytest.raises(OSError) as stop:
        for chunk in scorer.score_chunks(items):
            found += chunk
    assert len(found) == 4
    message = str(stop.value)
    assert str(folder / "5.png") in message and "--allow_missing" in message
    assert "Traceback" not in message and "worker" not in message and "\n" not in message


@pytest.mark.parametrize("dtype, close", [(torch.float16, 5e-3), (torch.bfloat16, 5e-2)])
def test_scores_of_a_model_of_half_precision_are_float32_and_close(clip_folder, clip, processor, items, dtype, close):
    half = CLIPModel.from_pretrained(clip_folder, dtype=dtype)
    exact = ClipScorer(clip, processor).score(items)
    for matrix, expected in zip(ClipScorer(half, processor).score(items), exact, strict=True):
        assert matrix.dtype == np.float32
        np.testing.assert_allclose(matrix, expected, atol=close)
    assert half.dtype == dtype


@pytest.fixture
def dropping(clip_folder):
    """A model that drops half of its attention when it trains."""
    config = CLIPConfig.from_pretrained(clip_folder)
    config.text_config.attention_dropout = config.vision_config.attention_dropout = 0.5
    return CLIPModel.from_pretrained(clip_folder, config=config)


def test_scoring_leaves_the_mode_of_the_model_and_ignores_dropout(dropping, processor, items):
    dropping.eval()
    expected = ClipScorer(dropping, processor).score(items)
    assert not dropping.training
    dropping.train()
    again = ClipScorer(dropping, processor).score(items)
    assert dropping.training and dropping.text_model.training
    for one, other in zip(expected, again, strict=True):
        np.testing.assert_array_equal(one, other)
    inputs = make_processor()(text=["a red cat"], images=[items[0].images[0]], return_tensors="pt")
    one, other = (dropping(**inputs).logits_per_text for _ in range(2))
    assert one != other  # or the test above would not tell the modes apart


def test_mode_is_restored_after_an_error(clip, processor, items, monkeypatch):
    def fail(**inputs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(clip, "get_image_features", fail)
    clip.train()
    try:
        with pytest.raises(RuntimeError, match="out of memory"):
            ClipScorer(clip, processor).score(items)
        assert clip.training and torch.is_grad_enabled()
    finally:
        clip.eval()


# The teacher


OPTIONS = {"num_draws": 2, "timestep_range": (100, 800), "seed": 5}


@pytest.mark.parametrize("batch_size", [1, 64])
@pytest.mark.parametrize("chunk_size", [1, 3, 16])
def test_diffusion_scores_are_minus_the_teacher_s_errors(teacher, items, chunk_size, batch_size):
    """The items' captions differ in number, within a chunk, too."""
    scorer = DiffusionScorer(teacher, chunk_size, batch_size=batch_size, **OPTIONS)
    chunks = list(scorer.score_chunks(items))
    assert [len(chunk) for chunk in chunks[:-1]] == [chunk_size] * (len(chunks) - 1)
    scores = [matrix for chunk in chunks for matrix in chunk]
    assert [matrix.shape for matrix in scores] == [(2, 2), (2, 2), (2, 2), (3, 1), (2, 1)]
    for item, matrix in zip(items, scores, strict=True):
        for column, image in enumerate(item.images):
            for row, caption in enumerate(item.captions):
                error = teacher.diffusion_score([image], [caption], **OPTIONS)
                assert matrix[row, column] == pytest.approx(-error.item(), abs=1e-5)


def test_diffusion_scores_are_of_what_the_box_shows(teacher, folder):
    path, box = str(folder / "0.png"), (4.0, 2.0, 20.0, 18.0)
    item = Item("0", (ImageFile(path, box),), ("a red cat", "dog"))
    (matrix,) = DiffusionScorer(teacher, **OPTIONS).score([item])
    shown = ImageFile(path).read().crop((4, 2, 20, 18))
    expected = -teacher.diffusion_score([shown], list(item.captions), **OPTIONS).numpy().T
    np.testing.assert_allclose(matrix, expected, atol=1e-5)


class Wide(torch.nn.Module):
    """Embeddings 512 wide, where a matrix product rounds a row by its place."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(text_config=None)
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.table = torch.nn.Embedding(200, 512)

    def get_image_features(self, pixel_values):
        return torch.nn.functional.pad(pixel_values.flatten(1), (0, 512))[:, :512] + self.table.weight[0]

    def get_text_features(self, input_ids, attention_mask):
        return (self.table(input_ids) * attention_mask[..., None]).sum(1)


@pytest.mark.parametrize("same", ["a cat on a mat", "A CAT on a mat"], ids=["equal", "of equal tokens"])
def test_captions_that_are_one_to_the_model_tie_to_the_last_bit(processor, same):
    images = [row["image"] for row in make_rows(8)] * 12
    captions = ("a cat on a mat", "a dog", "a red mat", "blue chair on a mat", same)
    items = [Item(str(number), (image,), captions) for number, image in enumerate(images)]
    for matrix in ClipScorer(Wide(), processor).score(items):
        assert matrix[0, 0] == matrix[4, 0]


def test_an_image_that_cannot_be_preprocessed_is_named(clip, processor, tmp_path, monkeypatch):
    path = tmp_path / "odd.png"
    Image.new("RGB", (3, 5)).save(path)
    scorer = ClipScorer(clip, processor)
    honest = scorer.encoder.preprocess

    def picky(images):
        if any(image.size == (3, 5) for image in images):
            raise ZeroDivisionError("odd")
        return honest(images)

    monkeypatch.setattr(scorer.encoder, "preprocess", picky)
    items = [Item("0", (make_rows(1)[0]["image"],), ("a cat",)), Item("1", (ImageFile(str(path)),), ("a dog",))]
    with pytest.raises(OSError, match=r"odd.png of 3 x 5 pixels could not be preprocessed"):
        scorer.score(items)
