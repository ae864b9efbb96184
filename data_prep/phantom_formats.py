"""Encodes a phantom as the bytes of a NIfTI file or of a DICOM series; equal voxels give equal bytes."""

import gzip
import io
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from voxscale.seed import derive
from voxscale.volume import Affine, ras_to_sar


def nifti_bytes(voxels: NDArray[Any], affine: Affine, axes: str = "RAS") -> bytes:
    """An uncompressed NIfTI-1 file.

    Args:
        voxels: (z, y, x) in our convention.
        affine: As in `voxscale.volume.Volume`.
        axes: Directions in which the file's first, second and third index rise.
    """
    ras = ras_to_sar(affine)  # swapping the ends of both sides undoes itself
    image = nib.nifti1.Nifti1Image(np.transpose(voxels), ras)
    wanted = nib.orientations.axcodes2ornt(axes)
    moved = image.as_reoriented(nib.orientations.ornt_transform(nib.orientations.io_orientation(ras), wanted))
    moved.header.set_xyzt_units("mm")
    moved.set_sform(moved.affine, 1)
    moved.set_qform(moved.affine, 1)
    return moved.to_bytes()


def pack(data: bytes) -> bytes:
    """Compress in the same way at any time: quick, and without a time stamp."""
    return gzip.compress(data, compresslevel=1, mtime=0)


def dicom_files(hu: NDArray[np.int16], affine: Affine, seed: int) -> list[bytes]:
    """Single-frame CT Image Storage files, one per slice from the lowest up (DICOM PS3.3, A.3).

    Args:
        hu: (z, y, x) in HU on an unrotated grid.
        affine: As in `voxscale.volume.Volume`.
        seed: Gives the UIDs, under the root 2.25.
    """
    spacing = np.diag(affine)[:3]
    # Rows of a DICOM slice run to the patient's back and columns to the left, against ours.
    stored = (np.clip(hu, -1024, 3071) + 1024).astype("<u2")[:, ::-1, ::-1]
    corner = affine[:3, 3] + spacing * (0, hu.shape[1] - 1, hu.shape[2] - 1)
    files: list[bytes] = []
    for number, plane in enumerate(stored):
        slice_ = dicom_tags(seed, number)
        slice_.Rows, slice_.Columns = plane.shape
        slice_.PixelSpacing = [round(float(s), 6) for s in spacing[1:]]
        slice_.SliceThickness = round(float(spacing[0]), 6)
        place = (-corner[2], -corner[1], corner[0] + number * spacing[0])
        slice_.ImagePositionPatient = [round(float(p), 6) for p in place]
        slice_.PixelData = plane.tobytes()
        buffer = io.BytesIO()
        slice_.save_as(buffer, enforce_file_format=True)
        files.append(buffer.getvalue())
    return files


def dicom_tags(seed: int, number: int) -> pydicom.Dataset:
    """The tags of a slice that do not depend on its grid; it names nobody and no date."""
    tags = pydicom.Dataset()
    tags.file_meta = FileMetaDataset()
    tags.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    tags.SOPClassUID = CTImageStorage
    tags.SOPInstanceUID = f"2.25.{derive(seed, 'uid', 'slice', number)}"
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        setattr(tags, name, f"2.25.{derive(seed, 'uid', name)}")
    tags.PatientID, tags.PatientName = "PHANTOM-01", ""
    for name in ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"):
        setattr(tags, name, "")
    tags.ReferringPhysicianName = tags.Manufacturer = tags.PositionReferenceIndicator = ""
    tags.Modality, tags.SeriesDescription = "CT", "Synthetic phantom"
    tags.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    tags.SeriesNumber, tags.AcquisitionNumber, tags.InstanceNumber = 1, 1, number + 1
    tags.PatientPosition, tags.ImageOrientationPatient = "HFS", [1, 0, 0, 0, 1, 0]
    tags.KVP = "120"
    tags.SamplesPerPixel, tags.PhotometricInterpretation, tags.PixelRepresentation = 1, "MONOCHROME2", 0
    tags.BitsAllocated, tags.BitsStored, tags.HighBit = 16, 12, 11
    tags.RescaleSlope, tags.RescaleIntercept, tags.RescaleType = 1, -1024, "HU"
    return tags
