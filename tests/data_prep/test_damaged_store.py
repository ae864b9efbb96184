"""Damage to a store's own files: told in one line with what helps, and what helps gives back the same bytes."""

import json
import shutil

import pytest
from ingested import SMALL, bytes_of, nifti

from data_prep import reading
from data_prep.__main__ import main
from data_prep.ingest import ingest
from voxscale.errors import DataError
from voxscale.store import open_store


@pytest.fixture
def made(tmp_path):
    for number in range(3):
        nifti(tmp_path / "in" / f"s{number}.nii", number)
    ingest([tmp_path / "in"], tmp_path / "store", SMALL)
    return tmp_path


def second_line(file, change):
    lines = file.read_bytes().splitlines(keepends=True)
    lines[1] = change(lines[1])
    file.write_bytes(b"".join(lines))


CHANGES = {
    "garbage": lambda line: b"\x00" * (len(line) - 1) + b"\n",
    "list": lambda line: b"[]\n",
    "lacking": lambda line: b'{"id": "00", "path": "x"}\n',
    "id": lambda line: line.replace(b'"id": "', b'"id": "x').replace(b'"row": ', b'"row": "a", "b": '),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["store/ledger.jsonl", "store.private/sources.jsonl"])
def test_a_damaged_list_is_told_and_made_anew_once_it_is_removed(made, caplog, name, change):
    file, before = made / name, bytes_of(made / "store")
    second_line(file, CHANGES[change])
    assert main(["ingest", str(made / "in"), str(made / "store"), "--workers", "2"]) == 1
    assert caplog.messages[-1] == (
        f"error: {file.name} line 2 must be as it was written; remove the file and ingest again"
    )
    if name == "store/ledger.jsonl":
        told = f"error: {file.name} line 2 must be as it was written; remove the file and ingest again"
        assert main(["report", str(made / "store"), "--out", str(made / "page.html")]) == 1
        assert main(["plan", str(made / "store")]) == 0  # from the index, which is whole
        shutil.rmtree(made / "store" / "index")
        for command in ("plan", "verify"):
            assert main([command, str(made / "store")]) == 1
        assert caplog.messages.count(told) == 4
        (made / "store" / "zarr.json").write_bytes(before["zarr.json"])  # which the plan was stamped into
    file.unlink()
    assert ingest([made / "in"], made / "store", SMALL).accepted == 3
    assert bytes_of(made / "store") == before


def test_a_row_that_says_something_else_is_found_and_written_anew_alone(made, capsys, caplog, monkeypatch):
    store, before = made / "store", bytes_of(made / "store")
    second_line(store / "ledger.jsonl", lambda line: line.replace(b'"spacing": [3.0', b'"spacing": [4.0'))
    assert bytes_of(store) != before
    for more in ((), ("--remove",)):
        assert main(["verify", str(store), *more]) == 1
        assert json.loads(capsys.readouterr().out)["damaged"] == 1
        assert "ledger.jsonl: its rows are not those that the index was made of" in caplog.text
    read, real = [], reading.Reading._read
    monkeypatch.setattr(reading.Reading, "_read", lambda self, job, now: read.append(job.key) or real(self, job, now))
    ingest([made / "in"], store, SMALL)
    assert len(read) == 1
    assert bytes_of(store) == before
    assert main(["verify", str(store)]) == 0


@pytest.mark.parametrize("text", ["", "[]", '{"least": 8}', '{"pairs": [{"a": "x"}]}'])
def test_damaged_lists_of_copies_are_told_and_written_again(made, caplog, text):
    store, before = made / "store", bytes_of(made / "store")
    (store / "duplicates.json").write_text(text)
    assert main(["report", str(store), "--out", str(made / "page.html")]) == 1
    assert caplog.messages[-1] == "error: duplicates.json must be as it was written; ingest again"
    ingest([made / "in"], store, SMALL)
    assert bytes_of(store) == before
    (store / "audit.json").write_text(text)
    assert main(["report", str(store), "--out", str(made / "page.html")]) == 1
    assert caplog.messages[-1] == "error: audit.json must be as it was written; audit again"


@pytest.mark.parametrize("root", [{}, {"classes": []}, {"classes": {"liver": 1}}, {"schema": 2, "classes": {}}])
def test_attributes_of_a_store_that_are_none_are_told(made, root):
    told = {"attributes": {"voxscale": {"kind": "store", "schema": 3, **root}}}
    (made / "store" / "zarr.json").write_text(json.dumps(told))
    text = "schema 3, not 2; ingest it again" if "schema" in root else "must be a store made by data_prep ingest"
    with pytest.raises(DataError, match=text):
        open_store(made / "store")
