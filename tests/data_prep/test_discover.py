import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from data_prep.discover import discover
from data_prep.ids import Subjects, content_id, keyed_hash, load_key, load_subjects
from data_prep.labels import read_class_table, read_modality, read_task
from data_prep.structures import load_table
from voxscale.errors import ConfigError, DataError

CT = "1.2.840.10008.5.1.4.1.1.2"
REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data"
SEG = "1.2.840.10008.5.1.4.1.1.66.4"


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(path.name.encode())


def dicom(path, series="1.2.3", kind=CT, patient="P1", preamble=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    item = Dataset()
    item.file_meta = FileMetaDataset()
    item.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    item.SOPClassUID, item.SOPInstanceUID, item.SeriesInstanceUID = kind, "1.2", series
    item.StudyInstanceUID, item.PatientID = "1.9", patient
    if preamble:
        item.save_as(path, enforce_file_format=True)
    else:
        del item.file_meta
        pydicom.dcmwrite(path, item, implicit_vr=True, little_endian=True)


def names(found):
    return [source.place for source in found.sources]


def test_volumes_in_a_fixed_order_with_their_parts(tmp_path):
    touch(*(tmp_path / name for name in ("b.nii.gz", "a.NII", "c.hdr", "c.img", "z/d.mha", "notes.txt", "._b.nii.gz")))
    touch(tmp_path / "lonely.img", tmp_path / ".hidden" / "e.nii")
    (tmp_path / "m.mhd").write_text("NDims = 3\nDimSize = 1 1 1\nElementDataFile = m.raw\n")
    touch(tmp_path / "m.raw")
    found = discover([tmp_path])
    assert names(found) == ["a.NII", "b.nii.gz", "c.hdr", "lonely.img", "m.mhd", "z/d.mha"]
    assert [path.name for path in found.sources[2].files] == ["c.hdr", "c.img"]
    assert [path.name for path in found.sources[4].files] == ["m.mhd", "m.raw"]
    assert found.counts == {"hidden": 2, "sidecars": 1}  # notes.txt, ._b.nii.gz and what a hidden folder holds
    assert [source.stem for source in found.sources][:2] == ["a", "b"]


@pytest.mark.timeout(60)
def test_pipes_sockets_and_links_to_nothing_are_counted_and_never_waited_for(tmp_path):
    touch(tmp_path / "a.nii", tmp_path / "imagesTr" / "b.nii", tmp_path / "labelsTr" / "x" / "notes.txt")
    for name in ("pipe", "pipe.nii", "pipe.dcm", "c.mhd", "pipe.png", "imagesTr/p.nii", "labelsTr/b.nii"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "null.nii").symlink_to("/dev/zero")
    (tmp_path / "gone.nii").symlink_to(tmp_path / "nowhere.nii")
    (tmp_path / "labelsTr" / "d.nii").symlink_to(tmp_path / "nowhere.nii")
    found = discover([tmp_path])
    assert {source.place: source.problem and source.problem[0] for source in found.sources} == {
        "a.nii": None,
        "gone.nii": None,  # reading it says what is wrong
        "imagesTr/b.nii": "no_label",
        "labelsTr/d.nii": "no_image",
    }
    assert found.counts == {"special_files": 8, "sidecars": 1}


def test_a_mask_that_is_a_link_to_nothing_is_not_left_out(tmp_path):
    touch(tmp_path / "s1" / "ct.nii.gz", tmp_path / "s1" / "segmentations" / "liver.nii.gz")
    (tmp_path / "s1" / "segmentations" / "spleen.nii.gz").symlink_to(tmp_path / "nowhere")
    (source,) = discover([tmp_path]).sources
    assert [path.name for path in source.label] == ["liver.nii.gz", "spleen.nii.gz"]
    with pytest.raises(FileNotFoundError):
        content_id(source.files, source.label)


def test_dicom_is_grouped_by_series_within_a_folder(tmp_path):
    for number in range(3):
        dicom(tmp_path / "x" / f"{number}.dcm", "1.1")
        dicom(tmp_path / "x" / f"plain{number}", "1.2", patient="")
    dicom(tmp_path / "y" / "0.dcm", "1.1")
    dicom(tmp_path / "y" / "no_preamble", "1.4", preamble=False)
    dicom(tmp_path / "y" / "seg.dcm", "1.3", kind=SEG)
    (tmp_path / "y" / "broken.dcm").write_bytes(b"\xff" * 400)
    touch(tmp_path / "y" / "readme")
    found = discover([tmp_path])
    assert [(source.place, len(source.files)) for source in found.sources] == [
        ("y/broken.dcm", 1),
        ("x/0.dcm", 4),  # one series over two folders
        ("x/plain0", 3),
        ("y/no_preamble", 1),
        ("y/seg.dcm", 1),
    ]
    assert found.sources[1].person == "patient:P1"
    assert found.sources[2].person == "study:1.9"
    assert (found.sources[4].kind, found.sources[4].problem[0]) == ("label", "unreadable")  # it holds no segments
    assert found.counts == {"others": 1}  # the readme
    assert all(source.dicom for source in found.sources)


def test_task_with_labels(tmp_path):
    task = tmp_path / "task"
    touch(*(task / "images" / f"{n}.nii.gz" for n in "abc"), *(task / "labels" / f"{n}.nii.gz" for n in "acd"))
    (task / "dataset.json").write_text(
        json.dumps({"labels": {"0": "background", "1": "liver"}, "modality": {"0": "CT"}})
    )
    found = discover([tmp_path])
    kinds = [
        (source.place.split("/")[-1], source.kind, source.problem and source.problem[0]) for source in found.sources
    ]
    assert kinds == [
        ("a.nii.gz", "image", None),
        ("b.nii.gz", "image", "no_label"),
        ("c.nii.gz", "image", None),
        ("d.nii.gz", "label", "no_image"),
    ]
    assert found.sources[0].label == (task.resolve() / "labels" / "a.nii.gz",)
    assert found.sources[0].modality == "CT"
    assert found.classes == found.sources[0].classes == {1: "liver"}
    assert found.sources[0].person is None


def test_nnunet_names(tmp_path):
    touch(
        *(
            tmp_path / "imagesTr" / name
            for name in ("case_001_0000.nii.gz", "case_001_0001.nii.gz", "case_002_0000.nii.gz")
        )
    )
    touch(tmp_path / "labelsTr" / "case_001.nii.gz", tmp_path / "imagesTs" / "case_003_0000.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 1}}))
    found = discover([tmp_path])
    problems = [source.problem and source.problem[0] for source in found.sources]
    assert problems == [None, "extra_channel", "no_label", "no_label"]
    label = (tmp_path.resolve() / "labelsTr" / "case_001.nii.gz",)
    assert [source.label for source in found.sources] == [label, (), (), ()]
    assert [source.person for source in found.sources] == [f"case:case_00{n}" for n in (1, 1, 2, 3)]


def test_only_further_channels_of_a_labelled_case_are_extra(tmp_path):
    images = ("a_0001.nii", "a_0002.nii", "b_0000.nii", "b_0001.nii", "b_0002.nii", "c_0001.nii", "c_0002.nii")
    touch(*(tmp_path / "images" / name for name in images))
    touch(*(tmp_path / "labels" / name for name in ("a_0001.nii", "a_0002.nii", "b.nii")))
    assert {source.place[7:13]: source.problem and source.problem[0] for source in discover([tmp_path]).sources} == {
        "a_0001": None,
        "a_0002": None,  # these two are cases of their own, as their labels show
        "b_0000": None,
        "b_0001": "extra_channel",
        "b_0002": "extra_channel",
        "c_0001": "no_label",
        "c_0002": "no_label",
    }


def test_ignored_labels(tmp_path):
    task = tmp_path / "task"
    touch(*(task / folder / "a.nii" for folder in ("imagesTr", "labelsTr", "imagesTs", "more", "imagesTr/labels")))
    touch(task / "labelsTr" / "deep" / "b.nii", task / "imagesTr" / "b_0000.nii", task / "imagesTr" / "b_0001.nii")
    touch(tmp_path / "other" / "images" / "a.nii", tmp_path / "lonely" / "labels" / "a.nii")
    dicom(task / "labelsTr" / "0.dcm", kind=SEG)
    declared = {"labels": {"whole": ["x"]}, "modality": {"0": "MRI"}}
    (task / "dataset.json").write_text(json.dumps(declared))
    found = discover([tmp_path], labels="ignore")
    assert [(source.place, source.modality) for source in found.sources] == [
        ("lonely/labels/a.nii", None),  # no folder of images beside it
        ("other/images/a.nii", None),
        ("task/imagesTr/a.nii", "MR"),
        ("task/imagesTr/b_0000.nii", "MR"),
        ("task/imagesTr/b_0001.nii", "MR"),
        ("task/imagesTr/labels/a.nii", "MR"),
        ("task/imagesTs/a.nii", "MR"),
        ("task/more/a.nii", None),
    ]
    assert [source.person for source in found.sources][3:5] == ["case:b", "case:b"]
    assert all((source.kind, source.label, source.problem) == ("image", (), None) for source in found.sources)
    assert found.classes == {}
    assert found.others == 4  # three files in labelsTr, and dataset.json


def test_ignored_labels_with_a_damaged_dataset_json(tmp_path, caplog):
    touch(tmp_path / "images" / "a.nii", tmp_path / "labels" / "a.nii")
    (tmp_path / "dataset.json").write_text("{")
    assert names(discover([tmp_path], labels="ignore")) == ["images/a.nii"]
    assert caplog.messages == ["dataset.json must be a readable JSON file; it is not used"]


def test_nested_images_and_series_find_their_labels(tmp_path):
    touch(tmp_path / "images" / "p1" / "a.nii", tmp_path / "labels" / "p1" / "a.nii", tmp_path / "labels" / "p2.nii")
    dicom(tmp_path / "images" / "p2" / "0.dcm")
    dicom(tmp_path / "images" / "0.dcm")
    found = discover([tmp_path])
    assert [(source.place, source.problem and source.problem[0]) for source in found.sources] == [
        ("images/p1/a.nii", None),
        ("images/0.dcm", "no_label"),
        ("images/p2/0.dcm", None),
    ]


def test_folders_of_images_alone_are_not_a_task(tmp_path):
    touch(tmp_path / "images" / "a.nii")
    assert discover([tmp_path]).sources[0].problem is None


def test_roots(tmp_path):
    touch(tmp_path / "a" / "1.nii", tmp_path / "b" / "1.nii")
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    assert len(discover([tmp_path / "b", tmp_path / "a"]).sources) == 2
    with pytest.raises(ConfigError, match="source folder 2 of 2 must exist"):
        discover([tmp_path / "a", tmp_path / "nowhere"])
    with pytest.raises(ConfigError, match="none holds another"):
        discover([tmp_path, tmp_path / "a"])
    with pytest.raises(ConfigError, match="none holds another"):
        discover([tmp_path / "a", tmp_path / "a"])


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ({"0": "background", "1": "liver", "2": "tumour"}, {1: "liver", 2: "tumour"}),
        ({"background": 0, "liver": 1, "tumour": 2}, {1: "liver", 2: "tumour"}),
        ({"background": 0, "whole": [1, 2], "core": 2}, {1: "1", 2: "core"}),
        ("see the manual", {}),
    ],
)
def test_class_names(tmp_path, labels, classes):
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels, "modality": "MRI"}))
    assert read_task(tmp_path) == (classes, "MR")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "must be a readable JSON file"),
        ("[]", "must hold one JSON object"),
        ('{"labels": {"liver": "one"}}', """not 'liver' with "one"$"""),
        ('{"labels": {"liver": 300}}', r"not \[300\]$"),
        ('{"labels": {"wt": ["x"]}}', r"""not 'wt' with \["x"\]$"""),
        ('{"labels": {"wt": [[1]]}}', r"not 'wt' with \[\[1\]\]$"),
        ('{"labels": {"wt": [1, true]}}', r"not 'wt' with \[1, true\]$"),
        ('{"labels": {"wt": [1, 300]}}', r"not \[1, 300\]$"),
        ('{"labels": {"liver": true}}', "not 'liver' with true$"),
        ('{"labels": {"1": null}}', "not '1' with null$"),
        ('{"labels": {"liver": 1, "ignore": 2}}', "leave the cases out$"),
        ('{"labels": {"liver": 1.0}}', "not 'liver' with 1.0$"),
        ('{"modality": {"0": ["CT"]}}', r"""one per channel, not \["CT"\]$"""),
        ('{"modality": [{}]}', r"one per channel, not \[\{\}\]$"),
        ('{"modality": true}', "one per channel, not true$"),
    ],
)
def test_bad_dataset_json(tmp_path, text, message):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=rf"^dataset\.json .*{message}") as error:
        read_task(tmp_path)
    assert error.value.reason == "bad_dataset"
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("declared", "modality"),
    [("CT", "CT"), ({"0": "MRI", "1": "mr"}, "MR"), ({"0": "CT", "1": "PET"}, None), ({}, None), (None, None)],
)
def test_declared_modality(tmp_path, declared, modality):
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": declared}))
    assert read_task(tmp_path)[1] == read_modality(tmp_path) == modality


