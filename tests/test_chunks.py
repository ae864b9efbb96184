import itertools
import shutil

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from voxscale import arrays, kernel
from voxscale.arrays import layout_of, write_array
from voxscale.blobs import Held, Mapped, Ranged
from voxscale.chunks import encode_shard, open_shard, read_box, read_boxes, to_float
from voxscale.errors import DataError

SHAPE = (70, 33, 95)
KINDS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"]


@pytest.fixture(params=["kernel", "python"])
def engine(request, monkeypatch):
    if request.param == "python":
        monkeypatch.setenv(kernel.OFF, "1")
    kernel.library.cache_clear()
    if request.param == "kernel" and kernel.library() is None:
        pytest.skip("no compiler")
    yield request.param
    kernel.library.cache_clear()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """An array of four shards by zarr-python, and what it holds."""
    folder = tmp_path_factory.mktemp("array")
    voxels = np.random.default_rng(0).integers(-900, 900, SHAPE).astype(np.int16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "SHARD", 64)
        write_array(folder / "a", voxels)
        layout = layout_of(SHAPE, "int16")
    assert layout.per_shard == (2, 2, 2)
    return folder / "a", layout, voxels


def opener(folder, layout, blob=Mapped):
    return lambda place: open_shard(blob(folder / "c" / "/".join(map(str, place))), layout)


spans = st.tuples(
    *(st.tuples(st.integers(0, n - 1), st.integers(1, n)).filter(lambda ab: ab[0] < ab[1]) for n in SHAPE)
)


@pytest.mark.parametrize("blob", [Mapped, Ranged])
@pytest.mark.parametrize("as_float", [False, True])
@settings(max_examples=25, deadline=None)
@given(box=spans)
def test_any_box_is_what_zarr_python_reads(written, blob, as_float, box):
    folder, layout, voxels = written
    wanted = zarr.open_array(folder, mode="r")[tuple(slice(a, b) for a, b in box)]
    found = read_box(layout, opener(folder, layout, blob), box, as_float)
    assert found.dtype == (np.float32 if as_float else np.int16)
    assert np.array_equal(found, wanted)
    assert np.array_equal(wanted, voxels[tuple(slice(a, b) for a, b in box)])


@pytest.mark.parametrize("blob", [Mapped, Ranged])
@pytest.mark.parametrize("as_float", [False, True])
@settings(max_examples=20, deadline=None)
@given(boxes=st.lists(spans, min_size=1, max_size=4))
def test_boxes_read_together_are_what_was_written(written, blob, as_float, boxes):
    folder, layout, voxels = written
    found = read_boxes(layout, opener(folder, layout, blob), boxes, as_float)
    for box, each in zip(boxes, found, strict=True):
        wanted = voxels[tuple(slice(a, b) for a, b in box)]
        assert np.array_equal(each, wanted)
        assert each.dtype == (np.float32 if as_float else np.int16)
        each[...] = 0  # what is another one's is not changed, as the next ones show


