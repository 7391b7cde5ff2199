"""Does nothing that is read run code, does no path lead out, and do credentials stay where they are?"""

from __future__ import annotations

import ast
import pickle
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data  # registers the types that Ray gives to pickled objects
import ray.data.extensions

from jobs.cli import main
from pipeline.bundle import schema_from_text, schema_to_text
from pipeline.cells import BlockCell, Place, pack_block, unpack_block
from pipeline.dataset import open_dataset
from pipeline.errors import ArchiveError, ConfigError, DatasetError, ParvaeError
from pipeline.locate import locate
from pipeline.parts import PartReader, record_of
from pipeline.storage import Location
from tests.servers.store import Store
from tests.small import encode_here, tiny_bundle
from tests.test_promise import table, write

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for package in ("jobs", "pipeline", "vae_model") for path in (ROOT / package).rglob("*.py"))
FORBIDDEN = (
    *("pickle", "cloudpickle", "marshal", "shelve", "dill", "joblib", "pd.read_pickle"),
    *("eval", "exec", "compile", "__import__", "subprocess", "os.system", "os.popen"),
    *("torch.load", "torch.hub", "torch.jit.load", "numpy.load", "np.load"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load"),
)


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def forbidden(source: str) -> list[str]:
    """Calls in a source that run code that came from elsewhere."""
    found = []
    for name, call in calls(ast.parse(source)):
        if any(name == bad or name.startswith(f"{bad}.") for bad in FORBIDDEN):
            found.append(name)
        found += [f"{name}({word.arg}=…)" for word in call.keywords if word.arg == "allow_pickle"]
    return found


def test_does_no_source_run_what_it_reads() -> None:
    assert len(SOURCES) > 50
    for path in SOURCES:
        assert forbidden(path.read_text()) == [], path


def test_is_the_search_for_such_calls_a_search() -> None:
    assert forbidden("import torch\ntorch.load(f)\nx.eval()\nyaml.safe_load(t)\nsafetensors.torch.load(b)") == [
        "torch.load"
    ]
    assert forbidden("pickle.loads(b)\neval('1')\nnp.load(f, allow_pickle=True)") == [
        "pickle.loads",
        "eval",
        "np.load",
        "np.load(allow_pickle=…)",
    ]


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


@pytest.fixture
def fuse(tmp_path: Path) -> Iterator[Path]:
    """What is there only after something was unpickled; it must not be at the end."""
    path = tmp_path / "unpickled"
    yield path
    assert not path.exists()


def pickled_array(fuse: Path, rows: int = 40) -> pa.ExtensionArray:
    kind = ray.data.extensions.ArrowPythonObjectType()
    return pa.ExtensionArray.from_storage(kind, pa.array([pickle.dumps(Bomb(fuse))] * rows, pa.large_binary()))


def test_is_there_something_to_be_afraid_of(tmp_path: Path) -> None:
    array = pickled_array(tmp_path / "unpickled", 1)
    array.to_pylist()
    assert (tmp_path / "unpickled").exists()


@pytest.mark.parametrize("wrap", ["plain", "list", "struct", "metadata alone"])
def test_are_pickled_objects_in_a_dataset_refused(wrap: str, fuse: Path, tmp_path: Path) -> None:
    values: pa.Array = pickled_array(fuse)
    field = pa.field("odd", values.type)
    if wrap == "list":
        values = pa.ListArray.from_arrays(pa.array(range(41), pa.int32()), values)
        field = pa.field("odd", values.type)
    elif wrap == "struct":
        values = pa.StructArray.from_arrays([values], ["inner"])
        field = pa.field("odd", values.type)
    elif wrap == "metadata alone":
        values = values.storage
        field = pa.field("odd", values.type, metadata={"ARROW:extension:name": "ray.data.arrow_pickled_object"})
    path = tmp_path / "data.parquet"
    pq.write_table(
        pa.Table.from_arrays([pa.array(range(40)), values], schema=pa.schema([("x", pa.int64()), field])), path
    )
    with pytest.raises(DatasetError, match=r"data\.parquet: column 'odd' holds pickled Python objects"):
        open_dataset(Location(str(path)))


def test_is_a_type_described_by_a_pickle_refused(fuse: Path, tmp_path: Path) -> None:
    for name in (b"ray.data.arrow_tensor", b"ray.data.arrow_tensor_v2", b"ray.data.arrow_variable_shaped_tensor"):
        metadata = {b"ARROW:extension:name": name, b"ARROW:extension:metadata": pickle.dumps(Bomb(fuse))}
        field = pa.field("odd", pa.list_(pa.int64()), metadata=metadata)
        path = tmp_path / "data.parquet"
        pq.write_table(pa.Table.from_arrays([pa.array([[1, 2]] * 9)], schema=pa.schema([field])), path)
        with pytest.raises(DatasetError, match=r"data\.parquet is not a readable Parquet file"):
            open_dataset(Location(str(path)))


def test_are_pickled_objects_in_a_stored_schema_refused(fuse: Path) -> None:
    with pytest.raises(ParvaeError, match="'odd'"):
        schema_from_text(schema_to_text(pa.schema([("odd", pickled_array(fuse).type)])))


def test_are_pickled_objects_in_an_archive_refused(fuse: Path, tmp_path: Path) -> None:
    """In the corrections column of a part, and in the stream of exactly stored values in a cell."""
    place = Location(str(tmp_path))
    archive = encode_here(write(place), tiny_bundle(table()), place.join("archive"), "latents", block_rows=128)
    record = archive.parts[0]
    stored, footer = (read(archive.part_location(record).path) for read in (pq.read_table, pq.read_metadata))
    name, spool = archive.plan.corrections_column, str(tmp_path / "part.parquet")
    changed = stored.set_column(stored.schema.get_field_index(name), name, pickled_array(fuse, len(stored)))
    changed = changed.replace_schema_metadata(None)
    with pq.ParquetWriter(spool, changed.schema) as writer:
        writer.write_table(changed, row_group_size=128)
        writer.add_key_value_metadata({b"parvae": footer.metadata[b"parvae"]})
    resealed = record_of(spool, record.work_unit, archive.plan, [])
    with pytest.raises(ArchiveError, match="pickled Python objects"):
        PartReader(Location(spool), resealed, archive.form)
    cell = BlockCell(exceptions={"x": (np.array([4], np.uint8), pickled_array(fuse, 1))})
    with pytest.raises(ValueError, match="pickled Python objects"):
        unpack_block(pack_block(Place(0, 0, 1), cell), Place(0, 0, 1))


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", "a\\..\\x", "a\0b", ""])
def test_does_no_path_lead_out_of_a_folder(path: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        Location(str(tmp_path)).join(path)


KEY, SECRET = "AKIAMADEUPKEY", "made/up+sec:ret"
HIDDEN = (KEY, SECRET, "up+sec")
"""What must not be in anything that a command says or writes."""


def test_do_credentials_of_the_environment_stay_out_of_what_a_denial_says(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    place = str(store.place("somewhere"))
    type(store.place("").fs).clear_instance_cache()
    try:
        assert main(["inspect", place]) == 2
    finally:
        type(store.place("").fs).clear_instance_cache()
    said = "".join(capsys.readouterr())
    assert place in said
    assert not any(hidden in said for hidden in HIDDEN)


def commands(place: str, data: Path) -> list[list[str]]:
    """Commands that fail, each with a URI in another argument."""
    return [
        ["inspect", place],
        ["verify", place],
        ["train", place, "--model", f"{place}/model"],
        ["train", str(data), "--model", place, "--passthrough", "no such column"],
        ["encode", place, "--model", f"{place}/model", "--out", f"{place}/archive"],
        ["encode", str(data), "--model", place, "--out", f"{place}/archive"],
        ["decode", place, "--out", f"{place}/decoded"],
        ["evaluate", place, f"{place}/archive"],
    ]


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    "place",
    [
        f"memory://{KEY}:made-up-secret@bucket/x",
        f"memory://{KEY}:{SECRET}@bucket/x",
        f"nope://{KEY}:made-up-secret@bucket/x",
        f"s3://{KEY}:made-up-secret@bucket/x",
    ],
)
def test_do_credentials_stay_out_of_what_commands_say(
    place: str, as_json: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(pa.table({"x": range(9)}), tmp_path / "data.parquet")
    for command in commands(place, tmp_path / "data.parquet"):
        assert main([*command, *["--log-json"] * as_json]) in (1, 2)
        said = "".join(capsys.readouterr())
        assert "bucket" in said or "no such column" in said
        assert "Traceback" not in said
        for hidden in (*HIDDEN, "made-up-secret"):
            assert hidden not in said, f"{command[0]}: {said}"


@pytest.mark.parametrize("place", [f"s3://{KEY}:{SECRET}@bucket/x", f"sftp://me:{SECRET}@host:22/x", "ftp://a:b@c/d@e"])
def test_are_credentials_in_a_uri_refused(place: str) -> None:
    with pytest.raises(ConfigError, match=r"DATA holds credentials .*AWS_ACCESS_KEY_ID") as caught:
        locate(place, "DATA")
    assert not any(hidden in "".join(traceback.format_exception(caught.value)) for hidden in HIDDEN)


def test_are_an_at_sign_in_a_path_and_a_port_no_credentials() -> None:
    assert str(locate("memory://host:80/a@b", "DATA")) == "memory://host:80/a@b"
    assert str(locate("memory://bucket/a:b@c", "DATA")) == "memory://bucket/a:b@c"
