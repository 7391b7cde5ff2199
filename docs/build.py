"""Builds the documentation site: `python docs/build.py --out FOLDER`; a warning is an error, nothing is downloaded.

Pages are put together in a folder of their own: the files of `docs/`, the README in parts, one page a command from its
own `--help`, so that none of them can be out of date. Zensical then renders them, with the Python API from docstrings.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
README_PAGES = {
    "index.md": ("", "Try it"),
    "tour.md": ("Your own data, in six commands", "Anomaly scores", "Rows that never were", "On a Ray cluster"),
    "glossary.md": ("Glossary", "Limits"),
    "files.md": ("Files",),
}
"""Which sections of the README make which page; "" is what comes before the first. Others go to the tour."""
NAVIGATION: list[dict[str, Any]] = [
    {"Start": ["index.md", "tour.md", "glossary.md"]},
    {"Guides": "guides"},
    {"Commands": "commands"},
    {"Python": "api"},
    {"How it works": ["model.md", "format.md", "reliability.md", "security.md", "cluster.md"]},
    {"Findings": ["results.md", "performance.md", "decisions.md", "files.md"]},
]
"""The site's sections: pages, or the folder whose pages they are."""


def main() -> int:
    """Builds the site; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / ".tmp" / "site", help="folder of the site; it is replaced")
    out = parser.parse_args().out.resolve()
    with tempfile.TemporaryDirectory(prefix="parvae-docs-") as name:
        folder = Path(name)
        stage(folder)
        status = subprocess.run(
            [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", str(folder / "mkdocs.yml")],
            check=False,
        ).returncode
        if status:
            return status
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(folder / "site", out)
    print(f"the site lies in {out}")
    return 0


def stage(folder: Path) -> None:
    """Writes configuration and pages into a folder.

    Raises:
        ValueError: A page is in no section of the navigation, or a section names one that there is not.
    """
    pages = folder / "pages"
    shutil.copytree(DOCS, pages, ignore=shutil.ignore_patterns("*.py", "*.yml", "__pycache__"))
    for page in pages.rglob("*.md"):
        page.write_text(_plain_fences(page.read_text()))
    for name, text in readme_pages((ROOT / "README.md").read_text()).items():
        (pages / name).write_text(text)
    (pages / "commands").mkdir()
    for name, text in command_pages().items():
        (pages / "commands" / f"{name}.md").write_text(text)
    config = (DOCS / "mkdocs.yml").read_text().replace("ROOT", str(ROOT))
    (folder / "mkdocs.yml").write_text(config + yaml.safe_dump({"nav": navigation(pages)}, sort_keys=False))


def _plain_fences(text: str) -> str:
    """Code blocks with their language alone: what guides say to their tests after it, Markdown does not know."""
    return re.sub(r"^```(\w+) .*$", r"```\1", text, flags=re.MULTILINE)


def readme_pages(readme: str) -> dict[str, str]:
    """The README in pages: file name → Markdown."""
    first, *rest = re.split(r"^## (.*)\n", readme, flags=re.MULTILINE)
    title, _, introduction = first.partition("\n")
    sections = dict(zip(rest[::2], rest[1::2], strict=True))
    placed = {name: page for page, names in README_PAGES.items() for name in names}
    found = {"index.md": f"{title}\n{introduction}", "tour.md": "# Tour\n\n"}
    found |= {"glossary.md": "# Glossary and limits\n\n", "files.md": "# Files\n\n"}
    for name, text in sections.items():
        page = placed.get(name, "tour.md")
        heading = "" if len(README_PAGES[page]) == 1 else f"## {name}\n"
        found[page] += f"{heading}{text}"
    return found


def command_pages() -> dict[str, str]:
    """A page for each command: its name → Markdown."""
    sys.path.insert(0, str(ROOT))
    from jobs import cli

    pages = {}
    for name, summary in cli.COMMANDS.items():
        [commands] = [
            action for action in cli._parser([name])._actions if isinstance(action, argparse._SubParsersAction)
        ]
        pages[name] = _command_page(commands.choices[name], name, summary)
    return pages


def _command_page(parser: argparse.ArgumentParser, name: str, summary: str) -> str:
    formatter = argparse.HelpFormatter(parser.prog, width=80)
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups)
    lines = [f"# {name}", "", f"{summary[0].upper()}{summary[1:]}.", "", "```", formatter.format_help().strip(), "```"]
    lines += ["", "| argument | what it is |", "|---|---|"]
    for action in parser._actions:
        value = "" if action.nargs == 0 else str(action.metavar or f"{{{','.join(map(str, action.choices or ()))}}}")
        names = [f"`{option} {value}`".replace(" `", "`") for option in action.option_strings] or [f"`{value}`"]
        text = (action.help or "") % {"prog": parser.prog, "default": action.default}
        must = "; required" if action.required and action.option_strings else ""
        lines.append(f"| {', '.join(names)} | {_escaped(text)}{must} |")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    """Text that means nothing else in a table of Markdown."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", text)


def navigation(pages: Path) -> list[dict[str, Any]]:
    """The navigation: sections and their pages."""
    found: list[dict[str, Any]] = []
    for section in NAVIGATION:
        [(name, members)] = section.items()
        if isinstance(members, str):
            members = sorted(page.relative_to(pages).as_posix() for page in (pages / members).glob("*.md"))
        if members:
            found.append({name: members})
    listed = {page for section in found for members in section.values() for page in members}
    there = {page.relative_to(pages).as_posix() for page in pages.rglob("*.md")}
    if listed != there:
        raise ValueError(f"pages in no section or sections without their page: {sorted(listed ^ there)}")
    return found


if __name__ == "__main__":
    raise SystemExit(main())