def test_classes_of_two_tasks_must_agree(tmp_path):
    for task, name in (("t1", "liver"), ("t2", "spleen")):
        touch(tmp_path / task / "images" / "a.nii", tmp_path / task / "labels" / "a.nii")
        (tmp_path / task / "dataset.json").write_text(json.dumps({"labels": {name: 1}}))
    with pytest.raises(DataError, match="class 1 must have one name in all tasks, not 'liver' and 'spleen'"):
        discover([tmp_path])


def test_content_ids(tmp_path):
    touch(tmp_path / "a", tmp_path / "b")
    a, b = tmp_path / "a", tmp_path / "b"
    assert content_id([a]) == "ca978112ca1bbdca"  # SHA-256 of "a", FIPS 180
    assert content_id([a, b]) == content_id([b, a])
    assert len({content_id([a]), content_id([b]), content_id([a, b]), content_id([a], [b]), content_id([b], [a])}) == 5


def test_key_is_made_once_and_private(tmp_path):
    private = tmp_path / "s.private"
    key = load_key(private)
    assert load_key(private) == key
    assert len(key) == 32
    assert (private / "key").stat().st_mode & 0o077 == 0
    assert private.stat().st_mode & 0o077 == 0
    assert keyed_hash(key, "P1") != keyed_hash(load_key(tmp_path / "t.private"), "P1")


