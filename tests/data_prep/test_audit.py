import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from data_prep import audit
from data_prep.__main__ import main
from data_prep.audit import near_duplicates, shared
from data_prep.config import IngestConfig
from data_prep.ingest import ingest
from voxscale.seed import rng

SMALL = IngestConfig(workers=2, gigabytes=4.0, seconds=60)


def write(path, number, change=lambda x: x):
    generator = rng(number, "blobs")
    values = sum(s * ndimage.gaussian_filter(generator.normal(0, 300, (60, 64, 40)), s) for s in (1.5, 3, 6))
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(change(values).astype(np.int16), np.diag([2.0, 2.0, 3.0, 1.0])).to_filename(path)


def test_shared_scans_are_listed(tmp_path, capsys):
    for number in range(4):
        write(tmp_path / "in" / f"{number}.nii", number)
    write(tmp_path / "in" / "copy.nii", 1, lambda x: 2 * x[6:, ::-1])
    write(tmp_path / "task" / "a.nii", 3, lambda x: x[:, :, 4:] + 50)
    write(tmp_path / "task" / "b.nii", 9)
    ingest([tmp_path / "in"], tmp_path / "store", SMALL)
    ingest([tmp_path / "task"], tmp_path / "other", SMALL)
    assert len(near_duplicates(tmp_path / "store")[0]) == 1
    assert len(json.loads((tmp_path / "store" / "duplicates.json").read_text())["pairs"]) == 1
    assert len(shared(tmp_path / "store", tmp_path / "other")) == 1
    capsys.readouterr()
    for against in ("other", "task"):  # a store, or a folder of scans
        assert main(["audit", str(tmp_path / "store"), "--against", str(tmp_path / against)]) == 3
        told = json.loads(capsys.readouterr().out)
        assert (told["shared"], told["pairs"]) == (1, 1)
    assert len(json.loads((tmp_path / "store" / "audit.json").read_text())["pairs"]) == 1
    write(tmp_path / "clean" / "b.nii", 9)
    assert main(["audit", str(tmp_path / "store"), "--against", str(tmp_path / "clean")]) == 0
    assert main(["audit", str(tmp_path / "store"), "--against", str(tmp_path / "gone")]) == 1


def test_no_file_is_open_in_the_folder_of_large_arrays_when_it_is_removed(tmp_path, monkeypatch):
    """A network file system would keep such a file under another name, and the folder with it."""
    for number in range(2):
        write(tmp_path / "in" / f"{number}.nii", number)
    ingest([tmp_path / "in"], tmp_path / "store", SMALL)
    maps, removed, remove = Path("/proc/self/maps"), list[str](), audit.remove_tree

    def look(folder):
        assert list(folder.rglob("*.npy"))
        removed.extend(line for line in maps.read_text().splitlines() if str(folder) in line)
        remove(folder)

    monkeypatch.setattr(audit, "remove_tree", look)
    near_duplicates(tmp_path / "store")
    shared(tmp_path / "store", tmp_path / "store")
    assert removed == []
    assert list((tmp_path / "store").glob(".*.tmp")) == []


def test_a_lost_descriptor_is_made_again(tmp_path):
    for number in range(2):
        write(tmp_path / "in" / f"{number}.nii", number)
    write(tmp_path / "in" / "copy.nii", 1, lambda x: x + 1)
    ingest([tmp_path / "in"], tmp_path / "store", SMALL)
    before = near_duplicates(tmp_path / "store")
    for path in (tmp_path / "store").glob("*/descriptor.bin"):
        path.unlink()
    assert near_duplicates(tmp_path / "store") == before
    assert len(before[0]) == 1
    assert before[1] == []


def test_scans_that_show_too_little_are_named(tmp_path):
    path = tmp_path / "in" / "a.nii"
    path.parent.mkdir()
    z, y, x = np.mgrid[:12, :12, :12]
    nibabel.Nifti1Image((z + 2 * y + 3 * x).astype(np.int16), np.diag([2.0, 2.0, 2.0, 1.0])).to_filename(path)
    ingest([tmp_path / "in"], tmp_path / "store", SMALL)
    told = json.loads((tmp_path / "store" / "duplicates.json").read_text())
    assert (told["pairs"], len(told["too_little"])) == ([], 1)


@pytest.mark.parametrize("arguments", [["audit"], ["report"]])
def test_wrong_usage(arguments):
    with pytest.raises(SystemExit):
        main(arguments)
