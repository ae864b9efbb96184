"""Small self-made DICOM series for tests."""

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
TURN = (0.8, 0.6, 0.0, -0.6, 0.8, 0.0)


def make_series(folder, change=lambda index, item: None, count=6, turn=TURN, kind=CT, step=2.5, seed=0):
    """Write an oblique series in shuffled order; returns its paths and its pixels, (slices, rows, columns)."""
    pixels = np.random.default_rng(seed).integers(0, 4000, (count, 10, 12)).astype(np.uint16)
    series, study = generate_uid(entropy_srcs=["series"]), generate_uid(entropy_srcs=["study"])
    normal = np.cross(turn[:3], turn[3:])
    folder.mkdir(exist_ok=True)
    for index in range(count):
        item = Dataset()
        item.file_meta = FileMetaDataset()
        item.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        item.file_meta.MediaStorageSOPClassUID = item.SOPClassUID = kind
        item.file_meta.MediaStorageSOPInstanceUID = item.SOPInstanceUID = generate_uid()
        item.SeriesInstanceUID, item.StudyInstanceUID = series, study
        item.PatientName, item.PatientID, item.Modality = "DOE^CANARY", "CANARY-7", "CT" if kind == CT else "MR"
        item.ImagePositionPatient = [float(f"{v:.6f}") for v in np.array([-30, -40, 50]) + index * step * normal]
        item.ImageOrientationPatient = list(turn)
        item.PixelSpacing = [0.5, 0.75]  # rows are 0.5 mm apart, columns 0.75 mm
        item.SliceThickness = 9.0  # differs from the true spacing on purpose
        item.Rows, item.Columns, item.SamplesPerPixel = 10, 12, 1
        item.BitsAllocated, item.BitsStored, item.HighBit, item.PixelRepresentation = 16, 12, 11, 0
        item.PhotometricInterpretation = "MONOCHROME2"
        item.RescaleSlope, item.RescaleIntercept = 1, -1024
        item.PixelData = pixels[index].tobytes()
        change(index, item)
        item.save_as(folder / f"{(index * 5) % 7:02d}.dcm", enforce_file_format=True)
    return sorted(folder.glob("*.dcm")), pixels


def set_tags(only=None, **tags):
    """A change that sets tags, or deletes those given as None, in one slice or in all."""

    def change(index, item):
        if only is None or index == only:
            for tag, value in tags.items():
                if value is None:
                    delattr(item, tag)
                else:
                    setattr(item, tag, value)

    return change
