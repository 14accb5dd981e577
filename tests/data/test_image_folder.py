import copy
import json
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from meanflow.data import DataError, Dataset, ImageFolder

CIFAR = Path(__file__).parents[2].parent / "shared" / "data" / "cifar10"


def noise(height, width, channels=3, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    return pixels[..., 0] if channels == 1 else pixels


def write(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def as_bytes(x):
    return ((x + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def read_one(folder, **options):
    return as_bytes(ImageFolder(folder, **options).batch([0])[0])[0]


@pytest.fixture
def classes(tmp_path):
    for number, name in enumerate(["b/1.png", "b/deep/2.PNG", "a/x.bmp", "a/y.webp"]):
        write(tmp_path / name, noise(4, 6, seed=number), **({"lossless": True} if name[-1] == "p" else {}))
    return tmp_path


def test_classes_are_sub_folders_sorted_by_name(classes):
    data = ImageFolder(classes)
    assert isinstance(data, Dataset) and len(data) == 4
    assert data.shape == (3, 4, 6) and data.classes == 2 and data.class_names == ("a", "b")
    x, labels = data.batch([3, 0, 2])
    assert x.dtype == torch.float32 and labels.dtype == torch.int64 and labels.tolist() == [1, 0, 1]
    assert np.array_equal(as_bytes(x), np.stack([noise(4, 6, seed=number) for number in (1, 2, 0)]))


def test_images_directly_in_the_folder_have_no_classes(tmp_path):
    for number in range(3):
        write(tmp_path / f"{number}.png", noise(4, 4, 1, number))
    data = ImageFolder(tmp_path)
    assert (data.shape, data.classes, data.class_names) == ((1, 4, 4), None, None)
    x, cond = data.batch(torch.tensor([2]))
    assert cond is None and np.array_equal(as_bytes(x)[0, :, :, 0], noise(4, 4, 1, 2))
    assert data.batch([])[0].shape == (0, 1, 4, 4)


def test_hidden_and_other_files_are_left_alone(classes):
    write(classes / "a" / ".hidden.png", noise(9, 9))
    write(classes / ".cache" / "c.png", noise(9, 9))
    (classes / "a" / "README.txt").write_text("about a")
    assert len(ImageFolder(classes)) == 4


def test_links_are_followed_and_circles_are_not(classes, tmp_path_factory):
    root = tmp_path_factory.mktemp("links")
    (root / "a").symlink_to(classes / "a")
    (classes / "a" / "circle").symlink_to(classes / "a")
    assert len(ImageFolder(root)) == 2


@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG", "webp", "bmp", "gif", "tif", "TIFF"])
def test_every_kind_of_file_is_read(tmp_path, suffix):
    flat = np.full((8, 8, 3), (255, 0, 0), np.uint8)
    write(tmp_path / f"a.{suffix}", flat)
    assert np.abs(read_one(tmp_path).astype(int) - flat).max() <= 3


@pytest.mark.parametrize(
    "mode, pixels, wanted",
    [
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
        ("LA", (0, 0), (255,)),
        ("LA", (7, 255), (7,)),
        ("1", 1, (255,)),
        ("I;16", 65535, (255,)),
        ("I;16", 257, (1,)),
        ("I;16", 32896, (128,)),
    ],
)
def test_transparency_is_laid_on_white_and_depth_is_scaled(tmp_path, mode, pixels, wanted):
    Image.new(mode, (2, 2), pixels).save(tmp_path / "a.png")
    assert read_one(tmp_path)[0, 0].tolist() == list(wanted)


def test_palette_and_cmyk_become_rgb(tmp_path):
    flat = Image.new("RGB", (8, 8), (10, 20, 30))
    flat.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "a.png")
    assert read_one(tmp_path)[0, 0].tolist() == [10, 20, 30]
    Image.new("CMYK", (8, 8), (0, 0, 0, 0)).save(tmp_path / "a.jpg")
    assert ImageFolder(tmp_path).shape == (3, 8, 8)
    assert as_bytes(ImageFolder(tmp_path).batch([0])[0]).min() > 250


def test_the_first_frame_of_an_animation_is_taken(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_one(tmp_path)[0, 0].tolist() == [255, 0, 0]


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    left_half_black = np.zeros((16, 32, 3), np.uint8)
    left_half_black[:, 16:] = 255
    write(tmp_path / "a.jpg", left_half_black, exif=exif)
    upright = read_one(tmp_path)
    assert upright.shape == (32, 16, 3) and upright[:10].max() < 30 and upright[-10:].min() > 225


def test_exif_rotations_are_those_of_pillow(tmp_path):
    from PIL import ImageOps

    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = write(tmp_path / "a.jpg", noise(16, 24), exif=exif)
        wanted = np.asarray(ImageOps.exif_transpose(Image.open(path)))
        assert np.array_equal(read_one(tmp_path), wanted)


def test_size_crops_the_centre(tmp_path):
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, 4:12] = noise(8, 8)
    write(tmp_path / "a.png", pixels)
    assert np.array_equal(read_one(tmp_path, size=8), noise(8, 8))
    assert read_one(tmp_path, size=(4, 12)).shape == (4, 12, 3)


def test_making_smaller_is_antialiased(tmp_path):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    write(tmp_path / "a.png", stripes)
    assert np.abs(read_one(tmp_path, size=8)[:, 1:-1].astype(int) - 128).max() <= 3


def test_making_larger_works(tmp_path):
    write(tmp_path / "a.png", np.full((3, 5, 3), 77, np.uint8))
    assert (read_one(tmp_path, size=(16, 12)) == 77).all()


def test_mode_converts(classes):
    write(classes / "a" / "grey.png", noise(4, 6, 1))
    assert ImageFolder(classes, mode="RGB").shape == (3, 4, 6)
    assert ImageFolder(classes, mode="L").batch(range(5))[0].shape == (5, 1, 4, 6)


def refused(folder, message, **options):
    with pytest.raises(DataError, match=message):
        ImageFolder(folder, **options)


def test_different_sizes_are_refused_with_two_examples(classes):
    write(classes / "b" / "z.png", noise(9, 5))
    refused(classes, r"a/x.bmp is 4x6, b/z.png is 9x5; pass size=, e.g. size=4 \(--size 4\)")
    assert ImageFolder(classes, 4).shape == (3, 4, 4)


def test_grey_and_colour_are_refused_with_two_examples(classes):
    write(classes / "b" / "grey.png", noise(4, 6, 1))
    refused(classes, r'b/grey.png is grey, a/x.bmp is colour; pass mode="RGB" or mode="L"')


def test_images_beside_class_folders_are_refused(classes):
    write(classes / "top.png", noise(4, 6))
    refused(classes, r"images of its own \(top.png\) and in sub-folders \(a/x.bmp\)")


def test_an_empty_class_is_refused(classes):
    (classes / "c").mkdir()
    refused(classes, r"class folder 'c' holds no images \(1 such of 3\); fill it or remove it")


def test_folders_without_images_are_refused(tmp_path):
    refused(tmp_path / "no", "no: there is no such folder")
    refused(tmp_path, "holds no images but nothing at all; wanted files that end in .bmp")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    refused(tmp_path, r"holds no images but 2 other files \(2 .txt\)")
    refused(tmp_path / "a.txt", "a.txt: is a file, not a folder")


@pytest.mark.parametrize("size", [0, -3, (4, 0), (1, 2, 3)])
def test_impossible_sizes_are_refused(classes, size):
    refused(classes, r"size must be a positive number or \(height, width\), got", size=size)


def test_other_impossible_options_are_refused(classes):
    refused(classes, "mode must be 'L', 'RGB' or None, got 'rgb'", mode="rgb")
    refused(classes, "threads must be 1 or more, got 0", threads=0)
    refused(classes, "check must be 'auto', 'full' or 'headers', got 'none'", check="none")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-60])


@pytest.mark.parametrize("name", ["t.png", "t.jpg", "t.webp", "t.gif", "t.bmp"])
def test_truncated_images_are_found_before_training(classes, name):
    truncate(write(classes / "b" / name, noise(40, 60)))
    refused(
        classes,
        rf"1 of 5 images are broken, the first: .*b/{name}: cannot be read .*skip_broken=True",
        size=4,
    )


def test_a_file_that_is_no_image_is_found(classes):
    (classes / "b" / "t.png").write_text("<html>404</html>")
    refused(classes, r"b/t.png: cannot be read as an image", check="headers")


def test_float_images_are_refused(classes):
    Image.new("F", (6, 4), 0.5).save(classes / "b" / "f.tif")
    refused(classes, r"b/f.tif: .*32 bits a pixel \(mode F\).*use a .npy file")


def test_skip_broken_leaves_them_out_and_says_so(classes):
    truncate(write(classes / "a" / "t.png", noise(4, 6)))
    (classes / "b" / "u.jpg").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"2 of 6 images are broken and left out.*.*a/t.png") as caught:
        data = ImageFolder(classes, skip_broken=True)
    assert caught[0].filename == __file__
    assert data.skipped == ("a/t.png", "b/u.jpg") and len(data) == 4
    assert data.batch(range(4))[1].tolist() == [0, 0, 1, 1]
    assert data.description()["skipped"] == 2


