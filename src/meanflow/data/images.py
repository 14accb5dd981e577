"""Reading one encoded image: header, pixels, mode and size."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from .errors import DataError

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
GREY_MODES = frozenset({"1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N"})
ORIENTATION = 0x0112  # EXIF 2.32, tag 274; its values 5 to 8 swap height and width
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Header:
    """What must be known of an image before it is read."""

    size: tuple[int, int]  # height, width, upright
    grey: bool


def read_header(opened: Callable[[], BinaryIO], title: str, decode: bool) -> Header:
    """The header of an encoded image, its pixels decoded once if `decode`; DataError naming it by `title`."""
    try:
        with opened() as file, Image.open(file) as image:
            _check_opened(image)
            width, height = image.size
            size = (width, height) if _orientation(image) >= 5 else (height, width)
            header = Header(size, image.mode in GREY_MODES)
            if decode:
                image.load()
            return header
    except MemoryError:
        raise  # no fault of the image
    # Pillow's decoders raise whatever a broken file leads them to, up to struct.error and IndexError
    except Exception as error:
        raise unreadable(title, error) from error


def read_image(opened: Callable[[], BinaryIO], title: str, mode: str, size: tuple[int, int] | None) -> Bytes:
    """The pixels uint8 [C, H, W] of an encoded image; DataError naming it by `title`."""
    try:
        with opened() as file, Image.open(file) as stored:
            _check_opened(stored)
            turn = UPRIGHT.get(_orientation(stored))
            image = convert(stored, mode)
            pixels = np.array(fit(image if turn is None else image.transpose(turn), size))
    except MemoryError:
        raise
    except Exception as error:
        raise unreadable(title, error) from error
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def convert(image: Image.Image, mode: str) -> Image.Image:
    """The image as "L" or "RGB": transparency on white, 16-bit grey scaled so that 65,535 is white."""
    if image.mode.startswith("I"):
        # Pillow's own conversion clips at 255 instead of scaling
        image = Image.fromarray(((np.asarray(image).astype(np.int64) + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)


def fit(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    """The centre of the image with the aspect of `size` (height, width), resized to it; None changes nothing.

    One antialiased bicubic pass over the cropped box: as resizing the shorter side and then cropping, but
    without rounding to whole pixels in between.
    """
    if size is None or (image.height, image.width) == size:
        return image
    height, width = size
    scale = min(image.height / height, image.width / width)
    left, top = (image.width - scale * width) / 2, (image.height - scale * height) / 2
    box = (
        max(0.0, left),
        max(0.0, top),
        min(image.width, left + scale * width),
        min(image.height, top + scale * height),
    )
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box)


def unreadable(title: str, error: Exception) -> DataError:
    """What is said of an image that cannot be read."""
    reason = str(error).split("<_io.", 1)[0].rstrip() or type(error).__name__  # no address of a buffer in memory
    return DataError(
        f"{title}: cannot be read as an image ({reason}); repair or remove it, or leave such "
        f"files out with skip_broken=True (--skip-broken)"
    )


def _orientation(image: Image.Image) -> int:
    # Pillow turns TIFF itself, and would decode a whole PNG to look for an EXIF block at its end
    if image.format not in ("JPEG", "MPO", "WEBP"):
        return 1
    # broken EXIF is common in images that are fine otherwise
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:
        return 1
    return orientation if orientation in UPRIGHT else 1


def _check_opened(image: Image.Image) -> None:
    # older Pillow opens 16-bit grey PNG as mode "I"
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise ValueError(f"32 bits a pixel (mode {image.mode}) do not say what is white; use a .npy file")
    # Pillow only warns up to twice its limit, and a small file may unfold to gigabytes
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ValueError(f"{image.width}x{image.height} pixels are more than {limit:,}, Pillow's limit; shrink it")
