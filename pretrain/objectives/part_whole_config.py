"""Config of the part-whole objective, and what it says of a step."""

from typing import Literal

from voxscale.config import config, require
from voxscale.losses.moments import How
from voxscale.parts import Splits
from voxscale.stream.wide import MOST, Curriculum


@config
class PartWholeConfig:
    """What wholes and parts are, and how they are compared.

    Attributes:
        kind: Tells objectives apart in a saved config.
        parts: How many; the longest axes in mm are halved, of those whose halves are images that the model takes. 8
            needs three axes: images have 4 or 2. The chain and studies take fewer where the planned patch has fewer.
        splits: Parts along z, y, x instead.
        part_views: `crops`: each part is an image of its own, at the whole's own resolution; `grid`: parts are regions
            of the feature map of the whole, and the whole is seen at the size of a part (ACE, 2025).
        slots: `view`: a part's slot is its place in what is seen; `body`: its place before the crop was mirrored.
        levels: Sizes of the whole: the crop, half its side, a quarter, and so on.
        wider: How many of them come before the crop: with 2 the first whole has four times the crop's side, the second
            twice, as far as the scan is so large. They are read from the coarser levels of a store's pyramid, or of
            shards that were packed with `--levels`.
        budget: Share of the run for each level, from coarse to fine.
        blend: Share of the run over which one level gives way to the next.
        least_voxels: Stored voxels along a part's edge (geometric mean); a sample with fewer stays at a coarser level.
        tries: Places drawn for the whole, of which that with most body is taken.
        air: Network input up to which a voxel is air; by default -900 HU, or a twentieth of the brightest in MR.
        least_body: Share of body below which a part is air: it is not predicted, and counts as nothing for its whole.
        whole_share: Least and greatest volume of the student's central view, as a share of the whole's.
        local_views: Further, smaller concentric views of the student.
        local_shares: Least volume of the smallest and greatest of the largest of these, in equal steps between.
        hidden: Width of the heads' hidden layers in self-distillation.
        bottleneck: Width before the prototypes.
        prototypes: Outputs of self-distillation.
        frozen: Share of the run in which the prototypes stand still.
        student_temperature: Of the student.
        teacher_temperature: Of the teacher at the start, and from `temperature_warmup` on.
        temperature_warmup: Share of the run.
        centre_momentum: Of the teacher's centre.
        centring: `mean`: the teacher's logits less their running mean (DINO); `sinkhorn`: so that the samples of a step
            use all prototypes alike (SwAV).
        inputs: What of the embeddings heads see: `plain`, `centred` (less their running mean) or `standard` (divided by
            their running deviation too), see `voxscale.losses.moments`.
        targets: The same of the teacher's embeddings that composing and decomposing are compared with.
        moments_momentum: Of these running means and deviations.
        match: `cosine`: 2 - 2 cos with the target; `contrast`: cross-entropy of finding the target among those of all
            samples of the step in the same slot.
        match_temperature: Of `contrast`.
        truth: What student and heads are to tell: the sample's `own`, or as a control that of `another` sample, so that
            nothing but means can be learnt.
        localise: Weight of self-distillation.
        compose: Weight of the whole predicted from its parts.
        decompose: Weight of the parts predicted from their whole.
        spread: Weight of a term that keeps the embeddings of different samples apart (`voxscale.losses.koleo`).
        ramp: Share of the run over which the last two rise from 0.
    """

    kind: Literal["part_whole"] = "part_whole"
    parts: Literal[2, 4, 8] = 8
    splits: Splits | None = None
    part_views: Literal["crops", "grid"] = "crops"
    slots: Literal["view", "body"] = "view"
    levels: int = 3
    wider: int = 0
    budget: tuple[float, ...] = (0.2, 0.3, 0.5)
    blend: float = 0.1
    least_voxels: float = 32.0
    tries: int = 4
    air: float = 0.05
    least_body: float = 0.1
    whole_share: tuple[float, float] = (0.8, 1.0)
    local_views: int = 4
    local_shares: tuple[float, float] = (0.05, 0.8)
    hidden: int = 1024
    bottleneck: int = 256
    prototypes: int = 8192
    frozen: float = 0.01
    student_temperature: float = 0.1
    teacher_temperature: tuple[float, float] = (0.04, 0.04)
    temperature_warmup: float = 0.0
    centre_momentum: float = 0.9
    centring: Literal["mean", "sinkhorn"] = "mean"
    inputs: How = "plain"
    targets: How = "plain"
    moments_momentum: float = 0.9
    match: Literal["cosine", "contrast"] = "cosine"
    match_temperature: float = 0.1
    truth: Literal["own", "another"] = "own"
    localise: float = 1.0
    compose: float = 1.0
    decompose: float = 1.0
    spread: float = 0.0
    ramp: float = 0.05

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError` with the dotted name."""

        def check(ok: bool, name: str, condition: str) -> None:
            require(ok, f"objective.part_whole.{name}", condition, getattr(self, name))

        check(self.splits is None or min(self.splits) >= 1, "splits", "three numbers from 1")
        check(self.splits is None or max(self.splits) > 1, "splits", "more than one part")
        check(len(self.budget) == self.levels >= 1, "budget", f"one share for each of {self.levels} levels")
        check(min(self.budget) >= 0 and abs(sum(self.budget) - 1) < 1e-6, "budget", "shares that sum to 1")
        for name in (
            "blend",
            "frozen",
            "temperature_warmup",
            "ramp",
            "least_body",
            "centre_momentum",
            "moments_momentum",
        ):
            check(0 <= getattr(self, name) <= 1, name, "0 to 1")
        for name in ("whole_share", "local_shares"):
            low, high = getattr(self, name)
            check(0 < low <= high <= 1, name, "two rising shares up to 1")
        for name in ("tries", "hidden", "bottleneck"):
            check(getattr(self, name) >= 1, name, "at least 1")
        check(self.prototypes >= 2, "prototypes", "at least 2")
        check(self.local_views >= 0, "local_views", "at least 0")
        check(0 <= self.wider <= MOST, "wider", f"0 to {MOST}")
        check(self.least_voxels >= 0, "least_voxels", "at least 0")
        check(self.student_temperature > 0, "student_temperature", "above 0")
        check(self.match_temperature > 0, "match_temperature", "above 0")
        check(min(self.teacher_temperature) > 0, "teacher_temperature", "above 0")
        weights = ("localise", "compose", "decompose")
        for name in (*weights, "spread"):
            check(getattr(self, name) >= 0, name, "at least 0")
        check(any(getattr(self, name) for name in weights), "localise", "above 0 where the other weights are 0")

    def weights(self, progress: float) -> dict[str, float]:
        """Weight of each term that counts at some time, when a share of the run is done."""
        risen = 1.0 if self.ramp == 0 else min(progress / self.ramp, 1.0)
        every = {"localise": self.localise, "compose": risen * self.compose, "decompose": risen * self.decompose}
        every["spread"] = self.spread
        return {name: weight for name, weight in every.items() if getattr(self, name) > 0}


def level_shares(config: PartWholeConfig, progress: float) -> list[float]:
    """How likely each level is when a share of the run is done, see `Curriculum.shares`."""
    return Curriculum(config.budget, config.blend).shares(progress)


def level_of(config: PartWholeConfig, progress: float, draw: float) -> int:
    """The level of a sample, see `Curriculum.level`."""
    return Curriculum(config.budget, config.blend).level(progress, draw)
