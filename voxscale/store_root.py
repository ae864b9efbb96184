"""The store's own attributes: schema, names of classes, input contract."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from voxscale.config import to_dict
from voxscale.contract import InputContract
from voxscale.errors import DataError
from voxscale.files import json_crc
from voxscale.folder import open_folder

SCHEMA = 3


def create_store(path: Path, classes: Mapping[int, str], image_classes: Mapping[int, str] | None = None) -> None:
    """Make an empty store, or add classes to the one that is there.

    Args:
        path: The store's folder, or its URL.
        classes: Names of the label values, background left out. A value
            named by its own number may be renamed later.
        image_classes: Names of the classes of whole images.

    Raises:
        DataError: With reason `class_conflict` if a value has another name in the store.
    """
    merged = with_classes(path, classes, image_classes)
    if open_folder(path).size("zarr.json") is None or merged != read_root(path):
        write_root(path, merged)


def with_classes(
    path: Path, classes: Mapping[int, str], image_classes: Mapping[int, str] | None = None
) -> dict[str, Any]:
    """The attributes that `create_store` gives a store, without writing them; arguments and errors as there."""
    fresh: dict[str, Any] = {"schema": SCHEMA, "kind": "store", "classes": {}}
    root = read_root(path) if open_folder(path).size("zarr.json") is not None else fresh
    return root | {
        "classes": _merged(root["classes"], classes, "classes"),
        "image_classes": _merged(root.get("image_classes", {}), image_classes or {}, "image_classes"),
    }


def _merged(before: Mapping[str, str], new: Mapping[int, str], what: str) -> dict[str, str]:
    """Names of values, those of the store first."""
    known = {int(value): name for value, name in before.items()}
    for value, name in new.items():
        if known.get(value, str(value)) not in (str(value), name):
            raise DataError(
                f"store.{what}.{value} must be {known[value]!r}, not {name!r}; give them another store",
                "class_conflict",
            )
    return _named(known | dict(new))


def _named(classes: Mapping[int, str]) -> dict[str, str]:
    return {str(value): name for value, name in sorted(classes.items())}


def read_root(path: Path) -> dict[str, Any]:
    """The store's own attributes.

    Raises:
        DataError: With reason `not_a_store`, `bad_schema` or `corrupt`.
    """
    try:
        told = json.loads(open_folder(path).read("zarr.json"))
        root = told["attributes"]["voxscale"]
        kind, schema = root["kind"], root["schema"]
        whole = kind == "store" and all(int(value) and str(name) for value, name in root["classes"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        whole, schema, root, told = False, None, dict[str, Any](), dict[str, Any]()
    if not whole:
        raise DataError(f"{path.name} must be a store made by data_prep ingest", "not_a_store")
    if schema != SCHEMA:
        raise DataError(f"{path.name} must be a store of schema {SCHEMA}, not {schema}; ingest it again", "bad_schema")
    # Earlier versions wrote neither a mark of the key nor a checksum.
    if told != _group(root) and ("crc32c" in told["attributes"] or "key" in root):
        raise DataError(
            f"{path.name}/zarr.json must be as it was written; remove it, then run ingest on all of its sources, and "
            "plan, again",
            "corrupt",
        )
    return root


def write_root(path: Path, attributes: Mapping[str, Any]) -> None:
    """Replace the store's own attributes in one step."""
    open_folder(path).write("zarr.json", (json.dumps(_group(attributes), indent=1) + "\n").encode())


def _group(attributes: Mapping[str, Any]) -> dict[str, Any]:
    told = {"voxscale": attributes, "crc32c": json_crc(attributes)}
    return {"zarr_format": 3, "node_type": "group", "attributes": told}


def stamp_contract(path: Path, contract: InputContract) -> None:
    """Write into the store how its scans shall become network input."""
    write_root(path, {**read_root(path), "contract": to_dict(contract)})
