"""Writes distributed checkpoints as PyTorch does: started for each process by `test_dcp.py`.

Usage: python dcp_worker.py FOLDER RANK WORLD CHECKPOINT
"""

import argparse
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType, fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor


class Model(torch.nn.Module):
    """Modules nested by the dotted names of a state dict, which is sufficient for sharding."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, tensor in state.items():
            *path, leaf = name.split(".")
            module: torch.nn.Module = self
            for part in path:
                if part not in dict(module.named_children()):
                    module.add_module(part, torch.nn.Module())
                module = getattr(module, part)
            module.register_parameter(leaf, torch.nn.Parameter(tensor.clone()))


def main() -> None:
    folder, rank, world = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    state = torch.load(sys.argv[4], weights_only=True)["model"]
    args = argparse.Namespace(model="tiny", mask_ratio=0.6)

    sharded = Model(state)
    fully_shard(sharded, mesh=mesh)
    optimizer = {"state": {"norm.weight": {"exp_avg": torch.zeros(3)}}, "lr": 0.1}
    whole = {"model": sharded.state_dict(), "optimizer": optimizer, "epoch": 3, "args": args}
    dcp.save(whole, checkpoint_id=folder / "fsdp2")
    dcp.save({"app": whole}, checkpoint_id=folder / "app")
    torch.save({"model": sharded.state_dict()}, folder / f"part{rank}.pth")

    old = FullyShardedDataParallel(Model(state), device_id=torch.device("cpu"))
    for kind in (StateDictType.SHARDED_STATE_DICT, StateDictType.LOCAL_STATE_DICT):
        with FullyShardedDataParallel.state_dict_type(old, kind):
            name = kind.name.split("_")[0].lower()
            dcp.save({"model": old.state_dict()}, checkpoint_id=folder / name)

    options = StateDictOptions(full_state_dict=True)
    gathered = get_model_state_dict(old, options=options)
    if rank == 0:
        torch.save({"model": gathered}, folder / "gathered.pth")

    placed = {
        "columns": distribute_tensor(torch.arange(35.0).reshape(5, 7), mesh, [Shard(1)]),
        "copies": distribute_tensor(torch.arange(4, dtype=torch.int64), mesh, [Replicate()]),
        "half": distribute_tensor(torch.arange(6).to(torch.bfloat16), mesh, [Shard(0)]),
        "scalar": torch.tensor(2.5),
        "few": distribute_tensor(torch.arange(3.0).reshape(1, 3), mesh, [Shard(0)]),
    }
    dcp.save({"state_dict": placed}, checkpoint_id=folder / "placed")
    dist.barrier()
    os._exit(0)  # gloo's threads can abort a process that ends in the usual way


if __name__ == "__main__":
    main()
