"""Update sizes, independent decay, schedules and muP, against formulas."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from stabilityproxy import (
    adam_statistics,
    adam_update_rms,
    independent_weight_decay_,
    mup_groups,
    mup_init_,
    warmup_cosine,
)
from stabilityproxy.optimizers import _at_once, _in_blocks, _moments, parameter_names


def stepped(gradients, num_steps=3, **options):
    parameters = [nn.Parameter(torch.ones_like(gradient)) for gradient in gradients]
    optimizer = torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.0, **options)
    for _ in range(num_steps):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    return optimizer, parameters


@given(st.floats(1e-12, 1e3), st.floats(1e-12, 1e-2), st.integers(1, 5))
def test_a_constant_gradient_gives_its_share_of_epsilon(gradient, eps, num_steps):
    optimizer, _ = stepped([torch.full((3, 2), gradient, dtype=torch.float64)], num_steps, eps=eps)
    found = adam_statistics(optimizer)
    assert found.update_rms.item() == pytest.approx(gradient / (gradient + eps), rel=1e-6)
    assert found.second_moment_rms.item() == pytest.approx(gradient, rel=1e-6)
    assert found.eps_ratio.item() == pytest.approx(eps / gradient, rel=1e-6)


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"fused": True}, {"foreach": True}])
def test_updates_are_those_that_the_parameters_made(options):
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(shape, generator=generator) * 1e-3 for shape in ((300, 301), (7,), ())]
    optimizer, parameters = stepped(gradients, 2, eps=1e-3, betas=(0.5, 0.7), **options)
    before = [parameter.detach().double().clone() for parameter in parameters]
    for parameter in parameters:
        parameter.grad = 2 * parameter.grad
    optimizer.step()
    moved = [
        ((old - new.detach().double()) / 0.1).square().mean().sqrt().item()
        for old, new in zip(before, parameters, strict=True)
    ]
    assert [*adam_update_rms(optimizer).values()] == pytest.approx(moved, rel=2e-3)
    moments = _moments(optimizer, parameter_names(optimizer, None))
    for blocks, whole in zip(_in_blocks(moments), _at_once(moments), strict=True):
        torch.testing.assert_close(blocks, whole, rtol=1e-5, atol=0)


def test_half_precision_states_are_summed_in_single():
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(40_000, generator=generator)
    exact, _ = stepped([gradient], 1)
    half, _ = stepped([gradient.bfloat16()], 1)
    torch.testing.assert_close(
        adam_statistics(half).second_moment_rms, adam_statistics(exact).second_moment_rms, rtol=1e-2, atol=0
    )
    assert adam_statistics(half).update_rms.item() == pytest.approx(1.0, rel=1e-2)


def test_names_come_from_the_model_or_the_group():
    model = nn.Sequential(nn.Linear(2, 1), nn.Linear(2, 1))
    optimizer = torch.optim.Adam(
        [{"params": [model[1].weight]}, {"params": [model[0].weight, model[0].bias]}]
    )
    model[0](torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert [*adam_update_rms(optimizer, model)] == ["0.weight", "0.bias"]  # the other has no gradient yet
    assert [*adam_update_rms(optimizer)] == ["group1.0", "group1.1"]


def test_what_has_no_epsilon_or_no_state_is_named():
    layer = nn.Linear(2, 1)
    with pytest.raises(TypeError, match=r"must be torch.optim.AdamW or Adam, .* got SGD"):
        adam_update_rms(torch.optim.SGD(layer.parameters()))
    with pytest.raises(ValueError, match=r"optimizer must have made a step, its state is empty"):
        adam_statistics(torch.optim.AdamW(layer.parameters()))


@pytest.mark.parametrize("peak", [0.3, 0.02])
def test_independent_decay_follows_the_formula_whatever_the_peak(peak):
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(5, generator=generator, dtype=torch.float64)
    gradients = torch.randn(20, 5, generator=generator, dtype=torch.float64)
    parameter = nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([parameter], lr=peak, betas=(0.9, 0.95))
    independent_weight_decay_(optimizer, 0.01)
    factor = lambda step: warmup_cosine(step + 1, 5, 20, floor=0.1)  # noqa: E731
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    expected, first, second = start.clone(), torch.zeros(5).double(), torch.zeros(5).double()
    for index, gradient in enumerate(gradients, start=1):
        parameter.grad = gradient.clone()
        optimizer.step()
        scheduler.step()
        first, second = 0.9 * first + 0.1 * gradient, 0.95 * second + 0.05 * gradient**2
        update = first / (1 - 0.9**index) / ((second / (1 - 0.95**index)).sqrt() + 1e-8)
        share = factor(index - 1)
        expected = (1 - 0.01 * share) * expected - peak * share * update
    torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-7)


def test_the_total_decay_does_not_depend_on_the_peak():
    ends = []
    for peak in (1e-3, 1.0):
        parameter = nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = torch.optim.AdamW([parameter], lr=peak)
        independent_weight_decay_(optimizer, 0.02, peak)
        for _ in range(50):
            parameter.grad = torch.zeros(1, dtype=torch.float64)
            optimizer.step()
        ends.append(parameter.item())
    assert ends == pytest.approx([0.98**50] * 2, rel=1e-12)


def test_each_group_has_its_own_peak_and_none_stays_none():
    tensors = [nn.Parameter(torch.ones(1)) for _ in range(3)]
    groups = [
        {"params": tensors[0], "lr": 0.1},
        {"params": tensors[1], "lr": 0.4},
        {"params": tensors[2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.2, weight_decay=0.5)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)  # in warm-up: the rate itself is 0
    independent_weight_decay_(optimizer, 0.02)
    assert [group["weight_decay"] for group in optimizer.param_groups] == pytest.approx([0.2, 0.05, 0.0])
    independent_weight_decay_(optimizer, 0.02, [0.2, 0.1, 0.1])
    assert [group["weight_decay"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.2, 0.0])
    for peak in (0.0, -1.0, [0.1, 0.1, 0.0]):
        with pytest.raises(ValueError, match=r"peak_lr must be finite and > 0"):
            independent_weight_decay_(optimizer, 0.02, peak)
    with pytest.raises(ValueError, match=r"peak_lr must be one number or one a group, 3, got 2"):
        independent_weight_decay_(optimizer, 0.02, [0.1, 0.1])
    with pytest.raises(ValueError, match=r"lam must be finite and >= 0"):
        independent_weight_decay_(optimizer, -0.02)
    with pytest.raises(TypeError, match=r"must be AdamW, .* got Adam"):
        independent_weight_decay_(torch.optim.Adam(tensors), 0.02)


@pytest.mark.filterwarnings("ignore:The epoch parameter")  # torch 2.4 about itself
def test_the_schedule_is_torchs_own():
    """Against LinearLR and CosineAnnealingLR, one after the other."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.5)
    parts = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 4),
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 16, eta_min=0.05),
    ]
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, parts, milestones=[4])
    for step in range(20):
        assert warmup_cosine(step, 4, 20, 0.5, 0.05) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert warmup_cosine(25, 4, 20, 0.5, 0.05) == 0.05
    assert warmup_cosine(0, 0, 20) == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 20, 10), r"warmup must be at most total = 10, got 20"),
        ((1, 2, 10, 0.1, 0.2), r"floor must be at most peak = 0.1, got 0.2"),
        ((-1, 2, 10), r"step must be finite and >= 0, got -1"),
    ],
)
def test_bad_schedules_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        warmup_cosine(*arguments)


