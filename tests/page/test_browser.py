"""The page in a real browser, from a plain static server, with every other host cut off."""

import functools
import http.server
import json
import shutil
import threading
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

import meanflow as mf
from autoencoders import tiny_vae
from meanflow.data import load_vae
from meanflow.data.encode import Encoding, encode
from meanflow.evaluation.pictures import to_uint8
from meanflow.evaluation.storage import cache_folder
from meanflow.page import find_runtime, page
from meanflow.page.runtime import VERSION, _whole
from meanflow.page.serve import serving

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed, so no browser is driven")
pytest.importorskip("onnxscript", reason="onnxscript is not installed (pip install 'meanflow[export]')")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'meanflow[export]')")

PATIENCE = 120_000  # milliseconds, for machines with much else to do
PIXELS = """id => {
    const canvas = document.getElementById(id), pen = canvas.getContext('2d');
    return Array.from(pen.getImageData(0, 0, canvas.width, canvas.height).data);
}"""


@pytest.fixture(scope="module")
def runtime():
    folder = cache_folder() / f"onnxruntime-web-{VERSION}"
    if not _whole(folder):
        pytest.skip(f"onnxruntime-web {VERSION} is not in {folder}; `meanflow page` fetches it once")
    return folder


@pytest.fixture(scope="module")
def launch():
    """Starts the browser, cut off from all other hosts, with further arguments."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium is installed, so the page cannot be looked at")
    with playwright.sync_playwright() as driver:
        alone = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        started = []

        def start(*arguments):
            started.append(driver.chromium.launch(executable_path=chromium, args=[*alone, *arguments]))
            return started[-1]

        yield start
        for one in started:
            one.close()


@pytest.fixture(scope="module")
def browser(launch):
    return launch()


@pytest.fixture(scope="module")
def browser_with_webgpu(launch):
    """WebGPU as a graphics card would offer it, from the browser's software adapter."""
    return launch("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")


