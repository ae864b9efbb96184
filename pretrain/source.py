"""Where pretraining reads: shards that were cut for one patch, or a store and the plan of a patch."""

import dataclasses
import hashlib
import logging
from dataclasses import dataclass

from pretrain.config import PretrainConfig
from pretrain.probe.data import PLAIN
from voxscale import dist
from voxscale.config import config_hash, load_json, require, to_dict
from voxscale.contract import InputContract
from voxscale.folder import open_folder
from voxscale.index import INDEX
from voxscale.ledger import LEDGER
from voxscale.patches import Plan, Shape
from voxscale.seed import derive
from voxscale.shards import read_manifest
from voxscale.stream import AlikeConfig, Curriculum, ShardStream, StoreStream, WideCrops

log = logging.getLogger("voxscale")


@dataclass(frozen=True, slots=True)
class Source:
    """What is read.

    Attributes:
        contract: How scans become network input.
        patch: Voxels of a patch along z, y, x.
        strides: Strides along z, y, x of each encoder stage, as the patch allows them.
    """

    contract: InputContract
    patch: Shape
    strides: tuple[Shape, ...]


def find_source(config: PretrainConfig) -> Source:
    """Patch and contract, without opening more than says so.

    Raises:
        ConfigError: If a store is given without a plan, or a plan without a store.
        DataError: If shards are missing or damaged.
    """
    given = config.plan is not None
    require(given == (config.store is not None), "plan", "given with a store, and only with one", config.plan)
    if config.plan is not None:
        plan = load_json(Plan, config.plan)
        return Source(plan.contract, plan.patch, plan.strides)
    manifest, _ = read_manifest(config.shards, config.stream.access)
    return Source(manifest.contract, manifest.patch, manifest.strides)


def open_source(config: PretrainConfig, source: Source, crops: int) -> tuple[ShardStream | StoreStream, dict[str, str]]:
    """The stream, and a hash of everything it reads, by which a run knows its own.

    Args:
        config: Of the run.
        source: What `find_source` says.
        crops: Views of each sample.

    Raises:
        ConfigError: If wide crops are wanted of shards that hold no coarser levels.
        DataError: If shards or store are missing, damaged or empty.
    """
    wide = wide_crops(config, crops)
    if config.store is None:
        stream = ShardStream(config.shards, dataclasses.replace(config.stream, views=crops), config.seed, wide)
        held, wider = stream.manifest.levels, 0 if wide is None else wide.wider
        most = f"at most {held - 1} for shards that were packed with --levels {held}"
        require(wider < held, "objective.part_whole.wider", most, wider)
        return stream, {"shards": stream.manifest_sha256}
    scans = dataclasses.replace(config.scans, views=crops)
    stream = StoreStream(config.store, source.patch, source.contract, scans, config.seed, wide)
    folder = open_folder(config.store)
    # The index names the hash of each of its parts; a store that is being written has a ledger only.
    known = folder.read(INDEX if folder.size(INDEX) is not None else LEDGER)
    return stream, {"store": hashlib.sha256(known).hexdigest(), "plan": config_hash(to_dict(source))}


def wide_crops(config: PretrainConfig, crops: int) -> WideCrops | None:
    """The crops that part-whole takes its wholes from, if some are wider than the patch: the last of each sample."""
    own = config.objective.part_whole
    if "part_whole" not in config.objective.active or not own.wider:
        return None
    return WideCrops(crops - 1, own.wider, Curriculum(own.budget, own.blend), config.loop.batch, config.loop.steps)


def check_graphs(config: PretrainConfig, micro: int) -> None:
    """Refuse graphs of samples that two ranks or micro-batches would share, and warn of those without near-duplicates.

    Without graphs of samples nothing is refused.

    Raises:
        ConfigError: Naming `alike.group` of what is read.
    """
    objective = config.objective
    graphs = {"graph_matching": objective.graph_matching, "patch_matching": objective.patch_matching}
    modes = {graph.mode: graph.group for name, graph in graphs.items() if name in objective.active}
    if modes.keys() <= {"patch"}:
        return
    name, alike = ("stream", config.stream.alike) if config.store is None else ("scans", config.scans.alike)
    require(micro % alike.group == 0, f"{name}.alike.group", f"a divisor of a micro-batch's {micro}", alike.group)
    one_each = config.store is not None or config.stream.patches == 1  # else samples of one brick come in a row
    if alike.group == 1 and one_each and "image" in modes and dist.rank() == 0:
        log.warning(
            "%s.alike.group should be %d, the samples of a graph, not 1: an even shuffle of many scans hardly ever "
            "brings near-duplicates into one graph, and without them matching has little to learn",
            name,
            modes["image"],
        )


def open_upright(config: PretrainConfig, source: Source) -> ShardStream | StoreStream:
    """The same scans in an order of its own, one upright crop of the body in each sample: for probes and pictures.

    Raises:
        DataError: As `open_source` does.
    """
    seed = derive(config.seed, "probe")
    if config.store is None:
        own = dataclasses.replace(config.stream, views=1, patches=1, repeats=1.0, spatial=PLAIN, foreground=1.0)
        own = dataclasses.replace(own, alike=AlikeConfig())
        return ShardStream(config.shards, own, seed)
    scans = dataclasses.replace(config.scans, views=1, repeats=1.0, spatial=PLAIN, foreground=1.0, alike=AlikeConfig())
    return StoreStream(config.store, source.patch, source.contract, scans, seed)
