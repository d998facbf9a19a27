"""How a picture is read: upright, in RGB, alike from whatever holds it, and by every part of the package."""

import io
import json
import os
import struct
import warnings

import numpy as np
import pytest
from pictures import ORIENTATION, encoded, noise_picture, turned
from PIL import Image

from sdsclip_hf.benchmarks import load_benchmark, read_picture
from sdsclip_hf.data.captioned_images import ImageCaptionDataset
from sdsclip_hf.data.images import read_image
from sdsclip_hf.data.loading import load_image_captions
from sdsclip_hf.data.pixels import LONGEST_SHAPE, to_rgb
from sdsclip_hf.scoring.caption_items import CaptionedRows


def pixels_of(data: bytes) -> np.ndarray:
    image = read_image({"bytes": data, "path": None})
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


UPRIGHT_FROM_STORED = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT_FROM_STORED)
def test_exif_rotated_pictures_come_out_upright(orientation):
    stored = noise_picture()
    exif = turned(orientation)
    expected = UPRIGHT_FROM_STORED[orientation](np.asarray(stored))
    assert np.array_equal(pixels_of(encoded(stored, "PNG", exif=exif)), expected)
    big = stored.resize((400, 320), Image.Resampling.BICUBIC)
    from_jpeg = pixels_of(encoded(big, "JPEG", exif=exif, quality=95, subsampling=0))
    assert np.abs(from_jpeg - UPRIGHT_FROM_STORED[orientation](np.asarray(big))).max() < 25


def test_an_upright_picture_has_no_rotation_left_for_others_to_apply():
    assert read_image(encoded(noise_picture(), exif=turned(6))).getexif().get(ORIENTATION) is None


def test_grey_becomes_three_equal_channels():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(pixels_of(encoded(Image.fromarray(grey))), three(grey))


def test_black_and_white_becomes_0_and_255():
    bits = np.random.default_rng(0).integers(0, 2, (9, 11)).astype(bool)
    assert np.array_equal(pixels_of(encoded(Image.fromarray(bits))), three(255 * bits.astype(int)))


DEEP_GREY = np.linspace(0, 65535, 30 * 20).round().reshape(20, 30)


def big_endian_tiff() -> bytes:
    height, width = DEEP_GREY.shape
    entries = [(256, 3, width), (257, 3, height), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 122)]
    entries += [(277, 3, 1), (278, 3, height), (279, 4, DEEP_GREY.size * 2)]
    fields = b"".join(
        struct.pack(">HHI", tag, kind, 1) + (struct.pack(">HH", value, 0) if kind == 3 else struct.pack(">I", value))
        for tag, kind, value in entries
    )
    head = b"MM\x00*" + struct.pack(">I", 8) + struct.pack(">H", len(entries)) + fields + struct.pack(">I", 0)
    assert len(head) == 122
    return head + DEEP_GREY.astype(">u2").tobytes()


@pytest.mark.parametrize("source", ["png of I;16", "tiff of I;16", "tiff of I;16B", "tiff of I", "pgm"])
def test_16_bit_grey_is_scaled_to_8_bits(source):
    sixteen, thirty_two = Image.fromarray(DEEP_GREY.astype(np.uint16)), Image.fromarray(DEEP_GREY.astype(np.int32))
    data = {
        "png of I;16": lambda: encoded(sixteen),
        "tiff of I;16": lambda: encoded(sixteen, "TIFF"),
        "tiff of I;16B": big_endian_tiff,
        "tiff of I": lambda: encoded(thirty_two, "TIFF"),
        "pgm": lambda: b"P5 30 20 65535\n" + DEEP_GREY.astype(">u2").tobytes(),
    }[source]()
    assert Image.open(io.BytesIO(data)).mode in (source.rpartition(" ")[2], "I", "I;16")
    assert np.array_equal(pixels_of(data), three(np.round(DEEP_GREY / 257)))


