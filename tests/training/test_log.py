"""Metrics: means over processes and steps, loggers, and the screen of a run's status."""

import csv
import json
import shutil
import time

import pytest
import torch

import meanflow as mf
from meanflow.cli import main
from meanflow.cli.status import BARS, trend
from meanflow.training.log import Sums, merged, read_metrics
from meanflow.training.loggers import check_loggers
from meanflow.training.run import locked

CPU = torch.device("cpu")


def fit(out, **options):
    torch.manual_seed(0)
    data = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    settings = {"images": 192, "batch": 16, "save_every": 64, "log_every": 16, "loggers": ()}
    return mf.fit(mf.MeanFlow(mf.nets.MLP((2,), width=8, depth=1)), data, out=out, **{**settings, **options})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("log") / "run"
    fit(out, loggers=("csv", "tensorboard"))
    return out


def test_means_leave_out_skipped_steps_and_weigh_processes_by_their_steps():
    good, bad = torch.tensor(False), torch.tensor(True)
    one, two = Sums(CPU, None), Sums(CPU, None)
    for value, left_out in ((1.0, good), (torch.nan, bad), (3.0, good)):
        one.add({"a": torch.tensor(value)}, left_out)
    two.add({"a": torch.tensor(8.0), "b": torch.tensor(5.0)}, good)
    means, skipped = merged([one.plain(), two.plain()])
    assert means == {"a": 4.0, "b": 5.0} and skipped == 1


def test_what_was_gathered_goes_on_as_if_nothing_had_been_between():
    values = torch.rand(10, generator=torch.Generator().manual_seed(0))
    whole, first = Sums(CPU, None), Sums(CPU, None)
    for i, value in enumerate(values):
        whole.add({"a": value}, torch.tensor(i == 3))
        if i < 5:
            first.add({"a": value}, torch.tensor(i == 3))
    second = Sums(CPU, json.loads(json.dumps(first.plain())))
    for value in values[5:]:
        second.add({"a": value}, torch.tensor(False))
    assert second.plain() == whole.plain()


def test_csv_holds_what_metrics_hold_also_after_a_resume_and_with_new_columns(tmp_path):
    fit(tmp_path / "run", images=96, loggers=("csv",))
    fit(tmp_path / "run", loggers=("csv",))
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    records = read_metrics(tmp_path / "run")
    assert len(rows) == len(records) == 12
    numbers = [{name: float(value) for name, value in row.items()} for row in rows]
    assert numbers == [{name: float(value) for name, value in record.items()} for record in records]


def test_csv_gets_a_column_that_appears_late(tmp_path):
    from meanflow.training.loggers import Csv

    log = Csv(tmp_path, [], {})
    for record in ({"images": 1, "a": 2}, {"images": 2, "a": 3}, {"images": 3, "b": 4}, {"images": 4, "a": 5, "b": 6}):
        log.record(record)
    assert (tmp_path / "metrics.csv").read_text().split() == ["images,a,b", "1,2,", "2,3,", "3,,4", "4,5,6"]


def test_tensorboard_has_the_records_over_images(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    scalars = events.Scalars("mse_v")
    assert [s.step for s in scalars] == list(range(16, 193, 16))
    assert [s.value for s in scalars] == pytest.approx([r["mse_v"] for r in read_metrics(run)], rel=1e-6)


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    fit(tmp_path / "run", images=64, loggers=("wandb",))
    files = list((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 1 and (tmp_path / "run" / "wandb-id.txt").read_text() in files[0].name
    until = time.monotonic() + 30  # its own process writes the file, some time after the run has ended
    while b"mse_v" not in files[0].read_bytes():
        assert time.monotonic() < until, "nothing was logged"
        time.sleep(0.1)


def test_a_logger_that_is_not_there_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_loggers(("csv",))
    with pytest.raises(ValueError, match=r"wandb is not installed: pip install 'meanflow\[wandb\]'"):
        check_loggers(("wandb",))
    with pytest.raises(ValueError, match="loggers are tensorboard, wandb, csv"):
        check_loggers(("mlflow",))


def test_a_record_says_speed_memory_utilisation_and_time_left(run):
    for record in read_metrics(run):
        assert record["images_per_second"] > 0 and 0 < record["memory_gib"] < 64
        assert 0 < record["utilisation"] < 1.5 and record["seconds_left"] >= 0
    assert read_metrics(run)[-1]["seconds_left"] == 0


def screen(folder, capsys):
    assert main(["status", str(folder)]) == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 24
    return text


def test_status_of_a_finished_run(run, capsys):
    text = screen(run, capsys)
    assert "finished" in text and "192 of 192 (100 %)" in text and "checkpoint  000000000192" in text
    assert "grids/000000000192.png" in text
    line = next(line for line in text.splitlines() if line.startswith("mse_u"))
    values = [r["mse_u"] for r in read_metrics(run)]
    assert f"{values[0]:.4g} -> {values[-1]:.4g}, least {min(values):.4g}" in line
    shown = [BARS.index(c) for c in line.split()[1]]
    assert shown.index(7) == values.index(max(values)) and shown.index(0) == values.index(min(values))


def test_status_tells_running_from_stopped(tmp_path, capsys):
    fit(tmp_path / "run", images=96)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["training"]["images"] = 192
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    text = screen(tmp_path / "run", capsys)
    assert "stopped; the same train command goes on" in text and "96 of 192 (50 %)" in text and " left" not in text
    with locked(tmp_path / "run"):
        text = screen(tmp_path / "run", capsys)
    assert "running" in text and "left" in text


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda run: shutil.rmtree(run / "checkpoints"), "none yet"),
        (lambda run: (run / "config.json").write_text("{"), "is damaged"),
        (lambda run: (run / "config.json").write_text("[1]"), "is damaged"),
        (lambda run: (run / "metrics.jsonl").write_bytes(b'{"images": 3}\n\xff\xfe{"im'), "checkpoint"),
        (lambda run: (run / "metrics.jsonl").unlink(), "192 of 192"),
        (lambda run: [p.write_text("?") for p in run.glob("checkpoints/*/state.json")], "none whole"),
        (lambda run: [p.unlink() for p in run.glob("*.json*")], "holds no run"),
    ],
)
def test_status_of_a_damaged_run_says_what_there_is(damage, word, run, tmp_path, capsys):
    folder = shutil.copytree(run, tmp_path / "run")
    damage(folder)
    assert word in screen(folder, capsys)


def test_status_of_an_empty_folder_and_of_none(tmp_path, capsys):
    assert "no run has begun in it" in screen(tmp_path, capsys)
    assert main(["status", str(tmp_path / "nowhere")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_a_trend_takes_what_it_gets():
    assert trend([]) == trend([None, "x", float("nan")]) == ""
    assert trend([1.0]).startswith(BARS[0]) and "1 -> 1" in trend([1])
    line = trend([float(i) for i in range(1000)])
    assert line.split()[0][0] == BARS[0] and line.split()[0][-1] == BARS[-1] and len(line.split()[0]) == 48
