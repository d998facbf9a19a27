"""A benchmark's pictures: cut, converted, read late, told apart without being read, and named when they cannot be read."""

import io
from pathlib import Path

import benchmark_copies
import numpy as np
import pytest
from benchmark_copies import (
    COPIES,
    HEIGHT,
    WIDTH,
    aro_coco_order,
    aro_relation,
    noise,
    picture,
    pixels,
    replace,
    sugarcrepe,
    told,
    winoground,
)
from datasets import Value
from pictures import encoded, noise_picture, turned
from PIL import Image

from sdsclip_hf.benchmarks import ImageCell, ImageFile, Options, load_benchmark, picture_key, read_picture

pytestmark = pytest.mark.usefixtures("own_cache")


def one_picture(tmp_path: Path, content: bytes, box: dict | None) -> ImageCell:
    copy = replace(aro_relation(), rows=[aro_relation().rows[0] | {"image": content, "bbox": box}])
    source = benchmark_copies.write_file(tmp_path / "copy", copy if box else copy.without("bbox"))
    return load_benchmark(f"aro_relation={source}").items[0].images[0]


BOXES = [
    ((3, 2, 11, 9), (3, 2, 11, 9)),
    ((2.6, 1.2, 10.0, 9.0), (3, 1, 10, 9)),  # edges at 12.6 and 10.2
    ((0.5, 1.5, 9.0, 9.0), (0, 2, 10, 8)),  # halves go to the even number: 0 to 10, 2 to 10
    ((4.4, 4.4, 10.4, 10.4), (4, 4, 11, 11)),  # edges at 14.8, not 4 + 10
    ((0, 0, WIDTH, HEIGHT), (0, 0, WIDTH, HEIGHT)),
]


@pytest.mark.parametrize(("asked", "expected"), BOXES)
def test_boxes_are_cut_out(asked, expected, tmp_path):
    content = picture(1)
    shown = read_picture(one_picture(tmp_path, content, dict(zip("xywh", asked, strict=True))))
    assert np.array_equal(np.asarray(shown), pixels(content, expected))


@pytest.mark.parametrize(("asked", "expected"), BOXES)
def test_crops_are_not_cut_again(asked, expected, tmp_path):
    content = encoded(Image.fromarray(pixels(picture(1), expected)))
    shown = read_picture(one_picture(tmp_path, content, dict(zip("xywh", asked, strict=True))))
    assert np.array_equal(np.asarray(shown), pixels(content))


def test_box_beyond_the_image_is_black_there(tmp_path):
    """As the authors' crop by PIL has it."""
    content = picture(1)
    shown = np.asarray(read_picture(one_picture(tmp_path, content, {"x": 20, "y": 15, "w": 14, "h": 9})))
    expected = np.zeros((9, 14, 3), dtype=np.uint8)
    expected[: HEIGHT - 15, : WIDTH - 20] = noise(1)[15:, 20:]
    assert np.array_equal(shown, expected)


def test_orientation_counts_where_a_dataset_holds_the_picture_whole_alone(tmp_path):
    """Not under a box, which counts stored pixels, nor beside the authors' json, whose code leaves it out."""
    content = encoded(noise_picture(), exif=turned(6))
    stored = np.asarray(noise_picture())
    whole = read_picture(one_picture(tmp_path / "whole", content, None))
    assert np.array_equal(np.asarray(whole), np.rot90(stored, -1))
    boxed = read_picture(one_picture(tmp_path / "boxed", content, {"x": 3, "y": 2, "w": 30, "h": 20}))
    assert np.array_equal(np.asarray(boxed), stored[2:22, 3:33])
    (tmp_path / "beside.png").write_bytes(content)
    assert np.array_equal(np.asarray(read_picture(ImageFile(str(tmp_path / "beside.png")))), stored)


def test_copy_without_boxes_holds_crops(tmp_path):
    image = one_picture(tmp_path, picture(1), None)
    assert np.array_equal(np.asarray(read_picture(image)), noise(1))


def test_boxes_in_columns_of_their_own(tmp_path):
    """As metadata.csv has them."""
    copy = aro_relation()
    rows = [row | {f"bbox_{key}": edge for key, edge in row["bbox"].items()} for row in copy.rows]
    columns = {f"bbox_{key}": Value("float64") for key in "xywh"}
    source = benchmark_copies.write_file(
        tmp_path / "copy", replace(copy, rows=rows, features=copy.features | columns).without("bbox")
    )
    assert told(load_benchmark(f"aro_relation={source}")) == copy.expected


def test_row_without_its_box_is_refused(tmp_path):
    """It would be shown whole, and easier or harder than it is."""
    copy = aro_relation()
    copy.rows[2]["bbox"] = None
    source = benchmark_copies.write_file(tmp_path / "copy", copy)
    with pytest.raises(ValueError, match=r"item 2 of .* has no 'bbox_x'"):
        load_benchmark(f"aro_relation={source}")


def grey(array: np.ndarray) -> Image.Image:
    return Image.fromarray(array[..., 0])


def palette(array: np.ndarray) -> Image.Image:
    image = Image.fromarray(array[..., 0] % 4)
    image.putpalette([10, 20, 30, 200, 0, 7, 0, 255, 0, 9, 9, 9])
    return image


def alpha(array: np.ndarray) -> np.ndarray:
    return np.arange(array[..., :1].size, dtype=np.uint8).reshape(*array.shape[:2], 1)


def transparent(array: np.ndarray) -> Image.Image:
    return Image.fromarray(np.dstack([array, alpha(array)]))


def on_white(array: np.ndarray) -> np.ndarray:
    share = alpha(array) / 255
    return share * array + (1 - share) * 255


COLOURS = np.array([[10, 20, 30], [200, 0, 7], [0, 255, 0], [9, 9, 9]], dtype=np.uint8)


