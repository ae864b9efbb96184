"""Labelled samples of several stores: one order, each set with its own classes, nothing dropped in silence."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tests_stores import make_store

from voxscale.contract import InputContract
from voxscale.errors import ConfigError, DataError
from voxscale.ledger import LEDGER
from voxscale.store_root import read_root, write_root
from voxscale.stream import CaseStreamConfig
from voxscale.stream.labelled import LabelledStream, read_sets

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"
CONTRACT = InputContract(spacing=(2.0, 1.5, 1.5))
PATCH = (8, 8, 8)


def rename(store: Path, classes: dict[str, str]) -> None:
    write_root(store, read_root(store) | {"classes": classes})


def change(store: Path, number: int, **entry: object) -> None:
    rows = [json.loads(line) for line in (store / LEDGER).read_text().splitlines()]
    rows[number]["entry"] |= entry
    (store / LEDGER).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Ball and box; a set of two more scans that calls its first class kidney, and a scan without a label."""
    folder = tmp_path_factory.mktemp("sets")
    make_store(folder / "a", 4, labelled=True)
    make_store(folder / "b", 3, labelled=True)
    rename(folder / "b", {"1": "kidney", "2": "box"})
    change(folder / "b", 2, label=None)
    return folder / "a", folder / "b"


def make(stores: tuple[Path, ...], declared: tuple[str, ...] = (), weights: tuple[float, ...] = ()) -> LabelledStream:
    return LabelledStream(read_sets(stores, declared, "x"), PATCH, CONTRACT, CaseStreamConfig(), 7, weights, "x")


def test_classes_of_one_name_are_one_class_and_labels_are_numbered_so(stores: tuple[Path, Path]) -> None:
    stream = make(stores)
    assert stream.sets.classes == ("ball", "box", "kidney")
    assert stream.sets.annotated == ((1, 2), (2, 3))
    assert stream.sets.values == ({1: 1, 2: 2}, {1: 3, 2: 2})
    seen: dict[int, set[int]] = {0: set(), 1: set()}
    for index in range(24):
        (patch,), bad = stream.sample(index)
        seen[stream.set_of(index)] |= set(np.unique(patch.label).tolist())
        assert (patch.index, bad) == (index, [])
    assert seen == {0: {0, 1, 2}, 1: {0, 2, 3}}
    assert stream.dropped == [(1, f"{2:016x}", "it has no label")]
    assert stream.cases == [4, 2]


def test_a_sample_depends_on_seed_and_index_alone_and_all_cases_take_turns(stores: tuple[Path, Path]) -> None:
    stream = make(stores, weights=(1.0, 3.0))
    assert len(stream) == 4 + 6
    samples = [stream.sample(index)[0][0] for index in range(20)]
    shown = Counter((stream.set_of(index), patch.volume) for index, patch in enumerate(samples))
    assert sorted(shown.values()) == [2, 2, 2, 2, 6, 6]
    again = make(stores, weights=(1.0, 3.0))
    for index in (13, 2, 19):  # in any order
        patch = again.sample(index)[0][0]
        assert (patch.seed, patch.volume) == (samples[index].seed, samples[index].volume)
        assert np.array_equal(patch.voxels, samples[index].voxels)
        assert np.array_equal(patch.matrix, samples[index].matrix)
    assert len({patch.seed for patch in samples}) == 20
    assert again.fingerprint == stream.fingerprint != make(stores[:1]).fingerprint


def test_scans_that_other_settings_made_alike_are_the_same_to_a_run(tmp_path: Path) -> None:
    make_store(tmp_path / "a", 2, labelled=True)
    before = make((tmp_path / "a",)).fingerprint
    change(tmp_path / "a", 1, ingest="0123456789ab")
    assert make((tmp_path / "a",)).fingerprint == before
    change(tmp_path / "a", 1, slope=2.0)
    assert make((tmp_path / "a",)).fingerprint != before


def test_what_does_not_fit_is_refused_by_name(stores: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"x.sets must be at least one store"):
        make(())
    with pytest.raises(ConfigError, match=r"x.classes must be one text for each of 2 sets"):
        make(stores, ("*",))
    with pytest.raises(ConfigError, match=r"x.classes\[1\] must be classes of its set, not 'ball'; .* kidney, box"):
        make(stores, ("*", "ball"))
    with pytest.raises(ConfigError, match=r"x.classes\[1\] must be all classes that the labels .* but kidney"):
        make(stores, ("*", "box"))
    with pytest.raises(ConfigError, match=r"x.weights must be 2 positive numbers"):
        make(stores, weights=(1.0, 0.0))
    make_store(tmp_path / "c", 1, labelled=False)
    rename(tmp_path / "c", {"1": "ball"})
    with pytest.raises(DataError, match=r"x.sets\[0\] must hold labelled scans"):
        make((tmp_path / "c",))


@pytest.mark.slow
def test_two_real_sets_are_one_stream(tmp_path: Path) -> None:
    if not REAL.is_dir():
        pytest.skip("needs the real scans")
    from data_prep.config import IngestConfig
    from data_prep.ingest import ingest

    for name in ("sarcoma_mr", "vertebrae_mr"):
        ingest([REAL / "labelled" / name], tmp_path / name, IngestConfig())
    sets = read_sets((tmp_path / "sarcoma_mr", tmp_path / "vertebrae_mr"), (), "x")
    contract = InputContract(spacing=(3.0, 2.0, 2.0))
    stream = LabelledStream(sets, (16, 24, 24), contract, CaseStreamConfig(foreground=1.0), 0)
    assert len(sets.classes) == 6
    assert len(sets.annotated[0]) == 1
    assert sum(stream.cases) + len(stream.dropped) >= 14
    for index in range(len(stream)):
        (patch,), _ = stream.sample(index)
        assert set(np.unique(patch.label).tolist()) <= {0, *sets.annotated[stream.set_of(index)]}
