"""The model inside of what users wrap it in, and what of it is stored, copied and averaged."""

import copy
import io

import pytest
import torch
import torch.distributed as dist
from improvedct_toys import Net
from torch import nn
from torch.optim.swa_utils import AveragedModel

from improvedct import Consistency, NoiseRange, consistency_loss, edit, ema_update, interpolate, sample
from improvedct.model import bare_of, find_bare


class Wrapper(nn.Module):
    """Like DistributedDataParallel, DeepSpeed's engine and many more."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


class Forwarding(Wrapper):
    """Like FullyShardedDataParallel, which hands attributes through."""

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.module, name)


def compiled(model):
    return torch.compile(model, backend="eager")


def x_of(model):
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.5


WRAPPINGS = {
    "bare": lambda m: m,
    "DataParallel": nn.DataParallel,
    "like DistributedDataParallel": Wrapper,
    "hands attributes through": Forwarding,
    "compiled": compiled,
    "average": AveragedModel,
    "compiled and then distributed": lambda m: Wrapper(compiled(m)),
    "distributed and then compiled": lambda m: compiled(Wrapper(m)),
    "average of all": lambda m: AveragedModel(compiled(Wrapper(m))),
}


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
def test_the_model_is_found_inside(wrap):
    """A range and a network of its own: whoever takes the wrapper for the model answers otherwise, or not at all."""
    model = Consistency(Net(3), NoiseRange(sigma_max=30.0))
    wrapped, x = wrap(model), x_of(model)
    found = bare_of(wrapped)
    assert isinstance(found, Consistency)
    assert found.noise_range.sigma_max == 30.0
    seeded = lambda: torch.Generator().manual_seed(0)  # noqa: E731
    losses = [consistency_loss(m, x, 11, generator=seeded()) for m in (model, wrapped)]
    assert losses[0].loss.item() == losses[1].loss.item()
    assert max(loss.sigma.max().item() for loss in losses) <= 30.0
    taus, known = (30.0, 0.8), torch.tensor([True, False, False])
    for call in (
        lambda m: sample(m, (2, 3), taus, generator=seeded()),
        lambda m: edit(m, x, known, taus, generator=seeded()),
        lambda m: interpolate(m, x, x.flip(0), torch.tensor([0.3])),
    ):
        torch.testing.assert_close(call(wrapped), call(model), rtol=0, atol=0)


def test_distributed_data_parallel_itself():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = Consistency(Net(3))
        wrapped = nn.parallel.DistributedDataParallel(model)
        assert bare_of(wrapped) is model
        consistency_loss(wrapped, x_of(model), 11, label=torch.tensor([0, 1, 2, 0])).loss.backward()
        assert model.net.weight.grad.abs().sum().item() > 0
    finally:
        dist.destroy_process_group()


class WithModule(Consistency):
    """A user's own model, with a part that is called `module`, and that could be taken for the model."""

    def __init__(self, net):
        super().__init__(net, NoiseRange(sigma_max=30.0))
        self.module = Consistency(Net(3, seed=5), NoiseRange(sigma_max=10.0))
        self._orig_mod = self.module


def test_an_attribute_called_module_is_the_users_own():
    model, x = WithModule(Net(3)), x_of(None)
    assert bare_of(model) is model
    assert bare_of(Wrapper(model)) is model
    loss = consistency_loss(model, x, 5, generator=torch.Generator().manual_seed(0))
    plain = Consistency(model.net, model.noise_range)
    assert (
        loss.loss.item()
        == consistency_loss(plain, x, 5, generator=torch.Generator().manual_seed(0)).loss.item()
    )
    sample(model, (2, 3), (30.0,))  # within its own range, beyond that of its part

    class Duck(nn.Module):  # nor where the range is the class's
        noise_range = NoiseRange()

        def __init__(self):
            super().__init__()
            self.module = model

    assert bare_of(duck := Duck()) is duck


@pytest.mark.parametrize("other", [nn.Linear(3, 3), Wrapper(nn.Linear(3, 3)), nn.DataParallel(nn.Identity())])
def test_what_is_no_model_is_named(other):
    assert find_bare(other) is None
    name = type(other).__name__
    for call in (lambda: consistency_loss(other, torch.randn(4, 3), 5), lambda: sample(other, (2, 3))):
        with pytest.raises(
            TypeError, match=f"model must be a Consistency, .* with a noise_range, .* got {name}"
        ):
            call()


# --- what is stored ------------------------------------------------------------------------------------------


def test_states_hold_the_users_network_and_the_range(model):
    consistency_loss(model, x_of(model), 11)  # keeps its grid, but not in the state
    state = model.state_dict()
    assert set(state) == {"_extra_state", *(f"net.{name}" for name in model.net.state_dict())}
    assert all(isinstance(value, torch.Tensor) for value in state.values())  # as safetensors wants them
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    other = Consistency(Net(3, seed=9))
    other.load_state_dict(torch.load(file, weights_only=True))
    x, sigma = x_of(model), torch.tensor([1.0, 20.0, 3.0, 0.1], dtype=torch.float64)
    torch.testing.assert_close(other(x, sigma), model(x, sigma))


