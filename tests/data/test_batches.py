import subprocess
import sys
import threading

import pytest
import torch

from meanflow.data import DataError, Tensors, batches, order


def numbered(length=10):
    return Tensors(torch.arange(float(length))[:, None], torch.arange(length))


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("meanflow-batches")]


class Failing(Tensors):
    """Data whose row 3 cannot be read."""

    def batch(self, indices):
        if 3 in indices.tolist():
            raise DataError("row 3 is gone")
        return super().batch(indices)


def test_batches_follow_the_order_across_epochs():
    stream = batches(numbered(), 4, seed=1)
    drawn = torch.cat([next(stream)[1] for _ in range(10)])
    stream.close()
    assert torch.equal(drawn, order(10, seed=1, start=0, count=40))


def test_a_resumed_stream_goes_on_where_the_first_stopped():
    first = batches(numbered(), 4, seed=1)
    whole = [next(first) for _ in range(6)]
    first.close()
    resumed = batches(numbered(), 4, seed=1, start=12)
    for x, labels in whole[3:]:
        again = next(resumed)
        assert torch.equal(again[0], x) and torch.equal(again[1], labels)
    resumed.close()


def test_a_batch_may_be_larger_than_the_data():
    stream = batches(numbered(3), 8, seed=0)
    assert next(stream)[0].shape == (8, 1)
    stream.close()


def test_closing_ends_the_thread():
    stream = batches(numbered(), 4, seed=1)
    next(stream)
    assert len(readers()) == 1
    stream.close()
    assert readers() == []


def test_an_error_in_the_thread_reaches_the_caller_and_ends_the_thread():
    data = Failing(torch.arange(10.0)[:, None])
    before = order(10, seed=1, start=0, count=10).tolist().index(3)
    stream = batches(data, 1, seed=1)
    for _ in range(before):
        next(stream)
    with pytest.raises(DataError, match="row 3 is gone"):
        next(stream)
    assert readers() == []


def test_the_next_batch_is_read_while_this_one_is_in_use():
    read = threading.Event()

    class Watched(Tensors):
        reads = 0

        def batch(self, indices):
            self.reads += 1
            if self.reads == 2:
                read.set()
            return super().batch(indices)

    stream = batches(Watched(torch.zeros(10, 1)), 2, seed=0)
    next(stream)
    assert read.wait(10)
    stream.close()


def test_an_interpreter_that_ends_with_an_open_stream_ends(tmp_path):
    code = (
        "import torch; from meanflow.data import Tensors, batches\n"
        "stream = batches(Tensors(torch.zeros(10, 1)), 4, seed=0)\nnext(stream)\nprint('done')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"start": -4}, {"workers": -1}])
def test_impossible_batches_are_refused_at_once(wrong):
    with pytest.raises(
        DataError, match=r"batch >= 1, start >= 0 and workers >= 0, got .*(batch=0|start=-4|workers=-1)"
    ):
        batches(numbered(), **({"batch": 4, "seed": 0} | wrong))
