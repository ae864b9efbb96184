"""Three objectives in one step against each of them alone: `make bench ONLY=mixture`.

Volume Fusion, graph matching of samples and graph matching of tokens over one
STU-Net; a step is scene, plans, forward and backward, on the same batch with the same
weights and equally many views for each objective. `ratio` is the CPU time of the mixed
step through the sum of the three alone, the median over rounds in alternation. First
every loss must equal that of the objective alone to 1e-5. Beside it stands the share of
each step's wall time that the solver of graph matching takes.
"""

import os
import statistics
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from harness import finish

from pretrain.mixture import MixtureConfig, WeightsConfig, branches
from pretrain.network import Job, Pretraining, costs
from pretrain.objectives.graph_config import GraphMatchingConfig
from pretrain.scene import Scene
from pretrain.views import ViewsConfig
from voxscale.batch import Batch
from voxscale.engine.heap import keep_freed_memory
from voxscale.engine.layout import CHANNELS_LAST
from voxscale.models.build import build
from voxscale.models.stunet import SIZES, STUNetConfig
from voxscale.seed import torch_generator
from voxscale.stopwatch import SOLVER

GOAL, EQUAL = 0.7, 1e-5
ROUNDS, WARM = 6, 2
SAMPLES, CROPS = 8, 2
PATCH = (64, 64, 64)
LAST = CHANNELS_LAST["stunet"]  # as in a run
NAMES = ("volume_fusion", "graph_matching", "patch_matching")


def a_batch() -> Batch:
    """Smooth noise as scans."""
    count, side = SAMPLES * CROPS, PATCH[0] + 16
    coarse = torch.rand(count, 1, 10, 10, 10, generator=torch_generator(0, "mixture"))
    return Batch(
        voxels=torch.nn.functional.interpolate(coarse, (side,) * 3, mode="trilinear"),
        label=None,
        sizes=torch.full((count, 3), float(side)),
        matrix=torch.eye(3, 4).repeat(count, 1, 1) + torch.tensor([0.0, 0, 0, 8]),
        scale=torch.tensor([[1.0, 0.0]]).repeat(count, 1),
        seeds=tuple(range(count)),
        indices=tuple(row // CROPS for row in range(count)),
    )


def networks() -> tuple[Pretraining, dict[str, Pretraining]]:
    """The mixed network, and one for each objective with the same weights."""
    width, depth = SIZES["S"]
    model = STUNetConfig(width=width, depth=depth)

    def make(*names: str) -> Pretraining:
        backbone = build(model)
        config = MixtureConfig(
            weights=WeightsConfig(**{name: float(name in names) for name in NAMES}),
            graph_matching=GraphMatchingConfig(group=SAMPLES),
            patch_matching=GraphMatchingConfig(mode="patch"),
        )
        return Pretraining(backbone, branches(config, backbone))

    mixed = make(*NAMES)
    mixed.initialise(torch_generator(0, "weights"))
    alone = {name: make(name) for name in NAMES}
    for network in alone.values():
        load(network, mixed)
    return mixed, alone


def load(network: Pretraining, mixed: Pretraining) -> None:
    """Give a network the weights of the mixed one, of which it has a part."""
    state = mixed.state_dict()
    own = [name for name in network.state_dict() if name not in ("balances", "norms")]
    network.load_state_dict({name: state[name] for name in own}, strict=False)


def step(network: Pretraining, batch: Batch) -> dict[str, float]:
    """One step without the update; returns the losses."""
    network.zero_grad(set_to_none=True)
    plans = network.plans(Scene(batch, PATCH, CROPS, ViewsConfig()))
    out = network(Job(plans, dict.fromkeys(plans, 1.0), channels_last=LAST))
    torch.stack([out["weights"][name] * term for name, term in out["terms"].items()]).sum().backward()
    return {name: float(term.detach()) for name, term in out["terms"].items()}


def main() -> None:
    """Compare losses, count voxels, measure times."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as a run does
    batch = a_batch()
    mixed, alone = networks()
    together = step(mixed, batch)
    difference = 0.0
    for name, network in alone.items():
        for term, value in step(network, batch).items():
            difference = max(difference, abs(together[f"{name}/{term}"] - value))
    assert difference <= EQUAL, f"losses must be equal to {EQUAL}, not differ by {difference}"
    scene = Scene(batch, PATCH, CROPS, ViewsConfig())
    _, shared, single = costs(mixed.backbone, mixed.plans(scene), SAMPLES)
    times: dict[str, list[float]] = {name: [] for name in ("mixed", *NAMES)}
    solver: dict[str, list[float]] = {name: [] for name in times}
    for number in range(WARM + ROUNDS):
        for name, network in {"mixed": mixed, **alone}.items():
            SOLVER.take()
            began, wall = time.process_time(), time.perf_counter()
            step(network, batch)
            if number >= WARM:  # before, the heap still grows, mostly in the mixed step, which needs most
                times[name].append(time.process_time() - began)
                solver[name].append(SOLVER.take() / (time.perf_counter() - wall))
    ratios = [times["mixed"][n] / sum(times[name][n] for name in NAMES) for n in range(ROUNDS)]
    ratio = statistics.median(ratios)
    finish(
        "mixture",
        ratio,
        GOAL,
        ratio <= GOAL,
        seconds={name: round(statistics.median(each), 3) for name, each in times.items()},
        ratios=[round(one, 4) for one in ratios],
        solver_share={name: round(statistics.median(each), 4) for name, each in solver.items()},
        encoder_voxels={"mixed": shared, "alone": single},
        views_per_sample={"volume_fusion": CROPS, "graph_matching": 2, "patch_matching": 2},
        largest_difference=difference,
        model="STU-Net S",
        patch=PATCH,
        samples=SAMPLES,
        threads=1,
    )


if __name__ == "__main__":
    main()