def shaken(net):
    """Weights away from their initial zeros, so that samples depend on noise and class."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in net.parameters():
            value.add_(0.05 * torch.randn(value.shape, generator=generator))
    return net


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, runtime):
    """A run of the digits and its page."""
    home = tmp_path_factory.mktemp("pictures")
    net = shaken(mf.nets.DiT((1, 8, 8), patch=2, width=48, depth=1, heads=4, classes=10))
    mf.fit(mf.MeanFlow(net), mf.data.digits(), out=home / "run", images=64, batch=64, lr=1e-4)
    return home / "run", page(home / "run", home / "page", runtime=runtime)


@pytest.fixture
def plain_server():
    """Serves a folder as any static server does, without headers that help."""
    servers = []

    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    def start(folder):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def opened(browser, address, **options):
    """The page when it is ready, with what it complained of and what it asked for."""
    tab = browser.new_context(**options).new_page()
    tab.set_default_timeout(PATIENCE)
    tab.wrong, tab.asked = [], []
    tab.on("console", lambda m: tab.wrong.append(m.text) if m.type == "error" else None)
    tab.on("pageerror", lambda error: tab.wrong.append(str(error)))
    tab.on("request", lambda request: tab.asked.append(request.url))
    tab.goto(address)
    tab.wait_for_selector("#status[data-ready]")
    return tab


def shown(tab, canvas, of=None):
    """Pixels [H * W] of a grey canvas, when it shows what was asked for."""
    if of is not None:
        tab.wait_for_selector(f'#{canvas}[data-of="{of}"]')
    return np.array(tab.evaluate(PIXELS, canvas)).reshape(-1, 4)[:, 0]


def test_pictures_are_pythons_and_nothing_else_is_asked(browser, pictures, plain_server):
    run, made = pictures
    assert made.size < 30e6 and made.difference < 1e-4
    address = plain_server(made.folder)
    tab = opened(browser, address)
    net = mf.load(run)
    tab.check('input[name="class"][value="3"]', force=True)
    seen = {}
    for seed in (7, 8):
        tab.fill("#seed", str(seed))
        for calls in (1, 2, 4):
            got = shown(tab, f"calls-{calls}", f"3,{seed}")
            wanted = mf.sample(net, mf.noise_from_seeds([seed], net.shape), torch.tensor([3]), steps=calls)
            assert np.abs(got - to_uint8(wanted).numpy().ravel().astype(int)).max() <= 2
            seen[seed, calls] = got
    assert np.abs(seen[7, 1] - seen[8, 1]).max() > 20  # another seed, another picture
    assert np.abs(seen[7, 1] - seen[7, 4]).max() > 2
    assert all(url.startswith((address, "blob:")) for url in tab.asked) and len(tab.asked) >= 8
    assert not tab.wrong, tab.wrong
    tab.context.close()


def test_webgpu_draws_the_same_pictures_whatever_is_clicked_meanwhile(browser_with_webgpu, pictures, plain_server):
    run, made = pictures
    address = plain_server(made.folder)
    tab = opened(browser_with_webgpu, address)
    assert tab.get_attribute("#status", "data-ready") == "wasm"  # faster than a processor that plays a card
    tab.context.close()
    tab = opened(browser_with_webgpu, f"{address}?run-on=webgpu")
    if not tab.evaluate("async () => Boolean(await navigator.gpu?.requestAdapter())"):
        pytest.skip("this browser has no software adapter for WebGPU")
    assert tab.get_attribute("#status", "data-ready") == "webgpu"
    # While the grid is still being drawn; runs that begin inside one another would block the page.
    tab.evaluate("""() => { setTimeout(() => {
        const seed = document.getElementById('seed');
        document.querySelector('input[name="class"][value="3"]').click();
        seed.value = 7;
        seed.dispatchEvent(new Event('input', { bubbles: true }));
    }, 0); }""")
    net = mf.load(run)
    for calls in (1, 2, 4):
        tab.wait_for_function(f"""() => document.querySelector('#calls-{calls}[data-of="3,7"]')""", polling=200)
        wanted = mf.sample(net, mf.noise_from_seeds([7], net.shape), torch.tensor([3]), steps=calls)
        assert np.abs(shown(tab, f"calls-{calls}") - to_uint8(wanted).numpy().ravel().astype(int)).max() <= 2
    assert not tab.wrong, tab.wrong
    tab.context.close()


def test_dragging_changes_the_picture_continuously(browser, pictures, plain_server):
    tab = opened(browser, plain_server(pictures[1].folder))
    tab.wait_for_selector('#map[data-of="0,0"]')
    tab.wait_for_selector("#walked[data-at]")
    tab.locator("#pad").scroll_into_view_if_needed()
    box = tab.locator("#pad").bounding_box()
    middle = box["y"] + box["height"] / 2
    tab.mouse.move(box["x"] + box["width"] / 2, middle)
    tab.mouse.down()
    walk, steps = [], 24
    for i in range(steps + 1):
        across = 0.1 + 0.8 * i / steps
        tab.mouse.move(box["x"] + box["width"] * across, middle)
        # the grid's outermost pictures have their middles 1 / 11 from its edge
        wanted = (across - 1 / 11) / (1 - 2 / 11)
        for _ in range(600):
            if abs(float((tab.get_attribute("#walked", "data-at") or "9").split(",")[0]) - wanted) < 0.01:
                break
            tab.wait_for_timeout(50)
        else:
            pytest.fail(f"the picture at {wanted:.2f} was not drawn within half a minute")
        walk.append(shown(tab, "walked"))
    tab.mouse.up()
    small = [np.abs(b - a).mean() for a, b in pairwise(walk)]
    whole = np.abs(walk[-1] - walk[0]).mean()
    assert whole > 5 and max(small) < whole / 2 and np.median(small) < whole / 6
    before = tab.get_attribute("#pad", "aria-valuetext")
    tab.focus("#pad")
    tab.keyboard.press("ArrowLeft")
    assert tab.get_attribute("#pad", "aria-valuetext") != before
    tab.context.close()


def test_milliseconds_are_those_of_drawing(browser, pictures, plain_server):
    tab = opened(browser, plain_server(pictures[1].folder))
    code = """async () => {
        const { Network } = await import('./network.js'), { noise } = await import('./noise.js');
        const network = await Network.load(await (await fetch('run.json')).json());
        const times = [];
        for (let i = 0; i < 12; i++) {
            const start = performance.now();
            await network.sample(noise(i, network.size), 4, 0);
            times.push(performance.now() - start);
        }
        return times.sort((a, b) => a - b);
    }"""
    times = tab.evaluate(code)
    tab.fill("#seed", "5")
    tab.wait_for_selector('#calls-4[data-of="0,5"]')
    claimed = float(tab.get_attribute("#calls-4", "data-ms"))
    assert times[0] / 3 <= claimed <= 10 * times[-1] + 5
    said = tab.locator("figure:has(#calls-4) .ms").inner_text()
    assert said.endswith(" ms") and abs(float(said[:-3]) - claimed) <= 0.5
    tab.context.close()


def test_the_strict_server_and_a_phone_work_too(browser, pictures):
    with serving(pictures[1].folder) as address:
        tab = opened(browser, address, viewport={"width": 390, "height": 844}, has_touch=True)
        assert tab.evaluate("crossOriginIsolated")
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        assert not tab.wrong, tab.wrong
        unnamed = tab.evaluate(
            "() => [...document.querySelectorAll('button, input, canvas:not([aria-hidden]), [role=slider]')].filter("
            "e => !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length)).map(e => e.outerHTML)"
        )
        assert unnamed == []
        with tab.expect_download() as saved:
            tab.click('button[aria-label="Download as PNG: 1 call"]')
        assert saved.value.suggested_filename == "run-class-0-seed-0-1-calls.png"
        tab.context.close()


def test_the_plane_shows_the_field_and_jumps(browser, tmp_path, runtime, plain_server):
    net = shaken(mf.nets.MLP((2,), width=16, depth=1))
    x = torch.randn(256, 2)
    mf.fit(mf.MeanFlow(net), x, out=tmp_path / "run", images=64, batch=64)
    made = page(tmp_path / "run", tmp_path / "page", runtime=runtime, webgpu=False, data=x, title="Plane")
    about = json.loads((made.folder / "run.json").read_text())
    assert len(about["data"]) == 512 and about["data"][:2] == [round(v, 3) for v in x[0].tolist()]
    tab = opened(browser, plain_server(made.folder))

    def scene(times):
        tab.wait_for_selector(f'#scene[data-of="{times}"]')
        return tab.evaluate("document.getElementById('scene').toDataURL()")

    first = scene("1,0")
    tab.locator("#r").fill("0.5")
    assert scene("1,0.5") != first
    tab.click("#jump")
    tab.wait_for_selector('#scene[data-jumped="1,0.5"]')
    assert "One call took 400 points from time 1 to 0.5" in tab.inner_text("#told")
    tab.locator("#t").fill("0.2")
    assert tab.input_value("#r") == "0.2"  # r never exceeds t
    assert not tab.wrong, tab.wrong
    tab.context.close()


def test_latents_are_decoded_in_the_browser(browser, tmp_path, runtime, plain_server):
    folder = tmp_path / "pets" / "one"
    folder.mkdir(parents=True)
    for i in range(8):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    encode(
        tmp_path / "pets", tmp_path / "latents", load_vae(tiny_vae(tmp_path / "vae")), Encoding(32, scale="measured")
    )
    net = shaken(mf.nets.DiT((4, 4, 4), patch=2, width=16, depth=1, heads=2, classes=1))
    mf.fit(mf.MeanFlow(net), str(tmp_path / "latents"), out=tmp_path / "run", images=8, batch=8, lr=1e-4)
    made = page(tmp_path / "run", tmp_path / "page", runtime=runtime, webgpu=False)
    tab = opened(browser, plain_server(made.folder))
    tab.fill("#seed", "3")
    tab.wait_for_selector('#calls-2[data-of="0,3"]')
    got = np.array(tab.evaluate(PIXELS, "calls-2")).reshape(32, 32, 4)[..., :3]
    loaded = mf.load(tmp_path / "run")
    z = mf.sample(loaded, mf.noise_from_seeds([3], loaded.shape), torch.tensor([0]), steps=2)
    wanted = to_uint8(loaded.latents.decode(z))[0].permute(1, 2, 0).numpy().astype(int)
    assert wanted.std() > 5 and np.abs(got - wanted).max() <= 2
    assert not tab.wrong, tab.wrong
    tab.context.close()


def test_folders_of_others_and_samples_without_a_picture_are_refused(pictures, tmp_path, runtime):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    shutil.copytree(pictures[1].folder, tmp_path / "checkout")
    (tmp_path / "checkout" / ".nojekyll").touch()
    for folder, other in (("mine", "thesis.tex"), ("checkout", r"\.nojekyll")):
        with pytest.raises(ValueError, match=f"no page \\({other}\\)"):
            page(pictures[0], tmp_path / folder, runtime=runtime)
    mf.fit(mf.MeanFlow(mf.nets.MLP((5,), width=8, depth=1)), torch.randn(8, 5), out=tmp_path / "run", images=8, batch=8)
    with pytest.raises(ValueError, match="pages show images"):
        page(tmp_path / "run", tmp_path / "page", runtime=runtime)
    with pytest.raises(FileNotFoundError, match="npm pack"):
        find_runtime(tmp_path / "mine")
    bad = tmp_path / "bad.tgz"
    bad.write_bytes(b"no package")
    with pytest.raises(RuntimeError, match="not the pinned one"):
        find_runtime(bad)
    assert not (tmp_path / "page").exists()
