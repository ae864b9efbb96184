"""Everything that computes, on a CUDA device and on the CPU alike; skipped without one.

With VOXSCALE_TEST_DEVICE=cpu the device is the CPU, so that these tests themselves can be tested.
"""

import dataclasses
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from graphs import random_problem
from scenes import noise_scene
from tests_stores import make_store

from pretrain.mixture import MixtureConfig, WeightsConfig, branches
from pretrain.network import Job, Pictures, Pretraining
from pretrain.objectives.fusion_config import VolumeFusionConfig
from pretrain.objectives.graph_config import GraphMatchingConfig
from pretrain.objectives.masked_reconstruction import MaskedReconstructionConfig
from pretrain.objectives.part_whole_config import PartWholeConfig
from pretrain.objectives.supervised import SupervisedConfig
from pretrain.scene import Labelled, Scene
from pretrain.views import ViewsConfig
from voxscale.augment.noise import NoiseConfig
from voxscale.batch import Losses, collate
from voxscale.contract import InputContract
from voxscale.engine.convolution import mend_convolutions
from voxscale.engine.pooling import mend_pools
from voxscale.losses.cross_entropy import cross_entropy
from voxscale.losses.dice import soft_dice_loss
from voxscale.losses.dice_ce import dice_and_cross_entropy
from voxscale.matching import solver
from voxscale.matching.replay import Replay
from voxscale.matching.score import score
from voxscale.matching.solver import SolverConfig, solve
from voxscale.models.build import build
from voxscale.models.stunet import STUNetConfig
from voxscale.models.vit import ViTConfig
from voxscale.seed import torch_generator
from voxscale.stream.labelled import LabelledStream

ROOT = Path(__file__).resolve().parents[2]
NAME = os.environ.get("VOXSCALE_TEST_DEVICE", "cuda")
if NAME == "cuda" and not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)
DEVICE = torch.device(NAME, 0) if NAME == "cuda" else torch.device(NAME)
CPU = torch.device("cpu")
ONE, TWO, PATCH = (1, 1, 1), (2, 2, 2), (16, 16, 16)
STUNET = STUNetConfig(width=4, depth=1, strides=(TWO, TWO, ONE, ONE, ONE))
VIT = ViTConfig(width=24, depth=4, attention_heads=3, patch=(8, 8, 8))
FUSION = VolumeFusionConfig(block_min=2, block_max=6, ordinal_weight=0.5)
PLAIN_SOLVER = SolverConfig(steps=15, rounds=8)
MATCH = GraphMatchingConfig(group=4, k=2, width=8, gumbel_scale=0.0, solver=PLAIN_SOLVER)
OBJECTIVES = {
    "fusion": {"volume_fusion": FUSION},
    "fusion boxes": {"volume_fusion": dataclasses.replace(FUSION, layout="boxes", pairing="across", boxes=(2, 4))},
    "image graphs": {"graph_matching": MATCH},
    "sub_volume graphs": {
        "graph_matching": dataclasses.replace(MATCH, mode="sub_volume", crops=2, k=1, spatial_k=1),
    },
    "patch graphs": {"patch_matching": dataclasses.replace(MATCH, mode="patch", nodes=16, k=3, level=1)},
    "part_whole": {"part_whole": PartWholeConfig(hidden=16, bottleneck=8, prototypes=32, least_voxels=0)},
    "masked": {"masked_reconstruction": MaskedReconstructionConfig(width=12, depth=1, heads=2)},
    "masked tokens": {"masked_reconstruction": MaskedReconstructionConfig(width=12, depth=1, heads=2, normalise=True)},
    "supervised": {"supervised": SupervisedConfig(heads=2, noise=NoiseConfig(probability=0.0))},
    "mixture": {"volume_fusion": FUSION, "graph_matching": MATCH},
}


@pytest.fixture(autouse=True)
def exact():
    """Products in fp32 proper, so that devices can be compared."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Bricks, and labelled scans with a plan."""
    from data_prep.pack import PackConfig, pack
    from data_prep.plan import plan_task

    folder = tmp_path_factory.mktemp("data")
    make_store(folder / "scans", 6, labelled=False)
    make_store(folder / "task", 6, labelled=True)
    plan = plan_task(folder / "scans", 16**3, InputContract(spacing=(2.0, 1.5, 1.5)), 3)
    plan = dataclasses.replace(plan, patch=(16, 16, 16), strides=(*[(2, 2, 2)] * 2, *[(1, 1, 1)] * 3))
    pack(folder / "scans", folder / "shards", plan.contract, plan.patch, plan.strides, PackConfig(factor=1.25))
    return folder


def moved(scene: Scene, device: torch.device, labelled: Labelled | None) -> Scene:
    beside = None if labelled is None else Labelled(labelled.batch.to(device), labelled.sets)
    crops = scene.crops.images.shape[1]
    return Scene(scene.batch.to(device), scene.patch, crops, ViewsConfig(), scene.spacing, 0.5, beside)


