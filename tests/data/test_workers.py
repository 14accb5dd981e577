import multiprocessing
import os
import signal
import subprocess
import sys
import time

import made
import pytest
import torch

import meanflow as mf
from meanflow.data import DataError, Tensors, batches, open_data, order


def sources(folder):
    yield made.write_zip(folder / "a.zip", made.class_folders())
    yield made.write_tar(folder / "a.tar", made.webdataset(cls=made.cls))
    yield made.write_parquet(folder / "a.parquet")
    yield made.write_saved(folder / "saved")


@pytest.mark.parametrize("start", [0, 5])
def test_the_stream_is_the_same_whatever_the_number_of_workers(tmp_path, start):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    for source in sources(tmp_path):
        data = open_data(source)
        found = {}
        for workers in (0, 1, 2):
            stream = batches(data, 3, seed=5, start=start, workers=workers)
            found[workers] = [next(stream) for _ in range(6)]
            stream.close()
        for workers in (1, 2):
            for (x, labels), (wanted, wanted_labels) in zip(found[workers], found[0], strict=True):
                assert torch.equal(x, wanted) and torch.equal(labels, wanted_labels)
        # and it is the order of the data, so that an equal mistake in all of them would be seen
        index = order(8, seed=5, start=start, count=18)
        assert torch.equal(torch.cat([x for x, _ in found[2]]), data.batch(index)[0])


def test_workers_are_asked_for_when_the_data_are_opened(tmp_path):
    data = open_data(made.write_zip(tmp_path / "a.zip", made.class_folders()), workers=2)
    stream = batches(data, 4, seed=0)
    next(stream)
    assert len(multiprocessing.active_children()) == 2
    stream.close()
    assert multiprocessing.active_children() == []
    with pytest.raises(DataError, match="workers must be 0 or more processes, got -1"):
        open_data(tmp_path / "a.zip", workers=-1)


def test_an_error_in_a_worker_is_the_error_of_the_data(tmp_path):
    data = open_data(made.write_zip(tmp_path / "a.zip", made.class_folders()))
    (tmp_path / "a.zip").unlink()
    stream = batches(data, 4, seed=0, workers=2)
    with pytest.raises(DataError) as caught:
        next(stream)
    assert "a.zip/photos/class-" in str(caught.value) and "Traceback" not in str(caught.value)
    assert multiprocessing.active_children() == []


def test_a_killed_worker_is_said_and_does_not_hang():
    class Deadly(Tensors):
        def batch(self, indices):
            if torch.utils.data.get_worker_info() is not None:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().batch(indices)

    stream = batches(Deadly(torch.zeros(8, 2)), 4, seed=0, workers=1)
    with pytest.raises(RuntimeError, match=r"worker .*(killed|exited)"):
        next(stream)


@pytest.mark.parametrize("word", [signal.SIGINT, signal.SIGTERM])
def test_workers_leave_signals_to_the_process_that_trains(word):
    stream = batches(Tensors(torch.zeros(8, 2)), 4, seed=0, workers=1)
    next(stream)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, word)
    for _ in range(8):  # more than were read ahead
        next(stream)
    stream.close()


def test_weights_are_the_same_with_workers(tmp_path):
    path = made.write_zip(tmp_path / "a.zip", made.class_folders())
    weights = []
    for workers in (0, 2):
        torch.manual_seed(0)
        net = mf.nets.MLP(shape=(3, 6, 4), width=8, depth=1, classes=3)
        out = tmp_path / str(workers)
        mf.fit(mf.MeanFlow(net), open_data(path, workers=workers), out=out, images=24, batch=4, device="cpu")
        weights.append(mf.load(out, raw=True).state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_ctrl_c_which_reaches_the_whole_group_saves_and_ends(tmp_path):
    made.write_zip(tmp_path / "a.zip", made.class_folders())
    words = "train a.zip --workers 2 --images 10000000 --batch 8 --net.kind mlp --net.width 8 --net.depth 1 --out run"
    command = [sys.executable, "-m", "meanflow.cli", *words.split(), "--log-every", "80"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert "saved. The same command again goes on" in out and "Traceback" not in errors
    assert list((tmp_path / "run" / "checkpoints").iterdir())
