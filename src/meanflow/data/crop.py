"""The crop of ImageNet's generative models."""

from PIL import Image

ADM_CENTRE = "adm-centre"


def adm_crop(image: Image.Image, size: int) -> Image.Image:
    """The centre square of an RGB image, `size` pixels wide, to the pixel as ADM's `center_crop_arr` cuts it.

    Halved with a box filter while the shorter side is at least twice `size`, then bicubic to `size` on the shorter
    side, then cut at whole pixels. Source: guided-diffusion, image_datasets.py, arXiv:2105.05233.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
