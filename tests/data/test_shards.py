import io
import json
import tarfile

import made
import pytest

from meanflow.data import DataError, open_data


@pytest.fixture
def shards(tmp_path):
    for shard, numbers in enumerate([range(3), range(3, 6), range(6, 8)]):
        made.write_tar(tmp_path / f"part-{shard:03}.tar", made.webdataset(numbers, cls=made.cls))
    return tmp_path


def refused(path, message, **options):
    with pytest.raises(DataError, match=message):
        open_data(path, **options)


def test_a_folder_a_pattern_and_a_range_are_the_same(shards):
    found = [open_data(str(shards) + name) for name in ("", "/part-{000..002}.tar", "/*.tar", "/part-00?.tar")]
    for data in found:
        made.check_all(data)
        assert data.batch(range(8))[1].tolist() == made.LABELS and data.classes == 3
    assert len({data.description()["fingerprint"] for data in found}) == 1
    assert len(open_data(shards / "part-001.tar")) == 3


def test_a_missing_shard_is_named(shards):
    refused(f"{shards}/part-{{000..004}}.tar", r"part-003.tar: there is no such file")
    refused(f"{shards}/nothing-*.tar", r"nothing-\*.tar: there is no such file")


def test_shards_called_train_and_val_are_splits(tmp_path):
    made.write_tar(tmp_path / "set-train-00.tar", made.webdataset(cls=made.cls))
    made.write_tar(tmp_path / "set-val-00.tar", made.webdataset([3], cls=made.cls))
    made.check_all(open_data(tmp_path))
    made.check_all(open_data(tmp_path, split="held_out"), [3])
    assert len(open_data(tmp_path, split="all")) == 9


def test_conditions_lie_beside_the_images(tmp_path):
    def columns(number):
        return json.dumps({"age": number / 2, "hair": "red" if number < 4 else "blue", "at": [number, 1.5]}).encode()

    path = made.write_tar(tmp_path / "a.tar", made.webdataset(json=columns))
    cond = open_data(path).batch([2, 5])[1]
    assert cond["age"].tolist() == [1.0, 2.5] and cond["hair"].tolist() == [1, 0]
    assert cond["at"].tolist() == [[2, 1.5], [5, 1.5]]
    assert open_data(path, cond="at").batch([2])[1].tolist() == [[2, 1.5]]
    assert open_data(path, cond="hair").class_names == ("blue", "red")
    names = made.write_tar(tmp_path / "b.tar", made.webdataset(txt=lambda n: b"cat" if n % 2 else b"dog"))
    assert open_data(names).class_names == ("cat", "dog")


def test_captions_are_no_classes(tmp_path):
    members = made.webdataset(range(120), txt=lambda n: f"picture number {n}".encode())
    path = made.write_tar(tmp_path / "a.tar", members)
    refused(path, r"column 'txt' holds 120 different texts in 120 samples, so these are no classes")
    assert open_data(path, cond="none").batch([0])[1] is None


def test_an_archive_of_class_folders_is_an_image_folder(tmp_path):
    data = open_data(made.write_tar(tmp_path / "a.tar", made.class_folders()))
    made.check_all(data, made.by_class())
    assert data.class_names == ("class-0", "class-1", "class-2")


@pytest.mark.parametrize("keep", [0, 100, 700, 3000])
def test_a_cut_off_shard_is_named(shards, keep):
    path = shards / "part-001.tar"
    path.write_bytes(path.read_bytes()[:keep])
    refused(shards, r"part-001.tar: cannot be read as a tar archive .*cut off")


def test_a_compressed_tar_is_said(shards, tmp_path):
    import gzip

    path = tmp_path / "packed" / "a.tar"
    path.parent.mkdir()
    path.write_bytes(gzip.compress((shards / "part-000.tar").read_bytes()))
    refused(path, "A compressed one cannot be read in any order: uncompress it")


@pytest.mark.parametrize(
    "beside, message",
    [
        ({"cls": lambda n: b"many"}, r"00000.png: what lies beside it is no condition .*--cond none"),
        ({"json": lambda n: b"[1, 2"}, r"00000.png: what lies beside it is no condition"),
        ({"json": lambda n: b"7"}, r"00000.png: what lies beside it is no condition"),
        ({"txt": lambda n: b"\xff\xfe"}, r"00000.png: what lies beside it is no condition"),
        ({"cls": lambda n: b"-1"}, r"label -1 in row 0; labels must be 0 or more"),
    ],
)
def test_conditions_that_are_none_are_refused(tmp_path, beside, message):
    refused(made.write_tar(tmp_path / "a.tar", made.webdataset(**beside)), message)


def test_a_sample_without_label_and_one_with_two_images_are_named(tmp_path):
    members = made.webdataset(cls=made.cls)
    del members["00003.cls"]
    refused(made.write_tar(tmp_path / "a.tar", members), "column 'cls' has no value in sample 3")
    members = made.webdataset(cls=made.cls) | {"00003.small.png": made.png(0)}
    refused(made.write_tar(tmp_path / "b.tar", members), r"00003.small.png and 00003.png are two images of one sample")


def test_a_name_given_twice_is_refused(tmp_path):
    members = [*made.webdataset(cls=made.cls).items(), ("00002.png", made.png(9))]
    refused(made.write_tar(tmp_path / "a.tar", members), "a.tar: holds 00002.png 2 times")


def test_links_and_names_that_lead_elsewhere_are_harmless(tmp_path):
    (tmp_path / "secret.png").write_bytes(made.png(0))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo("a/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.png")
        archive.addfile(link)
        member = tarfile.TarInfo("../../b/1.png")
        member.size = len(made.png(1))
        archive.addfile(member, io.BytesIO(made.png(1)))
    data = open_data(tmp_path / "a.tar")
    made.check_all(data, [1])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar", "secret.png"]


def test_names_that_are_no_text_are_read(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin1") as archive:
        for number, name in enumerate(["caf\xe9/0.png", "bar/1.png"]):
            member = tarfile.TarInfo(name)
            member.size = len(made.png(number))
            archive.addfile(member, io.BytesIO(made.png(number)))
    data = open_data(tmp_path / "a.tar")
    made.check_all(data, [1, 0])
    assert data.class_names == ("bar", "caf\ufffd")
    json.dumps(data.description()).encode()


def test_a_broken_image_is_left_out_with_its_label(tmp_path):
    members = made.webdataset(cls=made.cls) | {"00002.png": made.png(2)[:60]}
    path = made.write_tar(tmp_path / "a.tar", members)
    refused(path, "1 of 8 images are broken, the first: .*a.tar/00002.png: cannot be read as an image")
    with pytest.warns(UserWarning, match="1 of 8 images are broken"):
        data = open_data(path, skip_broken=True)
    assert data.batch(range(7))[1].tolist() == [0, 1, 0, 1, 2, 0, 1] and data.skipped == ("00002.png",)


def test_a_shard_that_vanishes_is_named(shards):
    data = open_data(shards)
    (shards / "part-001.tar").unlink()
    assert data.batch([0, 7])[1].tolist() == [0, 1]
    with pytest.raises(DataError, match=r"part-001.tar/00003.png: cannot be read as an image .*No such file"):
        data.batch([3])


def test_members_in_a_circle_end(tmp_path, monkeypatch):
    """A header that leads back to an earlier one must not be followed for ever."""
    path = made.write_tar(tmp_path / "a.tar", made.webdataset(cls=made.cls))
    one = tarfile.TarInfo("x.png")
    one.offset = 0
    monkeypatch.setattr(tarfile.TarFile, "next", lambda self: one)
    refused(path, "its members go in a circle")
