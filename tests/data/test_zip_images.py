import io
import struct
import threading
import zipfile

import made
import numpy as np
import pytest
import torch
from PIL import Image

from meanflow.data import DataError, open_data


@pytest.fixture
def path(tmp_path):
    return made.write_zip(tmp_path / "photos.zip", made.class_folders())


def refused(path, message, **options):
    with pytest.raises(DataError, match=message):
        open_data(path, **options)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_folders_in_an_archive_are_classes(tmp_path, method):
    data = open_data(made.write_zip(tmp_path / "a.zip", made.class_folders(), method))
    made.check_all(data, made.by_class())
    assert data.class_names == ("class-0", "class-1", "class-2")
    assert data.batch(range(8))[1].tolist() == sorted(made.LABELS)
    assert data.description()["kind"] == "zip"


def test_the_same_images_unpacked_are_the_same(path, tmp_path):
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path)
    folder, packed = open_data(tmp_path / "photos"), open_data(path)
    assert torch.equal(folder.batch(range(8))[0], packed.batch(range(8))[0])
    assert torch.equal(folder.batch(range(8))[1], packed.batch(range(8))[1])


def test_train_and_test_folders_are_splits(tmp_path):
    members = {**made.class_folders("all/train/"), "all/test/class-1/9.png": made.png(9)}
    path = made.write_zip(tmp_path / "a.zip", members)
    made.check_all(open_data(path), made.by_class())
    made.check_all(open_data(path, split="held_out"), [9])
    assert len(open_data(path, split="all")) == 9


def test_what_packers_add_is_left_alone(tmp_path):
    members = made.class_folders() | {"__MACOSX/photos/class-0/._0.png": b"junk", "photos/.DS_Store": b"junk"}
    made.check_all(open_data(made.write_zip(tmp_path / "a.zip", members)), made.by_class())


def test_names_are_names_and_nothing_is_written(tmp_path):
    below = tmp_path / "below"
    below.mkdir()
    members = {"/etc/a/1.png": made.png(1), "../../x/2.png": made.png(2)}
    data = open_data(made.write_zip(below / "a.zip", members))
    assert data.class_names == ("..", "etc") and len(data) == 2
    assert [p.name for p in tmp_path.rglob("*")] == ["below", "a.zip"]


