"""Do the packages hang together as the design says: who imports whom, what loads what, how long things are?"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("vae_model", "pipeline", "jobs")
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
MAY_IMPORT = {"vae_model": {"vae_model"}, "pipeline": {"vae_model", "pipeline"}, "jobs": set(PACKAGES)}
"""The direction: jobs → pipeline → vae_model."""
VAE_MODEL_LIBRARIES = {"torch", "safetensors"}
"""All that `vae_model` stands on, beside the standard library."""
RAY_FILES = {
    "jobs.submit",
    "pipeline.autoscaler",
    "pipeline.cluster",
    "pipeline.preflight",
    "pipeline.progress",
    "pipeline.train",
    "pipeline.training_worker",
    "pipeline.units",
}
"""The only files that import ray; every other step reaches it through `pipeline.cluster` and `pipeline.units`."""
STEPS = {"train", "encode", "decode", "evaluate", "score", "sample", "walk"}
"""Of these, only the workers of `decode` are used by another one (`evaluate` decodes what it compares)."""
PYTHON_FILE_LINES, FUNCTION_LINES = 350, 60
LATE = {"torch", "ray"}
"""What takes long to import."""


def tree(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text(), name)


def imports(name: str, top_level_only: bool = False) -> Iterator[str]:
    """The full names of the modules that a file imports, inside functions too."""
    module = tree(name)
    nodes = module.body if top_level_only else list(ast.walk(module))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import in line {node.lineno}"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def loaded_by(code: str) -> set[str]:
    """Names of the modules in memory after a fresh interpreter ran some code."""
    show = f"{code}\nimport sys\nprint('\\n'.join(sys.modules), file=sys.__stdout__)"
    done = subprocess.run(
        [sys.executable, "-c", show], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("name", FILES)
def test_do_imports_run_from_jobs_to_pipeline_to_vae_model(name: str) -> None:
    own = {module.split(".")[0] for module in imports(name)} & {*PACKAGES, "tests"}
    assert own <= MAY_IMPORT[name.split(".")[0]]


def test_does_vae_model_stand_on_torch_alone() -> None:
    for name in FILES:
        if name.startswith("vae_model"):
            foreign = {module.split(".")[0] for module in imports(name)} - sys.stdlib_module_names
            assert foreign <= VAE_MODEL_LIBRARIES | {"vae_model"}, name


def test_is_ray_imported_only_where_the_list_says() -> None:
    found = {name for name in FILES if "ray" in {module.split(".")[0] for module in imports(name)}}
    assert found == RAY_FILES


def test_do_the_steps_not_import_each_other() -> None:
    found = {
        (step, other)
        for step in STEPS
        for other in STEPS - {step}
        if f"pipeline.{other}" in set(imports(f"pipeline.{step}"))
    }
    assert found <= {("evaluate", "decode")}


def test_do_the_columns_not_know_who_uses_them() -> None:
    for name in FILES:
        if name.startswith("pipeline.columns"):
            own = {module for module in imports(name) if module.startswith("pipeline.")}
            assert all(module.startswith(("pipeline.columns", "pipeline.errors")) for module in own), name


def test_is_no_import_circular() -> None:
    graph = {
        name: {
            other
            for module in imports(name, top_level_only=True)
            for other in (module, f"{module}.__init__")
            if other in FILES and other != name
        }
        for name in FILES
    }
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " → ".join([*above, name])
        if name not in done:
            for other in graph[name]:
                visit(other, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("argv", [["--help"], ["train", "--help"], ["demo", "--help"], ["inspect", "--help"], []])
def test_does_help_answer_without_ray_and_torch(argv: list[str]) -> None:
    code = (
        "import contextlib, io, jobs.cli\n"
        "with contextlib.redirect_stdout(io.StringIO()) as out:\n"
        f"    try: jobs.cli.main({argv!r})\n"
        "    except SystemExit as leave: assert leave.code == 0\n"
        "assert 'usage: parvae' in out.getvalue()"
    )
    assert not loaded_by(code) & {*LATE, "pyarrow", "pandas", "numpy"}


@pytest.mark.parametrize(
    "module", ["pipeline.archive", "pipeline.parts", "pipeline.bundle", "pipeline.rows", "pipeline.inspect"]
)
def test_is_an_archive_read_without_a_cluster(module: str) -> None:
    assert not loaded_by(f"import {module}") & LATE


@pytest.mark.parametrize("path", ["", "scalars", "unordered", "images", "images/_model"])
def test_is_a_path_inspected_without_ray_torch_and_pandas(path: str, tmp_path: Path) -> None:
    place = ROOT / "tests" / "golden" / "v1" / path
    if not path:
        place = tmp_path
        pq.write_table(pa.table({"a": range(100)}), place / "a.parquet")
    code = (
        "import contextlib, io, jobs.cli\n"
        "with contextlib.redirect_stdout(io.StringIO()) as out:\n"
        f"    assert jobs.cli.main(['inspect', {str(place)!r}]) == 0\n"
        "assert 'columns' in out.getvalue()"
    )
    assert not loaded_by(code) & {*LATE, "pandas"}  # it takes a third of a second to import


def test_does_no_import_start_or_reach_anything() -> None:
    modules = sorted(name.removesuffix(".__init__") for name in FILES)
    code = (
        "import importlib, socket, subprocess\n"
        "def refuse(*args, **kwargs): raise AssertionError(f'reached out while importing: {args}')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "import ray, threading\n"
        "assert not ray.is_initialized()\n"
        "assert not [t for t in threading.enumerate() if t.name in ('read-ahead', 'progress')]"
    )
    assert set(modules) <= loaded_by(code)


@pytest.mark.parametrize("name", FILES)
def test_are_files_and_functions_short(name: str) -> None:
    lines = FILES[name].read_text().count("\n")
    assert lines <= PYTHON_FILE_LINES, f"{name} has {lines} lines"
    for node in ast.walk(tree(name)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = int(node.end_lineno or 0) - node.lineno + 1
            assert length <= FUNCTION_LINES, f"{name}.{node.name} has {length} lines"
