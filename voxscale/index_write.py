"""Writing the index of a store, see `voxscale.index`: of a ledger that grew, only the parts whose lines are new.

A part is a function of the ledger's lines of its scans, whose hash stands in
`index.json`, so one whose lines are the same is neither parsed nor written.
`index.json` is written last and taken away before the ledger changes, so what
it names is valid; meanwhile `before.json` keeps what is known of the parts.
"""

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import google_crc32c
import pyarrow.parquet as pq

from voxscale.entry import Entry
from voxscale.errors import DataError
from voxscale.files import json_bytes, sha256_file
from voxscale.folder import Folder, LocalFolder, open_folder, url_of
from voxscale.index import CELLS, INDEX, ROWS, Index, cells_of
from voxscale.index_table import SCHEMA, VERSION, Statistics, to_table
from voxscale.ledger import LEDGER, PIECE, runs

FOLDER, LIST = INDEX.split("/")
BEFORE = "before.json"
PART = 64 * ROWS
"""Rows of a part."""
Line = dict[str, Any]
"""What `index.json` tells of a part."""


def write_index(store: Path, entries: Iterable[tuple[str, Entry]]) -> None:
    """Write an index anew; each part and then `index.json` appear whole or not at all.

    Args:
        store: The store, or its URL.
        entries: Ids and entries of its scans.
    """
    folder, waiting, lines = open_folder(store / FOLDER), iter(entries), list[Line]()
    known = _known(folder)
    take_away(store)
    with _scratch(store) as scratch:
        while first := list(islice(waiting, ROWS)):
            line, _ = _write_part(scratch, _name(lines), first, waiting)
            _keep(folder, scratch, line, known.get(line["name"], {}))
            lines.append(line)
    publish_index(store, lines)


def write_parts(store: Path, ledger: Path) -> list[Line]:
    """Write the parts of an index that are not there yet; `publish_index` then makes it the store's.

    Args:
        store: The store, or its URL.
        ledger: Folder with its ledger.

    Returns:
        What `index.json` shall tell of each part.
    """
    folder, lines = open_folder(store / FOLDER), list[Line]()
    known = _known(folder)
    take_away(store)
    with _scratch(store) as scratch:
        for run in runs(ledger / LEDGER, PART):
            name = _name(lines)
            line = before = known.get(name, {})
            if before.get("ledger") != run.digest or not _is_there(folder, before, before):
                waiting = run.entries()
                line, labels = _write_part(scratch, name, list(islice(waiting, ROWS)), waiting)
                line |= {"ledger": run.digest, "labels": sorted(labels)}
                _keep(folder, scratch, line, before)
            lines.append(line)
    return lines


def label_values(lines: Iterable[Line]) -> set[int]:
    """Values that the labels of all scans have, as `write_parts` found them."""
    return {value for line in lines for value in line["labels"]}


def told_lines(store: Path) -> list[Line]:
    """What `index.json` tells of each part of an index that `is_whole`."""
    return json.loads(open_folder(store / FOLDER).read(LIST))["parts"]


def publish_index(store: Path, lines: list[Line]) -> None:
    """Write the table of groups and `index.json`, then remove what it does not name."""
    folder, cells = open_folder(store / FOLDER), cells_of(store, lines)
    name = CELLS.partition("/")[2]
    told: dict[str, Any] = {"version": VERSION, "rows": sum(line["rows"] for line in lines), "parts": lines}
    told["cells"] = {"groups": cells.groups, "crc32c": cells.checksum()}
    folder.write(name, cells.packed())
    folder.write(LIST, json_bytes(told))
    named = {line["name"] for line in lines} | {LIST, name}
    for leftover in list(folder.names()):
        if leftover not in named:
            folder.remove(leftover)


def take_away(store: Path) -> None:
    """Take `index.json` away because the ledger is about to change; what it tells of its parts is kept."""
    folder = open_folder(store / FOLDER)
    if folder.size(LIST) is not None:
        folder.write(BEFORE, folder.read(LIST))
        folder.remove(LIST)


def is_whole(store: Path) -> bool:
    """Whether the index is as it was written; of parts behind a URL only the sizes are looked at.

    Args:
        store: The store, or its URL.
    """
    folder = open_folder(store / FOLDER)
    try:
        _ = Index(store).cells
        return all(_is_there(folder, line, line) for line in json.loads(folder.read(LIST))["parts"])
    except DataError:
        return False


