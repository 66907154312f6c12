"""One of two processes that train a model together: python torch_ddp_worker.py RANK STORE OUT."""

import sys
from pathlib import Path

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from torch_inputs import PRETRAIN, inputs

from mae_convert import save_model
from mae_convert.models import ViTMAEForPreTraining


def main(rank: int, store: str, out: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    model = DistributedDataParallel(ViTMAEForPreTraining.from_pretrained(PRETRAIN))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mine = slice(2 * rank, 2 * rank + 2)
    pixels, noise = inputs()
    for _ in range(3):
        optimizer.zero_grad()
        model(pixels[mine], noise=noise[mine]).loss.backward()
        optimizer.step()
    if rank == 0:
        save_model(model, out, "facebook")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