def test_32_bit_grey_in_the_range_of_8_bits_keeps_its_values():
    grey = np.arange(256).reshape(16, 16)
    for kind in (np.int32, np.float32):
        assert np.array_equal(np.asarray(to_rgb(Image.fromarray(grey.astype(kind)))), three(grey))


def test_a_picture_that_was_opened_elsewhere_is_turned_upright_too():
    opened = Image.open(io.BytesIO(encoded(noise_picture(), exif=turned(6))))
    assert np.array_equal(np.asarray(to_rgb(opened)), np.rot90(np.asarray(noise_picture()), -1))


def test_cmyk_is_converted_by_its_inks():
    inks = np.random.default_rng(0).integers(0, 256, (10, 12, 4), dtype=np.uint8)
    expected = (255.0 - inks[..., :3]) * (255.0 - inks[..., 3:]) / 255
    assert np.abs(pixels_of(encoded(Image.fromarray(inks, "CMYK"), "TIFF")) - expected).max() <= 1
    flat = Image.new("CMYK", (32, 32), (200, 30, 0, 40))
    from_jpeg = pixels_of(encoded(flat, "JPEG", quality=95))
    assert np.abs(from_jpeg - np.array([55, 225, 255]) * 215 / 255).max() < 6


def palette_picture(**info) -> tuple[Image.Image, np.ndarray, np.ndarray]:
    indices = np.arange(48, dtype=np.uint8).reshape(6, 8) % 5
    colours = np.random.default_rng(1).integers(0, 256, (5, 3))
    image = Image.fromarray(indices, "P")
    image.putpalette(colours.flatten().tolist())
    image.info.update(info)
    return image, indices, colours


def on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return (colours * alpha + 255.0 * (255 - alpha)) / 255


def test_a_palette_is_looked_up():
    image, indices, colours = palette_picture()
    assert np.array_equal(pixels_of(encoded(image)), colours[indices])
    assert np.array_equal(pixels_of(encoded(image, "GIF")), colours[indices])


def test_the_transparent_colour_of_a_palette_becomes_white():
    image, indices, colours = palette_picture(transparency=2)
    expected = np.where((indices == 2)[..., None], 255, colours[indices])
    assert np.array_equal(pixels_of(encoded(image)), expected)
    assert np.array_equal(pixels_of(encoded(image, "GIF", transparency=2)), expected)


def test_a_palette_with_half_transparent_colours_is_laid_on_white():
    alpha = np.array([0, 60, 128, 200, 255])
    image, indices, colours = palette_picture(transparency=bytes(alpha.tolist()))
    expected = on_white(colours[indices], alpha[indices][..., None])
    assert np.abs(pixels_of(encoded(image)) - expected).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_an_alpha_channel_is_laid_on_white(mode, file_format):
    values = np.random.default_rng(2).integers(0, 256, (10, 12, len(mode)), dtype=np.uint8)
    expected = on_white(values[..., :-1].astype(float), values[..., -1:].astype(float))
    got = pixels_of(encoded(Image.fromarray(values, mode), file_format, **({"lossless": True, "exact": True})))
    assert np.abs(got - np.broadcast_to(expected, got.shape)).max() <= 1


def test_a_transparent_colour_key_becomes_white():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    got = pixels_of(encoded(Image.fromarray(grey), transparency=9))
    assert np.array_equal(got, three(np.where(grey == 9, 255, grey)))
    colours = np.asarray(noise_picture())
    key = tuple(int(value) for value in colours[3, 4])
    expected = np.where((colours == key).all(-1, keepdims=True), 255, colours)
    assert np.array_equal(pixels_of(encoded(noise_picture(), transparency=key)), expected)


def test_pictures_are_read_alike_from_bytes_paths_cells_and_pictures(tmp_path):
    image, path = noise_picture(), tmp_path / "noise.png"
    image.save(path)
    data = encoded(image)
    cells = (data, str(path), path, image, {"bytes": data, "path": None}, {"bytes": None, "path": str(path)})
    for cell in (*cells, {"bytes": data}, {"path": str(path)}, {"bytes": data, "path": "elsewhere.png"}):
        assert np.array_equal(np.asarray(read_image(cell)), np.asarray(image))


