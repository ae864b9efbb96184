"""`Loaded`: what every reader gives back, and the settings that all readers share."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from voxscale.config import config, require
from voxscale.io.hounsfield import as_hounsfield
from voxscale.io.storage import Raw
from voxscale.volume import Modality, Volume

Irregular = Literal["reject", "resample"]
SingleSlice = Literal["reject", "accept"]


@config
class ReadConfig:
    """What readers may mend.

    Attributes:
        irregular: What happens to slices that are not evenly spaced or lie on a tilted (sheared) grid: `reject`
            with the reason, or `resample` linearly along the slice axis onto an even, unsheared grid.
        single_slice: What happens to a CT or MR image of one slice: `reject` it, or `accept` it as a 2D image.
            Radiographs, ultrasound and photographs are 2D images whatever is set here.
    """

    irregular: Irregular = "reject"
    single_slice: SingleSlice = "reject"

    def __post_init__(self) -> None:
        """Check choices; raises `ConfigError` with the dotted name."""
        choices = get_args(Irregular)
        require(self.irregular in choices, "read.irregular", "known", self.irregular, choices)
        choices = get_args(SingleSlice)
        require(self.single_slice in choices, "read.single_slice", "known", self.single_slice, choices)


@dataclass(frozen=True, slots=True)
class Technique:
    """All that crosses from a file's header into the store: numbers, and words of closed lists.

    No text is ever copied: a word that is not on its list becomes None, so a
    name typed into a technical field stays outside.

    Attributes:
        body_part: BodyPartExamined, if it is one of the defined terms, in lower case.
        manufacturer: A known maker's name, in lower case.
        image_type: Known values of ImageType, in upper case.
        contrast: Whether a contrast agent was given; None if the header does not say.
        kvp: Tube voltage in kV.
        field_strength: In tesla.
        echo_time: In ms.
        repetition_time: In ms.
        flip_angle: In degrees.
        slice_thickness: In mm.
        gantry_tilt: In degrees.
    """

    body_part: str | None = None
    manufacturer: str | None = None
    image_type: tuple[str, ...] = ()
    contrast: bool | None = None
    kvp: float | None = None
    field_strength: float | None = None
    echo_time: float | None = None
    repetition_time: float | None = None
    flip_angle: float | None = None
    slice_thickness: float | None = None
    gantry_tilt: float | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """One volume as a reader gives it.

    Attributes:
        raw: The grid of numbers.
        modality: As the file states it; None if it does not.
        part: Which volume of the input this is, from 0.
        parts: Volumes in the input (time points, echoes, phases, diffusion directions).
        spacing_known: False where the file states no voxel size (photographs) and 1 mm was taken.
        notes: Decisions made on the way, one plain sentence each, without any text from the file.
        technique: Whitelisted header values.
    """

    raw: Raw
    modality: Modality | None = None
    part: int = 0
    parts: int = 1
    spacing_known: bool = True
    notes: tuple[str, ...] = ()
    technique: Technique = field(default_factory=Technique)

    def volume(self, modality: Modality | None = None) -> Volume:
        """The scan as a `Volume`: stated modality first, then the one given, else guessed from the values.

        A CT comes as int16 HU where that is exact, see `as_hounsfield`.
        """
        return as_hounsfield(self.raw.volume(self.modality or modality))
