"""Does a browser show the report as it is meant: without an error, in light and dark, on a telephone, on paper?"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from pipeline.storage import Location
from tests.conftest import Command
from tests.report import encoded, hostile_table, report
from tests.report import here as here

pytestmark = pytest.mark.slow
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DARK, LIGHT = 0, 1


@pytest.fixture(scope="module")
def chromium() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is on the PATH: nothing was shown (apt-get install chromium)")
    return found


@pytest.fixture(scope="module")
def page(here: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    data, archive = encoded(folder, hostile_table(), "both")
    report(data, archive, Location(str(folder / "report.html")))
    return folder / "report.html"


def browse(chromium: str, home: Path, page: Path, *arguments: str) -> str:
    """Opens a page without a screen or a network; returns what the browser logged."""
    done = subprocess.run(
        [
            chromium,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--enable-logging=stderr",
            "--v=0",
            f"--user-data-dir={home}",
            "--virtual-time-budget=3000",
            *arguments,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env={"HOME": str(home), "PATH": "/usr/bin:/bin:/usr/local/bin"},
    )
    return done.stdout + done.stderr


def shot(chromium: str, folder: Path, page: Path, width: int, height: int, scheme: int) -> np.ndarray:
    """A screenshot, shape (H, W, 3); nothing may be said on the console."""
    from PIL import Image

    out = folder / f"{width}-{scheme}.png"
    log = browse(
        chromium, folder / "home", page, f"--window-size={width},{height}", f"--screenshot={out}",
        f"--blink-settings=preferredColorScheme={scheme}",
    )  # fmt: skip
    assert not re.findall(r".*CONSOLE.*", log)
    with Image.open(out) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize(("width", "height"), [(1000, 4000), (500, 5000)])
def test_is_the_page_shown_in_light_and_dark(
    chromium: str, page: Path, tmp_path: Path, width: int, height: int
) -> None:
    light, dark = (shot(chromium, tmp_path, page, width, height, scheme) for scheme in (LIGHT, DARK))
    for pixels in (light, dark):
        assert pixels.shape[1] == width
        bands = np.array_split(pixels[: height // 2], 8)
        assert all(len(np.unique(band.reshape(-1, 3), axis=0)) > 8 for band in bands), "a band of the page is blank"
    assert np.median(light) > 240
    assert np.median(dark) < 40
    changed = np.any(light[: dark.shape[0]] != dark[: light.shape[0]], axis=-1)
    assert changed.mean() > 0.9


def test_does_nothing_stand_out_of_a_narrow_page(chromium: str, page: Path, tmp_path: Path) -> None:
    probe = tmp_path / "probe.html"
    html = page.read_text().replace("</body>", "<script>PROBE</script></body>")
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    measure = "document.title = 'width ' + document.documentElement.scrollWidth + ' of ' + innerWidth"
    probe.write_text(html.replace("PROBE", measure))
    log = browse(chromium, tmp_path / "home", probe, "--window-size=500,900", "--dump-dom")
    found = re.search(r"<title>width (\d+) of (\d+)</title>", log)
    assert found is not None
    assert int(found[1]) <= int(found[2])


def test_do_scripts_in_names_not_run_and_the_button_works(chromium: str, page: Path, tmp_path: Path) -> None:
    log = browse(chromium, tmp_path / "home", page, "--dump-dom")
    assert re.search(r'<button id="theme" type="button">(Dark|Light)</button>', log), (
        "the page's own script did not run"
    )
    assert "CONSOLE" not in log
    assert log.count("<script>") == 1


def test_is_it_printed(chromium: str, page: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.pdf"
    browse(chromium, tmp_path / "home", page, f"--print-to-pdf={out}", "--no-pdf-header-footer")
    assert out.read_bytes().startswith(b"%PDF")
    assert out.stat().st_size > 20_000


def test_does_the_command_draw_digits(chromium: str, tmp_path: Path, parvae: Command) -> None:
    figures = parvae("demo", "--out", tmp_path / "demo", "--epochs", 2)
    assert figures["evaluate"]["report"] == str(tmp_path / "demo" / "report.html")
    pixels = shot(chromium, tmp_path, tmp_path / "demo" / "report.html", 1000, 3000, LIGHT)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100