@pytest.mark.parametrize(
    ("make", "mode", "expected"),
    [
        (grey, "L", lambda array: np.repeat(array[..., :1], 3, axis=2)),
        (palette, "P", lambda array: COLOURS[array[..., 0] % 4]),
        (transparent, "RGBA", on_white),
    ],
)
@pytest.mark.parametrize("form", ["parquet", "json"])
def test_any_mode_becomes_rgb(make, mode, expected, form, tmp_path):
    content = encoded(make(noise(4)))
    assert Image.open(io.BytesIO(content)).mode == mode
    copy = aro_relation()
    for row in copy.rows:
        row["image"] = content
    copy.json_files = dict.fromkeys(copy.json_files, content)
    source = getattr(benchmark_copies, f"write_{form}")(tmp_path / "copy", copy)
    items = load_benchmark(f"aro_relation={source}").items
    for item, (x, y, w, h) in zip(items[:3], [(3, 2, 11, 9), (14, 1, 9, 17), (0, 5, 30, 4)], strict=True):
        shown = read_picture(item.images[0])
        assert shown.mode == "RGB"
        assert np.abs(np.asarray(shown) - expected(noise(4))[y : y + h, x : x + w].astype(float)).max() <= 1
    assert read_picture(make(noise(4))).mode == "RGB"


@pytest.mark.parametrize("form", ["parquet", "imagefolder", "json"])
def test_nothing_is_decoded(form, tmp_path, monkeypatch):
    """Neither in loading nor in telling equal pictures apart: the larger benchmarks have 10,000 pictures and more."""
    copies = [make() for make in COPIES if form != "json" or make().json_name]
    write = getattr(benchmark_copies, f"write_{form}")
    sources = [write(tmp_path / copy.spec, copy) for copy in copies]
    order = benchmark_copies.write_parquet(tmp_path / "more", aro_coco_order())
    opened = []
    monkeypatch.setattr(Image, "open", lambda *arguments, **options: opened.append(arguments))
    for copy, source in zip(copies, sources, strict=True):
        benchmark = load_benchmark(f"{copy.spec}={source}")
        assert len({picture_key(image) for item in benchmark.items for image in item.images}) >= len(copy.rows)
    columns = Options(caption_column="correct_caption", label_column="hard_text_1")
    assert len(load_benchmark(f"retrieval={order}", columns).items) == 2
    assert len(load_benchmark(f"classification={order}", columns).items) == 2
    assert not opened


@pytest.mark.parametrize("form", ["parquet", "json", "imagefolder"])
def test_equal_pictures_share_a_key_and_different_crops_do_not(form, tmp_path):
    copy = aro_relation()
    copy.rows.append(copy.rows[0])
    copy.json_rows.append(copy.json_rows[0])
    source = getattr(benchmark_copies, f"write_{form}")(tmp_path / "copy", copy)
    keys = [picture_key(item.images[0]) for item in load_benchmark(f"aro_relation={source}").items]
    own_file = form == "imagefolder"  # of each row
    assert len(set(keys)) == 4 + own_file
    assert (keys[0] == keys[4]) is not own_file


def test_equal_cells_of_different_columns_share_a_key(tmp_path):
    copy = winoground()
    copy.rows[2]["image_1"] = copy.rows[0]["image_0"]
    source = benchmark_copies.write_parquet(tmp_path / "copy", copy)
    items = load_benchmark(f"winoground={source}").items
    keys = [picture_key(image) for item in items for image in item.images]
    assert keys[5] == keys[0]
    assert len(set(keys)) == 5


def test_unreadable_pictures_are_named(tmp_path):
    copy = winoground()
    copy.rows[1]["image_1"] = b"no image"
    source = benchmark_copies.write_parquet(tmp_path / "copy", copy)
    good, bad = load_benchmark(f"winoground={source}").items[1].images
    assert read_picture(good).size == (benchmark_copies.WIDTH, benchmark_copies.HEIGHT)
    with pytest.raises(OSError, match=r"the image row 1, column 'image_1' could not be read .*--allow_missing"):
        read_picture(bad)
    copy = sugarcrepe()
    for content in (b"no image", picture(1, "JPEG")[:300], b""):
        copy.json_files["val2017/000000391896.jpg"] = content
        source = benchmark_copies.write_json(tmp_path / "sugarcrepe", copy)
        with pytest.raises(OSError, match=r"the image .*val2017/000000391896.jpg could not be read .*--allow_missing"):
            read_picture(load_benchmark(f"sugarcrepe:swap_obj={source}").items[1].images[0])


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (-3, 5)])
def test_an_empty_box_is_refused_with_its_item(tmp_path, width, height):
    with pytest.raises(ValueError, match=rf"item 0 has a bbox of {width}(\.0)? x {height}(\.0)? pixels"):
        one_picture(tmp_path, picture(0), {"x": 1, "y": 1, "w": width, "h": height})


def test_a_box_far_outside_is_refused_and_names_the_picture(tmp_path):
    cell = one_picture(tmp_path, picture(0), {"x": 1, "y": 1, "w": 10 * WIDTH, "h": 5})
    with pytest.raises(OSError, match=r"row 0, column 'image' could not be read .*far outside"):
        read_picture(cell)


@pytest.mark.parametrize("key", ["relation_name", "bbox_x"])
def test_a_json_copy_of_which_one_item_lacks_a_key_is_refused_with_its_item(tmp_path, key):
    copy = aro_relation()
    del copy.json_rows[1][key]
    source = benchmark_copies.write_json(tmp_path / "copy", copy)
    with pytest.raises(ValueError, match=r"item 1 of .*(bbox_x|relation)"):
        load_benchmark(f"aro_relation={source}")
