"""Pretraining presets: Volume Fusion, part-whole, masked reconstruction, or a mixture, on STU-Nets."""

import dataclasses
from typing import Any

import torch

from pretrain.config import PretrainConfig
from pretrain.mixture import MixtureConfig, WeightsConfig
from pretrain.objectives import graph_config
from pretrain.objectives.fusion_config import VolumeFusionConfig
from pretrain.objectives.masked_reconstruction import MaskedReconstructionConfig
from pretrain.objectives.part_whole_config import PartWholeConfig
from pretrain.views import ViewsConfig
from voxscale.augment.spatial import SpatialConfig
from voxscale.engine.config import EngineConfig, LoopConfig, OptimConfig, Precision
from voxscale.loader import LoaderConfig
from voxscale.models.stunet import SIZES, STUNetConfig
from voxscale.models.timm_models import TimmConfig
from voxscale.models.vit import ViTConfig
from voxscale.stream import AlikeConfig, ShardStreamConfig


def fast_precision() -> Precision:
    """bf16 where the processor multiplies it natively, else fp32: emulated bf16 is slower than fp32 on older CPUs."""
    if torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return "bf16"
    return "fp32"


def _stunet(size: str, batch: int, lr: float, steps: int) -> PretrainConfig:
    width, depth = SIZES[size]
    return PretrainConfig(
        model=STUNetConfig(width=width, depth=depth),
        optim=OptimConfig(kind="adamw", lr=lr, weight_decay=1e-5),
        loader=LoaderConfig(workers=8),
        loop=LoopConfig(steps=steps, batch=batch, log_every=50, checkpoint_every=1000, keep=3),
    )


def alike(config: PretrainConfig) -> PretrainConfig:
    """The same with graphs of four times four samples that lie side by side, whatever is read."""
    graphs = AlikeConfig(group=config.objective.graph_matching.group)
    stream, scans = (dataclasses.replace(one, alike=graphs) for one in (config.stream, config.scans))
    return dataclasses.replace(config, stream=stream, scans=scans)


def _masked(**how: Any) -> MixtureConfig:
    weights = WeightsConfig(volume_fusion=0.0, masked_reconstruction=1.0)
    return MixtureConfig(weights=weights, masked_reconstruction=MaskedReconstructionConfig(**how))


def stunet_s() -> PretrainConfig:
    """STU-Net S, 14.6 million weights, Volume Fusion as in the journal version.

    `python -m launch pretrain configs/pretrain.py:stunet_s --shards SHARDS --run RUN --processes 4 --gpus 4`

    Optimizer and length follow MIS-FM (Adam, 1e-3, 100,000 steps for 1,000 scans). Cost on GPUs: not measured yet.
    """
    return _stunet("S", batch=4, lr=1e-3, steps=100_000)


def stunet_s_preprint() -> PretrainConfig:
    """STU-Net S, Volume Fusion as in the preprint of 2023: boxes, across the batch, plain crops and mirroring alone.

    `python -m launch pretrain configs/pretrain.py:stunet_s_preprint --shards SHARDS --run RUN --processes 4 --gpus 4`

    For patches of 64x128x128, as its boxes are, or larger. What is paired depends on the samples of a process. Cost on
    GPUs: not measured yet.
    """
    base = stunet_s()
    fusion = VolumeFusionConfig(layout="boxes", pairing="across", block_min=8, block_max=(40, 80, 80))
    still = SpatialConfig(zoom=(1.0, 1.0))
    return dataclasses.replace(
        base,
        objective=dataclasses.replace(base.objective, volume_fusion=fusion),
        views=ViewsConfig(intensity=False),
        stream=dataclasses.replace(base.stream, spatial=still),
        scans=dataclasses.replace(base.scans, spatial=still),
        loop=dataclasses.replace(base.loop, batch=16),
    )