def model_of_width(width):
    layers = [
        nn.Embedding(9, width),
        nn.Linear(width, 4 * width),
        nn.Linear(4 * width, width),
        nn.LayerNorm(width),
    ]
    model = nn.Sequential(*layers)
    model.lm_head = nn.Linear(width, 9, bias=False)
    return model


def test_mup_scales_hidden_matrices_and_logits_by_the_width():
    model = model_of_width(64)
    found = mup_groups(model, 16, 0.01, head_dim=8)
    rates = {id(parameter): group["lr"] for group in found.groups for parameter in group["params"]}
    expected = {
        name: 0.01 / 4 if name in ("1.weight", "2.weight") else 0.01 for name, _ in model.named_parameters()
    }
    assert {name: rates[id(parameter)] for name, parameter in model.named_parameters()} == expected
    assert (found.logits_multiplier, found.attention_scale) == (0.25, 0.125)
    assert (found.hidden, found.output) == (("1.weight", "2.weight"), "lm_head.weight")
    assert {group["lr"] for group in mup_groups(model, 64, 0.01).groups} == {0.01}
    assert mup_groups(model, 64, 0.01).logits_multiplier == 1.0


@pytest.mark.parametrize("options", [{"rules": "simple"}, {"scale_output_lr": True}])
def test_mup_may_scale_the_rate_of_the_output_instead(options):
    model = model_of_width(64)
    found = mup_groups(model, 16, 0.01, **options)
    rates = {id(parameter): group["lr"] for group in found.groups for parameter in group["params"]}
    assert (rates[id(model.lm_head.weight)], found.logits_multiplier) == (0.0025, 1.0)


