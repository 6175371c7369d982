"""What users bring: networks of other libraries, half precision, stages of another range, too short a search."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from improvedct import Consistency, NoiseRange, Stage, consistency_loss, ternary_search_tau
from improvedct.loss import pair_loss


class Answering(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.form, self.scale = form, nn.Parameter(torch.tensor(2.0))

    def forward(self, x, c_noise):
        return self.form(self.scale * x)


@pytest.mark.parametrize("form", [lambda y: SimpleNamespace(sample=y), lambda y: (y, None), lambda y: [y]])
def test_an_answer_may_be_wrapped(form):
    x, sigma = torch.ones(2, 3), torch.tensor([1.0, 5.0])
    plain = Consistency(Answering(lambda y: y))(x, sigma)
    torch.testing.assert_close(Consistency(Answering(form))(x, sigma), plain)


@pytest.mark.parametrize("answer", [None, {"sample": torch.ones(2, 3)}, ("text",)])
def test_another_answer_is_named(answer):
    with pytest.raises(TypeError, match=rf"net must return a tensor.*got {type(answer).__name__}"):
        Consistency(Answering(lambda y: answer))(torch.ones(2, 3), torch.ones(2))


class Recording(nn.Module):
    """Keeps what it is given, and answers with it."""

    noise_range = NoiseRange()

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, sigma):
        self.seen.append(x)
        return x.float()


def test_neighbours_in_bfloat16_are_rounded_once():
    stage, model = Stage(1281), Recording()
    index = torch.tensor([1200])
    x, noise = torch.tensor([[0.3]]).bfloat16(), torch.tensor([[1.7]]).bfloat16()
    pair_loss(model, x, noise, index, stage)
    lower, upper = stage.sigmas[1200], stage.sigmas[1201]
    assert lower.bfloat16() == upper.bfloat16() or abs(float(upper / lower) - 1) < 0.01
    wanted = [(x.float() + sigma * noise.float()).bfloat16() for sigma in (upper, lower)]
    assert [seen.dtype for seen in model.seen] == [torch.bfloat16] * 2
    assert torch.equal(torch.cat(model.seen), torch.cat(wanted))


def test_the_noise_of_neighbours_differs_where_their_levels_are_one_number_in_bfloat16():
    stage, model = Stage(1281), Recording()
    same = (stage.sigmas[:-1].bfloat16() == stage.sigmas[1:].bfloat16()).nonzero().squeeze(1)
    assert len(same) > 0
    index = same[-1:].expand(256)
    noise = torch.randn(256, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    pair_loss(model, torch.zeros(256, 8).bfloat16(), noise, index, stage)
    upper, lower = model.seen
    assert (upper != lower).any()


def test_a_stage_of_another_range_is_named():
    model = Consistency(Answering(lambda y: y), NoiseRange(sigma_max=10.0))
    with pytest.raises(ValueError, match=r"n must be a Stage of the model's NoiseRange\(.*sigma_max=10"):
        consistency_loss(model, torch.randn(8, 3), Stage(5))


@pytest.mark.parametrize(("sign", "end", "best"), [(-1, "10", 7.384), (1, "0.1", 0.1354)])
def test_a_search_that_ends_at_an_end_says_so(sign, end, best):
    with pytest.warns(UserWarning, match=rf"ended at the end of its range, {end}: the metric may be smaller"):
        tau, value = ternary_search_tau(lambda tau: sign * tau, 0.1, 10.0, num_steps=5)
    assert tau == pytest.approx(best, abs=1e-3)
    assert value == sign * tau