def test_nothing_but_broken_images_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    refused(tmp_path, r"1 of 1 images are broken.*a.png", skip_broken=True)


def test_a_whole_folder_is_silent(classes):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ImageFolder(classes, skip_broken=True).skipped == ()


def test_headers_only_finds_the_truncated_image_when_it_is_read(classes):
    truncate(write(classes / "b" / "t.png", noise(4, 6)))
    data = ImageFolder(classes, check="headers")
    with pytest.raises(DataError, match=r"b/t.png: cannot be read as an image"):
        data.batch(range(5))


def test_files_that_change_later_are_named(classes):
    data = ImageFolder(classes)
    write(classes / "a" / "x.bmp", noise(5, 5))
    with pytest.raises(DataError, match=r"x.bmp: now has the shape \[3, 5, 5\], but had \[3, 4, 6\]"):
        data.batch([0])
    (classes / "a" / "x.bmp").unlink()
    with pytest.raises(DataError, match=r"x.bmp: cannot be read as an image .*No such file"):
        data.batch([0])


def test_the_fingerprint_tells_folders_apart(classes):
    first = json.loads(json.dumps(ImageFolder(classes).description()))
    assert first["kind"] == "image_folder" and first["length"] == 4 and first["shape"] == [3, 4, 6]
    assert ImageFolder(classes).description() == first
    (classes / "a" / "x.bmp").rename(classes / "a" / "w.bmp")
    assert ImageFolder(classes).description()["fingerprint"] != first["fingerprint"]


