"""Is bad usage and bad input refused before any work: exit 2, one clear line, nothing written, no Ray?"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.cli import COMMANDS, main, run
from jobs.inspect import format_table
from pipeline.bundle import Bundle
from pipeline.dataset import open_dataset
from pipeline.ledger import Ledger
from pipeline.plan import write_plan
from pipeline.request import EncodeOptions, check_request
from pipeline.storage import Location
from tests.small import encode_here, errors_of, request_of, tiny_bundle

ROOT = Path(__file__).resolve().parents[1]
Refuse = Callable[..., str]


def table(rows: int = 30) -> pa.Table:
    words = np.random.default_rng(0).choice(["a", "b"], rows)
    return pa.table({"x": np.linspace(0, 1, rows), "word, comma": words, "label": range(rows)})


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    bundle = tiny_bundle(table())
    return dataclasses.replace(bundle, errors=errors_of(bundle, "0.01r"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A dataset of one file."""
    (tmp_path / "data").mkdir()
    pq.write_table(table(), tmp_path / "data" / "a.parquet")
    return tmp_path / "data"


@pytest.fixture
def model(tmp_path: Path, bundle: Bundle) -> Path:
    """A model of the dataset."""
    bundle.save(Location(str(tmp_path / "model")))
    return tmp_path / "model"


@pytest.fixture
def archive(tmp_path: Path, data: Path, bundle: Bundle) -> Path:
    """A finished archive of the dataset."""
    encode_here(open_dataset(Location(str(data))), bundle, Location(str(tmp_path / "archive")), "both")
    return tmp_path / "archive"


def listing(folder: Path) -> list[tuple[str, int, int]]:
    found = [folder, *folder.rglob("*")]
    return sorted((str(path), path.lstat().st_mtime_ns, path.lstat().st_size) for path in found)