def damaged_files(store: Path) -> list[str]:
    """Names in the store of files of the index that are not as they were written, every byte looked at.

    Args:
        store: The store, or its URL.
    """
    folder = open_folder(store / FOLDER, "range")
    if folder.size(LIST) is None:
        return []
    try:
        lines = json.loads(folder.read(LIST))["parts"]
        found = [line["name"] for line in lines if _sha256(folder, line["name"], line["bytes"]) != line["sha256"]]
    except (ValueError, KeyError, TypeError):
        return [INDEX]
    if not found:
        try:
            _ = Index(store).cells
        except DataError as error:
            return [CELLS if CELLS in str(error) else INDEX]
    return [f"{FOLDER}/{name}" for name in found]


def is_of_ledger(store: Path) -> bool:
    """Whether a whole index was made of the accepted rows that the ledger has now; true where there is no index.

    Args:
        store: The store, or its URL.

    Raises:
        DataError: With reason `corrupt` if a row of the ledger cannot be read.
    """
    folder = open_folder(store / FOLDER)
    if folder.size(LIST) is None:
        return True
    told = [line.get("ledger") for line in json.loads(folder.read(LIST))["parts"]]
    return None in told or told == [run.digest for run in runs(store / LEDGER, PART)]


def _sha256(folder: Folder, name: str, size: int) -> str:
    """Of a part, read in pieces; of what is missing or has another size an empty text."""
    if folder.size(name) != size:
        return ""
    blob, digest = folder.blob(name, size), hashlib.sha256()
    for start in range(0, size, PIECE):
        digest.update(blob.ranges([(start, min(start + PIECE, size))])[0])
    return digest.hexdigest()


def _name(lines: list[Line]) -> str:
    return f"part-{len(lines):05d}.parquet"


@contextmanager
def _scratch(store: Path) -> Generator[Path]:
    """Where parts are made: in the folder itself, to be renamed, or on this machine."""
    if url_of(store) is None:
        (store / FOLDER).mkdir(parents=True, exist_ok=True)
        yield store / FOLDER
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


def _known(folder: Folder) -> dict[str, Line]:
    """What was told of each part last."""
    for name in (LIST, BEFORE):
        try:
            told = json.loads(folder.read(name))
            return {line["name"]: line for line in told["parts"]} if told["version"] == VERSION else {}
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return {}


def _is_there(folder: Folder, line: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    """Whether a part is there as it should be: by its bytes where they are at hand, else by what was told and its size.

    Args:
        folder: Of the index.
        line: How it should be.
        known: What was told of the part of this name last.
    """
    if isinstance(folder, LocalFolder):
        file = folder.path / line["name"]
        return file.is_file() and sha256_file(file) == line["sha256"]
    return known.get("sha256") == line["sha256"] and folder.size(line["name"]) == line["bytes"]


def _keep(folder: Folder, scratch: Path, line: Line, known: Mapping[str, Any]) -> None:
    """Put a part that was made to its place, unless the same is there."""
    beside = scratch / f".{line['name']}.tmp"
    if _is_there(folder, line, known):
        beside.unlink()
    else:
        folder.put(beside, line["name"])


def _write_part(
    scratch: Path, name: str, some: list[tuple[str, Entry]], waiting: Iterator[tuple[str, Entry]]
) -> tuple[Line, set[int]]:
    """Make one part; returns its line in `index.json`, and the values of labels."""
    beside, labels = scratch / f".{name}.tmp", set[int]()
    rows, groups, statistics = 0, list[dict[str, int]](), dict[str, Statistics]()
    with (  # a file, as pyarrow takes no names that are not UTF-8
        beside.open("wb") as sink,
        pq.ParquetWriter(sink, SCHEMA, compression="zstd", write_statistics=False, write_page_checksum=True) as writer,
    ):
        while some:
            table = to_table(some)
            writer.write_table(table, row_group_size=ROWS)
            groups.append(dict(sorted(Counter(n for n in table.column("group").to_pylist() if n).items())))
            for _, entry in some:
                statistics.setdefault(entry.modality, Statistics()).add(entry)
                labels.update(map(int, entry.label or ()))
            rows += len(some)
            some = list(islice(waiting, min(ROWS, PART - rows)))
        told = {modality: asdict(found) for modality, found in sorted(statistics.items())}
        writer.add_key_value_metadata({"voxscale.statistics": json.dumps(told), "voxscale.groups": json.dumps(groups)})
    return _line_of(beside, name, rows), labels


def _line_of(file: Path, name: str, rows: int) -> Line:
    size = file.stat().st_size
    with file.open("rb") as handle:
        handle.seek(size - 8)
        footer = int.from_bytes(handle.read(4), "little") + 8
        handle.seek(size - footer)
        crc = google_crc32c.value(handle.read())
    return {"name": name, "rows": rows, "bytes": size, "sha256": sha256_file(file), "footer": [footer, crc]}
