"""The report of a run: what stands in it, and its page in a real browser."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from meanflow.cli import main
from meanflow.core.sampling import sample
from meanflow.data import digits
from meanflow.evaluation.pictures import to_uint8
from meanflow.evaluation.report import LeftOut, Subject
from meanflow.evaluation.report.charts import Axis, Chart, Series, line_chart
from meanflow.evaluation.report.field import mean_velocity
from meanflow.evaluation.report.names import figure, interval
from meanflow.evaluation.report.neighbours import nearest_rows, neighbours
from meanflow.evaluation.report.page import Page, Section, html, paragraph
from meanflow.evaluation.report.samples import by_class, interpolations, shown_classes, slerp
from meanflow.evaluation.report.tiles import sheet

NET = ["--net.width", "32", "--net.depth", "1", "--net.heads", "4", "--net.patch", "4", "--loggers", "csv"]
SHORT = ["--images", "640", "--batch", "64", "--save-every", "320", "--milestone-every", "320", "--log-every", "128"]
QUICK = ["--samples", "200", "--resamples", "20"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A tiny digits run with its report."""
    folder = tmp_path_factory.mktemp("judged")
    assert main(["train", "digits", "--out", str(folder / "digits"), *NET, *SHORT]) == 0
    assert main(["evaluate", str(folder / "digits"), "--steps", "1,4", "--ema", "all", *QUICK]) == 0
    return folder / "digits"


@pytest.fixture(scope="module")
def content(run) -> dict:
    return json.loads((run / "report" / "report.json").read_text())


