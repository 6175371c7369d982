"""Two processes with half of every batch each end with the classifier of one process with all of it."""

import multiprocessing
import os
import sys
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from gacil import AnalyticClassifier, joint_solution

STEPS, GAMMA = 6, 0.3
LIMIT = timedelta(seconds=300)


def global_batches():
    generator = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        x = torch.randn(20, 12, generator=generator, dtype=torch.float64)
        yield x, torch.randint(1 + step, (20,), generator=generator)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def check_stream(rank, engine):
    """Reduce along the way, again without news, and after one rank has forgotten something for both."""
    classifier = AnalyticClassifier(12, gamma=GAMMA, engine=engine)
    seen = []
    for step, (x, y) in enumerate(global_batches()):
        seen.append((x, y))
        classifier.partial_fit(x[rank::2], y[rank::2])
        if step in (1, 3):
            close(classifier.all_reduce().weight, joint(seen))
    classifier.all_reduce().all_reduce()
    close(classifier.weight, joint(seen))
    labels = torch.cat([y for _, y in seen])
    assert classifier.class_counts.tolist() == torch.bincount(labels).tolist()
    assert int(classifier.num_samples) == len(labels)

    restored = AnalyticClassifier(12, engine=engine)
    restored.load_state_dict(classifier.state_dict())
    if rank == 1:
        restored.forget(*seen.pop())
    else:
        seen.pop()
    close(restored.all_reduce().weight[:, : STEPS - 1], joint(seen))


def joint(batches):
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return joint_solution(x, y, GAMMA)


def check_uneven_ranks(rank):
    """A rank that saw nothing, the other with classes the first has never met."""
    x, y = list(global_batches())[-1]
    classifier = AnalyticClassifier(12, gamma=GAMMA)
    if rank == 1:
        classifier.partial_fit(x, y)
    close(classifier.all_reduce().weight, joint_solution(x, y, GAMMA))


def check_disagreement(rank):
    """Every rank hears of it, or the others would wait for ever."""
    with pytest.raises(ValueError, match="of all ranks must have the same gamma"):
        AnalyticClassifier(12, gamma=1.0 + rank).all_reduce()
    with pytest.raises(ValueError, match="of all ranks must have the same in_features"):
        AnalyticClassifier(12 + rank).all_reduce()


def check_lost_recursion(rank):
    """One rank has nothing left to give; nobody waits for it."""
    classifier = AnalyticClassifier(12, engine="recursive")
    if rank == 1:
        state = classifier.state_dict()
        classifier.load_state_dict(state | {"engine.inverse": -state["engine.inverse"]})
    with pytest.raises(RuntimeError, match="the recursion of a rank is no longer positive definite"):
        classifier.all_reduce()


def run_rank(rank, path):
    torch.set_num_threads(1)
    store = dist.FileStore(path, 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=LIMIT)
    for engine in ("gram", "recursive"):
        check_stream(rank, engine)
    check_uneven_ranks(rank)
    check_disagreement(rank)
    check_lost_recursion(rank)
    # Not destroy_process_group: the gloo of torch 2.4 may wait for ever where both ranks close at once.
    store.set(f"rank {rank} is done", "")
    store.wait(["rank 0 is done", "rank 1 is done"], LIMIT)
    os._exit(0)


@pytest.mark.skipif(sys.platform != "linux", reason="ranks are forks of this process, torch imported")
@pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_two_ranks_are_one(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=run_rank, args=(rank, str(tmp_path / "store"))) for rank in range(2)]
    try:
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(LIMIT.total_seconds())
            assert rank.exitcode == 0
    finally:
        for rank in ranks:
            rank.kill()


@pytest.mark.parametrize("engine", ["gram", "recursive"])
def test_without_a_process_group_nothing_happens(engine):
    x, y = next(global_batches())
    classifier = AnalyticClassifier(12, gamma=GAMMA, engine=engine).partial_fit(x, y)
    before = classifier.weight.clone()
    assert torch.equal(classifier.all_reduce().weight, before)