def test_tables_of_excel_are_read_and_those_of_other_encodings_refused(tmp_path):
    table = tmp_path / "table.csv"
    table.write_bytes("\ufefffile,subject,name,class,label\na.nii,Müller,milz,spleen,3\n".encode())
    assert load_subjects(str(table)).find("a", "a.nii") == "Müller"
    assert load_table(str(table)) == {"milz": "spleen"}
    assert read_class_table(table) == ({"a.nii": 3}, {3: "3"})
    table.write_bytes("file,subject,name,class,label\na.nii,Müller,milz,spleen,3\n".encode("latin-1"))
    for read in (load_subjects, load_table):
        with pytest.raises(ConfigError, match="must be a CSV file in UTF-8 with a"):
            read(str(table))
    with pytest.raises(DataError, match="labels.csv must be UTF-8 with"):
        read_class_table(table)


def test_subjects(tmp_path):
    table = tmp_path / "subjects.csv"
    table.write_text("file,subject\nx/a.nii,P1\nb.nii,P2\n")
    found = load_subjects(str(table))
    assert [found.find("a", place) for place in ("x/a.nii", "y/b.nii", "y/a.nii")] == ["P1", "P2", None]
    pattern = load_subjects(r"^(sub-\d+)")
    assert isinstance(pattern, Subjects)
    assert pattern.find("sub-01_T1", "sub-01_T1.nii") == "sub-01"
    assert pattern.find("other", "other.nii") is None
    assert load_subjects(None) is None
    table.write_text("name,who\na,b\n")
    for bad in ("no group", "(a)(b)", "(", str(table), "missing.csv"):
        with pytest.raises(ConfigError, match=r"ingest\.subject must be"):
            load_subjects(bad)


