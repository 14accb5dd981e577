"""The fuzz sees what it is for: commands with a fault of each kind, made here, are caught."""

import sys
import time

import fuzzed
import pytest
from fuzzed import Outcome, faults, fuzzing, harm, judge, run, tree
from hypothesis import given
from hypothesis import strategies as st

import meanflow.cli
import meanflow.cli.status


def raises(error):
    def command(words):
        raise error

    return command


def endless(words):
    while True:
        pass


def says(*lines, code=2):
    def command(words):
        for line in lines:
            print(line, file=sys.stderr)
        return code

    return command


@pytest.mark.parametrize("error", [KeyError("x"), TypeError("no"), AssertionError(), ZeroDivisionError("0")])
def test_a_command_that_raises_is_caught(error, monkeypatch):
    """Past `main`, as before it had a last resort, and through it."""
    assert any("raised or hung" in f for f in faults(run(["status"], command=raises(error))))
    monkeypatch.setattr(meanflow.cli.status, "run", raises(error))
    outcome = run(["status", "x"])
    assert outcome.code == 70 and any("exit code 70" in f for f in faults(outcome))
    assert "this is a fault of meanflow" in outcome.err and "test_fuzz_can_fail.py" in outcome.err


@pytest.mark.parametrize("hang", [endless, lambda words: time.sleep(60)])
def test_a_command_that_hangs_is_caught(hang):
    begun = time.monotonic()
    outcome = run([], limits=(0.2, 1.0), command=hang)
    assert any("Hung" in f for f in faults(outcome)) and time.monotonic() - begun < 20


@pytest.mark.parametrize(
    ("command", "word"),
    [
        (says(code=2), "no message"),
        (says("meanflow: error: 'x'"), "no message"),
        (says("meanflow: error: a file is gone", "meanflow: error: another one is gone"), "more than one"),
        (says("Traceback (most recent call last):", "meanflow: error: a file is gone"), "traceback"),
        (says("meanflow: error: stopped somehow or other", code=3), "exit code 3"),
        (says("meanflow: error: DefaultCPUAllocator: can't allocate memory", code=1), "memory"),
        (lambda words: print("\udcff") or 0, "UnicodeEncodeError"),
    ],
)
def test_an_end_without_a_message_of_its_own_is_caught(command, word):
    assert any(word in f for f in faults(run([], command=command)))


def test_what_is_written_is_noticed(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    before = tree(tmp_path)
    (tmp_path / "elsewhere").write_text("x")
    assert harm(before, tree(tmp_path), Outcome(0, "", ""), ["new"]) and harm(
        before, tree(tmp_path), Outcome(2, "", "")
    )
    assert not harm(before, tree(tmp_path), Outcome(0, "", ""), ["elsewhere"])
    fuzzed.clear(tmp_path, before)
    (tmp_path / ".new.tmp").write_text("x")
    assert any("unfinished" in f for f in harm(before, tree(tmp_path), Outcome(1, "", ""), [".new.tmp"]))
    fuzzed.clear(tmp_path, before)
    (tmp_path / "run" / "config.json").write_text("[]")
    assert harm(before, tree(tmp_path), Outcome(1, "", ""), ["new"])


def test_a_command_with_a_rare_fault_is_found_by_the_draws(monkeypatch):
    """The decorated test as a whole: a status that fails for one name among many."""
    status = meanflow.cli.status.run
    monkeypatch.setattr(meanflow.cli.status, "run", lambda words: {}["x"] if "loop" in words else status(words))
    monkeypatch.setattr(fuzzed, "FAULTS", None)
    monkeypatch.setattr(fuzzed, "CASES", 200)

    @fuzzing(1.0)
    @given(st.sampled_from([str(n) for n in range(20)] + ["loop"]))
    def test(name):
        judge(["status", name], faults(outcome := run(["status", name])), outcome)

    with pytest.raises(AssertionError, match=r"words: \['status', 'loop'\]"):
        test()
