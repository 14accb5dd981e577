"""Words that a user may type: real options with right, wrong and odd values, misspelt, repeated, missing."""

import re
from functools import cache

from fuzzed import run
from hypothesis import strategies as st

from meanflow.cli import COMMANDS

# Commands that take a second word of their own.
SECOND = {
    "bench": ("step", "sample"),
    "convert": ("authors-jax", "authors-torch", "to-authors-jax", "to-authors-torch"),
    "recipes": ("show",),
}
# What would take minutes, wait for a browser, or reach for the network, is not asked for.
COSTLY = ("--compile", "--checkpointing", "--vae", "--jobs", "--device", "--workers")

NUMBERS = ("0", "1", "2", "3", "7", "8", "16", "64", "-1", "-0", "1e3", "0.5", "1e-3", "1.5", "-0.5", "1e400", "nan")
NUMBERS += ("inf", "-inf", "99999999999", "1000000000000000000000", "0x10", "1_000", "٣", "½", "1,5", " 4", "4 ", "5-1")
TEXTS = ("", " ", "-", "--", "a", "None", "none", "null", "True", "0-3", "3,7", "5-1", "0-", "-3", ",", "1,,2", "1;2")
TEXTS += ("0-99999999999", "1,0.5,0", "0,1", "nan,0", "1,nan", "L", "RGB", "CMYK", "train", "held_out", "all", "a:50")
TEXTS += ("lognorm(-0.4,1)", "lognorm(0,-1)", "uniform(1,0)", "uniform(nan,1)", "lognorm(", "S/2", "B/0", "Q/4", "/")
TEXTS += ("dit-tiny", "points", "imagenet", "paper", "code", "label", "x", "age,label", "ünïcödé", "日本語", "a\nb")
TEXTS += ("🙂", "%s%n{}", "'; rm", "../..", "~", "$HOME", "*", "[a", "\udcff", "x" * 300, "a b", "tpu9", "cpu")
odd = st.one_of(st.sampled_from(NUMBERS + TEXTS), st.text(max_size=8).map(lambda t: t.replace("\0", "")))

# Names in the folder that the fuzz runs in; see `home` in test_fuzz_commands.py.
DATA = (
    "digits",
    "photos",
    "grey",
    "mixed",
    "odd names",
    "loop",
    "empty",
    "x.npy",
    "x.npz",
    "x.csv",
    "x.zip",
    "nan.npy",
)
DATA += ("a.txt", "run", "absent", "dev", "fifo", "bad.npz", "objects.npy", "digots", "", ".", "one.npy", "deep")
RUNS = ("run", "run", "run", "run", "flow", "points", "absent", "empty", "a.txt", "photos", "", ".", "run/checkpoints")
OUTS = (
    "new",
    "new.png",
    "new.npz",
    "new.npy",
    "new.gif",
    "a.txt",
    "empty",
    "run",
    "a.txt/b.png",
    "photos",
    "é\udcff.png",
)
OUTS += ("x" * 300 + ".png", "", ".", "new/deep/er", "fifo", "run/config.json", "new.PNG", ".png", "loop")
paths = st.sampled_from(DATA + RUNS + OUTS)


@cache
def options(words: tuple[str, ...]) -> dict[str, str]:
    """The options of a command and the kind of their values, as its own help says them."""
    text = run([*words, "--help"]).out
    found = re.findall(r"(--[a-z][\w.-]*)(?: (\{[^}]*\}|\[?[A-Z{][^\s│]*))?", text)
    return {name: kind for name, kind in found if name not in ("--help", *COSTLY)}


def learn() -> None:
    """Ask all commands for their help, before anything is drawn."""
    for name in COMMANDS:
        for words in [(name, second) for second in SECOND[name]] if name in SECOND else [(name,)]:
            options(words)


def values(name: str, kind: str) -> st.SearchStrategy[list[str]]:
    """What follows an option: mostly of its kind."""
    if not kind:
        return st.just([])
    if kind.startswith("{"):
        right = st.sampled_from(kind.strip("{}").split(","))
    elif name in ("--out",):
        right = st.sampled_from(OUTS)
    elif "INT" in kind or "FLOAT" in kind:
        right = st.sampled_from(NUMBERS)
    else:
        right = st.one_of(st.sampled_from(TEXTS), paths)
    one = st.one_of(right, right, odd)
    return st.one_of(one.map(lambda v: [v]), st.lists(one, max_size=3), st.just([]))


