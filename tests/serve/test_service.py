"""The service as a process: what it answers, what it refuses, how it ends."""

import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from meanflow.cli import main

pytest.importorskip("fastapi", reason="FastAPI is not installed (extra serve)")
pytest.importorskip("uvicorn", reason="uvicorn is not installed (extra serve)")

ROOT = Path(__file__).parents[2]
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of twenty steps on the digits."""
    folder = tmp_path_factory.mktemp("service") / "digits"
    assert main(["train", "digits", "--recipe", "digits-unguided", "--images", "2560", "--out", str(folder)]) == 0
    return folder


@contextmanager
def service(run, *options):
    """A real process; gives (process, port)."""
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-m", "meanflow.cli", "serve", str(run), "--port", "0", *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        assert "http://127.0.0.1:" in line, process.stderr.read()
        yield process, int(line.split("127.0.0.1:")[1].split("/")[0])
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def port(run):
    with service(run) as (_, port):
        yield port


def call(port, body=None, *, path="/v1/samples", method=None, headers=JSON):
    """Status, content type and bytes of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method or ("GET" if body is None else "POST"), path, data, headers)
    answer = connection.getresponse()
    found = answer.status, answer.getheader("content-type"), answer.read()
    connection.close()
    return found


def arrays(port, **body):
    status, _, data = call(port, {"format": "npz", **body})
    assert status == 200, data
    return np.load(io.BytesIO(data))


def metric(port, name):
    lines = call(port, path="/metrics")[2].decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def test_same_seed_same_sample_as_the_command(run, port, tmp_path):
    assert main(["sample", str(run), "--seeds", "0-11", "--steps", "2", "--out", str(tmp_path / "x.npz")]) == 0
    assert main(["sample", str(run), "--seeds", "5", "--classes", "7", "--out", str(tmp_path / "pictures")]) == 0
    wanted, got = np.load(tmp_path / "x.npz"), arrays(port, seeds=list(range(12)), steps=2)
    assert sorted(got) == ["labels", "seeds", "x"]
    assert (got["labels"] == wanted["labels"]).all() and (got["seeds"] == wanted["seeds"]).all()
    np.testing.assert_allclose(got["x"], wanted["x"], atol=1e-5)
    status, kind, png = call(port, {"seeds": [5], "labels": "7", "format": "png"})
    (file,) = (tmp_path / "pictures").iterdir()
    here, there = (np.asarray(Image.open(f)).astype(int) for f in (io.BytesIO(png), file))
    assert (status, kind) == (200, "image/png")
    assert here.shape == (8, 8) and abs(here - there).max() <= 1


def test_another_seed_and_another_label_give_another_sample(port):
    a, b, c = (arrays(port, seeds=[s], labels=[n])["x"] for s, n in ((1, 3), (2, 3), (1, 4)))
    assert abs(a - b).max() > 0.1 and abs(a - c).max() > 1e-4


def test_times_are_those_of_the_sampler(port):
    equal, same, other = (arrays(port, seeds=[1, 2], **how)["x"] for how in (
        {"steps": 2}, {"times": [1, 0.5, 0]}, {"times": [1, 0.3, 0]},
    ))  # fmt: skip
    np.testing.assert_array_equal(equal, same)
    assert abs(equal - other).max() > 1e-4


def test_grid_and_many_pictures(port):
    status, kind, png = call(port, {"seeds": list(range(9))})
    assert (status, kind, Image.open(io.BytesIO(png)).size) == (200, "image/png", (180, 180))
    status, kind, data = call(port, {"seeds": [4, 4], "labels": [1, 2], "format": "png"})
    assert (status, kind) == (200, "application/zip")
    assert zipfile.ZipFile(io.BytesIO(data)).namelist() == ["000-seed4-class1.png", "001-seed4-class2.png"]


def test_many_at_once_get_their_own(port):
    before = metric(port, "meanflow_samples_total")
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda s: arrays(port, seeds=[s])["x"], range(48)))
    alone = arrays(port, seeds=list(range(48)))["x"]
    np.testing.assert_allclose(np.concatenate(together), alone, atol=1e-5)
    assert metric(port, "meanflow_samples_total") - before == 96
    assert metric(port, "meanflow_waiting_samples") == 0