@pytest.fixture(scope="module")
def browser():
    """A real headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra: dev)")
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("no Chromium is installed, so pages cannot be looked at")
    with playwright.sync_playwright() as p:
        started = p.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield started
        started.close()


def opened(browser, file, **options):
    """A page and the list that its complaints and requests go to."""
    page = browser.new_context(**options).new_page()
    heard = []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda r: heard.append(r.url) if r.url.startswith(("http", "ws", "ftp")) else None)
    page.goto(file.as_uri())
    return page, heard


# The contrast ratio of each text with what lies behind it. Source: WCAG 2.1, definitions of relative luminance and of
# contrast ratio.
CONTRASTS = """() => {
  const rgb = c => c.match(/[\\d.]+/g).map(Number);
  const part = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = c => { const [r, g, b] = rgb(c).map(part); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (c !== 'rgba(0, 0, 0, 0)') return c; } return 'rgb(255, 255, 255)'; };
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    if (!(e.textContent.trim() && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))) continue;
    if (['TITLE', 'DESC'].includes(e.tagName.toUpperCase())) continue;
    const style = getComputedStyle(e);
    const a = light(e instanceof SVGElement ? style.fill : style.color), b = light(behind(e));
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.tagName + ' ' + e.textContent.slice(0, 30)]);
  }
  return found.sort((x, y) => x[0] - y[0]);
}"""


def test_the_page_is_silent_and_whole(run, browser):
    page, heard = opened(browser, run / "report" / "index.html", viewport={"width": 1100, "height": 800})
    images = page.evaluate("[...document.images].map(i => [i.naturalWidth, i.naturalHeight, i.alt.trim().length])")
    assert len(images) > 20 and all(min(sizes) > 0 for sizes in images)
    assert heard == []
    charts = page.evaluate("[...document.querySelectorAll('svg.chart')].map(s => s.querySelector('title').textContent)")
    assert len(charts) >= 4 and all(charts)
    assert page.evaluate("document.querySelectorAll('h1').length") == 1
    assert page.evaluate("document.documentElement.lang") == "en"
    tables = page.evaluate("[...document.querySelectorAll('table')].map(t => t.querySelectorAll('th[scope]').length)")
    assert len(tables) > 5 and min(tables) > 0
    links = page.evaluate("[...document.querySelectorAll('nav a')].map(a => document.querySelector(a.hash) !== null)")
    assert len(links) >= 7 and all(links)


def test_a_script_and_a_fetched_picture_would_be_noticed(run, browser, tmp_path):
    """The policy of the page stops both, and the test of silence hears it."""
    text = (run / "report" / "index.html").read_text()
    for name, addition in (("script", "<script>document.title = 'ran'</script>"), ("style", "<p style='color:red'>x")):
        file = tmp_path / f"{name}.html"
        file.write_text(text.replace("</main>", addition + "</main>"))
        page, heard = opened(browser, file)
        assert page.title() != "ran" and any("Content Security Policy" in line for line in heard)
    file = tmp_path / "fetched.html"
    file.write_text(text.replace("</main>", "<img src='http://127.0.0.1:9/x.png'></main>"))
    _, heard = opened(browser, file)
    assert any("127.0.0.1" in line for line in heard)


def test_the_table_shows_the_numbers_of_the_json(run, browser, content):
    page, _ = opened(browser, run / "report" / "index.html", java_script_enabled=False)
    shown = page.locator("table.results tbody tr")
    assert shown.count() == len(content["rows"]) == 4
    for i, row in enumerate(content["rows"]):
        for cell in shown.nth(i).locator("td[data-metric]").all():
            metric = cell.get_attribute("data-metric")
            ends = row["intervals"].get(metric)
            expected = f"{figure(row[metric])} {interval(ends) if ends else ''}".strip()
            assert " ".join(cell.inner_text().split()) == expected
    assert figure(content["rows"][0]["frechet"]) in page.locator(".lead").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read_and_a_phone_is_wide_enough(run, browser, scheme):
    phone = {"width": 360, "height": 740}
    page, _ = opened(browser, run / "report" / "index.html", viewport=phone, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    ratio, where = page.evaluate(CONTRASTS)[0]
    assert ratio >= 4.5, where  # WCAG 2.1, level AA
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")


def test_grey_on_grey_and_a_wide_page_would_be_noticed(browser, tmp_path):
    file = tmp_path / "grey.html"
    file.write_text("<body style='background:#fff'><p style='color:#999;width:500px'>too pale, too wide</p></body>")
    page, _ = opened(browser, file, viewport={"width": 360, "height": 740})
    assert page.evaluate(CONTRASTS)[0][0] < 4.5
    assert page.evaluate("document.documentElement.scrollWidth") > 360


def test_the_report_says_what_was_judged_and_how_to_repeat_it(run, content):
    assert content["command"].startswith("meanflow evaluate ") and "--ema all" in content["command"]
    assert content["protocol"]["name"] == "digits" and content["judged"]["Weights"] == "EMA 0.999"
    assert [(r["weights"], r["steps"]) for r in content["rows"]] == [
        ("EMA 0.999", 1), ("EMA 0.999", 4), ("raw weights", 1), ("raw weights", 4)]  # fmt: skip
    assert [r["images"] for r in content["history"]] == [320] and content["rows"][0]["images"] == 640
    assert {"neighbours", "calls", "history", "training", "one-call"} <= content["sections"].keys()
    assert content["left_out"] == {"The field u(z, r, t)": "samples of shape [1, 8, 8] are no points of a plane"}
    text = (run / "report" / "report.md").read_text()
    assert content["command"] in text and "protocol digits v1" in text
    assert (run / "report" / "index.html").stat().st_size < 5e6


def test_samples_in_files_are_judged_like_the_run_that_made_them(run, tmp_path, capsys):
    """An archive of the judged seeds has the run's own figures."""
    archive = tmp_path / "x.npz"
    assert main(["sample", str(run), "--seeds", "1000000-1000199", "--out", str(archive)]) == 0
    words = ["--protocol", "digits", "--steps", "1", "--json", "--no-report", *QUICK]
    capsys.readouterr()
    assert main(["evaluate", str(run), str(archive), *words]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert rows[0]["frechet"] == pytest.approx(rows[1]["frechet"], rel=1e-4)
    assert rows[0]["agreement"] == rows[1]["agreement"] and rows[1]["steps"] is None
    assert main(["sample", str(run), "--seeds", "1000000-1000199", "--out", str(tmp_path / "single")]) == 0
    assert main(["evaluate", str(tmp_path / "single"), *words]) == 2  # noise of a run of ten steps is no digit
    assert "--allow detail" in capsys.readouterr().err
    stored = np.load(archive)
    bytes_ = to_uint8(torch.from_numpy(stored["x"])).numpy()
    np.savez(tmp_path / "bytes.npz", x=bytes_, labels=stored["labels"])
    files = [str(tmp_path / "single"), str(tmp_path / "bytes.npz")]
    assert main(["evaluate", *files, "--allow", "detail", *words]) == 0
    pngs, array = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert pngs["frechet"] == array["frechet"] and pngs["agreement"] == array["agreement"]
    assert pngs["allowed"] == ["detail"]
    for file in (tmp_path / "single").iterdir():
        Image.open(file).save(file, "JPEG")
    assert main(["evaluate", str(tmp_path / "single"), "--allow", "detail", *words]) == 2
    assert "200 of 200 files are lossy" in capsys.readouterr().err
    np.savez(tmp_path / "wrong.npz", y=np.zeros(3))
    assert main(["evaluate", str(tmp_path / "wrong.npz"), *words]) == 2
    assert "expected under the name x" in capsys.readouterr().err


def test_two_processes_give_the_figures_of_one(run, tmp_path, capsys):
    words = ["evaluate", str(run), "--steps", "1", "--json", "--batch", "64", "--no-history", "--samples", "200"]
    words += ["--resamples", "0", "--out", str(tmp_path / "report")]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "meanflow.cli"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launch, *words], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    together = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert main([*words, "--no-report"]) == 0
    alone = json.loads(capsys.readouterr().out)["rows"]
    same = [{k: v for k, v in row.items() if k != "seconds"} for row in (*together, *alone)]
    assert len(same) == 2 and same[0] == same[1]
    assert (tmp_path / "report" / "index.html").is_file()


