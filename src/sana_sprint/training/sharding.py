"""Networks spread over the workers (FSDP2), for models that one device cannot hold; SANA_SPRINT_SHARD=1 asks for it.

A worker keeps a slice of every weight, of its gradient and of AdamW's moments; the weights of a block are whole only
while it computes. Losses are those of whole networks. A sharded checkpoint is one safetensors file per worker, written
and read by torch.distributed.checkpoint, which fits it to another number of workers, or to none.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import torch
import torch.distributed
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from sana_sprint import storage

if TYPE_CHECKING:
    from pathlib import Path

    from diffusers import SanaTransformer2DModel
    from torch.distributed.device_mesh import DeviceMesh
    from torch.optim import Optimizer

    from sana_sprint.training.distill import Distillation

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class Sharded(ModelParallelStrategy):
    """Lightning's FSDP2 strategy on the device that was given to this worker."""

    def __init__(self, device: torch.device, world: int) -> None:
        super().__init__(data_parallel_size=world, tensor_parallel_size=1)
        self.device = device

    @property
    def root_device(self) -> torch.device:
        """Returns this worker's device."""
        return self.device


def shard(module: Distillation, mesh: DeviceMesh) -> None:
    """Spreads teacher, student, its average and the critics over a mesh of one dimension."""
    if is_sharded(module):
        return
    for name in module.networks:
        network = getattr(module, name)
        if name == "heads":
            fully_shard(network, mesh=mesh)
        else:
            _shard_transformer(network.transformer, mesh)
            fully_shard(network.logvar, mesh=mesh)
    _shard_transformer(module.teacher, mesh, tapped=True)


def _shard_transformer(transformer: SanaTransformer2DModel, mesh: DeviceMesh, *, tapped: bool = False) -> None:
    """Block by block. The time embedding is a unit of its own, because log_variance calls it alone. What is left of a
    `tapped` one stays whole after a forward pass: the heads' gradient enters at its blocks, not at its output. Blocks
    never do, also those that the first pass leaves out and that FSDP2 then takes for networks of their own."""
    for part in (*transformer.transformer_blocks, transformer.time_embed):
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    fully_shard(transformer, mesh=mesh, reshard_after_forward=not tapped)


def is_sharded(module: Distillation) -> bool:
    """Whether `shard` has been at work."""
    return isinstance(module.student.transformer, FSDPModule)


def whole(x: Tensor) -> Tensor:
    """Returns a tensor whole on every worker, also one that is spread over them."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def spread(x: Tensor, like: Tensor) -> Tensor:
    """Returns a whole tensor spread as `like` is, if it is; every worker holds `x`."""
    return (
        distribute_tensor(x, like.device_mesh, like.placements, src_data_rank=None) if isinstance(like, DTensor) else x
    )


def tensors(module: Distillation, optimizers: list[Optimizer]) -> dict[str, Tensor]:
    """Returns the live weights and AdamW states by name, for torch.distributed.checkpoint to write or fill."""
    found = {f"{name}.{k}": v for name in module.networks for k, v in getattr(module, name).state_dict().items()}
    for name, optimizer in zip(module.optimized, optimizers, strict=True):
        for key, weight in getattr(module, name).named_parameters():
            for moment, value in optimizer.state.get(weight, {}).items():
                found[f"{name}.{key}.{moment}"] = value.detach().reshape(1) if moment == "step" else value
    return found


def write(folder: Path, module: Distillation, optimizers: list[Optimizer]) -> Path:
    """Writes this worker's file of a checkpoint and waits for those of the others; all workers call it. Returns the
    folder, which is hidden in `folder` until rank 0 gives its files their place. Raises OSError on all workers when
    one could not write."""
    hidden = folder / f"{storage.UNFINISHED}shards"
    if torch.distributed.get_rank() == 0:
        shutil.rmtree(hidden, ignore_errors=True)
    torch.distributed.barrier()
    try:
        dcp.save(
            tensors(module, optimizers),
            storage_writer=dcp.HuggingFaceStorageWriter(str(hidden), save_distributed=True),
        )
    except dcp.CheckpointException as error:  # a BaseException
        raise OSError(f"{hidden}: {' '.join(str(error).split())}") from error
    return hidden


def read(path: Path, module: Distillation, optimizers: list[Optimizer]) -> None:
    """Fills networks and optimisers, spread or whole, from a sharded checkpoint, every key matched."""
    reader = dcp.HuggingFaceStorageReader(str(path))
    saved = set(reader.read_metadata().state_dict_metadata)
    for name, optimizer in zip(module.optimized, optimizers, strict=True):
        for key, weight in getattr(module, name).named_parameters():
            if f"{name}.{key}.step" in saved:
                empty = (torch.zeros((), device=weight.device), torch.zeros_like(weight), torch.zeros_like(weight))
                optimizer.state[weight] = dict(zip(MOMENTS, (x.detach() for x in empty), strict=True))
    wanted = tensors(module, optimizers)
    if odd := sorted(set(wanted) ^ saved):
        raise ValueError(f"{path}: {odd[:3]} is in the checkpoint or in the networks, not in both; delete it")
    dcp.load(wanted, storage_reader=reader, no_dist=not torch.distributed.is_initialized())


def read_network(path: Path, prefix: str, network: torch.nn.Module) -> None:
    """Fills a whole network with the weights that a sharded checkpoint holds under a prefix, every key matched."""
    weights = {prefix + key: value for key, value in network.state_dict().items()}
    dcp.load(weights, storage_reader=dcp.HuggingFaceStorageReader(str(path)), no_dist=True)
