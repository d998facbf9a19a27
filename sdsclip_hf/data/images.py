"""Pictures from whatever they are stored in: decoded to RGB, told apart by their content, and noted when unreadable."""

import hashlib
import io
import os
import re
import stat
from pathlib import Path

import fsspec
from filelock import FileLock
from PIL import Image, UnidentifiedImageError

from sdsclip_hf.common.writing import write_text
from sdsclip_hf.data.pixels import to_rgb

BAD_IMAGES_FILE = "bad_images.txt"
PNG_SIGNATURE = b"\x89PNG\r\n"


class BadImageError(ValueError):
    """More images than allowed could not be read, or more captions were missing."""


def read_image(source: dict | str | os.PathLike | bytes | Image.Image, upright: bool = True) -> Image.Image:
    """Decode what an undecoded image column holds: ``{"bytes", "path"}``, a path or URL, an image file's bytes, or a
    picture.

    Args:
        source: one of these.
        upright: see [`to_rgb`].

    Raises:
        OSError: it cannot be read as an image.
        TypeError: it is none of these.
    """
    if not isinstance(source, (dict, str, os.PathLike, bytes, Image.Image, type(None))):
        raise TypeError(
            f"{source!r:.80} is no image, but a {type(source).__name__}. Choose an --image_column that holds pictures, "
            "the bytes of image files, or their paths."
        )
    try:
        if isinstance(source, Image.Image):
            return to_rgb(source, upright)
        encoded = _encoded_bytes(source)
        if encoded is None:
            raise ValueError("there is no picture")
        with Image.open(io.BytesIO(encoded)) as image:
            return to_rgb(image, upright)
    except UnidentifiedImageError as error:  # whose words tell an object's address
        raise OSError("it is no picture of a known format, or one that is cut off or damaged") from error
    except Exception as error:  # there is hardly an exception that a decoder does not raise on some broken file
        raise OSError(str(error) or repr(error)) from error


def picture_digest(source: dict | str | os.PathLike | bytes | Image.Image, image: Image.Image | None = None) -> str:
    """A name for a picture that is the same wherever it is stored: 16 hex digits of a hash of its content.

    Of a file in a lossless format (PNG), and of a picture that is in no file, the pixels are hashed, since such files
    are rewritten without a change to the picture; of any other the bytes, since decoders differ in the pixels they give.

    Args:
        source: see [`read_image`].
        image: the same, read already.

    Raises:
        OSError: it cannot be read.
    """
    encoded = _encoded_bytes(source)
    if encoded is None or encoded.startswith(PNG_SIGNATURE):
        image = image or read_image(source)
        encoded = f"{image.size}".encode() + image.tobytes()
    return hashlib.blake2b(encoded, digest_size=8).hexdigest()


def _encoded_bytes(source) -> bytes | None:
    """The bytes of an image file, or None where there is no file."""
    if isinstance(source, dict):
        source = source.get("bytes") if source.get("bytes") is not None else source.get("path")
    if isinstance(source, (str, os.PathLike)):
        if os.path.exists(source):
            if not stat.S_ISREG(os.stat(source).st_mode):  # reading a pipe or a device may never end
                raise OSError(f"{source} is no regular file")
            return Path(source).read_bytes()
        system, path = fsspec.core.url_to_fs(str(source))  # maybe in a zip, or a URL; fsspec.open would expand patterns
        with system.open(path) as file:
            return file.read()
    return source if isinstance(source, bytes) else None


def tell_bad_images(folder: Path) -> str | None:
    """How many images and captions were skipped by what wrote ``folder``, in words; None where it skipped none."""
    path = folder / BAD_IMAGES_FILE
    count = len(BadImages(None, path).names())
    if count == 0:
        return None
    images, captions, were = ("images", "captions", "were") if count > 1 else ("image", "caption", "was")
    return f"{count} unreadable {images} or missing {captions} {were} skipped; {path} names each."


class BadImages:
    """The unreadable images and missing captions of a run, counted together and named in one file.

    The file is what counts, so that loader workers, ranks and resumed runs agree.

    Args:
        limit: how many different images and captions may be skipped; None: any number.
        path: the file that names them, one a line with the reason. None is for a limit of 0 only.
    """

    def __init__(self, limit: int | None, path: str | Path | None = None):
        if limit != 0 and path is None:
            raise ValueError(
                f"{limit or 'any'} bad images may be skipped, but path is missing; name a file to note them."
            )
        self.limit, self.path = limit, None if path is None else Path(path)

    def names(self) -> list[str]:
        """What was skipped so far: an image by its path or its row, a caption by its row."""
        if self.path is None or not self.path.exists():
            return []
        return [line.split("\t", 1)[0] for line in self.path.read_text(encoding="utf-8").splitlines()]

    def record(self, name: str, reason: Exception) -> None:
        """Note one more unreadable image or missing caption.

        Raises:
            BadImageError: there are now more than ``limit``.
        """
        name = re.sub(r"\s", " ", name)  # one line each, and the first tab ends the name
        count = 1 if self.path is None else self._note(name, reason)
        if self.limit is not None and count > self.limit:
            s = "s" * (count > 1)
            named = "" if self.path is None else f"; {self.path} names all of them"
            raise BadImageError(
                f"{count} image{s} or caption{s} could not be read, the last one {name} ({reason}){named}. "
                f"Mend or remove them, or raise --max_bad_images (now {self.limit})."
            )

    def _note(self, name: str, reason: Exception) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(f"_{self.path.name}.lock")):
            known = self.names()
            if name not in known:
                known.append(name)
                before = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
                write_text(self.path, f"{before}{name}\t{' '.join(str(reason).split())}\n")
        return len(known)