def test_the_figure_is_a_file_of_its_own(run, browser, tmp_path, capsys):
    file = tmp_path / "figures" / "calls.svg"
    words = ["--steps", "1,2", "--figure", str(file), "--no-report", *QUICK]
    assert main(["evaluate", str(run), *words]) == 0
    page, heard = opened(browser, file)
    assert heard == [] and page.evaluate("document.documentElement.getBBox().width") > 300
    assert main(["evaluate", str(run), "--steps", "1", "--figure", str(file), "--no-report", *QUICK]) == 2
    assert "at least two numbers of calls" in capsys.readouterr().err


class Memory(nn.Module):
    """A network that has learnt one training image a class by heart: u = (z - x) / t leads there in one call."""

    def __init__(self, images):
        super().__init__()
        self.images, self.shape, self.null = nn.Parameter(images, requires_grad=False), tuple(images.shape[1:]), 10

    def forward(self, z, *, t, r, cond=None):
        return (z - self.images[cond]) / t[:, None, None, None]


def test_copies_of_training_images_are_found():
    train = digits("train")
    x, labels = train.batch(range(len(train)))
    first = torch.stack([x[labels == c][0] for c in range(10)])
    found = neighbours(Subject("memory", Memory(first), {}, train=train, held_out=digits("held_out"))).data
    assert found["median"] < 1e-5 and found["share_nearer_than_usual_5_percent"] == 1.0
    held, held_labels = digits("held_out").batch(range(359))
    fresh = torch.stack([held[held_labels == c][0] for c in range(10)])
    honest = neighbours(Subject("fresh", Memory(fresh), {}, train=train, held_out=digits("held_out"))).data
    assert honest["median"] > 1 and honest["share_nearer_than_usual_5_percent"] < 0.3


def test_neighbours_are_those_of_all_pairs_and_a_sample_is_not_its_own():
    data = digits("train")
    x = data.batch(range(40))[0]
    everything = torch.cdist(x.flatten(1), data.batch(range(len(data)))[0].flatten(1))
    distances, places = nearest_rows(x, data, 3)
    assert torch.allclose(distances, everything.topk(3, largest=False).values, atol=1e-4)
    assert places[:, 0].tolist() == list(range(40))
    others, _ = nearest_rows(x, data, 1, skip=torch.arange(40))
    everything[torch.arange(40), torch.arange(40)] = torch.inf
    assert torch.allclose(others[:, 0], everything.min(1).values, atol=1e-4)


def test_the_way_between_noises_stays_as_long_as_noise():
    """Of independent noises e, f: |slerp| lies between |e| and |f|; the straight middle is shorter by sqrt(2)."""
    e, f = torch.randn(8, 3, 16, 16), torch.randn(8, 3, 16, 16)
    assert torch.allclose(slerp(e, f, 0), e, atol=1e-5) and torch.allclose(slerp(e, f, 1), f, atol=1e-5)
    length = slerp(e, f, 0.5).flatten(1).norm(dim=1) / e.flatten(1).norm(dim=1)
    straight = (0.5 * e + 0.5 * f).flatten(1).norm(dim=1) / e.flatten(1).norm(dim=1)
    assert (length - 1).abs().max() < 0.1 and straight.max() < 0.8
    assert torch.allclose(slerp(e, e, 0.3), e, atol=1e-5)


class Gauss(nn.Module):
    """The exact mean velocity of data N(0, s^2 I) in the plane: u = (z - a(r) / a(t) z) / (t - r)."""

    shape, null, s = (2,), None, 0.5

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, z, *, t, r, cond=None):
        def a(time):
            return ((1 - time) ** 2 * self.s**2 + time**2).sqrt()

        return z * ((1 - a(r) / a(t)) / (t - r))[:, None]