def typo(word: str, place: int, letter: str) -> str:
    at = place % max(len(word), 1)
    return word[:at] + letter + word[at + 1 :]


@st.composite
def option(draw, known: dict[str, str]) -> list[str]:
    """An option with what follows it; at times misspelt, joined by =, or one that does not exist."""
    if not known or draw(st.integers(0, 19)) == 0:
        return [draw(st.sampled_from(("--nope", "-x", "--", "-1", "--out=", "--=", "--no-json")))]
    name = draw(st.sampled_from(sorted(known)))
    given = draw(values(name, known[name]))
    how = draw(st.integers(0, 11))
    if how == 0:
        name = typo(name, draw(st.integers(2, 20)), draw(st.sampled_from("aeiz-_.")))
    if how == 1 and given:
        return [f"{name}={given[0]}", *given[1:]]
    return [name, *given]


FACTORIES = ("net.py:build", "net.py:Nope", "net.py", "bad.py:build", "absent.py:x", "net.py:", ":", "", "run:x")
FACTORIES += ("net.py:odd", "net.py:number")
POSITIONAL = {"train": (DATA,), "prepare": (DATA, OUTS), "encode": (DATA, OUTS), "ablate": (("digits", *DATA),)}
POSITIONAL |= {"sample": (RUNS,), "status": (RUNS,), "evaluate": (RUNS, RUNS), "doctor": (FACTORIES,)}
# Exports of whole runs take ten seconds each; they have tests of their own.
BROKEN = ("absent", "empty", "a.txt", "photos", "", ".", "run/checkpoints")
POSITIONAL |= {"export": (BROKEN, OUTS), "page": (RUNS, OUTS), "push": (RUNS, ("me/x", "x", "", "a/b/c", "../y"))}
POSITIONAL |= {"serve": (RUNS,), "compare": (RUNS, RUNS), "diagnose": (RUNS,), "ema": (RUNS,)}
POSITIONAL |= {"convert": (RUNS, OUTS), "recipes": (("digits", "dit-tiny", "points", "nope", ""),), "bench": ()}


@st.composite
def command(draw) -> list[str]:
    """A whole command line, kept cheap: what would train, trains a step or says what it would do."""
    name = draw(st.sampled_from(COMMANDS))
    second = [draw(st.sampled_from(SECOND[name]))] if name in SECOND and draw(st.integers(0, 9)) else []
    words = [name, *second]
    known = options(tuple(words)) if name not in SECOND or second else {}
    for choices in POSITIONAL.get(name, (DATA,)):
        if draw(st.integers(0, 14)):
            words.append(draw(st.sampled_from(choices)))
    for _ in range(draw(st.integers(0, 3))):
        words += draw(option(known))
    if draw(st.integers(0, 29)) == 0:
        words.insert(draw(st.integers(0, len(words))), draw(odd))
    if draw(st.integers(0, 29)) == 0:
        words[0] = typo(words[0], draw(st.integers(0, 9)), "x")
    return words + _cheaply(words)


TINY = ["--net.width=8", "--net.depth=1", "--net.heads=1", "--images=16", "--batch=8"]


_TINY_BENCH = {
    "step": ["--rounds=1", "--batch=1", "--width=8", "--heads=1", "--depth=1", "--size=4"],
    "sample": ["--rounds=1", "--batch=1"],
}


def _cheaply(words: list[str]) -> list[str]:
    """Options at the end, where they win, that keep a command from being long."""
    extra = {
        "train": ["--dry-run"] if "--dry-run" not in words else [],
        "ablate": ["--report-only"] if "--report-only" not in words else [],
        "doctor": ["--no-compile"] if "--no-compile" not in words else [],
        "bench": _TINY_BENCH.get(words[1] if len(words) > 1 else "", []),
        "evaluate": ["--samples=100", "--steps=1", "--resamples=0", "--no-report"],
        "compare": ["--samples=100", "--steps=1", "--resamples=2"],
        "diagnose": ["--samples=2", "--steps=1", "--many=4", "--grid=2"],
        "ema": ["--samples=100"],
        # An address that this machine does not have (RFC 5737): everything but the waiting is done.
        "serve": ["--host=203.0.113.1"],
        "push": ["--folder=new"],
        "page": ["--runtime=absent"],
    }
    return extra.get(words[0], [])