def test_reading_leaves_no_file_open(tmp_path):
    path = tmp_path / "noise.png"
    noise_picture().save(path)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    kept = [read_image(str(path)) for _ in range(20)]
    after = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert len(kept) == 20 and after == before


@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_truncated_image_is_an_error_and_never_a_partly_decoded_picture(file_format, share):
    data = encoded(noise_picture(), file_format)
    with pytest.raises(OSError):
        read_image(data[: int(share * len(data))])


def test_what_is_no_image_is_an_os_error(tmp_path):
    (tmp_path / "text.png").write_text("words")
    empty = {"bytes": None, "path": None}
    misleading = {"bytes": b"", "path": str(tmp_path / "good.png")}
    noise_picture().save(tmp_path / "good.png")
    for cell in (b"", b"words", str(tmp_path / "text.png"), str(tmp_path / "missing.png"), None, empty, misleading):
        with pytest.raises(OSError):
            read_image(cell)


def test_a_bomb_is_an_os_error(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(OSError, match="bomb"):
        read_image(encoded(noise_picture()))


@pytest.mark.parametrize("top", [1.0, 0.5])
def test_floats_up_to_1_are_shares_of_white(top):
    shares = np.linspace(0, top, 300, dtype=np.float32).reshape(15, 20)
    got = pixels_of(encoded(Image.fromarray(shares), "TIFF"))
    assert np.array_equal(got, three(np.round(shares * 255.0)))


@pytest.mark.parametrize("values", [[[-1.0, 3.0]], [[0.0, 1e6]], [[0.0, np.nan]]])
def test_floats_that_are_no_shades_of_grey_are_refused(values):
    with pytest.raises(OSError, match="floats"):
        read_image(encoded(Image.fromarray(np.array(values, dtype=np.float32)), "TIFF"))


def test_a_transparent_shade_of_deep_grey_becomes_white():
    deep = Image.fromarray(DEEP_GREY.astype(np.uint16))
    key = int(DEEP_GREY[4, 5])
    assert np.array_equal(
        pixels_of(encoded(deep, transparency=key)), three(np.where(key == DEEP_GREY, 255, np.round(DEEP_GREY / 257)))
    )


def test_a_strip_of_a_picture_is_refused_by_its_size():
    assert read_image(Image.new("RGB", (3, 3 * LONGEST_SHAPE))).height == 600
    for size in ((1, 20_000), (20_000, 1)):
        with pytest.raises(OSError, match=f"{size[0]} x {size[1]} pixels; at most 200 times as long as wide"):
            read_image(encoded(Image.new("RGB", size)))


def test_what_is_no_regular_file_is_refused_and_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero", tmp_path):
        for cell in (str(path), {"path": str(path), "bytes": None}):
            with pytest.raises(OSError, match="is no regular file"):
                read_image(cell)


@pytest.mark.parametrize("name", ["a[1].png", "a*.png", "a?b.png", "{x}.png"])
def test_the_name_of_a_file_is_no_pattern(name, tmp_path):
    noise_picture().save(tmp_path / name)
    for other in ("a1.png", "ab.png", "axb.png", "x.png"):
        Image.new("RGB", (3, 3)).save(tmp_path / other)
    assert read_image(str(tmp_path / name)).size == noise_picture().size
    (tmp_path / name).unlink()
    with pytest.raises(OSError):
        read_image(str(tmp_path / name))


# EXIF


def exif_block(order: str, kind: int, count: int, value: bytes, before: int = 0) -> bytes:
    """A block whose directory tells the orientation behind ``before`` other entries."""
    entries = [struct.pack(f"{order}HHI", 0x0100 + number, 3, 1) + bytes(4) for number in range(before)]
    entries.append(struct.pack(f"{order}HHI", ORIENTATION, kind, count) + value)
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8)
    return b"Exif\0\0" + head + struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4)