def a_step(config, model, labelled, device, dtype, **job):
    """Losses and the gradient of all weights in one row."""

    def made(seed: int) -> Pretraining:
        backbone = build(model)
        network = Pretraining(backbone, branches(config, backbone))
        network.initialise(torch_generator(seed, "weights"))
        return network.to(device, dtype)

    network = made(0)
    crops = max(branch.views_per_sample for branch in network.objectives().values())
    scene = moved(noise_scene(samples=4, crops=crops), device, labelled)
    plans = network.plans(scene)
    teacher = made(1) if any(branch.wants_teacher for branch in network.objectives().values()) else None
    out = network(Job(plans, config.weights_at(0.5), teacher=teacher, **job))
    losses = Losses(out["terms"], out["weights"], out["watched"])
    losses.total.backward()
    grads = [p.grad.flatten().float().cpu() for p in network.parameters() if p.grad is not None]
    with torch.no_grad():
        pictures = network(Pictures(plans))["pictures"]
    assert all(not isinstance(value, torch.Tensor) for value in pictures.values())
    return {name: float(value.detach()) for name, value in losses.terms.items()}, torch.cat(grads)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective(name, precision, data):
    parts, labelled = dict(OBJECTIVES[name]), None
    if name == "supervised":
        own = dataclasses.replace(parts["supervised"], sets=(data / "task",))
        parts["supervised"] = own
        stream = LabelledStream(own.read(), PATCH, InputContract(spacing=(2.0, 1.5, 1.5)), own.stream, 0)
        labelled = Labelled(collate([stream.sample(at)[0][0] for at in range(4)]), (0,) * 4)
    weights = WeightsConfig(**{"volume_fusion": 0.0, **dict.fromkeys(parts, 1.0)})
    balance = "gradients" if name == "mixture" else "none"
    config = MixtureConfig(weights=weights, balance=balance, **parts)
    model = VIT if name == "masked tokens" else STUNET
    job = {"measure": True, "balance": True} if name == "mixture" else {}
    want, slopes = a_step(config, model, labelled, CPU, torch.float32, **job)
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    found, steep = a_step(config, model, labelled, DEVICE, dtype, **job)
    assert found.keys() == want.keys()
    assert steep.isfinite().all()
    if precision == "fp32":  # fp32 sums in another order, a thousandth; gradients pass norms over few voxels
        assert found == pytest.approx(want, rel=2e-3, abs=1e-4)
        assert (steep - slopes).norm() < 0.03 * slopes.norm()
    elif "graphs" not in name and name != "mixture":  # rounded features are matched otherwise
        assert found == pytest.approx(want, rel=0.1, abs=0.05)


def on_device(problem):
    parts = {name: getattr(problem, name).to(DEVICE) for name in ("vertex", "edge", "source", "target")}
    return type(problem)(**parts)


@pytest.mark.parametrize("kicks", [0, 4])
def test_solver_finds_matches_of_the_same_worth(kicks):
    problem = random_problem(8, 12, 3, 0)
    config = dataclasses.replace(PLAIN_SOLVER, kicks=kicks)
    here = solve(problem, config, torch_generator(0))
    there = solve(on_device(problem), config, torch_generator(0, device=DEVICE)).cpu()
    assert (there.sort(dim=1).values == torch.arange(12)).all()
    worth = [score(problem, match).mean().item() for match in (here, there)]
    assert worth[1] == pytest.approx(worth[0], rel=0.02 if kicks else 1e-4)
    if not kicks:
        assert torch.equal(here, there)


@pytest.mark.skipif(NAME != "cuda", reason="records are of CUDA alone")
def test_a_recorded_solver_gives_the_bits_of_one_launched_kernel_by_kernel_and_few_are_kept():
    replay, seen = Replay(most=3), []

    def function(problem):
        seen.append(problem.vertex.shape)
        return solver._search(problem, PLAIN_SOLVER)

    for seed in range(4):  # by itself, to warm up and recorded, then recorded only
        one = on_device(random_problem(3, 10, 3, seed))
        wide = one.with_values(one.vertex.double(), one.edge.double())
        assert torch.equal(replay(function, wide, "ours"), solver._search(wide, PLAIN_SOLVER)), seed
    assert len(seen) == 3
    assert len(replay) == 1
    for nodes in (5, 6, 7, 8):
        for seed in range(2):
            replay(function, on_device(random_problem(1, nodes, 2, seed)), "ours")
    assert len(replay) == 3


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("classes", [3, 40])
def test_fused_loss_is_both_losses(layout, classes):
    generator = torch_generator(0)
    logits = torch.randn(2, classes, 8, 8, 8, generator=generator).contiguous(memory_format=layout)
    target = torch.randint(0, classes, (2, 8, 8, 8), generator=generator).to(torch.uint8)
    mask = torch.rand(2, 8, 8, 8, generator=generator) > 0.2
    grads = []
    for device in (CPU, DEVICE):
        x = logits.to(device, copy=True).requires_grad_()
        both = dice_and_cross_entropy(x, target.to(device), pooled=True, background=True, mask=mask.to(device))
        sum(both).backward()
        grads.append(x.grad.cpu())
        y = logits.to(device)
        dice = soft_dice_loss(y, target.to(device), pooled=True, background=True, mask=mask.to(device))
        torch.testing.assert_close(both[0].detach(), dice, rtol=1e-4, atol=1e-5)
        ce = cross_entropy(y, target.to(device), mask=mask.to(device))
        torch.testing.assert_close(both[1].detach(), ce, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-7)


