"""Do locations behave alike on a local folder and on an object store, and is nothing half-written seen?"""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, OutputError
from pipeline.locate import check_output, locate
from pipeline.storage import Location


def names(folder: Location) -> list[str]:
    return [stat.path for stat in folder.files()]


def test_is_a_file_read_back_as_it_was_written(folder: Location) -> None:
    location = folder.join("a", "b=1/c.bin")
    location.write_bytes(b"\0" * 1000)
    assert location.read_bytes() == b"\0" * 1000
    with location.open() as stream:
        stream.seek(990)
        assert len(stream.read()) == 10
    assert location.exists()
    assert location.is_file()
    assert not folder.join("a").is_file()
    assert location.name == "c.bin"
    assert location.parent == folder.join("a", "b=1")
    assert location.stat().size == 1000


def test_is_json_read_back_as_it_was_written(folder: Location) -> None:
    folder.join("x.json").write_json({"a": [1, 2.5, None, "é"]})
    assert folder.join("x.json").read_json() == {"a": [1, 2.5, None, "é"]}
    with pytest.raises(ValueError, match="JSON compliant"):
        folder.join("y.json").write_json(float("nan"))
    assert names(folder) == ["x.json"]


def test_is_a_listing_whole_sorted_and_relative(folder: Location) -> None:
    for name in ("z", "a/b/c", "a/a", "B"):
        folder.join(name).write_bytes(name.encode())
    listed = folder.files()
    assert [stat.path for stat in listed] == ["B", "a/a", "a/b/c", "z"]
    assert [stat.size for stat in listed] == [1, 3, 5, 1]
    assert all(stat.version for stat in listed)
    assert folder.join("nothing").files() == []


def test_does_the_version_change_with_the_content(folder: Location) -> None:
    location = folder.join("x")
    location.write_bytes(b"one")
    before = (location.stat(), folder.files())
    assert (location.stat(), folder.files()) == before
    location.write_bytes(b"two")
    assert location.stat() != before[0]
    assert folder.files() != before[1]


def test_does_nothing_appear_before_publishing_ends(folder: Location) -> None:
    location = folder.join("sub", "part")
    with location.publishing() as spool:
        Path(spool).write_bytes(b"half")
        assert not location.exists()
        assert not [name for name in names(folder) if not name.startswith("sub/.tmp-")]
        Path(spool).write_bytes(b"whole")
    assert location.read_bytes() == b"whole"
    assert not os.path.exists(spool)
    assert names(folder) == ["sub/part"]


def test_does_an_exception_inside_publishing_leave_nothing(folder: Location) -> None:
    class Killed(Exception):
        pass

    def fail(location: Location) -> str:
        with location.publishing() as spool:
            Path(spool).write_bytes(b"half")
            raise Killed(spool)

    with pytest.raises(Killed) as caught:
        fail(folder.join("part"))
    assert not os.path.exists(str(caught.value))
    assert folder.is_empty()


def test_does_an_exception_inside_publishing_leave_the_old_file(folder: Location) -> None:
    location = folder.join("part")
    location.write_bytes(b"old")

    def fail() -> None:
        with location.publishing() as spool:
            Path(spool).write_bytes(b"new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert location.read_bytes() == b"old"
    assert names(folder) == ["part"]


def test_is_a_folder_without_files_empty(folder: Location) -> None:
    assert folder.is_empty()
    folder.join("x").write_bytes(b"")
    assert not folder.is_empty()
    assert not folder.join("x").is_empty()
    folder.join("x").remove()
    assert folder.is_empty()


def test_does_remove_take_all_of_a_folder_and_no_more(folder: Location) -> None:
    folder.parent.join("neighbour").write_bytes(b"untouched")
    for name in ("run[1]/a", "run[1]/b/c", "run1/a", "run/a", "runner"):
        folder.join(name).write_bytes(b"x")
    folder.join("run[1]").remove()
    folder.join("run").remove()
    folder.join("run").remove()
    assert names(folder) == ["run1/a", "runner"]
    folder.join("run?").remove()
    folder.join("runner").remove()
    assert names(folder) == ["run1/a"]
    assert folder.parent.join("neighbour").read_bytes() == b"untouched"


@pytest.mark.parametrize("part", ["..", "../x", "a/../../x", "/etc/passwd", "a\\..\\b", "a\0b", ""])
def test_is_a_name_that_leaves_the_folder_refused(folder: Location, part: str) -> None:
    with pytest.raises(ConfigError, match="not a path inside"):
        folder.join("ok", part)


def test_are_names_with_dots_and_odd_characters_kept(folder: Location) -> None:
    odd = ["a..b", "...", "year=2024/a b,c.parquet", "ä", "[x]*?", "%20#"]
    for name in odd:
        folder.join(name).write_bytes(name.encode())
    assert names(folder) == sorted(odd)
    for name in odd:
        assert folder.join(name).read_bytes() == name.encode()


def test_does_a_location_survive_pickling(folder: Location) -> None:
    folder.join("x").write_bytes(b"1")
    copy = pickle.loads(pickle.dumps(folder.join("x")))
    assert copy == folder.join("x")
    assert copy.read_bytes() == b"1"


@pytest.mark.parametrize("inner", ["", "/below", "/below/more"])
def test_is_an_output_that_overlaps_an_input_refused(folder: Location, inner: str) -> None:
    data = locate(folder.uri, "DATA")
    below = locate(folder.uri + inner, "--out")
    for out, source in ((below, data), (data, below)):
        with pytest.raises(OutputError, match=r"--out .* overlaps DATA"):
            check_output(out, "--out", {"DATA": source})


def test_is_an_output_beside_its_inputs_accepted(folder: Location) -> None:
    for name in (folder.name + "2", folder.name[:-1], "other"):
        check_output(folder.parent.join(name), "--out", {"DATA": folder})


def test_is_the_same_path_on_another_filesystem_no_overlap(tmp_path: Path) -> None:
    check_output(Location(f"memory://{tmp_path}"), "--out", {"DATA": Location(str(tmp_path))})


def test_is_an_overlap_found_through_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    for out in ("link", "link/archive", "link/../data/x"):
        with pytest.raises(OutputError, match="overlaps"):
            check_output(locate(f"{tmp_path}/{out}", "--out"), "--out", {"DATA": Location(f"{tmp_path}/data")})


def test_is_everything_inside_the_root_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="overlaps"):
        check_output(Location(str(tmp_path)), "--out", {"DATA": locate("/", "DATA")})