def test_real_nifti_is_found_like_any_other(tmp_path):
    nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)).to_filename(tmp_path / "a.nii.gz")
    assert names(discover([tmp_path])) == ["a.nii.gz"]


def everything(root, found):
    """Files that are part of a source, and files that are counted."""
    taken = [path for source in found.sources for path in (*source.files, *source.label)]
    assert len(set(taken)) == len(taken)
    on_disk = sum(path.is_file() for path in root.rglob("*"))
    assert len(taken) + found.others == on_disk
    return found


def test_totalsegmentator(tmp_path):
    for case in ("s0001", "s0002"):
        touch(
            *(
                tmp_path / case / name
                for name in ("ct.nii.gz", "segmentations/liver.nii.gz", "segmentations/aorta.nii.gz")
            )
        )
    touch(tmp_path / "meta.csv", tmp_path / "s0001" / "segmentations" / "notes.txt")
    found = everything(tmp_path, discover([tmp_path]))
    assert [source.person for source in found.sources] == ["case:s0001", "case:s0002"]
    assert [each.name for each in found.sources[0].label_names] == ["aorta", "liver"]
    assert (found.sources[0].label_format, found.sources[0].modality) == ("masks", "CT")
    assert found.layouts == {"totalsegmentator": 2}
    assert found.counts == {"sidecars": 2}
    alone = everything(tmp_path, discover([tmp_path], labels="ignore"))
    assert [source.label for source in alone.sources] == [(), ()]
    assert alone.counts == {"sidecars": 2, "labels": 4}


