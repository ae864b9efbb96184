"""Pictures of scans: lost or damaged ones are told by `verify` and made anew by `ingest`, with the same bytes."""

import json

import pytest
from ingested import SMALL, bytes_of, sources
from object_store import inside

from data_prep import reading
from data_prep.ingest import ingest
from data_prep.verify import main


def of_rows(store, status):
    rows = [json.loads(line) for line in (store / "ledger.jsonl").read_text().splitlines()]
    return [row["id"] for row in rows if row["status"] == status and row["thumbnail"]]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    ingest([sources(folder / "in", 2)], folder / "store", SMALL)
    return folder


def test_every_flipped_byte_of_a_picture_is_told(made, caplog, capsys):
    store = made / "store"
    file = store / "thumbnails" / f"{of_rows(store, 'accepted')[0]}.png"
    whole = file.read_bytes()
    assert main([str(store)]) == 0
    places = [*range(60), *range(60, len(whole) - 12, len(whole) // 20), *range(len(whole) - 12, len(whole))]
    for place in places:
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        caplog.clear()
        assert main([str(store)]) == 1, place
        assert [record.message.split(": ")[1] for record in caplog.records if record.levelname == "ERROR"] == [
            f"thumbnails/{file.name}"
        ]
    for cut in (0, 8, len(whole) - 5):
        file.write_bytes(whole[:cut])
        assert main([str(store)]) == 1, cut
    file.write_bytes(whole)
    assert main([str(store)]) == 0


def test_removed_and_lost_pictures_are_made_anew(made, monkeypatch):
    store = made / "store"
    before = bytes_of(store)
    damaged, rejected = of_rows(store, "accepted")[1], of_rows(store, "rejected")[0]
    (store / "thumbnails" / f"{damaged}.png").write_bytes(b"no picture")
    (store / "thumbnails" / f"{rejected}.png").unlink()
    assert main([str(store), "--remove"]) == 1
    assert (store / damaged / "zarr.json").is_file()  # voxels stay: their source may be gone
    read, real = [], reading.Reading._read

    def counted(self, job, *rest):
        read.append(job.key)
        return real(self, job, *rest)

    monkeypatch.setattr(reading.Reading, "_read", counted)
    ingest([made / "in"], store, SMALL)
    assert sorted(read) == sorted([damaged, rejected])
    assert bytes_of(store) == before
    ingest([made / "in"], store, SMALL)
    assert len(read) == 2


def test_a_lost_picture_behind_a_url_is_made_anew(made, s3, tmp_path):
    url = s3.folder()
    ingest([made / "in"], url, SMALL, tmp_path / "work")
    before = s3.objects(url)
    name = next(name for name in before if name.startswith("thumbnails/"))
    s3.file_system().rm(f"{inside(url)}/{name}")
    ingest([made / "in"], url, SMALL, tmp_path / "work")
    assert s3.objects(url) == before