FAMILIES = ["stunet_s", "stunet_b_2d", "resenc_l", "plainconv", "fmunet", "pctnet", "swin_unetr", "vit_b"]
FAMILIES += ["resnet50", "convnext_b", "vit_b_timm", "sam_vit_b"]


@pytest.mark.parametrize("name", FAMILIES)
def test_family(name):
    from tests.models import presets

    try:
        config = presets.narrow(presets.preset(name))
        found = []
        for device, dtype in ((CPU, torch.float32), (DEVICE, torch.float32), (DEVICE, torch.bfloat16)):
            model = build(config).eval().to(device, dtype)
            mend_convolutions(model)  # as the engine does
            mend_pools(model)
            x = presets.images(model).to(device, dtype)
            outs = model(x) if model.decoder_levels else model.features(x)
            out = outs[0] if isinstance(outs, list | tuple) else outs
            out.float().square().mean().backward()
            assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
            found.append(out.detach().float().cpu())
    except ImportError as error:
        pytest.skip(str(error))
    assert (found[1] - found[0]).norm() < 0.01 * found[0].norm() + 1e-5
    assert found[2].isfinite().all()


def worker(script: str, *arguments: str) -> str:
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{os.environ.get('PYTHONPATH', '')}"}
    env |= {"WANDB_MODE": "offline", "OMP_NUM_THREADS": "2"}
    command = [sys.executable, *([script] if script.endswith(".py") else ["-m", script]), *arguments]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-6000:]
    return done.stdout


STAGES = [("0", "fp32"), *itertools.product("123", ["fp32", "bf16"])]  # bf16 without ZeRO is refused


@pytest.mark.parametrize(("stage", "precision"), STAGES)
def test_engine_goes_on_from_a_checkpoint(stage, precision, tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    script, how = "tests/engine/worker_train.py", (stage, precision, "adamw", "4")
    worker(script, str(tmp_path / "whole"), "6", "6", *how)
    worker(script, str(tmp_path / "cut"), "4", "6", *how)
    worker(script, str(tmp_path / "cut"), "6", "6", *how)
    rows = [
        [json.loads(line)["loss"] for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("whole", "cut")
    ]
    assert rows[1][-2:] == pytest.approx(rows[0][-2:], rel=1e-4)  # convolutions on a GPU sum in any order


@pytest.mark.parametrize("case", ["1-bf16-none-2", "2-bf16-optimizer-1", "3-bf16-all-1", "3-fp32-none-1"])
def test_teacher_and_offload(case, tmp_path):
    row = json.loads(worker("tests/engine/worker_ema.py", str(tmp_path), case).splitlines()[-1])
    assert row["error"] < 1e-5
    assert row["frozen"]


COMMON = ["--model.width", "4", "--loop.steps", "4", "--loop.log-every", "1", "--loop.checkpoint-every", "2"]
COMMON += ["--tracker.no-wandb", "--loop.batch", "4", "--engine.precision", "bf16"]


@pytest.mark.parametrize("stage", ["1", "3"])
def test_pretraining_with_probes_then_fine_tuning(stage, data, tmp_path):
    flags = ["--shards", str(data / "shards"), "--run", str(tmp_path / "run"), "--engine.zero-stage", stage]
    flags += ["--probe.every", "2", "--probe.labelled", str(data / "task"), "--probe.patches", "4"]
    flags += ["--objective.volume-fusion.block-min", "2", "--objective.volume-fusion.block-max", "6"]
    flags += ["--objective.weights.graph-matching", "1", "--objective.graph-matching.group", "4"]
    flags += ["--objective.graph-matching.k", "2", "--objective.weights.part-whole", "1"]
    flags += ["--objective.part-whole.least-voxels", "0", "--objective.part-whole.prototypes", "32"]
    flags += ["--objective.weights.masked-reconstruction", "1"]
    if stage == "1":
        flags += ["--objective.balance", "gradients", "--objective.measure-every", "1"]
    worker("pretrain", "configs/pretrain.py:demo", *COMMON, *flags)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert (tmp_path / "run" / "preview.npz").is_file()
    worker("data_prep", "plan", str(data / "task"), "--out", str(tmp_path / "plan.json"), "--budget-voxels", "4096")
    flags = ["--store", str(data / "task"), "--plan", str(tmp_path / "plan.json"), "--run", str(tmp_path / "fine")]
    flags += ["--checkpoint", str(tmp_path / "run"), "--folds", "2", "--loop.steps", "2", "--loop.batch", "2"]
    worker("finetune", "configs/finetune.py:demo", *flags, "--tracker.no-wandb", "--engine.precision", "bf16")