def test_bids(tmp_path):
    (tmp_path / "dataset_description.json").write_text("{}")
    touch(
        *(
            tmp_path / "sub-01" / "ses-1" / "anat" / f"sub-01_ses-1_{name}"
            for name in ("T1w.nii.gz", "T1w.json", "ct.nii")
        )
    )
    touch(tmp_path / "sub-02" / "dwi" / "sub-02_dwi.nii.gz", tmp_path / "sub-02" / "dwi" / "sub-02_dwi.bval")
    touch(tmp_path / "derivatives" / "tool" / "sub-01" / "sub-01_desc-brain_mask.nii.gz", tmp_path / "participants.tsv")
    found = everything(tmp_path, discover([tmp_path]))
    assert [(source.person, source.modality) for source in found.sources] == [
        ("case:sub-01", "MR"),
        ("case:sub-01", "CT"),
        ("case:sub-02", "MR"),
    ]
    assert found.counts == {"sidecars": 4, "derivatives": 1}
    assert found.layouts == {"bids": 1}


def test_labels_among_bids_derivatives(tmp_path):
    (tmp_path / "dataset_description.json").write_text("{}")
    for subject in ("01", "02", "03"):
        touch(*(tmp_path / f"sub-{subject}" / "anat" / f"sub-{subject}_{name}.nii.gz" for name in ("T1w", "T2w")))
    tool = tmp_path / "derivatives" / "tool"
    touch(tool / "sub-01" / "sub-01_space-orig_desc-x_dseg.nii.gz", tool / "sub-01" / "sub-01_desc-brain_mask.nii.gz")
    touch(*(tool / "sub-02" / f"sub-02_label-{name}_mask.nii.gz" for name in ("liver", "lesion")))
    touch(
        tool / "sub-04" / "sub-04_dseg.nii.gz", tool / "sub-03" / "sub-03_space-MNI152_dseg.nii.gz", tool / "notes.json"
    )
    found = everything(tmp_path, discover([tmp_path]))
    labels = {source.stem: (source.label_format, [path.name for path in source.label]) for source in found.sources}
    assert labels == {
        "sub-01_T1w": ("file", ["sub-01_space-orig_desc-x_dseg.nii.gz"]),
        "sub-01_T2w": ("file", []),
        "sub-02_T1w": ("masks", ["sub-02_label-lesion_mask.nii.gz", "sub-02_label-liver_mask.nii.gz"]),
        "sub-02_T2w": ("file", []),
        "sub-03_T1w": ("file", []),
        "sub-03_T2w": ("file", []),
    }
    assert [each.name for each in found.sources[2].label_names] == ["lesion", "liver"]
    assert found.counts == {"sidecars": 1, "derivatives": 4}
    alone = everything(tmp_path, discover([tmp_path], labels="ignore"))
    assert not any(source.label for source in alone.sources)
    assert alone.counts == {"sidecars": 1, "derivatives": 7}


