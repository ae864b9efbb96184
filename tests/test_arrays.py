import numpy as np
import pytest
import zarr
from scipy import ndimage
from zarr.codecs import BloscCodec, Crc32cCodec

from voxscale.arrays import layout_of, write_array
from voxscale.kernel.filters import block_means


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((70, 65, 40), "int16"),
        ((33, 600, 20), "uint8"),
        ((5, 6, 7), "float32"),
        ((3, 1, 300, 270), "uint8"),
        ((1, 300, 2100), "uint16"),
        ((40, 40, 40), "int32"),
        ((1, 1, 1), "int8"),
    ],
)
def test_zarr_python_reads_what_we_encode(tmp_path, shape, dtype):
    voxels = (np.random.default_rng(0).normal(size=shape) * 50).astype(dtype)
    write_array(tmp_path / "0", voxels)
    found = zarr.open_array(tmp_path / "0", mode="r")
    assert found.dtype == voxels.dtype
    assert np.array_equal(found[...], voxels)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((70, 65, 40), "int16"),
        ((33, 600, 20), "uint8"),
        ((5, 6, 7), "float32"),
        ((3, 1, 300, 270), "uint8"),
        ((1, 300, 2100), ">u2"),
        ((40, 40, 40), "int32"),
        ((9, 9, 9), "int8"),
        ((9, 9, 9), "float64"),
    ],
)
def test_metadata_are_those_of_zarr_python(tmp_path, shape, dtype):
    voxels = np.zeros(shape, dtype)
    write_array(tmp_path / "ours", voxels)
    layout, colour, size = layout_of(shape, voxels.dtype.name), len(shape) == 4, voxels.dtype.itemsize
    chunk, shard = ((part[0], 1, *part[1:]) if colour else part for part in (layout.chunk, layout.shard))
    level, planes = (1, "bitshuffle") if size == 2 else (5, "shuffle")
    zarr.create_array(
        store=tmp_path / "theirs",
        shape=shape,
        dtype=voxels.dtype.newbyteorder("="),
        chunks=chunk,
        shards=shard,
        compressors=[BloscCodec(cname="lz4hc", clevel=level, shuffle=planes, typesize=size), Crc32cCodec()],
        dimension_names=("c", "z", "y", "x") if colour else ("z", "y", "x"),
    )
    assert (tmp_path / "ours" / "zarr.json").read_text() == (tmp_path / "theirs" / "zarr.json").read_text()


def test_same_chunks_as_zarr_python(tmp_path):
    voxels = np.random.default_rng(1).integers(-900, 900, (40, 70, 33)).astype(np.int16)
    write_array(tmp_path / "0", voxels)
    file = tmp_path / "0" / "c" / "0" / "0" / "0"
    ours = file.read_bytes()
    zarr.open_array(tmp_path / "0", mode="r+")[...] = voxels
    theirs = file.read_bytes()
    assert len(ours) == len(theirs)

    def chunks(shard):  # by place, wherever in the file they are
        index = np.frombuffer(shard[-(2 * 3 * 2 * 16 + 4) : -4], "<u8").reshape(-1, 2).astype(int)
        return [shard[start : start + size] for start, size in index]

    assert chunks(ours) == chunks(theirs)


@pytest.mark.parametrize("mode", ["reflect", "nearest"])
def test_block_means_are_those_of_scipy(mode):
    values = np.random.default_rng(2).normal(size=(21, 34, 40)).astype(np.float32)
    size, steps = (3, 1, 4), (2, 1, 3)
    whole = ndimage.uniform_filter(values, size=size, mode=mode)
    assert np.array_equal(block_means(values, size, steps, mode), whole[::2, :, ::3])