@pytest.fixture
def refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """Runs a command that must be refused without Ray and without a trace; returns its one line."""
    import ray

    def started(*args: object, **kwargs: object) -> None:
        raise AssertionError("Ray was started for a command that should have been refused")

    monkeypatch.setattr(ray, "init", started)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.chdir(tmp_path)

    def call(*argv: object) -> str:
        before = listing(tmp_path)
        assert main([str(word) for word in argv]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1, captured.err
        assert captured.err.startswith(f"parvae {argv[0]}: ")
        assert "Traceback" not in captured.err
        assert listing(tmp_path) == before
        return captured.err

    return call


def test_is_a_missing_dataset_refused(refuse: Refuse, tmp_path: Path, model: Path, archive: Path) -> None:
    gone = tmp_path / "gone"
    for argv in (
        ("train", gone, "--model", tmp_path / "m"),
        ("encode", gone, "--model", model, "--out", tmp_path / "o"),
        ("evaluate", gone, archive),
        ("verify", gone),
        ("inspect", gone),
    ):
        assert f"{gone} does not exist" in refuse(*argv)


def test_is_an_empty_or_damaged_dataset_refused(refuse: Refuse, tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    commands = (("train", folder, "--model", "m"), ("encode", folder, "--model", model, "--out", "o"))
    for argv in commands:
        assert "holds no Parquet file" in refuse(*argv)
    pq.write_table(table(), folder / "a.parquet")
    whole = (folder / "a.parquet").read_bytes()
    (folder / "b.parquet").write_bytes(whole[: len(whole) // 2])
    for argv in commands:
        assert "b.parquet is not a readable Parquet file" in refuse(*argv)
    pq.write_table(table().drop_columns(["x"]), folder / "b.parquet")
    for argv in commands:
        assert "b.parquet against a.parquet: columns missing: ['x']" in refuse(*argv)


def test_is_a_dataset_without_rows_refused_by_train(refuse: Refuse, data: Path) -> None:
    pq.write_table(table(0).cast(table().schema), data / "a.parquet")
    assert "no rows" in refuse("train", data, "--model", "m")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--passthrough", "nowhere"], "--passthrough names the column 'nowhere', the dataset has 'x', 'word, comma'"),
        (["--passthrough", "word", "--passthrough", "comma"], "names the column 'word'"),
        (["--set", "columns.y.kind=numeric"], "columns names the column 'y'"),
        (["--set", "columns.x.kind=numeric", "--passthrough", "x"], "the configuration makes it numeric"),
        (["--set", "nonsense"], "expected KEY=VALUE"),
        (["--set", "training.epoch=1"], "there is no key 'training.epoch'"),
        (["--set", "training.epochs=[1"], "not valid YAML"),
        (["--set", "network.latent_dim=0"], "latent_dim is 0"),
        (["--seed", "-1"], "seed = -1"),
        (["--set", "error=-1"], "error: -1 is no error bound"),
        (["--set", "columns.x.error=much"], "columns.x.error: 'much' is no error bound"),
        (["--set", "columns.x.error=none"], "columns.x.error = 'none', but error = '0.01r'"),
        (["--error", "none", "--set", "columns.x.error=0"], "columns.x.error = '0', but error = 'none'"),
        (["--set", "columns.word, comma.error=0.5"], "column 'word, comma' (string) is categorical and always exact"),
        (["--set", "columns.x.error=1r", "--passthrough", "x"], "column 'x' (double) is passthrough and always exact"),
        (["--config", "gone.yaml"], "--config gone.yaml does not exist"),
        (["--config", "binary.yaml"], "no UTF-8 text"),
        (["--config", "broken.yaml"], "broken.yaml is not valid YAML"),
        (["--config", "key.yaml"], "key.yaml: there is no key 'epochs'"),
        (["--model", "nosuch://x"], "--model nosuch://x cannot be opened"),
        (["--model", ""], "--model is empty"),
    ],
)
def test_is_bad_configuration_refused(
    refuse: Refuse, tmp_path: Path, data: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "broken.yaml").write_text("a: [\n  b: {\n")
    (tmp_path / "key.yaml").write_text("epochs: 3\n")
    assert message in refuse("train", data, "--model", tmp_path / "m", *arguments)


def test_is_an_output_that_overlaps_an_input_refused(
    refuse: Refuse, tmp_path: Path, data: Path, model: Path, archive: Path
) -> None:
    (tmp_path / "link").symlink_to(data)
    for out in (data, data / "below", tmp_path, tmp_path / "link" / "x"):
        assert "overlaps DATA" in refuse("train", data, "--model", out)
        assert "overlaps" in refuse("encode", data, "--model", model, "--out", out)
    assert "overlaps --model" in refuse("encode", data, "--model", model, "--out", model / "x")
    for out in (archive, archive / "below", tmp_path):
        assert "overlaps ARCHIVE" in refuse("decode", archive, "--out", out)


def test_is_an_output_that_holds_something_else_refused(
    refuse: Refuse, tmp_path: Path, data: Path, model: Path, archive: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    for extra in ((), ("--overwrite",)):
        assert "no model" in refuse("train", data, "--model", other, *extra)
        assert "no archive" in refuse("encode", data, "--model", model, "--out", other, *extra)
        assert "not empty" in refuse("decode", archive, "--out", other, *extra)
    assert "holds a model already" in refuse("train", data, "--model", model)
    assert "with another promise" in refuse("encode", data, "--model", model, "--out", archive, "--effort", "fast")
    for place in (other / "thesis.tex", other / "thesis.tex" / "below"):
        assert "is a file" in refuse("train", data, "--model", place)
        assert "is a file" in refuse("encode", data, "--model", model, "--out", place)
        assert "is a file" in refuse("decode", archive, "--out", place)


def test_is_the_unfinished_work_of_others_refused(
    refuse: Refuse, tmp_path: Path, data: Path, model: Path, archive: Path, bundle: Bundle
) -> None:
    half, decoding, training = tmp_path / "half", tmp_path / "decoding", tmp_path / "training"
    plan = request_of(open_dataset(Location(str(data))), bundle, "latents").plan(None)
    write_plan(Location(str(half)), dataclasses.replace(plan, request="0" * 64))
    assert "another model or with another promise" in refuse("encode", data, "--model", model, "--out", half)
    places = (Location(str(place)) for place in (data, model, half))
    write_plan(
        Location(str(half)), dataclasses.replace(plan, request=check_request(*places, EncodeOptions()).fingerprint)
    )
    Ledger(Location(str(half))).begin("0" * 64)
    assert "unfinished archive of other data" in refuse("encode", data, "--model", model, "--out", half)
    Ledger(Location(str(decoding))).begin("other")
    assert "unfinished decode of another archive" in refuse("decode", archive, "--out", decoding)
    Location(str(training)).join("_train", "run.json").write_json({"run": "other"})
    assert "unfinished run on other data" in refuse("train", data, "--model", training)


def test_is_a_missing_or_unfinished_model_refused(refuse: Refuse, tmp_path: Path, data: Path, model: Path) -> None:
    assert "parvae train" in refuse("encode", data, "--model", tmp_path / "gone", "--out", "o")
    assert "training has not finished" in refuse("encode", data, "--model", data.parent, "--out", "/nowhere/o")
    (model / "weights.safetensors").write_bytes(b"short")
    assert "fingerprint does not match" in refuse("encode", data, "--model", model, "--out", "o")


def test_is_a_dataset_of_another_schema_refused(refuse: Refuse, data: Path, model: Path, archive: Path) -> None:
    pq.write_table(table().rename_columns(["y", "word, comma", "label"]), data / "a.parquet")
    assert "lacks the column 'x'" in refuse("encode", data, "--model", model, "--out", "o")
    assert "lacks the column 'x'" in refuse("evaluate", data, archive)


def test_is_a_dataset_that_is_not_the_archives_refused(refuse: Refuse, data: Path, archive: Path) -> None:
    pq.write_table(table(), data / "b.parquet")
    assert "has the file 'b.parquet', which is not in" in refuse("evaluate", data, archive)
    (data / "b.parquet").unlink()
    pq.write_table(table(31), data / "a.parquet")
    assert "has 31 rows in 1 row groups" in refuse("evaluate", data, archive)


def test_is_a_missing_or_damaged_archive_refused(refuse: Refuse, tmp_path: Path, data: Path, archive: Path) -> None:
    for command in (("decode", "{}", "--out", "o"), ("evaluate", data, "{}"), ("verify", "{}")):
        for path, message in ((tmp_path / "gone", "does not exist"), (data, "is no parvae archive")):
            assert message in refuse(*(path if word == "{}" else word for word in command))
    (archive / "_manifest.json").write_text("{}")
    assert "_manifest.json is damaged" in refuse("decode", archive, "--out", "o")
    (archive / "_manifest.json").unlink()
    assert "not encoded to the end" in refuse("decode", archive, "--out", "o")
    assert "not encoded to the end" in refuse("inspect", archive)


def test_is_a_column_that_does_not_exist_refused_by_decode(refuse: Refuse, archive: Path) -> None:
    argv = ("decode", archive, "--out", "o", "--columns", "x", "--columns", "word")
    assert "--columns names 'word', the archive has 'x', 'word, comma', 'label'" in refuse(*argv)


def test_is_an_archive_of_another_format_refused(refuse: Refuse, data: Path, archive: Path) -> None:
    manifest = json.loads((archive / "_manifest.json").read_text())
    for version, message in (([2, 0], "archive format 2.0, this library reads up to 1"), ([0, 1], "never released")):
        (archive / "_manifest.json").write_text(json.dumps({**manifest, "version": version}))
        for command in (("decode", archive, "--out", "o"), ("verify", archive), ("evaluate", data, archive)):
            assert message in refuse(*command)


def test_is_a_promise_that_cannot_be_kept_refused(refuse: Refuse, data: Path, model: Path, bundle: Bundle) -> None:
    argv = ("encode", data, "--model", model, "--out", "o")
    assert "needs an error bound, but --error none" in refuse(*argv, "--keep", "both", "--error", "none")
    assert "there is nothing to choose" in refuse(*argv, "--keep", "latents", "--dry-run")
    unbounded = dataclasses.replace(bundle, errors=errors_of(bundle, "none"))
    unbounded.save(Location(str(model)))
    assert "was trained with --error none" in refuse(*argv, "--keep", "corrections")


def test_is_a_relative_path_in_a_submitted_job_refused(
    refuse: Refuse, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert "--model is the relative path 'm'" in refuse("train", data, "--model", "m")
    assert "DATA is the relative path 'data'" in refuse("encode", "data", "--model", "/m", "--out", "/o")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "d"], "required: --model"),
        (["train", "d", "--model", "m", "--workers", "0"], "'0' is no whole number from 1 up"),
        (["train", "d", "--model", "m", "--latent", "x"], "'x' is no whole number"),
        (["train", "d", "--model", "m", "--epoch", "1"], "unrecognized arguments: --epoch"),
        (["encode", "d", "--model", "m"], "required: --out"),
        (["encode", "d", "--model", "m", "--out", "o", "--keep", "all"], "argument --keep: invalid choice"),
        (["encode", "d", "--model", "m", "--out", "o", "--effort", "huge"], "argument --effort: invalid choice"),
        (["encode", "d", "--model", "m", "--out", "o", "--error", "1%"], "'1%' is no error bound"),
        (["decode"], "required"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        (["train", "d", "--model", "m", "--error", "much"], "argument --error: 'much' is no error bound: expected 0"),
        (["train", "d", "--model", "m", "--error", "0.1 r"], "'0.1 r' is no error bound"),
        (["train", "d", "--model", "m", "--error=-1"], "'-1' is no error bound"),
        (["train", "d", "--model", "m", "--error", "nan"], "'nan' is no error bound"),
        (["train", "d", "--model", "m", "--error"], "argument --error: expected one argument"),
    ],
)
def test_is_bad_usage_refused(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(argv)
    assert left.value.code == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("usage: parvae")


def test_does_parvae_without_a_command_show_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_has_every_command_a_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: parvae {command}")


def test_does_a_module_run_as_the_command_does(data: Path) -> None:
    argv = [sys.executable, "-m", "jobs.inspect", str(data)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["command"] == "inspect"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_does_a_command_end_quietly_when_nobody_reads_on(unbuffered: str, data: Path) -> None:
    argv = [sys.executable, "-m", "jobs.inspect", str(data)]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(120) == 128 + signal.SIGPIPE


def inspect(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, dict[str, Any]]:
    assert main(["inspect", str(path)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    *lines, last = captured.out.splitlines()
    return "\n".join(lines), json.loads(last)


def test_does_inspect_explain_a_dataset(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, figures = inspect(data, capsys)
    assert figures["command"] == "inspect"
    assert figures["what"] == "dataset"
    assert (figures["rows"], figures["files"], figures["columns"]) == (30, 1, 3)
    assert figures["bytes"] == (data / "a.parquet").stat().st_size
    assert "columns, judged by all rows" in text
    for name, kind in (("x", "numeric"), ("word, comma", "categorical"), ("label", "numeric")):
        (line,) = (line for line in text.splitlines() if line.startswith(f"{name} "))
        assert kind in line


def test_does_inspect_explain_odd_datasets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = {
        "empty": table(0).cast(table().schema),
        "null": pa.table({"n": pa.nulls(3), "f": pa.nulls(3, pa.float32()), "s": pa.nulls(3, pa.string())}),
        "nested": pa.table({"a": [{"b": [1]}], "m": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int8()))}),
        "infinite": pa.table({"x": [np.inf, -np.inf, np.nan], "y": [1.7e308, -1.7e308, 0.0]}),
    }
    for name, content in odd.items():
        path = tmp_path / f"{name}.parquet"
        pq.write_table(content, path)
        text, figures = inspect(path, capsys)
        assert figures["rows"] == content.num_rows
        assert all(column in text for column in content.column_names)


def test_does_inspect_explain_a_model(model: Path, capsys: pytest.CaptureFixture[str], bundle: Bundle) -> None:
    text, figures = inspect(model, capsys)
    assert figures["what"] == "model"
    assert figures["fingerprint"] == bundle.fingerprint[:16]
    assert (figures["latent_dim"], figures["trained_on_rows"]) == (3, 30)
    assert figures["bytes"] == sum(path.stat().st_size for path in model.iterdir())
    assert "word, comma" in text


def test_does_inspect_explain_an_archive(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, figures = inspect(archive, capsys)
    assert figures["what"] == "archive"
    assert (figures["rows"], figures["parts"], figures["files"]) == (30, 1, 1)
    assert figures["ratio"] == figures["bytes_in"] / figures["bytes_out"]
    assert "latents" in text
    assert (figures["keep"], figures["error"], figures["guaranteed"]) == ("both", "0.01r", True)
    (line,) = (line for line in text.splitlines() if line.startswith("label "))
    assert "0.29" in line


def test_is_a_table_aligned_with_numbers_to_the_right() -> None:
    rows = [{"name": "a", "n": 1_234_567, "f": 0.5}, {"name": "longer", "n": 1, "f": 12.0}]
    assert format_table(rows).splitlines() == [
        "name            n    f",
        "------  ---------  ---",
        "a       1,234,567  0.5",
        "longer          1   12",
    ]
    assert format_table([]) == "(nothing)"


def test_is_an_error_of_the_system_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def job(_: Namespace) -> dict[str, Any]:
        return {"text": (tmp_path / "gone").read_text()}

    assert run(job, Namespace(command="inspect", log_json=False)) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("parvae inspect: FileNotFoundError: ")
    assert captured.err.count("\n") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_is_a_folder_without_rights_told_in_one_line(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "a.parquet").chmod(0)
    assert main(["inspect", str(data)]) == 2
    assert "Permission denied" in capsys.readouterr().err


def test_are_logs_json_lines_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    import logging

    def job(_: Namespace) -> dict[str, Any]:
        logging.getLogger("pipeline.encode").info("half of %d", 10)
        return {"rows": 1}

    assert run(job, Namespace(command="encode", log_json=True)) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.err)["message"] == "half of 10"
    assert json.loads(captured.out) == {"command": "encode", "rows": 1}
    assert run(job, Namespace(command="encode", log_json=False)) == 0
    assert capsys.readouterr().err.endswith(" half of 10\n")


def test_is_a_refusal_one_json_line_when_logs_are_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "nothing"), "--log-json"]) == 2
    line = json.loads(capsys.readouterr().err)
    assert line["level"] == "ERROR"
    assert "nothing" in line["message"]


def test_is_a_store_that_does_not_answer_one_clear_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    class NoCredentialsError(Exception):
        pass

    def refuse(self: MemoryFileSystem, path: str, **_: object) -> None:
        raise NoCredentialsError("unable to locate\ncredentials")

    monkeypatch.setattr(MemoryFileSystem, "info", refuse)
    assert main(["inspect", "memory://bucket/data"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "memory://bucket/data" in lines[0]
    assert "unable to locate credentials" in lines[0]


def test_do_the_constraints_name_packages_and_versions_only() -> None:
    lines = (Path(__file__).resolve().parents[1] / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins
    assert [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!_]+", line)] == []


def readme_commands() -> list[list[str]]:
    text = (Path(__file__).resolve().parents[1] / "README.md").read_text()
    blocks = [block.split("```")[0] for block in text.split("```sh\n")[1:]]
    words = [line.split("#")[0].split() for block in blocks for line in block.splitlines()]
    plain = [line[1:] for line in words if line[:1] == ["parvae"]]
    jobs = [line[line.index("-m") + 1 :] for line in words if line[:3] == ["ray", "job", "submit"]]
    return [*plain, *([line[0].removeprefix("jobs."), *line[1:]] for line in jobs)]


def test_does_the_readme_give_commands_that_exist() -> None:
    from jobs.cli import _parser

    commands = readme_commands()
    assert {command[0] for command in commands} >= {"inspect", "train", "encode", "decode", "evaluate"}
    for command in commands:
        assert _parser(command).parse_args(command).command == command[0]


def test_does_the_readme_name_every_file_and_no_other() -> None:
    root = Path(__file__).resolve().parents[1]
    table = (root / "README.md").read_text().split("## Files")[1].split("## Glossary")[0]
    named = set(re.findall(r"`([\w./]+\.(?:py|md|yaml|txt))`", table))
    bare = {Path(name).name for name in named}
    files = [
        path for package in ("vae_model", "pipeline", "pipeline/columns") for path in (root / package).glob("*.py")
    ]
    assert [path.name for path in files if path.name != "__init__.py" and path.name not in bare] == []
    packages = [root / package for package in ("vae_model", "pipeline", "jobs", "docs")]
    places = [root] + [folder for package in packages for folder in (package, *package.glob("**/")) if folder.is_dir()]
    assert [name for name in named if not any((place / name).exists() for place in places)] == []
