"""Small sources of many kinds, and comparing the stores made of them byte by byte."""

import shutil

import nibabel
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from data_prep.config import IngestConfig

SMALL = IngestConfig(workers=2, gigabytes=4.0, seconds=60)


def nifti(path, seed, shape=(12, 14, 16)):
    values = np.random.default_rng(seed).integers(-1000, -900, shape).astype(np.int16)
    values[3:9, 2:12, 4:10] += 1000
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(values, np.diag([2.0, 2.0, 3.0, 1.0])).to_filename(path)


def dicom_series(folder, patient, seed=0, count=10):
    """An MR series, one file a slice."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 2000, (count, 12, 12)).astype(np.uint16)
    for index in range(count):
        item = Dataset()
        item.file_meta = FileMetaDataset()
        item.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        item.SOPClassUID, item.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", f"1.2.{seed}.{index}"
        item.SeriesInstanceUID, item.StudyInstanceUID = f"1.3.{seed}", f"1.4.{seed}"
        item.PatientName, item.PatientID, item.PatientBirthDate = patient, patient, "19700102"
        item.SeriesDescription = patient
        item.ImagePositionPatient, item.ImageOrientationPatient = [0, 0, 2 * index], [1, 0, 0, 0, 1, 0]
        item.PixelSpacing, item.Rows, item.Columns, item.SamplesPerPixel = [2, 2], 12, 12, 1
        item.BitsAllocated, item.BitsStored, item.HighBit, item.PixelRepresentation = 16, 16, 15, 0
        item.PhotometricInterpretation = "MONOCHROME2"
        item.PixelData = pixels[index].tobytes()
        item.save_as(folder / f"{patient}{index}.dcm", enforce_file_format=True)


def sources(root, count=5):
    """Good scans, two equal ones, a broken, a thin and a constant one, and an input of several volumes."""
    for number in range(count):
        nifti(root / f"good{number}.nii.gz", number)
    for number in range(4):
        shutil.copy(root / "good1.nii.gz", root / f"same{number}.nii.gz")
    (root / "broken.nii").write_text("a text")
    nifti(root / "thin.nii", 20, (12, 14, 6))
    values = np.stack([np.random.default_rng(n).integers(0, 1000, (12, 14, 16)).astype(np.int16) for n in range(6)], -1)
    nibabel.Nifti1Image(values, np.diag([2.0, 2.0, 3.0, 1.0])).to_filename(root / "several.nii.gz")
    return root


def bytes_of(store):
    """Every file of a store but those of workers."""
    files = [path for path in sorted(store.rglob("*")) if path.relative_to(store).parts[0] != "parts"]
    return {path.relative_to(store).as_posix(): path.read_bytes() if path.is_file() else None for path in files}


def with_key_of(store, other):
    """Names of patients are hashed with the store's key: equal stores need equal keys."""
    private = other.with_name(f"{other.name}.private")
    private.mkdir()
    shutil.copy(store.with_name(f"{store.name}.private") / "key", private / "key")
    return other