def test_a_tied_output_learns_as_the_embedding_does():
    model = model_of_width(64)
    model.lm_head.weight = model[0].weight
    found = mup_groups(model, 16, 0.01)
    rates = {id(parameter): group["lr"] for group in found.groups for parameter in group["params"]}
    assert (rates[id(model[0].weight)], found.output, found.logits_multiplier) == (0.01, None, 0.25)
    assert sum(len(group["params"]) for group in found.groups) == len([*model.parameters()])
    with pytest.raises(ValueError, match=r"scale_output_lr must be False where the output is tied"):
        mup_groups(model, 16, 0.01, scale_output_lr=True)


def test_mup_draws_hidden_matrices_by_their_fan_in():
    model = model_of_width(64)
    others = [model[0].weight.clone(), model.lm_head.weight.clone(), model[1].bias.clone()]
    mup_init_(model, mup_groups(model, 16, 0.01), generator=torch.Generator().manual_seed(0))
    assert model[1].weight.std().item() == pytest.approx(64**-0.5, rel=0.05)
    assert model[2].weight.std().item() == pytest.approx(256**-0.5, rel=0.05)
    for before, after in zip(others, (model[0].weight, model.lm_head.weight, model[1].bias), strict=True):
        assert torch.equal(before, after)


def test_activations_learn_at_the_same_speed_at_every_width():
    """What muP is for: after some steps of Adam, outputs have moved alike at widths 32 and 512."""
    moved = []
    for width in (32, 512):
        model = model_of_width(width)
        generator = torch.Generator().manual_seed(0)
        found = mup_groups(model, 32, 0.02)
        with torch.no_grad():
            model.lm_head.weight.zero_()
            model[0].weight.normal_(generator=generator)
        mup_init_(model, found, generator=generator)
        optimizer = torch.optim.AdamW(found.groups, weight_decay=0.0)
        ids = torch.arange(9)
        for _ in range(4):
            hidden = model[3](model[2](torch.relu(model[1](model[0](ids)))))
            logits = found.logits_multiplier * model.lm_head(hidden)
            loss = nn.functional.cross_entropy(logits, ids.flip(0))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        moved.append(loss.item())
    assert math.log(moved[0] / moved[1]) == pytest.approx(0, abs=0.3)
    assert moved[0] < 0.8 * math.log(9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_width": 0}, "base_width must be at least 1, got 0"),
        ({"lr": 0.0}, "lr must be finite and > 0"),
        ({"rules": "half"}, "rules must be one of .* got 'half'"),
        ({"output": "top"}, "output must name a module of the model, got 'top'"),
    ],
)
def test_bad_parametrisations_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        mup_groups(model_of_width(8), **({"base_width": 4, "lr": 0.1} | options))


def test_a_width_that_cannot_be_found_is_asked_for():
    with pytest.raises(ValueError, match=r"width must be given"):
        mup_groups(nn.Linear(4, 4), 2, 0.1)
    assert mup_groups(nn.Linear(4, 4), 2, 0.1, width=4).groups[0]["lr"] == 0.05


def test_an_output_that_is_not_recognised_is_asked_for_and_none_is_fine():
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 9))
    with pytest.raises(ValueError, match=r"output must name the module .* '2' looks like it"):
        mup_groups(model, 4, 0.1)
    assert mup_groups(model, 4, 0.1, output="2").hidden == ("1.weight",)
    assert mup_groups(model[:2], 4, 0.1).hidden == ("1.weight",)