@pytest.mark.parametrize("order", "<>")
def test_an_orientation_counts_as_one_short_alone_as_it_does_in_browsers(order):
    stored = np.asarray(noise_picture())
    six = struct.pack(f"{order}HH", 6, 0)
    for kind, count, value, upright in (
        (3, 1, six, np.rot90(stored, -1)),
        (4, 1, struct.pack(f"{order}I", 6), stored),  # a LONG
        (3, 2, six, stored),
        (3, 0xFFFFFFFF, six, stored),
        (7, 4, six, stored),
        (3, 1, struct.pack(f"{order}HH", 9, 0), stored),
    ):
        block = exif_block(order, kind, count, value, before=3)
        for file_format in ("PNG", "WEBP"):
            data = encoded(noise_picture(), file_format, exif=block, lossless=True)
            assert np.array_equal(pixels_of(data), upright), (file_format, kind, count)
        jpeg = pixels_of(encoded(noise_picture(), "JPEG", exif=block)).shape
        assert jpeg == upright.shape


def test_damage_to_an_exif_block_neither_stops_a_picture_nor_turns_it_by_chance():
    """300 blocks with bytes changed, left out or added: each picture is read, in one of the ways that it can be turned."""
    rng, stored = np.random.default_rng(18), np.asarray(noise_picture())
    ways = [turn(stored) for turn in UPRIGHT_FROM_STORED.values()]
    for _ in range(300):
        order = "<>"[rng.integers(2)]
        block = bytearray(exif_block(order, 3, 1, struct.pack(f"{order}HH", 6, 0), before=int(rng.integers(4))))
        for _ in range(rng.integers(1, 6)):
            block[rng.integers(6, len(block))] = rng.integers(256)
        block = bytes(block[: rng.integers(6, len(block) + 1)]) + rng.bytes(int(rng.integers(20)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for file_format in ("PNG", "JPEG"):
                got = read_image(encoded(noise_picture(), file_format, exif=block))
                assert got.size in ((50, 40), (40, 50))
            got = np.asarray(read_image(encoded(noise_picture(), exif=block)))
        assert any(np.array_equal(got, way) for way in ways)


# Every part of the package


def stored_otherwise(number: int, kind: str) -> tuple[Image.Image, dict]:
    """Picture ``number`` in a form that a careless reader takes for another picture, and options to save it with."""
    image = Image.fromarray(np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    grey = np.asarray(image.convert("L"))
    clear = image.convert("P")
    return {
        "EXIF": (image, {"exif": turned(3 + number % 6)}),
        "alpha": (Image.fromarray(np.dstack([np.asarray(image), grey])), {}),
        "palette": (clear, {"transparency": clear.getpixel((number, 5))}),
        "16 bits": (Image.fromarray(grey.astype(np.uint16) * 257), {}),
    }[kind]


@pytest.mark.parametrize("kind", ["EXIF", "alpha", "palette", "16 bits"])
def test_training_benchmarks_scoring_and_the_teacher_read_the_same_pixels(kind, tmp_path):
    folder = tmp_path / "pairs"
    folder.mkdir()
    lines = []
    for number in range(6):
        image, options = stored_otherwise(number, kind)
        image.save(folder / f"{number}.png", **options)
        lines.append(json.dumps({"file_name": f"{number}.png", "caption": f"caption {number}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    training = ImageCaptionDataset(load_image_captions(str(folder)))
    scored = CaptionedRows(load_image_captions(str(folder)))
    items = load_benchmark(f"retrieval={folder}").items
    for item in items:
        (shown,) = item.images
        upright = np.asarray(training[shown.row]["image"])
        with Image.open(folder / f"{shown.row}.png") as opened:
            assert np.array_equal(np.asarray(to_rgb(opened)), upright)
            assert kind == "16 bits" or not np.array_equal(np.asarray(opened.convert("RGB")), upright)
        assert np.array_equal(np.asarray(read_picture(shown)), upright)
        assert np.array_equal(np.asarray(scored.picture(shown.row)), upright)
    assert len(items) == 6