def test_only_chunks_that_boxes_touch_are_decoded(written, tmp_path, engine):
    """Damage elsewhere is not met, between the boxes either; damage to any chunk that a box touches is."""
    folder, layout, voxels = written
    shutil.copytree(folder, tmp_path / "a")
    file = tmp_path / "a" / "c" / "0" / "0" / "0"
    data = bytearray(file.read_bytes())
    data[30] ^= 1  # in the first chunk
    file.write_bytes(data)
    far, near = [(32, 60), (0, 10), (5, 60)], [(0, 60), (0, 10), (40, 60)]
    found = read_boxes(layout, opener(tmp_path / "a", layout), [far, near])
    assert np.array_equal(found[0], voxels[32:60, :10, 5:60])
    assert np.array_equal(found[1], voxels[:60, :10, 40:60])
    for boxes in ([[(0, 60), (0, 10), (0, 60)]], [far, [(31, 40), (0, 10), (31, 40)]]):
        with pytest.raises(DataError):
            read_boxes(layout, opener(tmp_path / "a", layout), boxes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("blob", [Mapped, Ranged])
def test_every_number_type(tmp_path, engine, kind, blob):
    voxels = np.random.default_rng(1).integers(0, 100, (20, 40, 50)).astype(kind)
    write_array(tmp_path / "a", voxels)
    layout = layout_of(voxels.shape, kind)
    box = [(3, 20), (0, 37), (11, 50)]
    for as_float in (False, True):
        found = read_box(layout, opener(tmp_path / "a", layout, blob), box, as_float)
        assert np.array_equal(found, voxels[3:20, 0:37, 11:50])


@pytest.mark.parametrize("blob", [Mapped, Ranged])
def test_every_flipped_cut_or_missing_byte_is_found(tmp_path, engine, blob):
    voxels = np.random.default_rng(2).integers(0, 9, (9, 8, 7)).astype(np.uint8)
    write_array(tmp_path / "a", voxels)
    layout = layout_of(voxels.shape, "uint8")
    file = tmp_path / "a" / "c" / "0" / "0" / "0"
    whole, box = file.read_bytes(), [(0, 9), (0, 8), (0, 7)]
    for place in range(len(whole)):
        broken = bytearray(whole)
        broken[place] ^= 1 << (place % 8)
        file.write_bytes(broken)
        with pytest.raises(DataError):
            read_box(layout, opener(tmp_path / "a", layout, blob), box)
    for length in (0, 3, 19, 20, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(DataError):
            read_box(layout, opener(tmp_path / "a", layout, blob), box)


def test_a_chunk_that_was_never_written_is_an_error(tmp_path, engine):
    shape = (64, 40, 40)
    array = zarr.create_array(
        store=tmp_path / "a", shape=shape, dtype="int16", chunks=(32, 32, 32), shards=(64, 64, 64), compressors=None
    )
    array[:32] = 1  # the other chunks stay away
    layout = layout_of(shape, "int16")
    with pytest.raises(DataError, match="all of its chunks"):
        read_box(layout, opener(tmp_path / "a", layout), [(31, 64), (0, 40), (0, 40)])


@pytest.mark.parametrize("what", ["length", "zeros"])
def test_a_frame_that_says_something_else_is_found(engine, what):
    """A right checksum around a wrong frame: another size, or none at all."""
    import google_crc32c
    import numcodecs.blosc

    layout = layout_of((8, 8, 8), "int16")
    frame = b"\0" * 64 if what == "zeros" else numcodecs.blosc.compress(b"\1\0" * 100, b"lz4hc", 5, 1)
    chunk = frame + google_crc32c.value(frame).to_bytes(4, "little")
    shard = open_shard(Held(encode_shard(layout, [chunk])), layout)
    with pytest.raises(DataError):
        read_box(layout, lambda _: shard, [(0, 8), (0, 8), (0, 8)])


def test_ranges_of_neighbours_are_read_together(written):
    folder, layout, voxels = written
    calls = []

    class Counting(Ranged):
        def ranges(self, wanted):
            calls.append(list(wanted))
            return super().ranges(wanted)

    box = [(0, 32), (0, 32), (0, 64)]
    assert np.array_equal(read_box(layout, opener(folder, layout, Counting), box), voxels[:32, :32, :64])
    assert len(calls) == 2  # the index, then both chunks
    assert len(calls[1]) == 1


def test_a_kernel_that_cannot_be_built_is_no_kernel(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert kernel.build() is None
    monkeypatch.setenv("CXX", shutil.which("false") or "false")
    assert kernel.build() is None
    assert not [*tmp_path.rglob("*.so"), *tmp_path.rglob("*.tmp")]


def test_layouts_cover_their_arrays():
    for shape in itertools.product((1, 7, 31, 32, 33, 511, 513), repeat=3):
        layout = layout_of(shape, "int16")
        assert all(s % c == 0 for s, c in zip(layout.shard, layout.chunk, strict=True))
        assert all(c <= n for c, n in zip(layout.chunk, shape, strict=True))


@pytest.fixture(params=["avx512", "gfni", "avx2", "plain", "python"])
def variant(request, monkeypatch):
    """Each way to undo bit planes that this machine has, and Python."""
    kernel.library.cache_clear()
    if request.param == "python":
        monkeypatch.setenv(kernel.OFF, "1")
        yield
    else:
        native, wanted = kernel.library(), ["plain", "avx2", "gfni", "avx512"].index(request.param)
        if native is None:
            pytest.skip("no compiler")
        best = native.limit(wanted)
        used = native.limit(wanted)
        if used == wanted:
            yield
        native.limit(best)
        if used != wanted:
            pytest.skip("not on this machine")
    kernel.library.cache_clear()


@pytest.mark.parametrize("shuffle", ["shuffle", "bitshuffle", "noshuffle"])
@pytest.mark.parametrize("chunk", [(8, 16, 32), (5, 7, 9), (6, 5, 20), (4, 4, 64)])
@pytest.mark.parametrize("kind", ["int16", "uint16", "float32"])
def test_frames_of_every_kind(tmp_path, variant, shuffle, chunk, kind):
    """Filters, chunks whose slices begin within a byte of a bit plane, and noise that does not compress."""
    from zarr.codecs import BloscCodec, Crc32cCodec

    from voxscale.arrays import one_shard

    shape = tuple(3 * n for n in chunk)
    numbers = np.random.default_rng(4).integers(-32768, 32768, shape)
    numbers[: shape[0] // 2] //= 256
    voxels = numbers.astype(kind)
    array = zarr.create_array(
        store=tmp_path / "a", shape=shape, dtype=kind, chunks=chunk, shards=shape,
        compressors=[BloscCodec(cname="lz4hc", clevel=1, shuffle=shuffle), Crc32cCodec()],
    )  # fmt: skip
    array[...] = voxels
    layout = one_shard(shape, chunk, kind)
    generator = np.random.default_rng(5)
    for _ in range(12):
        low = [int(generator.integers(n)) for n in shape]
        box = [(a, int(generator.integers(a + 1, n + 1))) for a, n in zip(low, shape, strict=True)]
        for as_float in (False, True):
            found = read_box(layout, opener(tmp_path / "a", layout), box, as_float)
            assert np.array_equal(found, voxels[tuple(slice(a, b) for a, b in box)].astype(found.dtype))


@pytest.mark.parametrize("high", [96, 93])
def test_whole_lines_and_parts_of_them(tmp_path, variant, high):
    """Arrays large enough for memory that is used again, whose rows fill lines of the cache, or do not."""
    voxels = np.random.default_rng(6).integers(-32768, 32768, (96, 96, high)).astype(np.int16)
    write_array(tmp_path / "a", voxels)
    layout = layout_of(voxels.shape, "int16")
    for box in ([(0, 96), (0, 96), (0, high)], [(1, 96), (0, 95), (7, high)], [(0, 96), (2, 96), (32, high - 1)]):
        wanted = voxels[tuple(slice(a, b) for a, b in box)]
        for as_float in (False, True):
            assert np.array_equal(read_box(layout, opener(tmp_path / "a", layout), box, as_float), wanted)
        assert np.array_equal(to_float(voxels)[tuple(slice(a, b) for a, b in box)], wanted)
        assert to_float(wanted).dtype == np.float32
        assert np.array_equal(to_float(wanted), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_floats_of_views(variant, kind):
    numbers = np.random.default_rng(7).integers(0, 100, (9, 11, 40)).astype(kind)
    for view in (numbers[1:, 2:5, 3:], numbers[::2, ::-1, 5:9], numbers[:, :, ::3], numbers.T, numbers.astype(">i2")):
        assert to_float(view).flags.c_contiguous
        assert np.array_equal(to_float(view), view.astype(np.float32))
