import numpy as np
import pytest
from PIL import Image

from meanflow.data.crop import adm_crop
from meanflow.data.images import fit


def published(image, size):
    """ADM's crop as its paper's code describes it, over arrays and sizes as tuples."""
    while min(*image.size) >= 2 * size:
        image = image.resize(tuple(side // 2 for side in image.size), resample=Image.BOX)
    scale = size / min(*image.size)
    image = image.resize(tuple(round(side * scale) for side in image.size), resample=Image.BICUBIC)
    pixels = np.array(image)
    y, x = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[y : y + size, x : x + size]


def noise(width, height):
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    "width, height, size",
    [(300, 201, 64), (129, 255, 64), (128, 128, 64), (500, 97, 32), (37, 61, 16), (31, 32, 16), (10, 14, 16)],
)
def test_the_crop_is_that_of_adm_to_the_pixel(width, height, size):
    cropped = np.asarray(adm_crop(noise(width, height), size))
    assert cropped.shape == (size, size, 3)
    assert np.array_equal(cropped, published(noise(width, height), size))


def test_one_bicubic_pass_is_not_that_crop():
    """The mutant: the crop of image folders, which does not halve first."""
    ours, other = (
        np.asarray(crop).astype(int) for crop in (adm_crop(noise(300, 201), 64), fit(noise(300, 201), (64, 64)))
    )
    assert np.abs(ours - other).mean() > 5
