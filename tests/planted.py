"""Identifiers in every text field of a DICOM file and a NIfTI file, for tests that search for them."""

from nibabel.nifti1 import Nifti1Extension
from pydicom.dataset import Dataset

WORDS = (b"CANARY", b"19610203", b"DOE^")

PEOPLE = ("PatientName", "PatientID", "OtherPatientIDs", "InstitutionName", "ReferringPhysicianName")
TEXTS = ("StudyDescription", "SeriesDescription", "ProtocolName", "StationName", "BodyPartExamined", "Manufacturer")
TEXTS += ("ManufacturerModelName", "ImageComments", "ContrastBolusAgent", "SequenceName", "PatientComments")
DATES = ("PatientBirthDate", "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate")


def plant_dicom(item):
    """Fill names, texts, dates, a private block, a sequence and an overlay of one data set."""
    for tag in PEOPLE:
        setattr(item, tag, "DOE^CANARY")
    for tag in TEXTS:
        setattr(item, tag, "CANARY")
    for tag in DATES:
        setattr(item, tag, "19610203")
    item.ImageType = ["ORIGINAL", "PRIMARY", "CANARY"]
    item.AccessionNumber = "CANARY-77"
    item.add_new(0x00090010, "LO", "CANARY private")
    item.add_new(0x00091001, "UN", b"CANARY private bytes")
    inner = Dataset()
    inner.CodeMeaning, inner.CodeValue = "CANARY", "CANARY"
    item.ProcedureCodeSequence = [inner]
    item.add_new(0x60000022, "LO", "CANARY")


def plant_nifti(image):
    """Fill the text fields and an extension of one image."""
    image.header["descrip"], image.header["db_name"] = b"DOE^CANARY 19610203", b"CANARY"
    image.header["aux_file"], image.header["intent_name"] = b"CANARY.hdr", b"CANARY"
    image.header.extensions.append(Nifti1Extension("comment", b"CANARY in an extension"))
