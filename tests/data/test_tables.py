import numpy as np
import pytest

from meanflow.data import DataError, open_data


def write(path, text, encoding="utf-8"):
    path.write_text(text, encoding=encoding)
    return path


def test_columns_are_vectors_and_the_label_is_a_class(tmp_path):
    path = write(tmp_path / "a.csv", "x,y2,label\n1.5,2,red\n-1,0.5,blue\n\n3,4,red\n")
    data = open_data(path)
    assert data.shape == (2,) and data.class_names == ("blue", "red")
    x, labels = data.batch([0, 2])
    assert x.tolist() == [[1.5, 2], [3, 4]] and labels.tolist() == [1, 1]


def test_columns_are_chosen(tmp_path):
    path = write(tmp_path / "a.csv", '\ufeff"x", "at",kind\n1,2,0\n3,4,1\n')
    assert open_data(path).shape == (3,)
    assert open_data(path, cond="at").batch([1])[1].tolist() == [4]
    both = open_data(path, cond="at,kind")
    assert both.shape == (1,) and sorted(both.batch([0])[1]) == ["at", "kind"]
    assert open_data(path, cond="none").shape == (3,)


def test_numbers_without_names_are_read(tmp_path):
    data = open_data(write(tmp_path / "a.csv", "1,2\n3,4\n"))
    assert len(data) == 2 and data.batch([0])[0].tolist() == [[1, 2]]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "it has no column left|it has no rows"),
        ("x,y2\n", "it has no rows"),
        ("x,name\n1,anna\n", r"a.csv: cannot be read as a table of numbers .*--cond NAME"),
        ("x,y2\n1,2\n3\n", "cannot be read as a table of numbers"),
        ("x,label\n1,2\n3\n", "line 3 has 1 values, wanted 2"),
        ("x,x\n1,2\n", "empty or repeated names"),
        ("x,y2\n1,nan\n", "values of x are NaN or Inf"),
        ("label\n1\n", "no column left for the data"),
        ('x,label\n1,"2\n', "cannot be read|wanted 2"),
    ],
)
def test_tables_that_cannot_be_used_are_named(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        open_data(write(tmp_path / "a.csv", text))


def test_a_file_in_another_encoding_is_named(tmp_path):
    path = write(tmp_path / "a.csv", "größe,y2\n1,2\n", "latin1")
    with pytest.raises(DataError, match=r"a.csv: cannot be read as a table of numbers .*utf-8"):
        open_data(path)


def test_a_table_is_what_numpy_reads(tmp_path):
    x = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    np.savetxt(tmp_path / "a.csv", x, delimiter=",", header=",".join("abcdefg"), comments="", fmt="%.9g")
    assert np.array_equal(open_data(tmp_path / "a.csv").batch(range(50))[0].numpy(), x)