def test_images_with_classes(tmp_path):
    touch(*(tmp_path / "images" / name for name in ("a.png", "b.png", "c.png")))
    (tmp_path / "labels.csv").write_text("file,label,label_name\na.png,0,well\nb.png,1,ill\n")
    found = everything(tmp_path, discover([tmp_path]))
    assert [(source.image_class, source.problem and source.problem[0]) for source in found.sources] == [
        (0, None),
        (1, None),
        (None, "no_label"),
    ]
    assert found.image_classes == {0: "well", 1: "ill"}
    (tmp_path / "labels.csv").write_text("file,label\na.png,well\n")
    with pytest.raises(DataError, match="whole number"):
        discover([tmp_path])
    (tmp_path / "labels.csv").write_text("file,label,label_name\na.png,1,well\nb.png,1,ill\n")
    with pytest.raises(DataError, match="one name"):
        discover([tmp_path])
    (tmp_path / "labels.csv").write_bytes(b"file,label\n\xff\xfe,1")
    with pytest.raises(DataError, match="must be UTF-8"):
        discover([tmp_path])


def test_images_with_masks_of_another_ending(tmp_path):
    touch(tmp_path / "images" / "a.jpg", tmp_path / "labels" / "a.png", tmp_path / "labels" / "b.png")
    found = everything(tmp_path, discover([tmp_path]))
    assert [(source.kind, len(source.label)) for source in found.sources] == [("image", 1), ("label", 0)]


def test_pictures_beside_scans_are_previews(tmp_path):
    touch(tmp_path / "a" / "scan.nii", tmp_path / "a" / "preview.png", tmp_path / "b" / "photo.png", tmp_path / "c.zip")
    dicom(tmp_path / "d" / "0.dcm")
    touch(tmp_path / "d" / "preview.jpg")
    found = everything(tmp_path, discover([tmp_path]))
    assert sorted(source.place for source in found.sources) == ["a/scan.nii", "b/photo.png", "d/0.dcm"]
    assert found.counts == {"pictures": 2, "archives": 1}


@pytest.mark.skipif(not REAL.is_dir(), reason="real files are not here")
def test_segmentations_and_structures_find_their_images():
    found = everything(REAL / "dicom", discover([REAL / "dicom"]))
    linked = {source.place: (source.label_format, len(source.label_names)) for source in found.sources if source.label}
    assert linked == {
        "ct_rtstruct_sts002/image/000000.dcm": ("rtstruct", 1),
        "ct_with_dicomseg_dcmqi/01.dcm": ("seg", 5),
        "mr_rtstruct_sts002/image/000000.dcm": ("rtstruct", 1),
    }
    labels = [(source.place, source.problem[0]) for source in found.sources if source.kind == "label"]
    assert labels == [("ct_with_dicomseg_dcmqi/liver.dcm", "extra_label")]
    alone = everything(REAL / "dicom", discover([REAL / "dicom"], labels="ignore"))
    assert (alone.counts["rtstruct"], alone.counts["seg"]) == (2, 2)
    everything(REAL, discover([REAL], labels="ignore"))
