"""What another implementation of Zarr, TensorStore (C++), reads of a store: every array of a scan, equal."""

from dataclasses import asdict, replace

import numpy as np
import pytest
from tensorstore_reads import arrays_of, compare, opened
from test_store import CLASSES, KEY, make_entry, make_label, make_store, make_volume

from voxscale.entry import Privacy
from voxscale.files import append_line
from voxscale.ledger import LEDGER
from voxscale.scan_folder import write_volume
from voxscale.store import open_store
from voxscale.store_root import create_store
from voxscale.volume import Volume

pytest.importorskip("tensorstore")


@pytest.mark.parametrize("kind", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "float32"])
def test_levels_labels_and_masks_read_equal(tmp_path, kind):
    volume = make_volume((70, 133, 150), kind)  # three levels, several chunks along two axes
    label, removed = make_label(volume), volume.voxels % 7 == 0
    path = tmp_path / "store"
    create_store(path, CLASSES)
    entry = replace(make_entry(volume, label), privacy=Privacy("none", "none", removed=int(removed.sum())))
    entry = write_volume(path, KEY, volume, label, entry, CLASSES, removed)
    append_line(path / LEDGER, {"id": KEY, "kind": "image", "status": "accepted", "entry": asdict(entry)})
    names = {f"{KEY}/{part}{level}" for part in ("", "labels/task/", "labels/removed/") for level in range(3)}
    assert set(arrays_of(open_store(path))) == names
    arrays, voxels, differ = compare(path)
    assert (arrays, differ) == (9, [])
    assert voxels > 3 * volume.voxels.size
    assert np.array_equal(opened(path / KEY / "0").read().result(), volume.voxels)
    assert np.array_equal(opened(path / KEY / "labels/task/0").read().result(), label.voxels)
    assert np.array_equal(opened(path / KEY / "labels/removed/0").read().result(), removed)


def test_several_shards_boxes_and_colours(tmp_path):
    large = make_volume((600, 8, 8))
    store = make_store(tmp_path / "store", large)
    box = opened(store.path / KEY / "0")[500:530, 2:5, 7].read().result()  # over the edge of two shards
    assert np.array_equal(box, large.voxels[500:530, 2:5, 7])
    picture = Volume(np.random.default_rng(0).integers(0, 256, (3, 1, 90, 70)).astype(np.uint8), np.eye(4), "OT")
    create_store(tmp_path / "colours", {})
    write_volume(tmp_path / "colours", KEY, picture, None, make_entry(picture), {})
    assert np.array_equal(opened(tmp_path / "colours" / KEY / "0").read().result(), picture.voxels)


def test_a_difference_is_found_and_a_flipped_byte_or_missing_shard_is_an_error(tmp_path, monkeypatch):
    store = make_store(tmp_path / "store", make_volume())
    (file,) = [file for file in (store.path / KEY / "0" / "c").rglob("*") if file.is_file()]
    with monkeypatch.context() as other:
        other.setattr(type(store), "read", lambda *_, **__: make_volume(seed=1).voxels)
        assert f"{KEY}/0" in compare(store.path)[2]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match="Digest mismatch"):
        opened(store.path / KEY / "0").read().result()
    file.unlink()
    with pytest.raises(ValueError, match="missing"):
        opened(store.path / KEY / "0").read().result()