def test_copies_and_pickles_read_on(classes):
    data = ImageFolder(classes)
    wanted = data.batch([1])[0]
    for other in (copy.deepcopy(data), pickle.loads(pickle.dumps(data))):
        assert torch.equal(other.batch([1])[0], wanted)


def test_one_thread_reads_what_many_read(classes):
    assert torch.equal(
        ImageFolder(classes, threads=1).batch(range(4))[0], ImageFolder(classes, threads=4).batch(range(4))[0]
    )


@pytest.mark.skipif(not (CIFAR / "train_00.webp").is_file(), reason="no CIFAR-10 beside the repository")
def test_cifar_comes_back_as_it_was(tmp_path):
    mosaic = np.asarray(Image.open(CIFAR / "train_00.webp").convert("RGB"))
    tiles = mosaic.reshape(25, 32, 40, 32, 3).transpose(0, 2, 1, 3, 4).reshape(1000, 32, 32, 3)
    labels = np.load(CIFAR / "train_labels.npy")[:300]
    for number, label in enumerate(labels):
        write(tmp_path / str(label) / f"{number:05}.png", tiles[number])
    data = ImageFolder(tmp_path)
    assert data.shape == (3, 32, 32) and data.classes == 10
    x, read = data.batch(range(300))
    wanted = sorted(range(300), key=lambda number: (labels[number], number))
    assert np.array_equal(as_bytes(x), np.stack([tiles[number] for number in wanted]))
    assert read.tolist() == [labels[number] for number in wanted]