def test_are_two_spellings_of_one_uri_the_same_place() -> None:
    data = locate("memory://bucket/data", "DATA")
    for text in ("memory:///bucket/data", "memory://bucket//data/", "memory://bucket/data/x/.."):
        with pytest.raises(OutputError, match="overlaps"):
            check_output(locate(text, "--out"), "--out", {"DATA": data})


def test_are_links_listed_as_what_they_lead_to(tmp_path: Path) -> None:
    (tmp_path / "blobs" / "sub").mkdir(parents=True)
    (tmp_path / "blobs" / "one").write_bytes(b"12345")
    (tmp_path / "blobs" / "sub" / "two").write_bytes(b"123")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.parquet").symlink_to(tmp_path / "blobs" / "one")
    (tmp_path / "data" / "folder").symlink_to(tmp_path / "blobs" / "sub")
    (tmp_path / "data" / "broken").symlink_to(tmp_path / "gone")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    found = {stat.path: stat.size for stat in Location(str(tmp_path / "data")).files()}
    assert found == {"x.parquet": 5, "folder/two": 3, "broken": 0}


def test_is_what_vanishes_while_it_is_listed_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c/d", "e"):
        locate(str(tmp_path), "a folder").join(name).write_bytes(b"1")
    listdir = os.listdir

    def listed(path: str) -> list[str]:
        if os.path.basename(path) == "c":
            (tmp_path / "c" / "d").unlink()
            (tmp_path / "c").rmdir()
        found = listdir(path)
        (tmp_path / "b").unlink(missing_ok=True)
        return found

    monkeypatch.setattr(os, "listdir", listed)
    assert names(locate(str(tmp_path), "a folder")) == ["a", "e"]


def test_are_left_over_spools_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in ("parts/.tmp-abc", "parts/000.parquet", ".tmp-x", ".tmpfile"):
        Location(str(tmp_path)).join(name).write_bytes(b"x")
    Location(str(tmp_path)).remove_spools()
    assert names(Location(str(tmp_path))) == [".tmpfile", "parts/000.parquet"]


def test_does_a_published_file_have_the_rights_that_the_user_gives_new_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        Location(str(tmp_path / "x")).write_bytes(b"1")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_is_a_relative_path_refused_inside_a_submitted_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ConfigError, match=r"DATA is the relative path 'data/x'.*absolute path or a URI"):
        locate("data/x", "DATA")
    assert locate("/data/x/", "DATA").uri == "/data/x"
    assert locate("memory://b/x", "DATA").uri == "memory://b/x"


def test_is_a_relative_path_taken_from_the_working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.chdir(tmp_path)
    assert locate("data/../x", "DATA") == Location(str(tmp_path / "x"))


@pytest.mark.parametrize("text", ["nosuch://bucket/x", "MEMORY://x", "memory://", "memory:///", "s3://", "", " "])
def test_is_an_unknown_or_empty_address_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--model"):
        locate(text, "--model")


def test_is_a_file_uri_a_local_path(tmp_path: Path) -> None:
    assert locate(f"file://{tmp_path}/x/", "DATA") == Location(f"{tmp_path}/x")
    assert locate(f"local://{tmp_path}", "DATA").is_local


def test_does_the_parent_of_a_bucket_stay_on_its_filesystem() -> None:
    assert Location("memory://x.parquet").parent.join("x.parquet").path == "/x.parquet"
    assert not Location("memory://x.parquet").parent.is_local


def test_is_a_file_created_only_once(folder: Location) -> None:
    location = folder.join("lock", "1.json")
    assert location.create_bytes(b"mine")
    assert not location.create_bytes(b"yours")
    assert location.read_bytes() == b"mine"
    assert names(folder) == ["lock/1.json"]


def test_is_a_user_in_a_uri_hidden() -> None:
    location = Location("sftp://key:secret@host/folder")
    assert str(location) == "sftp://***@host/folder"
    assert "secret" not in f"{location} {location!r} {location.join('x')!r}"