def test_the_field_of_a_plane_is_the_networks():
    z, u = mean_velocity(Subject("plane", Gauss(), {}), 2.0, 0.0, 1.0)
    assert torch.allclose(u, z * 0.5, atol=1e-6)  # a(0) / a(1) = s
    assert float(z.abs().max()) < 2 and len(z.unique(dim=0)) == len(z)


def test_a_run_of_the_plane_has_its_field_in_the_report(tmp_path, capsys):
    np.save(tmp_path / "ring.npy", np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32))
    words = ["--net.width", "16", "--net.depth", "1", "--images", "64", "--batch", "32", "--loggers", "csv"]
    assert main(["train", str(tmp_path / "ring.npy"), "--out", str(tmp_path / "run"), *words]) == 0
    assert main(["evaluate", str(tmp_path / "run"), "--protocol", "none", "--steps", "1"]) == 0
    assert "no protocol was asked for" in capsys.readouterr().out
    found = json.loads((tmp_path / "run" / "report" / "report.json").read_text())
    assert len(found["sections"]["field"]["mean_size"]) == 6 and found["rows"] == []
    assert "no images with 1 or 3 channels" in found["left_out"]["Interpolations"]
    assert (tmp_path / "run/report/index.html").read_text().count('class="arrow"') == 6
    (tmp_path / "ring.npy").unlink()
    assert main(["evaluate", str(tmp_path / "run")]) == 2
    text = capsys.readouterr().err
    assert "are not at hand" in text and "--data" in text and "--protocol none" in text


def test_sections_that_cannot_be_say_why():
    vectors = Subject("vectors", Gauss(), {})
    for make in (by_class, interpolations, neighbours):
        with pytest.raises(LeftOut, match=r"\[2\]|not at hand"):
            make(vectors)


def test_words_of_others_are_text_on_the_page():
    evil = "<script>alert(1)</script>\"'&"
    text = html(Page(evil, evil, evil, evil, [Section("a", evil, paragraph(evil))], {evil: evil}, evil))
    assert "<script>" not in text and text.count("&lt;script&gt;") >= 9


def test_a_sheet_holds_every_tile_at_its_place():
    from base64 import b64decode
    from io import BytesIO

    from PIL import Image

    x = torch.tensor([-1.0, 0.0, 1.0]).reshape(3, 1, 1, 1).expand(3, 1, 8, 8)
    picture = sheet(x, 2, "three")
    image = Image.open(BytesIO(b64decode(picture.uri.partition(",")[2])))
    assert image.size == (picture.width, picture.height) == (17 * 6, 17 * 6)
    at = [image.getpixel((24, 24)), image.getpixel((78, 24)), image.getpixel((24, 78)), image.getpixel((78, 78))]
    assert at == [(0, 255), (128, 255), (255, 255), (0, 0)]
    large = sheet(torch.zeros(2, 3, 256, 256), 2, "large")
    assert large.uri.startswith("data:image/webp") and large.width <= 260


def test_axes_are_linear_or_logarithmic_and_keep_their_values():
    axis = Axis([1, 100], 0, 210, log=True)
    assert axis(10) == pytest.approx(105) and axis(1) == pytest.approx(10 / 1.1, rel=0.1)
    assert 10 in axis.ticks() and all(1 <= tick <= 120 for tick in axis.ticks())
    straight = Axis([0, 10], 100, 0, log=False)
    assert straight(0) == 100 and straight.ticks()[0] == 0
    drawn = line_chart(Chart("t", "x", "y", [Series("a", [1, 2, 3], [1.0, float("nan"), 4.0])], log_y=True))
    assert drawn.count('class="mark') == 2  # the value that is no number is left out
    with pytest.raises(ValueError, match="nothing finite"):
        line_chart(Chart("t", "x", "y", [Series("a", [1], [float("inf")])]))


def test_few_of_many_classes_are_shown_evenly():
    assert shown_classes(4) == [0, 1, 2, 3]
    chosen = shown_classes(1000)
    assert len(chosen) == 10 and chosen[0] == 0 and chosen[-1] == 999 and max(np.diff(chosen)) <= 111


def test_one_call_of_the_shown_network_is_what_sample_gives(run):
    """The page draws with the same sampler as everything else: the memory network gives its image back exactly."""
    x = digits("train").batch(range(10))[0]
    noise = torch.randn(10, 1, 8, 8)
    assert torch.allclose(sample(Memory(x), noise, torch.arange(10)), x, atol=1e-5)