def stunet_s_mixture() -> PretrainConfig:
    """STU-Net S, Volume Fusion, graph matching and part-whole in one step, balanced by their gradients.

    `python -m launch pretrain configs/pretrain.py:stunet_s_mixture --shards SHARDS --run RUN --processes 4 --gpus 4`

    Graphs have 16 nodes, four times four bricks that lie side by side, so each process sees 16 samples at a time. What
    it buys: not measured yet.
    """
    mixed = MixtureConfig(
        weights=WeightsConfig(volume_fusion=1.0, graph_matching=1.0, part_whole=1.0), balance="gradients"
    )
    return alike(dataclasses.replace(_stunet("S", batch=64, lr=1e-3, steps=100_000), objective=mixed))


def stunet_s_part_whole() -> PretrainConfig:
    """STU-Net S, part-whole alone: self-distillation, composing and decomposing at equal weights.

    `python -m launch pretrain configs/pretrain.py:stunet_s_part_whole --shards SHARDS --run RUN --processes 4 --gpus 4`

    Wholes go from four times the crop's side (as far as the scan is so large) to half of it, so shards are packed with
    `--levels 3`; of a store nothing else is needed. Heads and teacher as Adam-v2 has them; optimizer and length are our
    guess. Parts of 64 voxels of a patch of 128 are images that a STU-Net takes. What it buys: not measured yet.
    """
    return dataclasses.replace(
        _stunet("S", batch=32, lr=5e-4, steps=100_000),
        objective=MixtureConfig(
            weights=WeightsConfig(volume_fusion=0.0, part_whole=1.0),
            part_whole=PartWholeConfig(
                hidden=2048,
                bottleneck=256,
                prototypes=65536,
                local_views=8,
                levels=4,
                wider=2,
                budget=(0.1, 0.2, 0.3, 0.4),
            ),
        ),
        optim=OptimConfig(kind="adamw", lr=5e-4, weight_decay=0.04),
    )


def resnet50_graph_matching() -> PretrainConfig:
    """ResNet-50 on slices and images, second-order graph matching as LVM-Med prints it.

    `python -m launch pretrain configs/pretrain.py:resnet50_graph_matching --shards SHARDS --run RUN --cluster slurm
    --nodes 5 --processes 4 --gpus 4 --partition PARTITION`, of shards for which `data_prep plan --dims 2` chose the
    patch.

    Graphs of 16 nodes, k = 5, Gumbel(0, 1), lambda 80; Adam, 2e-3 halved four times, 3,200 images a step, 100 times
    1.3 million images: on 20 GPUs ten graphs each (the paper's 16 had 12.5). A graph is four times four neighbouring
    slices or images. The paper states no weight decay or warm-up (there is none here) and starts from ImageNet's
    weights; this starts from a seed. `configs/pretrain.py:resnet50_info_nce` is its twin.
    Cost on GPUs and what it buys: not measured yet.
    """
    base = dataclasses.replace(
        _stunet("S", batch=3200, lr=2e-3, steps=40_000),
        model=TimmConfig(name="resnet50", in_channels=1),
        objective=MixtureConfig(
            weights=WeightsConfig(volume_fusion=0.0, graph_matching=1.0), graph_matching=graph_config.paper()
        ),
        optim=OptimConfig(kind="adamw", lr=2e-3, weight_decay=0.0, schedule="halving", warmup=0.0),
    )
    return alike(base)


def resnet50_info_nce() -> PretrainConfig:
    """InfoNCE on the same nodes of the same views, for the same budget: what matching is compared with."""
    base = resnet50_graph_matching()
    twin = graph_config.info_nce_twin(base.objective.graph_matching)
    return dataclasses.replace(base, objective=dataclasses.replace(base.objective, graph_matching=twin))


def stunet_b() -> PretrainConfig:
    """STU-Net B, 58.3 million weights, Volume Fusion as in the journal version.

    `python -m launch pretrain configs/pretrain.py:stunet_b --shards SHARDS --run RUN --cluster slurm --nodes 2
    --processes 4 --gpus 4 --cpus 10 --partition PARTITION`

    Cost on GPUs: not measured yet.
    """
    return _stunet("B", batch=16, lr=1e-3, steps=200_000)


