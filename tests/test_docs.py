"""Does the documentation site build without a warning, and do its pages say what the code says?"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest

from jobs import cli

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    """The script `docs/build.py`."""
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it, behind a proxy that does not exist."""
    out = tmp_path_factory.mktemp("docs") / "site"
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "build.py"), "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, **nowhere},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


class Loaded(HTMLParser):
    """Addresses that a page loads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        loads = {"script": "src", "img": "src", "iframe": "src", "source": "src"}.get(tag)
        if tag == "link" and found.get("rel") not in ("canonical", "next", "prev"):
            loads = "href"
        if loads and found.get(loads):
            self.addresses.append(str(found[loads]))


def test_does_every_page_become_one_of_the_site(builder: ModuleType, site: Path, tmp_path: Path) -> None:
    builder.stage(tmp_path)
    pages = {path.relative_to(tmp_path / "pages").with_suffix(".html") for path in (tmp_path / "pages").rglob("*.md")}
    assert len(pages) > 20
    assert pages <= {path.relative_to(site) for path in site.rglob("*.html")}


def test_does_the_site_load_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        parser = Loaded()
        parser.feed(page.read_text())
        assert parser.addresses
        for address in parser.addresses:
            assert not re.match(r"(https?:)?//", address), f"{page.name} loads {address}"
    for style in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", style.read_text()), style.name


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_is_every_argument_of_a_command_on_its_page(builder: ModuleType, command: str) -> None:
    page = builder.command_pages()[command]
    assert page.startswith(f"# {command}\n")
    parser = cli._parser([command])
    [commands] = [action for action in parser._actions if hasattr(action, "choices") and action.choices]
    for action in commands.choices[command]._actions:  # type: ignore[index]
        for option in action.option_strings:
            assert f"`{option}" in page


def test_are_docstrings_on_the_pages_of_the_api(site: Path) -> None:
    text = re.sub(r"<[^>]*>", "", (site / "api" / "archive.html").read_text())
    assert "Decodes a run of rows: only the blocks" in text
    assert "ConfigError" in text
    assert "ParvaeEncoder" in (site / "api" / "transformer.html").read_text()


def test_is_the_readme_all_there(builder: ModuleType) -> None:
    readme = (ROOT / "README.md").read_text()
    pages = "\n".join(builder.readme_pages(readme).values())
    for line in readme.splitlines():
        if line and not line.startswith("#"):
            assert line in pages, line


def test_are_the_names_on_the_model_page_those_of_the_code() -> None:
    names = re.findall(
        r"`((?:vae_model|pipeline|jobs)\.[\w.]+)`(?: \(`(\w+)`\))?", (ROOT / "docs/model.md").read_text()
    )
    assert len(names) > 30
    for name, field in names:
        parts = name.split(".")
        found: object = None
        for cut in range(len(parts), 0, -1):
            try:
                found = importlib.import_module(".".join(parts[:cut]))
            except ModuleNotFoundError:
                continue
            break
        for part in parts[cut:]:
            found = getattr(found, part)
        assert not field or field in getattr(found, "__annotations__", {}), f"{name} has no {field}"


def test_is_a_page_without_a_place_noticed(builder: ModuleType, tmp_path: Path) -> None:
    builder.stage(tmp_path)
    (tmp_path / "pages" / "lost.md").write_text("# lost")
    with pytest.raises(ValueError, match=r"lost\.md"):
        builder.navigation(tmp_path / "pages")


def test_is_a_dead_link_an_error(builder: ModuleType, tmp_path: Path) -> None:
    builder.stage(tmp_path)
    page = tmp_path / "pages" / "security.md"
    page.write_text(page.read_text() + "\n[gone](gone.md)\n")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "-f", str(tmp_path / "mkdocs.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0
    assert "gone.md" in re.sub(r"\x1b\[[\d;]*m", "", done.stdout + done.stderr)