REFUSED = [
    ({"seeds": [0] * 65}, "at most 64 samples a request, got 65"),
    ({"seeds": []}, "at least 1 item"),
    ({"seeds": [-1]}, "greater than or equal to 0"),
    ({"seeds": [2**63]}, "less than or equal to 9223372036854775807"),
    ({"seeds": ["1"]}, "valid integer"),
    ({"seeds": [True]}, "valid integer"),
    ({"seeds": [1.5]}, "valid integer"),
    ({"labels": 10}, "no class 10; there are 0, 1, 2"),
    ({"labels": "cat"}, "no class 'cat'; there are 0, 1, 2"),
    ({"labels": "\ud800"}, "no class"),
    ({"labels": [1, 2]}, "2 labels for 1 seeds"),
    ({"steps": 0}, "greater than or equal to 1"),
    ({"steps": 65}, "at most 64 network calls"),
    ({"steps": 10**30}, "at most 64 network calls"),
    ({"steps": 2, "times": [1.0, 0.0]}, "steps or times, not both"),
    ({"times": [1.0, 0.7, 0.7, 0.0]}, "times must decrease"),
    ({"times": [0.9, 0.0]}, "from 1.0 to 0.0"),
    ({"times": [1.0]}, "at least 2 items"),
    ({"guidance": 3.0}, "never saw a dropped label"),
    ({"guidance": -1.0}, "greater than or equal to 0"),
    ({"format": "gif"}, "'grid', 'png' or 'npz'"),
    ({"seed": [1]}, "seed: Extra inputs"),
    (b"{", "JSON decode error"),
    (b'{"guidance": NaN}', "guidance"),
    (b'{"times": [1.0, Infinity]}', "times.1"),
    (b"\xff\xfe", ""),
    (b"[]", "body"),
    (b"[" * 5000, ""),
]


@pytest.mark.parametrize(("body", "message"), REFUSED)
def test_what_cannot_be_answered_is_refused_with_the_reason(port, body, message):
    status, kind, data = call(port, body)
    assert status in (400, 422), data
    assert kind == "application/json"
    assert message in json.loads(data)["detail"]


def test_too_long(port):
    status, _, data = call(port, b" " * 70_000)
    assert status == 413 and b"longer than 65536 bytes" in data
    # Without a declared length: in chunks, and never ending.
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/v1/samples", (b" " * 9_000 for _ in range(9)), JSON, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_other_paths_and_methods(port):
    assert call(port, path="/nothing")[0] == 404
    assert call(port, path="/v1/samples")[0] == 405
    status, _, data = call(port, path="/v1/model")
    told = json.loads(data)
    assert status == 200 and told["shape"] == [1, 8, 8] and told["classes"] == 10
    assert told["limits"]["samples"] == 64
    assert json.loads(call(port, path="/healthz")[2]) == {"status": "ok"}


def test_schema_holds_under_random_requests(port):
    """Whatever schemathesis makes of our own OpenAPI: no 500, and only answers that the schema names."""
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed (extra dev)")
    from hypothesis import HealthCheck, given, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json")
    seen = set()
    for operation in schema.get_all_operations():
        case_of = operation.ok()

        @given(case=case_of.as_strategy())
        @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        def check(case):
            answer = case.call()
            seen.add(answer.status_code)
            case.validate_response(
                answer, checks=[not_a_server_error, status_code_conformance, response_schema_conformance]
            )

        check()
    assert 200 in seen


def test_a_signal_ends_it_after_the_answer(run):
    before = sorted(p.name for p in run.parent.rglob("*"))
    with service(run) as (process, port):
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(call, port, {"seeds": list(range(64)), "steps": 64, "format": "npz"})
            while metric(port, "meanflow_batch_rows_count") == 0 and not asked.done() and not _busy(port):
                pass
            process.send_signal(signal.SIGTERM)
            assert asked.result(60)[0] == 200
        assert process.wait(30) == 0
        assert process.stderr.read() == ""
    assert sorted(p.name for p in run.parent.rglob("*")) == before


def _busy(port):
    return metric(port, 'meanflow_requests_total{path="/metrics"') > 2


def test_a_kill_during_a_request_leaves_no_file(run):
    before = {p: p.stat().st_mtime_ns for p in run.parent.rglob("*")}
    with service(run) as (process, port):
        threading.Timer(0.3, process.kill).start()
        with pytest.raises((http.client.HTTPException, OSError)):
            for _ in range(100):
                call(port, {"seeds": list(range(64)), "steps": 64})
        process.wait(30)
    assert {p: p.stat().st_mtime_ns for p in run.parent.rglob("*")} == before


def test_out_of_time(run):
    with service(run, "--timeout", "0.001") as (_, port):
        status, _, data = call(port, {"seeds": list(range(64)), "steps": 64})
        assert status == 504 and b"no answer within 0.001 seconds" in data
        assert call(port, path="/healthz")[0] == 200


def test_a_taken_port_is_said(run, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", str(run), "--port", str(port)]) == 1
    assert f"cannot listen on 127.0.0.1, port {port}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "70000"], "port must lie in 0 to 65535"),
        (["--max-batch", "0"], "max_batch must be at least 1"),
        (["--timeout", "0"], "timeout must be positive"),
        (["--ema", "0.5"], "keeps EMA decays"),
    ],
)
def test_wrong_options(run, capsys, options, message):
    assert main(["serve", str(run), *options]) == 2
    assert message in capsys.readouterr().err