@pytest.mark.parametrize(
    "change",
    [{"sigma_min": 0.02}, {"sigma_max": 20.0}, {"rho": 5.0}, {"sigma_data": 1.0}],
    ids=lambda c: next(iter(c)),
)
def test_a_state_of_another_range_does_not_load(model, change):
    other = Consistency(Net(3), NoiseRange(**change))
    for target, source in ((model, other), (other, model), (Wrapper(model), Wrapper(other))):
        with pytest.raises(
            ValueError, match=r"state_dict is that of a model with NoiseRange\(.*this one has"
        ):
            target.load_state_dict(source.state_dict())


def test_states_without_a_range_or_in_half_precision_load(model):
    old = {name: value for name, value in model.state_dict().items() if name != "_extra_state"}
    other = Consistency(Net(3, seed=9))
    other.load_state_dict(old)
    torch.testing.assert_close(other.net.weight, model.net.weight)
    Wrapper(other).load_state_dict({f"module.{name}": value for name, value in old.items()})
    other.load_state_dict({name: value.half() for name, value in model.state_dict().items()})


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    return file.getvalue()


def test_copies_and_files_carry_no_grid(model):
    size = len(saved(model))
    x = x_of(model)
    for n in (11, 641, 1281):
        consistency_loss(model, x, n)
    assert len(saved(model)) == size
    for again in (torch.load(io.BytesIO(saved(model)), weights_only=False), copy.deepcopy(model)):
        assert again._stage is None
        consistency_loss(again, x, 11).loss.backward()


def test_the_last_grid_alone_is_kept(model):
    options = torch.device("cpu"), torch.float64
    first = model.stage(11, *options)
    assert model.stage(11, *options) is first
    assert model.stage(21, *options).n == 21
    assert [value for value in vars(model).values() if value is first] == []
    model.noise_range = NoiseRange(sigma_max=10.0)
    assert model.stage(21, *options).sigmas[-1].item() == 10.0


# --- averages ------------------------------------------------------------------------------------------------


def stepped(model):
    """A model a step further: every parameter moved by 1/8."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.125)
    return other


def test_the_average_of_a_bfloat16_model_is_kept_in_float32():
    """0.001 of 1/8, next to weights of about 1, is far below what bfloat16 resolves."""
    model = Consistency(Net(3, dtype=torch.float32)).to(torch.bfloat16)
    average, further = copy.deepcopy(model).float(), stepped(model)
    wanted = average.net.weight + 0.001 * (further.net.weight.float() - average.net.weight)
    assert not torch.equal(wanted, average.net.weight)
    ema_update(average, further, 0.999)
    torch.testing.assert_close(average.net.weight, wanted)
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(ValueError, match=f"ema must be in float32, .* got {dtype}; start from .*float"):
            ema_update(copy.deepcopy(model).to(dtype), further, 0.999)
    copied = copy.deepcopy(model)
    ema_update(copied, further, 0.0)  # a copy needs no small steps
    assert torch.equal(copied.net.weight, further.net.weight)


def test_frozen_half_precision_and_integers_ride_along():
    model = Consistency(Net(3, dtype=torch.float32))
    model.net.base = nn.Parameter(torch.ones(2, dtype=torch.bfloat16), requires_grad=False)
    model.net.codes = nn.Parameter(torch.tensor([1, 2], dtype=torch.uint8), requires_grad=False)
    average, further = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        further.net.weight.add_(1)
        further.net.codes.add_(3)
    ema_update(average, further, 0.9)
    torch.testing.assert_close(average.net.weight, model.net.weight + 0.1)
    assert average.net.codes.tolist() == [4, 5]
    assert average.net.base.tolist() == [1, 1]


def test_the_average_may_be_torchs_and_must_not_be_the_model(model):
    average, further = AveragedModel(model), stepped(model)
    ema_update(average, further, 0.75)
    torch.testing.assert_close(average.module.net.weight, model.net.weight + 0.25 * 0.125)
    assert average.n_averaged.item() == 0
    with pytest.raises(ValueError, match="ema must be a copy of the model, got the model itself"):
        ema_update(model, model, 0.9)
    before = average.module.net.weight.clone()
    further.register_buffer("more", torch.zeros(2))
    with pytest.raises(ValueError, match="ema and model must have the same buffers"):
        ema_update(average, further, 0.9)
    assert torch.equal(average.module.net.weight, before)  # refused before anything is moved


def test_tied_parameters_move_once():
    """Moved twice, a tied weight would go (1 - 0.75^2) of the way instead of a quarter."""
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight = net[0].weight
    average, further = copy.deepcopy(net), stepped(net)
    ema_update(average, further, 0.75)
    torch.testing.assert_close(average[0].weight, net[0].weight + 0.25 * 0.125)
