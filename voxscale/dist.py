"""Ranks: read from RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, nothing else."""

import os
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as td
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore  # torch.distributed hands them on undeclared

from voxscale.errors import ConfigError

Error = td.DistError
"""What collectives raise when another rank is gone; gloo raises plain `RuntimeError` as well."""


_kept = False
_store: Store | None = None


def rank() -> int:
    """Rank of this process among all; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def device() -> torch.device:
    """This process's device: its own GPU where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("cpu")


def extensions() -> Path:
    """Folder of compiled operators: beside the packages they belong to, so that environments do not mix."""
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    return Path(os.environ["TORCH_EXTENSIONS_DIR"])


def start(timeout_s: float = 1800.0) -> None:
    """Join the process group (nccl on GPUs, gloo on CPUs); a second call does nothing.

    Raises:
        ConfigError: If the environment names a rank but not where to meet.
    """
    if td.is_initialized():
        return
    store = meet(timeout_s)
    store.set_timeout(timedelta(seconds=timeout_s))
    extensions()
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if device().type == "cuda":
        torch.cuda.set_device(device())
    td.init_process_group(
        backend, store=store, rank=rank(), world_size=world_size(), timeout=timedelta(seconds=timeout_s)
    )


def meet(timeout_s: float) -> Store:
    """The store in which ranks find each other; rank 0 holds it and does not wait for the others here.

    Args:
        timeout_s: How long other ranks wait for rank 0's.

    Raises:
        ConfigError: If the environment names a rank but not where to meet.
    """
    global _store
    if _store is not None:
        return _store
    defaults = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    if "RANK" not in os.environ:
        os.environ.update(defaults)
    missing = sorted(defaults.keys() - os.environ.keys())
    if missing:
        raise ConfigError(f"environment must set {', '.join(missing)} together with RANK; start with python -m launch")
    where = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), world_size())
    if world_size() == 1 and where[1] == 0:  # alone: any free port will do, nobody else must find it
        own = TCPStore("127.0.0.1", 0, 1, is_master=True)
        os.environ["MASTER_PORT"] = str(own.port)
        _store = own
        return own
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun holds the store itself
    own = TCPStore(
        *where,
        is_master=rank() == 0 and not agent,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
        multi_tenant=True,
    )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    _store = PrefixStore(f"attempt-{attempt}", own) if agent else own
    return _store


def another(store: Store, name: str) -> Store:
    """A connection of its own to the same store, with keys of its own."""
    return PrefixStore(name, store.clone())  # pyright: ignore[reportAttributeAccessIssue]  # not declared


def entered() -> int:
    """How many collectives this rank has entered so far, in all groups, and the making of how many groups."""
    world = td.distributed_c10d._world  # pyright: ignore[reportPrivateUsage]  # nothing public tells
    count = world.group_count
    for group in list(world.pg_map):
        with suppress(RuntimeError):  # groups come and go in another thread
            count += group._get_sequence_number_for_group()  # pyright: ignore[reportAttributeAccessIssue]
    return count


def keep() -> None:
    """From now on `stop` does nothing: for a process alone that runs one training after another.

    DeepSpeed remembers the first group that it saw, and cannot work with a second one.
    """
    global _kept
    _kept = True


def stop() -> None:
    """Leave the process group, if any."""
    global _store
    if td.is_initialized() and not _kept:
        td.destroy_process_group()
        _store = None


def barrier() -> None:
    """Wait for all ranks."""
    if td.is_initialized():
        td.barrier()


def total(values: list[float]) -> list[float]:
    """Sum each value over all ranks."""
    if not td.is_initialized():
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=device())
    td.all_reduce(tensor)
    return tensor.tolist()


def from_all(values: list[float]) -> list[list[float]]:
    """Every rank's values, in rank order, on every rank; all must have equally many."""
    return rows(torch.tensor([values], dtype=torch.float64, device=device())).tolist()


def mean(tensor: torch.Tensor) -> torch.Tensor:
    """Mean of a tensor over all ranks, on its device and without gradient."""
    value = tensor.detach().clone()
    if td.is_initialized():
        td.all_reduce(value)
        value /= world_size()
    return value


def added(tensor: torch.Tensor) -> torch.Tensor:
    """Sum of a tensor over all ranks, on its device and without gradient."""
    value = tensor.detach().clone()
    if td.is_initialized():
        td.all_reduce(value)
    return value


def from_rank_before(tensor: torch.Tensor) -> torch.Tensor:
    """What the rank before this one gave, of the last one on rank 0, without gradient; all must have equal shapes."""
    sent = tensor.detach().contiguous()
    if not td.is_initialized() or world_size() == 1:
        return sent
    value = torch.empty_like(sent)
    after, before = (rank() + 1) % world_size(), (rank() - 1) % world_size()
    for wait in td.batch_isend_irecv([td.P2POp(td.isend, sent, after), td.P2POp(td.irecv, value, before)]):
        wait.wait()
    return value


def rows(tensor: torch.Tensor) -> torch.Tensor:
    """The rows of all ranks, in rank order, on every rank and without gradient; all must have equally many."""
    value = tensor.detach().contiguous()
    if not td.is_initialized():
        return value
    parts = [torch.empty_like(value) for _ in range(world_size())]
    td.all_gather(parts, value)
    return torch.cat(parts)


def largest(values: list[float]) -> list[float]:
    """The largest of each value over all ranks."""
    if not td.is_initialized():
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=device())
    td.all_reduce(tensor, td.ReduceOp.MAX)
    return tensor.tolist()


def from_rank_0(text: str) -> str:
    """Rank 0's text on every rank, so that all agree on paths and choices."""
    if not td.is_initialized():
        return text
    parts = [text]
    td.broadcast_object_list(parts, device=device())
    return parts[0]


def gather(value: object) -> list[object]:
    """Every rank's value, in rank order, on every rank."""
    if not td.is_initialized():
        return [value]
    parts: list[object] = [None] * world_size()
    td.all_gather_object(parts, value)
    return parts