def test_threads_and_many_readers_see_the_same(path):
    data = open_data(path)
    wanted = data.batch(range(8))[0]
    found = []
    readers = [threading.Thread(target=lambda: found.append(data.batch(range(8))[0])) for _ in range(8)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert len(found) == 8 and all(torch.equal(x, wanted) for x in found)


@pytest.mark.parametrize("keep", [0, 10, 500, -1])
def test_a_cut_off_archive_is_named(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    refused(path, r"photos.zip: cannot be read as a zip archive .*cut off: fetch or pack it again")


def test_an_archive_of_other_things_is_said(tmp_path):
    refused(made.write_zip(tmp_path / "a.zip", {}), "a.zip: holds no images but nothing at all")
    refused(made.write_zip(tmp_path / "b.zip", {"a/b.txt": b"x"}), r"holds no images but 1 other files \(1 .txt\)")


def test_a_changed_pixel_is_found_by_its_checksum(tmp_path):
    members = {}
    for number in range(3):
        file = io.BytesIO()
        Image.fromarray(made.pixels(number)).save(file, "bmp")  # has no checksum of its own
        members[f"{number}.bmp"] = file.getvalue()
    path = made.write_zip(tmp_path / "a.zip", members, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[content.index(members["1.bmp"]) + len(members["1.bmp"]) - 5] ^= 1
    path.write_bytes(content)
    refused(path, r"1 of 3 images are broken, the first: .*a.zip/1.bmp: cannot be read as an image .*checksum")
    with pytest.warns(UserWarning, match="1 of 3 images are broken and left out"):
        data = open_data(path, skip_broken=True)
    made.check_all(data, [0, 2])
    assert data.skipped == ("1.bmp",)


def test_an_encrypted_archive_is_said(path):
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\x01\x02")
    content[start + 8] |= 1
    path.write_bytes(content)
    refused(path, r"photos/class-0/0.png is encrypted; unpack the archive and pack it again without")


def test_a_member_that_declares_too_much_is_refused_without_unpacking(path):
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\x01\x02")
    content[start + 24 : start + 28] = struct.pack("<I", 2**31)
    path.write_bytes(content)
    refused(path, r"0.png: cannot be read as an image \(declares 2,147,483,648 bytes out of \d+, more than an image")


def test_pixels_beyond_the_limit_of_pillow_are_refused(tmp_path, monkeypatch):
    path = made.write_zip(tmp_path / "a.zip", {"a.png": made.png(0, 20, 20)})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    with pytest.warns(Image.DecompressionBombWarning):
        refused(path, r"a.png: .*20x20 pixels are more than 300, Pillow's limit; shrink it")


def test_other_compressions_are_named(tmp_path):
    path = made.write_zip(tmp_path / "a.zip", {"a.png": made.png(0)}, zipfile.ZIP_LZMA)
    refused(path, r"a.png: .*compressed by method 14, wanted stored or deflated")


def test_a_name_given_twice_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("a/1.png", made.png(1))
        archive.writestr("a/1.png", made.png(2))
    refused(tmp_path / "a.zip", r"a.zip: holds a/1.png 2 times")


def test_mixed_sizes_are_refused(tmp_path):
    path = made.write_zip(tmp_path / "a.zip", {"a.png": made.png(0), "b.png": made.png(1, 9, 5)})
    refused(path, r"a.zip: images differ in size .*a.png is 6x4, b.png is 9x5; pass size=")
    assert open_data(path, size=4).shape == (3, 4, 4)


def test_an_archive_that_vanishes_or_shrinks_is_named(path):
    data = open_data(path)
    content = path.read_bytes()
    path.write_bytes(content[:40])
    with pytest.raises(DataError, match=r"photos.zip/photos/class-0/0.png: .*changed since it was opened"):
        data.batch([0])
    path.unlink()
    with pytest.raises(DataError, match=r"photos.zip/photos/class-0/0.png: cannot be read .*No such file"):
        data.batch([0])
    path.write_bytes(content)
    assert np.array_equal(made.as_bytes(data.batch([0])[0])[0], made.pixels(0))


def test_a_table_of_attributes_gives_the_conditions(tmp_path):
    rows = ["file_name,smile,age,hair"]
    rows += [
        f"class-{label}/{n}.png,{n % 2},{n / 2},{'red' if n < 4 else 'blue'}" for n, label in enumerate(made.LABELS)
    ]
    path = made.write_zip(tmp_path / "a.zip", made.class_folders() | {"photos/metadata.csv": "\n".join(rows).encode()})
    data = open_data(path)
    cond = data.batch([0, 1])[1]
    assert data.classes is None and sorted(cond) == ["age", "hair", "smile"]
    assert cond["age"].tolist() == [0.0, 1.5] and cond["smile"].tolist() == [0, 1] and cond["hair"].tolist() == [1, 1]
    assert data.description()["values"] == {"hair": ["blue", "red"]}
    assert open_data(path, cond="hair").class_names == ("blue", "red")
    assert open_data(path, cond="age").batch([1])[1].tolist() == [[1.5]]
    assert open_data(path, cond="none").batch([1])[1] is None
    assert open_data(path, cond="hair").description()["fingerprint"] != data.description()["fingerprint"]
    refused(path, "no column 'height' for a condition; there are: smile, age, hair", cond="height")


@pytest.mark.parametrize(
    "table, message",
    [
        ("a,b\n1,2\n", "one must be called file_name"),
        ("file_name,b\nclass-0/0.png,1\n", r"7 of 8 images have no row, the first: class-0/3.png"),
        ("file_name,b\nclass-0/0.png\n", "row 1 has no value for 'b'"),
        ("file_name,b\nclass-0/0.png,1,2\n", "row 1 has more values than the header"),
        ("\xff", "7 of 8|one must be called file_name"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path, table, message):
    members = made.class_folders() | {"photos/metadata.csv": table.encode()}
    refused(made.write_zip(tmp_path / "a.zip", members), message)


@pytest.mark.skipif(not (made.SHARED / "sign-digits100").is_dir(), reason="no hand photos beside the repository")
def test_photos_of_hands(tmp_path):
    path = next((made.SHARED / "sign-digits100").glob("*.zip"))
    data = open_data(path, size=32)
    assert len(data) == 1000 and data.shape == (3, 32, 32)
    assert data.class_names == tuple(map(str, range(10)))
    assert data.batch(range(1000))[1].bincount().tolist() == [100] * 10
