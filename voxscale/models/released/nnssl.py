"""Checkpoints of nnssl, such as the OpenMind models: residual and plain encoders of nnU-Net."""

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from voxscale.errors import CheckpointError
from voxscale.models.nnunet import NNUNetConfig
from voxscale.models.released.names import Named, count, name, shape, tensors_at

ABSENT = ("decoder.",)
_ENCODER, _STEM = "encoder.stages", "encoder.stem"
_STAGES = 6


def read(content: object) -> Named:
    """Encoder and stem, which stand where the file's adaptation plan says. Names of the plan are second-hand.

    Decoders are left, as nnU-Net's own loader does: those of the pretraining have
    other outputs and, for some objectives, other blocks.

    Raises:
        CheckpointError: If the plan is of another kind.
    """
    tensors = tensors_at(content, "network_weights")
    plan: Any = cast(Mapping[str, Any], content).get("nnssl_adaptation_plan", {})
    plan = cast(Mapping[str, Any], plan) if isinstance(plan, Mapping) else {}
    encoder, stem = plan.get("key_to_encoder", _ENCODER), plan.get("key_to_stem", _STEM)
    if not (isinstance(encoder, str) and isinstance(stem, str)):
        raise CheckpointError("nnssl_adaptation_plan must name key_to_encoder and key_to_stem as texts")

    def rule(key: str) -> str | None:
        for prefix, own in ((encoder, _ENCODER), (stem, _STEM)):
            if key.startswith(f"{prefix}."):
                return own + key[len(prefix) :]
        return None

    return name(tensors, rule, "neither encoder nor stem")


def config(weights: Mapping[str, Tensor]) -> NNUNetConfig:
    """Size by the shapes.

    Raises:
        CheckpointError: If the encoder is not one of nnU-Net's with six stages.
    """
    residual = "encoder.stem.convs.0.conv.weight" in weights
    block = "encoder.stages.{}.blocks.{}.conv1.conv.weight" if residual else "encoder.stages.{}.0.convs.{}.conv.weight"
    found = count(weights, block.replace("{}", "0", 2).replace("stages.0", "stages.{}", 1))
    if found != _STAGES:
        raise CheckpointError(f"released.weights must be of an nnU-Net encoder of {_STAGES} stages, not {found}")
    first = "encoder.stem.convs.0.conv.weight" if residual else block.format(0, 0)
    a, b, c, d, e, f = (shape(weights, block.format(stage, 0))[0] for stage in range(_STAGES))
    blocks = [count(weights, block.replace("{}", str(stage), 1)) for stage in range(_STAGES)]
    return NNUNetConfig(
        residual=residual,
        channels=(a, b, c, d, e, f),
        blocks=cast(Any, tuple(blocks)),
        decoder_blocks=1 if residual else 2,
        in_channels=shape(weights, first)[1],
    )
