"""nnU-Net's own preprocessing of one file, target spacing set to the file's: read, crop, normalise, save as blosc2."""

import os
import tempfile
from pathlib import Path
from typing import Any

for _name in ("raw", "preprocessed", "results"):  # it asks for these where it is imported, and warns without
    os.environ.setdefault(f"nnUNet_{_name}", tempfile.gettempdir())

import SimpleITK  # noqa: E402
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor  # noqa: E402
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager  # noqa: E402

_RESAMPLE = {"order": 3, "order_z": 0, "force_separate_z": None}
_KNOWN = {"mean": 40.0, "std": 200.0, "percentile_00_5": -900.0, "percentile_99_5": 900.0}
"""Of the foreground of a task, which CT normalisation clips to; the numbers do not change how long it takes."""


def native_spacing(path: Path) -> list[float]:
    """Spacing along z, y, x as its reader tells it."""
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return list(reader.GetSpacing())[::-1]


def _plans(spacing: list[float], ct: bool) -> dict[str, Any]:
    """Plans as its planner writes them, of one 3D configuration at a given spacing."""
    configuration = {
        "spacing": spacing,
        "patch_size": [128, 128, 128],
        "architecture": {"network_class_name": "", "arch_kwargs": {}, "_kw_requires_import": []},
        "normalization_schemes": ["CTNormalization" if ct else "ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, **_RESAMPLE},
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {"is_seg": True, **_RESAMPLE, "order": 1},
    }
    return {
        "dataset_name": "Dataset001_Bench",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {"0": _KNOWN},
        "configurations": {"3d_fullres": configuration},
    }


class Preprocess:
    """Its preprocessor for a list of files; managers of plans are made beforehand, as its workers get them."""

    def __init__(self, files: list[Path], ct: list[bool]) -> None:
        self._run = DefaultPreprocessor(verbose=False)
        self._jobs: list[tuple[Path, Any, Any, dict[str, Any]]] = []
        for file, is_ct in zip(files, ct, strict=True):
            plans = PlansManager(_plans(native_spacing(file), is_ct))
            task = {"channel_names": {"0": "CT" if is_ct else "MR"}, "labels": {"background": 0}}
            task["file_ending"] = ".nii.gz"
            self._jobs.append((file, plans, plans.get_configuration("3d_fullres"), task))

    def __call__(self, out: Path) -> None:
        """Preprocess every file into a folder, without labels."""
        for number, (file, plans, configuration, task) in enumerate(self._jobs):
            self._run.run_case_save(str(out / str(number)), [str(file)], None, plans, configuration, task)
