"""Do the guides work as they are written?"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guides import blocks, run_guide
from tests.servers.cluster import RayCluster, ray_cluster

ROOT = Path(__file__).resolve().parents[1]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """A Ray for all guides: with one of its own, every command would spend most of its time on starting it."""
    with ray_cluster(1, cpus=2) as running:
        yield running


@pytest.mark.slow
@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_does_every_block_of_a_guide_run(guide: Path, tmp_path: Path, cluster: RayCluster) -> None:
    """In a folder that holds nothing but the files that go with the guide, which have its name."""
    for path in guide.parent.glob(f"{guide.stem}.*"):
        if path != guide:
            shutil.copy(path, tmp_path)
    environment = {**cluster.environment, "RAY_ADDRESS": cluster.address, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-m", "tests.guides", str(guide)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout[-8000:]
    assert done.stdout.count(f"--- {guide.name}:") == sum(block.mark != "output" for block in blocks(guide.read_text()))


def test_has_every_guide_blocks_that_run() -> None:
    assert {path.stem for path in GUIDES} >= {"anomalies", "archive", "features", "molecules"}
    for path in GUIDES:
        languages = {block.language for block in blocks(path.read_text())}
        assert {"python", "sh"} <= languages, path.name


PAGE = """
# A page

```python
text = "one"
print(text, 1.25)
```

```text output
one 1...
```

```sh
echo a; echo b; echo c
```

```text output
a
...
c
```

```yaml
not: run
```

```text
neither is this
```

```python
print(text)
```
"""


def run(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.chdir(folder)
    path = folder / "page.md"
    path.write_text(page)
    return run_guide(path)


def test_blocks_run_in_order_in_one_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(PAGE, tmp_path, monkeypatch) == 3


@pytest.mark.parametrize("shown", ["one 1...", "a\n...\nc"])
def test_another_output_than_the_guide_shows_fails(shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match="but the block prints"):
        run(PAGE.replace(f"output\n{shown}", "output\nsomething else"), tmp_path, monkeypatch)


def test_a_block_that_fails_fails_the_guide_and_names_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        run("\n\n```python\nx = 1\nx / 0\n```\n", tmp_path, monkeypatch)
    frame = raised.traceback[-1]
    assert (str(frame.path).endswith("page.md"), frame.lineno + 1) == (True, 5)
    with pytest.raises(subprocess.CalledProcessError):
        run("```sh\nfalse\ntrue\n```\n", tmp_path, monkeypatch)
    with pytest.raises(subprocess.CalledProcessError):
        run("```sh\nfalse | cat\n```\n", tmp_path, monkeypatch)
