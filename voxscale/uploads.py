"""Uploads of large objects to S3 in pieces, and an end to those that a killed process began.

Pieces that were uploaded stay with the service, and are paid for, until their
upload is completed or aborted; no listing of objects shows them. So a process
notes each of its uploads in a private local folder while it is under way. The
next run on the same machine aborts those of processes that are gone; runs on
other machines, which cannot know that, abort what is older than a day.
"""

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from voxscale.errors import StorageError
from voxscale.files import is_left_over, temporary

PIECE, PIECES, MOST_PIECES = 8 << 20, 4, 10_000
"""Bytes of a piece of a large object, pieces in memory at a time, and most pieces that S3 takes."""
ONE_REQUEST = 5 << 30
"""Bytes that S3 takes in one request."""
ABANDONED_S = 86400.0
"""Seconds after which the upload of a process of another machine is given up; none of ours takes so long."""

Upload = dict[str, str]


def is_s3(system: Any) -> bool:
    """Whether a file system of fsspec's is S3."""
    return "s3" in ((system.protocol,) if isinstance(system.protocol, str) else system.protocol)


def piece_of(size: int) -> int:
    """Bytes of a piece of an object of a size."""
    return max(PIECE, -(-size // MOST_PIECES))


def upload(system: Any, file: Path, path: str) -> None:
    """Upload a local file; a large one to S3 in pieces: s3fs would hold ten pieces of 50 MiB, each twice.

    Args:
        system: File system of fsspec's.
        file: The file.
        path: Of the object, as the file system writes it.
    """
    size = file.stat().st_size
    if not is_s3(system) or size < 2 * PIECE:
        system.put_file(str(file), path)
        return
    bucket, key, _ = system.split_path(path)
    where = {"Bucket": bucket, "Key": key}
    began = where | {"UploadId": str(system.call_s3("create_multipart_upload", **where)["UploadId"])}
    note = _note(began)
    try:
        parts = _send(system, file, size, began)
        system.call_s3("complete_multipart_upload", **began, MultipartUpload={"Parts": parts})
    except BaseException as error:  # Ctrl-C too: what is left costs money
        with contextlib.suppress(Exception):
            _abort(system, began)
            _forget(note)
        if isinstance(error, FileNotFoundError):
            text = "upload must go on undisturbed, but another run has aborted it; start again"
            raise StorageError(text) from None
        raise
    _forget(note)
    system.invalidate_cache(path)


def _abort(system: Any, began: Upload) -> bool:
    """Abort an upload; returns whether it was there."""
    try:
        system.call_s3("abort_multipart_upload", **began)
    except FileNotFoundError:
        return False  # another run was faster
    return True


def _send(system: Any, file: Path, size: int, began: Upload) -> list[dict[str, Any]]:
    """Upload all pieces of a file, some at a time."""
    step = piece_of(size)
    with file.open("rb") as data, ThreadPoolExecutor(PIECES) as pool:

        def send(number: int) -> dict[str, Any]:
            piece = os.pread(data.fileno(), step, number * step)
            done = system.call_s3("upload_part", **began, PartNumber=number + 1, Body=piece)
            return {"PartNumber": number + 1, "ETag": done["ETag"]}

        try:
            return list(pool.map(send, range(-(-size // step))))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _note(began: Upload) -> Path | None:
    """Note an upload until it is completed or aborted."""
    folder = _notes()
    if folder is None:
        return None
    note = temporary(folder / began["UploadId"][-64:].replace("/", "-"))
    note.write_text(json.dumps(began))
    return note


def _forget(note: Path | None) -> None:
    if note is not None:
        note.unlink(missing_ok=True)


def _notes() -> Path | None:
    """The folder of notes; None if there can be none of one's own, so that nobody makes us abort what he chose."""
    base = Path(tempfile.gettempdir()) / f"voxscale-{os.getuid()}"
    folder = base / "uploads"
    try:
        for each in (base, folder):
            each.mkdir(mode=0o700, exist_ok=True)
        return folder if base.stat().st_uid == os.getuid() and not base.is_symlink() else None
    except OSError:
        return None


def abort_left_over(system: Any, root: str) -> int:
    """Abort uploads below a folder whose processes are gone.

    Args:
        system: S3 as a file system of fsspec's.
        root: Bucket and key of the folder; what lies beside it under a longer name is not touched.

    Returns:
        How many there were.
    """
    bucket, key, _ = system.split_path(root)
    dead = {note: began for note, began in _dead() if began["Bucket"] == bucket and began["Key"].startswith(f"{key}/")}
    ids, count = {began["UploadId"] for began in dead.values()}, 0
    for each, now in list(_under_way(system, bucket, f"{key}/")):
        if each["UploadId"] in ids or now - each["Initiated"].timestamp() > ABANDONED_S:
            count += _abort(system, {"Bucket": bucket, "Key": each["Key"], "UploadId": each["UploadId"]})
    for note in dead:
        note.unlink(missing_ok=True)
    return count


def _under_way(system: Any, bucket: str, prefix: str) -> Iterator[tuple[Mapping[str, Any], float]]:
    """Uploads that are neither completed nor aborted, and the service's time when it listed them."""
    markers: dict[str, str] = {}
    while True:
        found = system.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix, **markers)
        told = found.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
        now = parsedate_to_datetime(told).timestamp() if told else time.time()
        yield from ((each, now) for each in found.get("Uploads") or () if str(each["Key"]).startswith(prefix))
        if not (found.get("IsTruncated") and found.get("NextKeyMarker")):
            return
        markers = {"KeyMarker": found["NextKeyMarker"], "UploadIdMarker": found.get("NextUploadIdMarker", "")}


def _dead() -> Iterator[tuple[Path, Upload]]:
    """Notes of processes of this machine that are gone; of others nothing is known."""
    folder = _notes()
    for note in () if folder is None else folder.iterdir():
        if is_left_over(note, float("inf"), 0.0):
            try:
                began = json.loads(note.read_text())
                yield note, {name: str(began[name]) for name in ("Bucket", "Key", "UploadId")}
            except (OSError, ValueError, KeyError, TypeError):
                note.unlink(missing_ok=True)  # killed while it was written
