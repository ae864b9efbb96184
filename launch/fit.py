"""Make presets fit a task: few labelled subjects, thin scans."""

import dataclasses
import logging
from pathlib import Path

from finetune.config import FinetuneConfig
from pretrain.config import PretrainConfig
from pretrain.objectives.fusion_config import sides
from voxscale.errors import DataError
from voxscale.models.build import adapt, build
from voxscale.parts import legal_splits
from voxscale.patches import Plan
from voxscale.store import open_store

log = logging.getLogger("voxscale")


def fit_folds(config: FinetuneConfig, task_store: Path) -> FinetuneConfig:
    """At most as many folds as there are labelled subjects.

    Raises:
        DataError: If there are fewer than two, so that nothing could be tested on a case not trained on.
    """
    entries = open_store(task_store).entries.values()
    subjects = {entry.subject for entry in entries if entry.label and not entry.planar}
    if len(subjects) < 2:
        raise DataError(
            f"TASK must hold labelled scans of at least 2 subjects, not {len(subjects)}; see the ledger of its store",
            "few_subjects",
        )
    folds = min(config.folds, len(subjects))
    if folds < config.folds:
        log.info("finetune: %d folds instead of %d, as there are %d subjects", folds, config.folds, len(subjects))
    return dataclasses.replace(config, folds=folds)


def fit_pretraining(config: PretrainConfig, plan: Plan) -> PretrainConfig:
    """All of a pretraining that depends on the patch."""
    return fit_parts(fit_blocks(config, plan), plan)


def fit_parts(config: PretrainConfig, plan: Plan) -> PretrainConfig:
    """As many parts as are images that the network takes, at most those of the config."""
    whole = config.objective.part_whole
    if "part_whole" not in config.objective.active or whole.splits is not None:
        return config
    model = adapt(config.model, in_channels=1, classes=0, heads=0, strides=plan.strides)
    takes = build(model, "meta").takes
    fewer = [n for n in (8, 4, 2) if n <= whole.parts and legal_splits(plan.patch, (1.0, 1.0, 1.0), n, takes)]
    if not fewer or fewer[0] == whole.parts:
        return config  # none: the objective says so in its own words
    log.info("pretrain: %d parts instead of %d, to fit the patch %s", fewer[0], whole.parts, plan.patch)
    objective = dataclasses.replace(config.objective, part_whole=dataclasses.replace(whole, parts=fewer[0]))
    return dataclasses.replace(config, objective=objective)


def fit_blocks(config: PretrainConfig, plan: Plan) -> PretrainConfig:
    """Blocks of at most half the patch along each axis, so that there are several."""
    half = [max(1, n // 2) for n in plan.patch]
    least, greatest = (
        tuple(min(side, limit) for side, limit in zip(sides(block), half, strict=True))
        for block in (config.objective.volume_fusion.block_min, config.objective.volume_fusion.block_max)
    )
    if (least, greatest) == (
        sides(config.objective.volume_fusion.block_min),
        sides(config.objective.volume_fusion.block_max),
    ):
        return config
    log.info("pretrain: blocks of %s to %s voxels, to fit the patch %s", least, greatest, plan.patch)
    fusion = dataclasses.replace(
        config.objective.volume_fusion,
        block_min=(least[0], least[1], least[2]),
        block_max=(greatest[0], greatest[1], greatest[2]),
    )
    objective = dataclasses.replace(config.objective, volume_fusion=fusion)
    return dataclasses.replace(config, objective=objective)
