"""Compare what TensorStore and we read of every array of a store: `python tests/tensorstore_reads.py STORE`.

TensorStore (C++) is the second implementation of Zarr v3 that stores are read with; it is installed by `pip install
tensorstore`, and tests that need it are left out without it.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from voxscale.store import Store, open_store


def opened(folder: Path) -> Any:
    """An array as TensorStore opens it, by its metadata alone; a missing chunk is an error, as it is for us."""
    import tensorstore

    files = {"driver": "file", "path": f"{folder}/"}
    wanted = {"driver": "zarr3", "kvstore": files, "fill_missing_data_reads": False}
    return tensorstore.open(wanted, open=True, read=True).result()


def arrays_of(store: Store) -> list[str]:
    """Names of all arrays of a store, by their metadata files."""
    files = [file for key in store.entries for file in sorted((store.path / key).rglob("zarr.json"))]
    arrays = [file.parent for file in files if json.loads(file.read_text())["node_type"] == "array"]
    return [array.relative_to(store.path).as_posix() for array in arrays]


def compare(path: Path) -> tuple[int, int, list[str]]:
    """How many arrays and voxels there are, and the names of arrays that differ in shape, number type or a voxel."""
    store, voxels, differ = open_store(path), 0, list[str]()
    names = arrays_of(store)
    for name in names:
        key, *part, level = name.split("/")
        read = {"": store.read, "labels/task": store.read_label, "labels/removed": store.read_removed}["/".join(part)]
        ours, theirs = read(key, level=int(level)), opened(path / name).read().result()
        voxels += theirs.size
        if ours is None or ours.dtype != theirs.dtype or not np.array_equal(ours, theirs):
            differ.append(name)
    return len(names), voxels, differ


def main() -> None:
    """Compare the store on the command line and print the counts; exits with 1 if anything differs."""
    arrays, voxels, differ = compare(Path(sys.argv[1]))
    print(json.dumps({"arrays": arrays, "voxels": voxels, "differ": differ, "tensorstore": version("tensorstore")}))
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
