"""A few dozen command lines as real processes: streams, signals and exit codes as a shell sees them."""

import os
import signal
import subprocess
import sys
import time

import pytest

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
MEANFLOW = [sys.executable, "-m", "meanflow.cli"]


def shell(command, folder, **environment):
    """A command line for bash, with `meanflow` as the command."""
    text = f'meanflow() {{ "{sys.executable}" -m meanflow.cli "$@"; }}\n{command}'
    return subprocess.run(
        ["bash", "-c", text],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**ENVIRONMENT, **environment},
        timeout=300,
    )


def check(done):
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr, done.stderr


@pytest.mark.parametrize("words", ["--help", "recipes", "recipes show digits", "train digits --dry-run", "status run"])
def test_a_reader_that_has_seen_enough_ends_the_command_quietly(words, tmp_path):
    """As `| head` does; `true` reads nothing at all."""
    (tmp_path / "run").mkdir()
    done = shell(f'meanflow {words} | true; echo "code ${{PIPESTATUS[0]}}"', tmp_path)
    check(done)
    assert "code 141" in done.stdout and "error" not in done.stderr, done.stderr


def test_a_closed_stderr_does_not_stop_a_training(tmp_path):
    words = "--images 64 --batch 8 --net.width 8 --net.depth 1 --net.heads 1 --net.patch 4 --log-every 8 --loggers csv"
    done = shell(
        f'meanflow train digits {words} --out run 2>&1 >/dev/null | true; echo "code ${{PIPESTATUS[0]}}"', tmp_path
    )
    check(done)
    assert "code 0" in done.stdout
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["000000000064"]


@pytest.mark.parametrize("wait", [0.15, 0.8, 3.0])
def test_an_interrupt_at_any_moment_says_one_line(wait, tmp_path):
    """In the first moments torch is still being loaded; before even Python is ready, it may say nothing or its own."""
    words = ["train", "digits", "--images", "10000000", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        [*MEANFLOW, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    deadline = time.monotonic() + 60
    # Python puts its own handler for SIGINT in place while it starts, ours comes right after: wait for that much.
    while not _catches(process.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(wait)
    process.send_signal(signal.SIGINT)
    try:
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in errors, errors


def _catches(pid):
    """Whether torch is being loaded, by the files that the process has mapped."""
    try:
        with open(f"/proc/{pid}/maps") as file:
            return "libtorch" in file.read()
    except OSError:
        return True


def test_a_terminal_that_is_closed_saves_the_run(tmp_path):
    words = ["train", "digits", "--images", "10000000", "--net.width", "8", "--net.heads", "1", "--out", "run"]
    # Tests under nohup ignore this signal, and what they start would do so too.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    process = subprocess.Popen([*MEANFLOW, *words], stderr=subprocess.DEVNULL, cwd=tmp_path, env=ENVIRONMENT)
    signal.signal(signal.SIGHUP, before)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size) and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGHUP)
    try:
        assert process.wait(timeout=120) == 129
    finally:
        process.kill()
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1


ODD = [
    ("meanflow train ''", 2),
    ("meanflow train $'\\xff'", 2),
    ("meanflow sample $'\\xff/\\xfe'", 2),
    ("meanflow status .", 0),
    ("meanflow status /dev/null", 2),
    ("meanflow train /dev/zero", 2),
    ("meanflow prepare a.csv out.npy", 0),
    ("meanflow train digits --net.width 999999999 --net.heads 1", 2),
    ("meanflow sample . --seeds 0-999999999999999999999", 2),
    ("meanflow recipes show digits > /dev/full", 1),
]


@pytest.mark.parametrize(
    ("command", "code", "encoding"),
    [(*odd, "ascii") for odd in ODD] + [(*odd, "utf-8") for odd in ODD if "xff" in odd[0]],
)
def test_odd_words_and_streams(command, code, encoding, tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n1,2\n3,4\n")
    done = shell(command, tmp_path, PYTHONIOENCODING=encoding)
    check(done)
    assert done.returncode == code, done.stderr
    assert code == 0 or len([line for line in done.stderr.splitlines() if line.startswith("meanflow: error")]) == 1