def stunet_b_masked() -> PretrainConfig:
    """STU-Net B, masked reconstruction by its own decoder: 60 % of blocks hidden, as in SparK.

    `python -m launch pretrain configs/pretrain.py:stunet_b_masked --shards SHARDS --run RUN --processes 4 --gpus 4`

    Cost on GPUs and what it buys: not measured yet.
    """
    return dataclasses.replace(_stunet("B", batch=16, lr=1e-3, steps=200_000), objective=_masked(ratio=0.6))


def vit_b_masked() -> PretrainConfig:
    """ViT B, masked autoencoder: 75 % of tokens hidden, blocks normalised, as in MAE.

    `python -m launch pretrain configs/pretrain.py:vit_b_masked --shards SHARDS --run RUN --processes 4 --gpus 4`

    Cost on GPUs and what it buys: not measured yet.
    """
    return dataclasses.replace(
        _stunet("B", batch=64, lr=4e-4, steps=200_000),
        model=ViTConfig(width=768, depth=12, attention_heads=12),
        objective=_masked(ratio=0.75, width=384, depth=4, heads=6, normalise=True),
        optim=OptimConfig(kind="adamw", lr=4e-4, weight_decay=0.05, betas=(0.9, 0.95), warmup=0.05),
    )


def stunet_b_supervised() -> PretrainConfig:
    """STU-Net B, supervised over labelled sets by STU-Net's own recipe: SGD, a million steps of two patches.

    `python -m launch pretrain configs/pretrain.py:stunet_b_supervised --objective.supervised.sets LIVER SPLEEN
    --objective.supervised.classes liver '*' --shards SHARDS --run RUN --processes 2 --gpus 2`

    Sets are stores. Contract and patch are those of the shards, of which nothing else is read unless there are
    probes; give another objective a weight to use them. Cost on GPUs and what it buys: not measured yet.
    """
    return dataclasses.replace(
        _stunet("B", batch=2, lr=1e-2, steps=1_000_000),
        objective=MixtureConfig(weights=WeightsConfig(volume_fusion=0.0, supervised=1.0)),
        optim=OptimConfig(kind="sgd", lr=1e-2, weight_decay=3e-5, schedule="poly"),
    )


def stunet_l() -> PretrainConfig:
    """STU-Net L, 440.3 million weights. Cost on GPUs: not measured yet."""
    return _stunet("L", batch=32, lr=5e-4, steps=400_000)


def stunet_h() -> PretrainConfig:
    """STU-Net H, 1.46 billion weights. Cost on GPUs: not measured yet."""
    return _stunet("H", batch=64, lr=3e-4, steps=400_000)


def demo() -> PretrainConfig:
    """A STU-Net of width 8 for two CPU cores: 3.6 million weights, minutes instead of days.

    `make demo`

    So few steps teach the pretext task itself only a little; the report says how much.
    """
    return PretrainConfig(
        model=STUNetConfig(width=8, depth=1),
        objective=MixtureConfig(volume_fusion=VolumeFusionConfig(block_min=6, block_max=16)),
        stream=ShardStreamConfig(repeats=8),
        engine=EngineConfig(zero_stage=1, precision=fast_precision()),
        optim=OptimConfig(lr=3e-3, warmup=0.05),
        loop=LoopConfig(steps=600, batch=4, log_every=10, checkpoint_every=50),
    )


def demo_2d() -> PretrainConfig:
    """The same for images of two dimensions: Volume Fusion, graph matching and masked reconstruction together.

    `python -m launch pretrain configs/pretrain.py:demo_2d --shards SHARDS --run RUN`, of shards for which
    `data_prep plan --dims 2` chose the patch: slices of volumes, and 2D images.
    """
    step = (1, 2, 2)
    base = dataclasses.replace(
        demo(),
        model=STUNetConfig(width=8, depth=1, dims=2, strides=(step, step, step, step, step)),
        objective=MixtureConfig(
            weights=WeightsConfig(volume_fusion=1.0, graph_matching=1.0, masked_reconstruction=1.0),
            volume_fusion=VolumeFusionConfig(block_min=(1, 6, 6), block_max=(1, 16, 16)),
        ),
        loop=LoopConfig(steps=600, batch=16, log_every=10, checkpoint_every=50),
    )
    return alike(base)
