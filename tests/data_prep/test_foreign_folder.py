"""A store's folder that holds other things is refused before anything of it is touched."""

import pytest
from ingested import SMALL, nifti

from data_prep.ingest import ingest, ingest_part
from data_prep.part import Part
from voxscale.errors import DataError


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("name", [".vim.old", "thesis.doc", ".work.tmp", "0123456789abcdef0"])
def test_a_folder_of_others_is_refused_and_stays_as_it_was(tmp_path, name):
    nifti(tmp_path / "in" / "a.nii", 0)
    (tmp_path / "home" / name).mkdir(parents=True)
    (tmp_path / "home" / name / "file").write_text("precious")
    before = contents(tmp_path / "home")
    for run in (ingest, lambda *args: ingest_part(*args, Part(1, 2))):
        with pytest.raises(DataError, match="home must be a store or an empty folder, not one with other") as error:
            run([tmp_path / "in"], tmp_path / "home", SMALL)
        assert error.value.reason == "not_a_store"
        assert contents(tmp_path / "home") == before


def test_what_runs_that_were_cut_short_leave_is_a_store_that_begins(tmp_path):
    nifti(tmp_path / "in" / "a.nii", 0)
    store = tmp_path / "store"
    ingest_part([tmp_path / "in"], store, SMALL, Part(1, 1))
    for name in (".lock", ".zarr.json.far-host.12.tmp", ".0123456789abcdef.far-host.12.old", ".nfs0001"):
        (store / name).touch()
    (store / "lost+found").mkdir()
    assert not (store / "zarr.json").exists()
    assert ingest([tmp_path / "in"], store, SMALL).accepted == 1
    (store / "notes.txt").touch()  # in a store that is one they may lie
    assert ingest([tmp_path / "in"], store, SMALL).accepted == 1
    (store / "notes.txt").unlink()
    (store / "zarr.json").unlink()
    assert ingest([tmp_path / "in"], store, SMALL).accepted == 1
