"""The probe against dense logits, torch's own numbers, and training without it."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stabilityproxy import NamedValues, StabilityProbe


def loss_of(model, ids):
    return F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def train(model, ids, num_steps, optimizer=None, micro_batches=1):
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(num_steps):
        optimizer.zero_grad()
        for part in ids.chunk(micro_batches):
            loss_of(model, part).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    return model


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("key_heads", [4, 2])
def test_logits_and_entropies_are_the_dense_ones(decoder, ids, naive, fused, key_heads):
    model = decoder(fused=fused, key_heads=key_heads)
    with StabilityProbe(model, mode="exact") as probe:
        model(ids)
    reading = probe.read()
    assert reading.layers == ("attentions.0", "attentions.1")
    for index, attention in enumerate(model.attentions):
        by_head, entropy = naive(attention.seen[0])
        torch.testing.assert_close(reading.max_logit_by_head[index], by_head, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(reading.max_logit[index], by_head.max(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(reading.mean_entropy[index], entropy, rtol=1e-4, atol=1e-6)


def test_the_bound_is_above_and_the_sample_below_the_exact_logits(decoder, ids):
    model = decoder(dropout=0.0)
    found = {}
    for mode in ("exact", "sampled", "bound"):
        with StabilityProbe(model, mode=mode, num_queries=3) as probe:
            model(ids)
        found[mode] = probe.read()
    query, key = (model.attentions[0].q_proj, model.attentions[0].k_proj)
    hidden = model.embed(ids)
    # Rotation keeps lengths; heads share keys in pairs.
    lengths = [project(hidden).unflatten(-1, (-1, 4)).norm(dim=-1).amax(1) for project in (query, key)]
    bound = (lengths[0] * lengths[1].repeat_interleave(2, dim=1) / 2).amax(0)
    torch.testing.assert_close(found["bound"].max_logit_by_head[0], bound.detach().double())
    assert (found["bound"].max_logit >= found["exact"].max_logit).all()
    assert (found["sampled"].max_logit <= found["exact"].max_logit).all()
    assert (found["sampled"].max_logit > 0).all()
    assert found["bound"].mean_entropy.isnan().all()


@pytest.mark.parametrize("mode", ["sampled", "exact", "bound"])
def test_training_with_the_probe_is_the_same_bit_for_bit(decoder, ids, mode):
    torch.manual_seed(0)
    alone = train(decoder(), ids, 20)
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    model = decoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with StabilityProbe(model, optimizer, every=3, mode=mode, num_queries=4) as probe:
        train(model, ids, 20, optimizer)
    assert [reading.step for reading in probe.history] == [0, 3, 6, 9, 12, 15, 18]
    assert torch.equal(torch.random.get_rng_state(), state)
    for ours, theirs in zip(model.state_dict().values(), alone.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    assert all(
        not hooks
        for module in model.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
    )
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_gradients_updates_and_epsilon_are_those_of_the_step(decoder, ids):
    model = decoder(dropout=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-3, weight_decay=0.0)
    with StabilityProbe(model, optimizer) as probe:
        train(model, ids, 3, optimizer)
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        train(model, ids, 1, optimizer)
    reading = probe.read()
    for name, parameter in model.named_parameters():
        rms = parameter.grad.double().square().mean().sqrt().item()  # clipped, as it stayed
        assert reading.grad_rms[name] == pytest.approx(rms)
        step = (before[name] - parameter.detach()).double() / 1e-2
        assert reading.update_rms[name] == pytest.approx(step.square().mean().sqrt().item(), rel=1e-3)
        second = optimizer.state[parameter]["exp_avg_sq"].double() / (1 - 0.999**4)
        assert reading.eps_ratio[name] == pytest.approx(1e-3 / second.mean().sqrt().item(), rel=1e-5)
        assert reading.parameter_rms[name] == pytest.approx(
            parameter.detach().double().square().mean().sqrt().item()
        )


def test_the_log_partition_is_that_of_the_output(decoder, ids):
    model = decoder(dropout=0.0)
    log_z = model(ids).exp().sum(-1).log()
    for output in (None, "lm_head"):
        with StabilityProbe(model, output=output) as probe:
            model(ids)
        assert probe.read().log_z == pytest.approx(log_z.mean().item(), rel=1e-5)
        assert probe.read().log_z_rms == pytest.approx(log_z.square().mean().sqrt().item(), rel=1e-5)
    with StabilityProbe(model, num_queries=3) as probe:
        model(ids)
    assert probe.read().log_z == pytest.approx(log_z[:, [1, 4, 7]].mean().item(), rel=1e-5)


class Returns(nn.Module):
    """A model inside of one that returns something else."""

    def __init__(self, model, form):
        super().__init__()
        self.model, self.form = model, form

    def forward(self, ids):
        return self.form(self.model(ids))


@pytest.mark.parametrize(
    "form",
    [
        lambda logits: {"loss": logits.mean(), "logits": logits},
        lambda logits: (logits.mean(), logits),
        lambda logits: (logits, logits.mean()),
        lambda logits: type("Output", (), {"logits": logits, "loss": None})(),
    ],
)
def test_logits_are_found_in_whatever_is_returned(decoder, ids, form):
    model = decoder(dropout=0.0)
    with StabilityProbe(Returns(model, form)) as probe:
        probe.model(ids)
    assert probe.read().log_z == pytest.approx(model(ids).logsumexp(-1).mean().item(), rel=1e-5)
    assert probe.read().layers[0] == "model.attentions.0"


def test_a_model_that_returns_its_loss_alone_has_no_log_partition(decoder, ids):
    model = Returns(decoder(), lambda logits: logits.mean())
    with StabilityProbe(model) as probe:
        model(ids)
    assert (probe.read().log_z, probe.read().log_z_rms) == (None, None)
    with StabilityProbe(model, output="model.lm_head") as probe:
        model(ids)
    assert probe.read().log_z is not None


@pytest.mark.parametrize("flipped", [True, False])  # the largest logit is then in the first or in the last
def test_accumulated_micro_batches_are_one_step(decoder, ids, flipped):
    """All of the batch in one pass or in three: the same reading."""
    ids = ids.flip(0) if flipped else ids
    readings = []
    for micro_batches in (1, 3):
        model = decoder(dropout=0.0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        with StabilityProbe(model, optimizer) as probe:
            train(model, ids, 2, optimizer, micro_batches)
        assert len(probe.history) == 2
        readings.append(probe.history[0])
    whole, parts = readings
    torch.testing.assert_close(whole.max_logit, parts.max_logit)
    torch.testing.assert_close(whole.mean_entropy, parts.mean_entropy)
    assert whole.log_z == pytest.approx(parts.log_z)


def test_evaluation_is_left_out_with_an_optimizer_and_taken_without(decoder, ids):
    model = decoder(dropout=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with StabilityProbe(model, optimizer) as probe:
        loss_of(model, ids).backward()
        model.eval()
        with torch.no_grad():
            model(1 - ids.clamp_max(1))
        model.train()
        optimizer.step()
    with StabilityProbe(decoder(dropout=0.0), every=2) as alone, torch.inference_mode():
        for _ in range(4):
            alone.model(ids)
    torch.testing.assert_close(probe.read().max_logit, alone.history[0].max_logit)
    assert [reading.step for reading in alone.history] == [0, 2]


@pytest.mark.parametrize("fused", [True, False])
def test_a_gradient_scaler_is_taken_off(decoder, ids, fused):
    found = []
    for scale in (1.0, 1024.0):
        model = decoder(dropout=0.0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        with StabilityProbe(model, optimizer) as probe:
            scaler.scale(loss_of(model, ids)).backward()
            scaler.step(optimizer)
        found.append(dict(probe.read().grad_rms))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_under_autocast_what_is_read_is_single_precision(decoder, ids):
    model = decoder(dropout=0.0)
    with StabilityProbe(model) as exact:
        model(ids)
    with StabilityProbe(model) as probe, torch.autocast("cpu", torch.bfloat16):
        model(ids)
    torch.testing.assert_close(probe.read().max_logit, exact.read().max_logit, rtol=0.05, atol=0.05)
    assert probe.read().max_logit_by_head[0].dtype == torch.float64


@pytest.mark.filterwarnings("ignore:.*torch.cpu.amp.autocast")  # torch 2.4 about itself
def test_gradient_checkpointing_is_seen_once(decoder, ids):
    class Checkpointed(decoder):
        def forward(self, ids):
            hidden = self.embed(ids)
            for attention in self.attentions:
                hidden = hidden + torch.utils.checkpoint.checkpoint(attention, hidden, use_reentrant=False)
            return self.lm_head(hidden)

    class Plain(decoder):
        def forward(self, ids):
            hidden = self.embed(ids)
            for attention in self.attentions:
                hidden = hidden + attention(hidden)
            return self.lm_head(hidden)

    found = []
    for kind in (Checkpointed, Plain):
        model = kind()
        optimizer = torch.optim.AdamW(model.parameters())
        with StabilityProbe(model, optimizer) as probe:
            train(model, ids, 1, optimizer)
        found.append(probe.read())
    torch.testing.assert_close(found[0].max_logit, found[1].max_logit)
    assert dict(found[0].grad_rms) == pytest.approx(dict(found[1].grad_rms))


@pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="torch below 2.6")
def test_measured_steps_of_a_compiled_model_run_uncompiled(decoder, ids):
    model = decoder(dropout=0.0)
    for attention in model.attentions:
        attention.seen = Forgets()
    compiled = torch.compile(model, backend="eager")
    with StabilityProbe(compiled, every=2) as probe:
        for _ in range(4):
            compiled(ids)
    with StabilityProbe(model) as plain:
        model(ids)
    assert [reading.step for reading in probe.history] == [0, 2]
    assert probe.read().layers == ("attentions.0", "attentions.1")
    torch.testing.assert_close(probe.history[0].max_logit, plain.read().max_logit)
    torch._dynamo.reset()


class Forgets:
    def append(self, _):
        pass


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("separate", [True, False])
def test_torchs_own_attention_is_read(training, separate):
    generator = torch.Generator().manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, kdim=6 if separate else None, batch_first=True).train(training)
    with torch.no_grad():
        attention.in_proj_bias.normal_(generator=generator)
    source = torch.randn(3, 5, 8, generator=generator)
    context = (
        torch.randn(3, 7, 6, generator=generator) if separate else torch.randn(3, 7, 8, generator=generator)
    )
    hidden, padded = torch.ones(5, 7, dtype=torch.bool).triu(3), torch.zeros(3, 7, dtype=torch.bool)
    padded[0, :2] = True
    value = torch.randn(3, 7, 8, generator=generator)
    model = nn.ModuleDict({"attention": attention})
    model.forward = lambda: attention(
        source, context, value, attn_mask=hidden, key_padding_mask=padded, need_weights=training
    )
    with StabilityProbe(model, mode="exact") as probe:
        model()
    weights = (
        (attention.q_proj_weight, attention.k_proj_weight)
        if separate
        else attention.in_proj_weight.split(8)[:2]
    )
    biases = attention.in_proj_bias.split(8)
    query, key = (
        F.linear(x, weight, bias).unflatten(-1, (2, 4)).transpose(1, 2)
        for x, weight, bias in zip((source, context), weights, biases, strict=False)
    )
    logits = (query @ key.mT / 2).detach().masked_fill(hidden | padded[:, None, None], 0)
    torch.testing.assert_close(probe.read().max_logit_by_head[0], logits.abs().amax((0, 2, 3)).double())


def test_a_kernel_that_cannot_be_seen_is_named_and_can_be_handed_over(ids):
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.probe = nn.Linear(4, 12), None

        def forward(self, x):
            query, key, value = self.qkv(x).chunk(3, -1)
            if self.probe is not None:
                self.probe.observe("mine", query, key, is_causal=True)
            return (query @ key.mT).sigmoid() @ value

    model = nn.Sequential(nn.Embedding(11, 4), Hidden())
    with StabilityProbe(model), pytest.raises(ValueError, match=r"attention=\['1'\] attends by no call"):
        model(ids)
    for mode in ("exact", "bound"):
        with StabilityProbe(model, mode=mode) as model[1].probe:
            model(ids)
        query, key, _ = model[1].qkv(model[0](ids)).chunk(3, -1)
        logits = (query @ key.mT / 2).tril().abs().max()
        bound = (query.norm(dim=-1).amax(1) * key.norm(dim=-1).amax(1) / 2).max()
        reading = model[1].probe.read()
        assert reading.layers == ("mine",)
        assert reading.max_logit.item() == pytest.approx((logits if mode == "exact" else bound).item())
    model[1].probe.observe("mine", query, key)  # not measured any more
    assert len(model[1].probe.history) == 1


def test_a_probe_on_the_attention_itself(decoder):
    attention = decoder().attentions[0]
    with StabilityProbe(attention) as probe:
        attention(torch.ones(1, 4, 16))
    assert probe.read().max_logit.item() == pytest.approx(attention.seen[0].tril().abs().max().item())


def test_a_forward_pass_that_fails_leaves_everything_as_it_was(decoder, ids):
    model = decoder(dropout=0.0)
    with StabilityProbe(model) as probe:
        with pytest.raises(IndexError):
            model(ids + 100)
        broken = model.attentions[1].o_proj
        model.attentions[1].o_proj = nn.Linear(3, 3)
        with pytest.raises(RuntimeError, match=r"mat1 and mat2"):
            model(ids)
        assert not probe.history
        model.attentions[1].o_proj = broken
        F.scaled_dot_product_attention(*torch.ones(3, 1, 2, 4))  # the recorder is off
        model(ids)
    with StabilityProbe(decoder(dropout=0.0)) as other:
        other.model(ids)
    torch.testing.assert_close(probe.read().max_logit, other.read().max_logit)


def test_numbers_that_are_none_are_alarms(decoder, ids):
    model = decoder(dropout=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), eps=1.0)
    with torch.no_grad():
        model.attentions[1].q_proj.weight.fill_(math.nan)
    with StabilityProbe(model, optimizer) as probe:
        train(model, ids, 1, optimizer)
    reading = probe.read()
    assert reading.max_logit[1] == math.inf
    alarms = reading.alarms(max_logit=1e6)
    assert any("attentions.1 is above 1e+06" in alarm for alarm in alarms)
    assert not any("attentions.0 is" in alarm for alarm in alarms)
    assert any("epsilon is nan" in alarm or "epsilon is" in alarm for alarm in alarms)
    flat = reading.as_dict()
    assert flat["max_logit/attentions.0"] == reading.max_logit[0].item()
    assert flat["eps_ratio/lm_head.weight"] == pytest.approx(reading.eps_ratio["lm_head.weight"], nan_ok=True)


def test_alarms_begin_at_their_level(decoder, ids):
    model = decoder(dropout=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), eps=1e-12)
    with StabilityProbe(model, optimizer) as probe:
        train(model, ids, 1, optimizer)
    reading = probe.read()
    highest = reading.max_logit.max().item()
    assert reading.alarms(max_logit=highest) == []
    assert len(reading.alarms(max_logit=highest * 0.999)) == 1
    ratio = max(reading.eps_ratio.values())
    assert len(reading.alarms(eps_ratio=ratio * 0.999)) == 1


def test_the_largest_logit_after_the_warm_up(decoder, ids):
    model = decoder(dropout=0.0)
    with StabilityProbe(model, mode="exact") as probe:
        for scale in (20.0, 0.1, 2.0):
            with torch.no_grad():
                model.attentions[0].q_proj.weight.mul_(scale)
            model(ids)
    each = [reading.max_logit.max().item() for reading in probe.history]
    assert probe.max_logit_after(1) == max(each[1:])
    assert probe.max_logit_after() == max(each) > max(each[1:])
    with pytest.raises(ValueError, match=r"step must be at most that of the last reading, got 9"):
        probe.max_logit_after(9)


def test_a_deepcopy_is_not_probed(decoder, ids):
    model = decoder()
    probe = StabilityProbe(model).attach()
    twin = copy.deepcopy(decoder())
    twin(ids)
    assert not probe.history
    model(ids)
    probe.close()
    model(ids)
    assert len(probe.history) == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"attention": ["attentions.7"]},
            ValueError,
            r"attention must name modules .* got \['attentions.7'\]; candidates: \[",
        ),
        ({"attention": "all"}, ValueError, r"attention must be 'auto' or a list of module names, got 'all'"),
        ({"attention": []}, ValueError, r"attention must name modules"),
        ({"output": "head"}, ValueError, r"output must name a module of the model, got 'head'"),
        ({"every": 0}, ValueError, r"every must be at least 1, got 0"),
        ({"num_queries": 0}, ValueError, r"num_queries must be at least 1, got 0"),
        ({"mode": "dense"}, ValueError, r"mode must be one of .* got 'dense'"),
        ({"every": 2.5}, TypeError, r"every must be an integer, got 2.5"),
    ],
)
def test_bad_input_is_named(decoder, options, error, message):
    with pytest.raises(error, match=message):
        StabilityProbe(decoder(), **options)


def test_what_cannot_be_probed_is_named(decoder, ids):
    with pytest.raises(ValueError, match=r"none was recognised .* candidates: \['0'\]"):
        StabilityProbe(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(TypeError, match=r"optimizer must be torch.optim.AdamW or Adam, .* got SGD"):
        StabilityProbe(decoder(), torch.optim.SGD([torch.ones(1)]))
    compiled = decoder()
    compiled.compile(backend="eager")
    with pytest.raises(ValueError, match=r"compiled by torch.compile"):
        StabilityProbe(compiled)
    with pytest.raises(ValueError, match=r"no step has been measured"):
        StabilityProbe(decoder()).read()
    model = decoder()
    with StabilityProbe(model) as probe, pytest.raises(RuntimeError, match=r"attached already"):
        probe.attach()
    optimizer = torch.optim.AdamW(model.parameters())
    model(ids).sum().backward()
    with StabilityProbe(model, optimizer), pytest.raises(ValueError, match=r"model was not called"):
        optimizer.step()


def test_without_attention_the_rest_is_read():
    model = nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    with StabilityProbe(model, optimizer, attention=None) as probe:
        model(torch.ones(4, 2)).sum().backward()
        optimizer.step()
    assert probe.read().max_logit.shape == (0,)
    assert probe.read().grad_rms["bias"] == pytest.approx(4.0)
    with pytest.raises(ValueError, match=r"attention must not be None"):
        probe.max_logit_after()


def test_named_values_are_a_mapping():
    values = NamedValues(("a", "b"), torch.tensor([1.0, 2.0]))
    assert dict(values) == {"a": 1.0, "b": 2.0}
    assert len(values) == 2
    assert "c" not in values
    with pytest.raises(KeyError, match=r"c"):
        values["c"]


@pytest.mark.parametrize("first", [True, False])
def test_a_routers_softmax_does_not_count_beside_attention(decoder, ids, naive, first):
    model = decoder(fused=False, dropout=0.0)
    attention, plain = model.attentions[0], model.attentions[0].forward

    def routed(x):
        if first:
            (1e3 * x).softmax(-1)
        mixed = plain(x)
        (1e3 * x).softmax(-1)
        return mixed

    attention.forward = routed
    with StabilityProbe(model, mode="exact") as probe:
        model(ids)
    by_head, entropy = naive(attention.seen[0])
    torch.testing.assert_close(probe.read().max_logit_by_head[0], by_head, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(probe.read().mean_entropy[0], entropy, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("attention", ["auto", ["attentions.0", "attentions.1"]])
def test_layers_that_are_not_seen_are_named_once(decoder, ids, attention):
    model = decoder()
    model.attentions[1].forward = lambda x: x
    with StabilityProbe(model, attention=attention) as probe:
        with pytest.warns(UserWarning, match=r"nothing was seen of \['attentions.1'\] in step 0"):
            model(ids)
        model(ids)
    assert probe.read().layers == ("attentions.0",)
