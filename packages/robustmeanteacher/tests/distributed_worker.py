"""One of two processes that adapt together; as a script, `python distributed_worker.py FOLDER PORT`, the second."""

import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from robustmeanteacher import RobustMeanTeacher, RobustMeanTeacherConfig, source_prototypes

LIMIT = timedelta(seconds=300)  # of one wait for the other process


class Descent:
    """The least that an optimizer is; one of torch's own loads its compiler, which costs more than the whole test."""

    def __init__(self, parameters):
        self.param_groups = [{"params": parameters, "lr": 0.1}]

    def zero_grad(self):
        for parameter in self.param_groups[0]["params"]:
            parameter.grad = None

    @torch.no_grad()
    def step(self):
        for parameter in self.param_groups[0]["params"]:
            parameter -= 0.1 * parameter.grad

    def state_dict(self):
        return {}


def adapt_together(store, rank):
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=LIMIT)
    group = dist.group.WORLD
    torch.manual_seed(rank)  # every rank starts elsewhere, and is broadcast rank 0's weights
    model = nn.Linear(2, 2)
    adapter = RobustMeanTeacher(
        model,
        split=(nn.Identity(), model),
        make_optimizer=Descent,
        augment=lambda images: 0.9 * images,
        config=RobustMeanTeacherConfig(contrastive_weight=0.0, source_weight=0.0),
        process_group=group,
    )
    adapter(torch.rand(4, 2, generator=torch.Generator().manual_seed(rank)))
    parameters = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    bad = torch.full((4, 2), float("nan")) if rank == 1 else torch.ones(4, 2)
    try:
        adapter(bad)
        refused = False
    except ValueError:  # on both, although one rank's own batch is fine
        refused = all(
            torch.equal(parameters[name], parameter) for name, parameter in model.named_parameters()
        )

    # Class means over shards in which each rank has one class only.
    shard = [(torch.tensor([[1.0, 2.0], [3.0, 4.0]])[rank : rank + 1], torch.tensor([rank]))]
    prototypes = source_prototypes(lambda x: x, shard, 2, process_group=group)

    return {"parameters": parameters, "prototypes": prototypes, "refused": refused}


def main(folder, port):
    store = dist.TCPStore("127.0.0.1", port, timeout=LIMIT)
    torch.save(adapt_together(store, 1), Path(folder) / "1.pt")
    store.set("rank 1 is done", "")
    store.wait(["rank 0 is done"])
    os._exit(0)  # not destroy_process_group: gloo may wait for ever, or abort, where both ranks close at once


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
