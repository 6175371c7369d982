"""What a hypernetwork keeps: its state, whatever decides its boxes, and going on where it was."""

import copy

import pytest
import torch
from torch import nn

from hyperinterval import IntervalHypernetwork, IntervalSchedule, boxes_and_regularizer, snapshot

SHAPES = {"0.weight": (8, 4), "0.bias": (8,), "2.weight": (3, 8), "2.bias": (3,)}


def make(mode="nested", eps=2.0, shapes=SHAPES, num_tasks=3, **options):
    generator = torch.Generator().manual_seed(options.pop("seed", 0))
    return IntervalHypernetwork(shapes, num_tasks, 6, (10,), mode, eps, generator=generator, **options)


@pytest.mark.parametrize("mode", ["nested", "free"])
def test_state_dict_round_trips_with_the_tasks_started_and_frozen(mode):
    hyper, fresh = make(mode, dtype=torch.float64), make(mode, dtype=torch.float64, seed=1)
    for task in range(2):
        hyper.start_task(task)
        hyper.embeddings[task].data.normal_()
        hyper.freeze(task)
    hyper.start_task(2)
    fresh.load_state_dict(hyper.state_dict())
    for name, value in hyper.universal().items():
        assert value.dtype == torch.float64
        assert torch.equal(fresh.universal()[name], value)
    assert [value.requires_grad for value in fresh.embeddings] == [False, False, True]
    assert [value.requires_grad for value in fresh.raw_radii] == [False, False, True][: len(fresh.raw_radii)]
    assert all(
        isinstance(value, torch.Tensor) for value in fresh.state_dict().values()
    )  # safetensors keeps it
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    net.load_state_dict(fresh.universal())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 9.0}, r"saved with eps=2\.0, this hypernetwork has eps=9\.0"),
        ({"mode": "free"}, "saved with mode='nested', this hypernetwork has mode='free'"),
        ({"num_tasks": 4}, "saved with num_tasks=3, this hypernetwork has num_tasks=4"),
        ({"shapes": {**SHAPES, "0.weight": (4, 8)}}, "saved with target_shapes="),
        (
            {"shapes": {name: SHAPES[name] for name in ("0.bias", "0.weight", "2.weight", "2.bias")}},
            "target_shapes=",
        ),
    ],
)
def test_a_state_of_another_configuration_is_refused_before_anything_is_loaded(options, message):
    other = make(seed=1, **options)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(make().state_dict())
    for name, value in other.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_state_that_is_none():
    state = make().state_dict()
    state["_extra_state"] = torch.tensor([1, 2, 3], dtype=torch.uint8)
    with pytest.raises(ValueError, match="_extra_state must be that of an IntervalHypernetwork"):
        make().load_state_dict(state)
    del state["_extra_state"]
    with pytest.raises(RuntimeError, match="_extra_state"):
        make().load_state_dict(state)


def test_inside_another_module_and_through_copies():
    holder, other = nn.ModuleDict({"hyper": make()}), nn.ModuleDict({"hyper": make(seed=1)})
    holder["hyper"].start_task(1)
    other.load_state_dict(holder.state_dict())
    assert [value.requires_grad for value in other["hyper"].embeddings] == [False, True, False]
    wrong = nn.ModuleDict({"hyper": make(eps=9.0)})
    with pytest.raises(ValueError, match="saved with eps"):
        wrong.load_state_dict(holder.state_dict())
    assert torch.equal(copy.deepcopy(holder["hyper"])(1)["2.bias"].lo, holder["hyper"](1)["2.bias"].lo)


def test_a_run_stopped_in_mid_task_goes_on_to_the_same_numbers():
    def steps(hyper, optimizer, pins, iterations):
        schedule = IntervalSchedule(6, eps=2.0)
        for iteration in iterations:
            boxes, regularizer = boxes_and_regularizer(hyper, 1, pins, eps=schedule.at(iteration)[0])
            loss = sum((box.hi - 0.3).square().sum() for box in boxes.values()) + regularizer
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def trained(hyper):
        return torch.optim.Adam([value for value in hyper.parameters() if value.requires_grad], lr=0.05)

    hyper = make()
    hyper.start_task(0)
    hyper.embeddings[0].data.normal_(generator=torch.Generator().manual_seed(5))
    hyper.freeze(0)
    hyper.start_task(1)
    pins, optimizer = snapshot(hyper, [0]), trained(hyper)
    steps(hyper, optimizer, pins, range(3))
    saved = copy.deepcopy((hyper.state_dict(), optimizer.state_dict()))
    steps(hyper, optimizer, pins, range(3, 6))

    resumed = make(seed=1)
    resumed.load_state_dict(saved[0])
    resumed.start_task(1)  # keeps what was learnt of the task
    optimizer = trained(resumed)
    optimizer.load_state_dict(saved[1])
    steps(resumed, optimizer, pins, range(3, 6))
    for name, value in hyper.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value)


def test_a_new_task_starts_from_the_embedding_before_it():
    hyper = make()
    for task in range(2):
        hyper.start_task(task)
        hyper.embeddings[task].data.normal_(generator=torch.Generator().manual_seed(task))
        hyper.freeze(task)
    hyper.start_task(2)
    assert torch.equal(hyper.embeddings[2], hyper.embeddings[1])
    assert not torch.equal(hyper.embeddings[2], hyper.embeddings[0])


def test_shared_parameters_are_made_once_and_returned_under_each_name():
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    net[2].weight = net[0].weight
    hyper = IntervalHypernetwork(net, 2, generator=torch.Generator().manual_seed(0))
    hyper.start_task(0)
    assert hyper(0).keys() == {"0.weight", "0.bias", "2.bias"}
    weights = hyper.universal()
    assert weights.keys() == net.state_dict().keys()
    assert torch.equal(weights["2.weight"], weights["0.weight"])
    net.load_state_dict(weights)
    x = torch.rand(3, 6)
    torch.testing.assert_close(torch.func.functional_call(net, weights, (x,)), net(x))
    assert net[2].weight is net[0].weight


def test_buffers_stay_the_targets_own():
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    hyper = IntervalHypernetwork(net, 1)
    hyper.start_task(0)
    missing = net.load_state_dict(hyper.universal(), strict=False)
    assert (
        {"1.running_mean", "1.running_var"}
        <= set(missing.missing_keys)
        <= {name for name, _ in net.named_buffers()}
    )
    assert not missing.unexpected_keys


def test_a_partly_frozen_target_is_refused_and_a_frozen_one_is_not():
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    net[0].requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"target_shapes has frozen parameters \('0.weight' and so on, 2 in all\)"
    ):
        IntervalHypernetwork(net, 1)
    head = {name: value.shape for name, value in net.named_parameters() if value.requires_grad}
    assert IntervalHypernetwork(head, 1).target_shapes.keys() == {"2.weight", "2.bias"}
    net.requires_grad_(False)
    assert len(IntervalHypernetwork(net, 1).target_shapes) == 4
