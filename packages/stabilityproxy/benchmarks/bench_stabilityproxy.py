"""stabilityproxy against what a competent user would pick instead: a group is exactly two cases on the same input."""

from functools import cache

import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from stabilityproxy import StabilityProbe, adam_update_rms, cross_entropy_with_z

both = pytest.mark.parametrize("case", ["ours", "peer"])

# --- the probe -------------------------------------------------------------------------------------

LAYERS, LENGTH = 2, 512


@cache
def problem(attention):
    """A Llama, its optimizer after a step, and a batch."""
    sizes = {"hidden_size": 256, "intermediate_size": 688, "num_attention_heads": 4, "vocab_size": 2048}
    config = LlamaConfig(num_hidden_layers=LAYERS, attn_implementation=attention, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    ids = torch.randint(2048, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    step(model, optimizer, ids)
    return model, optimizer, ids


def step(model, optimizer, ids, **options):
    output = model(input_ids=ids, use_cache=False, **options)
    F.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    optimizer.step()
    optimizer.zero_grad()
    return output


def train(num_steps):
    for _ in range(num_steps):
        step(*problem("sdpa"))


def probed(num_steps, optimizer=False, **options):
    model, optimizer_, _ = problem("sdpa")
    with StabilityProbe(model, optimizer_ if optimizer else None, **options) as probe:
        train(num_steps)
    return probe.history[0]


def entropies_of_eager_attention():
    """What transformers offers: all attention weights, for which fused attention must go."""
    attentions = step(*problem("eager"), output_attentions=True).attentions
    return torch.stack([torch.special.entr(each.detach()).sum(-1).mean() for each in attentions])


def logits_of_stored_products():
    """Hooks on the projections, and all of q k^T: rotated as the model does it."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    model, stored = problem("sdpa")[0], {}
    turn = model.model.rotary_emb(torch.zeros(1), torch.arange(LENGTH)[None])
    handles = [
        getattr(layer.self_attn, name).register_forward_hook(
            lambda module, inputs, output, key=(index, name): stored.update({key: output.detach()})
        )
        for index, layer in enumerate(model.model.layers)
        for name in ("q_proj", "k_proj")
    ]
    train(1)
    for handle in handles:
        handle.remove()
    largest = []
    for index in range(LAYERS):
        query, key = (
            stored[index, name].unflatten(-1, (4, 64)).transpose(1, 2) for name in ("q_proj", "k_proj")
        )
        query, key = apply_rotary_pos_emb(query, key, *turn)
        largest.append((query @ key.mT / 8).tril().abs().max())
    return torch.stack(largest)


@cache
def agree():
    exact = probed(1, mode="exact")
    torch.testing.assert_close(
        exact.mean_entropy.float(), entropies_of_eager_attention(), rtol=1e-3, atol=1e-3
    )
    torch.testing.assert_close(exact.max_logit.float(), logits_of_stored_products(), rtol=1e-3, atol=1e-4)
    # The sample misses some queries, never a key.
    torch.testing.assert_close(probed(1).max_logit, exact.max_logit, rtol=0.2, atol=0)
    assert (probed(1, mode="bound").max_logit >= exact.max_logit).all()
    # And training is training: nothing that the probe reads changes it.
    without = problem("sdpa")[0](problem("sdpa")[2]).logits
    with StabilityProbe(problem("sdpa")[0]):
        assert torch.equal(problem("sdpa")[0](problem("sdpa")[2]).logits, without)


SIZE = f"Llama, {LAYERS} layers, D = 256, 4 heads, {LENGTH} tokens"


def compare_probe(benchmark, case, ours, peer, name, size, rounds):
    agree()
    benchmark.extra_info.update(case=case, peer=name, size=f"{SIZE}, {size}")
    benchmark.pedantic({"ours": ours, "peer": peer}[case], rounds=rounds, warmup_rounds=1)


@both
@pytest.mark.benchmark(group="a measured training step")
def test_measured_step(benchmark, case):
    name = "eager attention with output_attentions=True"
    compare_probe(benchmark, case, lambda: probed(1), entropies_of_eager_attention, name, "64 queries", 6)


@both
@pytest.mark.benchmark(group="a measured training step, all logits")
def test_measured_step_all_logits(benchmark, case):
    name = "hooks on the projections and all of q k^T"
    ours = lambda: probed(1, mode="exact")  # noqa: E731
    compare_probe(benchmark, case, ours, logits_of_stored_products, name, "all queries", 6)


@both
@pytest.mark.benchmark(group="20 training steps, one of them measured")
def test_overhead(benchmark, case):
    ours = lambda: probed(20, optimizer=True, every=20)  # noqa: E731
    compare_probe(
        benchmark, case, ours, lambda: train(20), "training without a probe", "64 queries, AdamW", 4
    )


@both
@pytest.mark.benchmark(group="20 training steps, one of them measured by the bound")
def test_overhead_of_the_bound(benchmark, case):
    ours = lambda: probed(20, every=20, mode="bound")  # noqa: E731
    compare_probe(benchmark, case, ours, lambda: train(20), "training without a probe", "bound", 3)


# --- the loss --------------------------------------------------------------------------------------


@cache
def loss_problem():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(512, 32_000, generator=generator, requires_grad=True)
    return logits, torch.randint(32_000, (512,), generator=generator)


def our_loss(logits, targets):
    return torch.autograd.grad(cross_entropy_with_z(logits, targets, 1e-4), logits)[0]


def separate_losses(logits, targets):
    loss = F.cross_entropy(logits, targets) + 1e-4 * logits.logsumexp(-1).square().mean()
    return torch.autograd.grad(loss, logits)[0]


def one_logsumexp(logits, targets):
    log_z = logits.logsumexp(-1)
    wanted = logits.gather(-1, targets[:, None])[:, 0]
    return torch.autograd.grad((log_z - wanted + 1e-4 * log_z.square()).mean(), logits)[0]


def cross_entropy_alone(logits, targets):
    return torch.autograd.grad(F.cross_entropy(logits, targets), logits)[0]


@cache
def agree_on_losses():
    for peer in (separate_losses, one_logsumexp):
        torch.testing.assert_close(our_loss(*loss_problem()), peer(*loss_problem()), rtol=1e-4, atol=1e-8)
    alone = torch.autograd.grad(cross_entropy_with_z(*loss_problem(), 0.0), loss_problem()[0])[0]
    torch.testing.assert_close(alone, cross_entropy_alone(*loss_problem()), rtol=1e-4, atol=1e-8)


PEER_LOSSES = {
    separate_losses: "cross_entropy and the square of logsumexp",
    one_logsumexp: "one logsumexp for both, by autograd",
    cross_entropy_alone: "cross_entropy without a z-loss",
}


def compare_losses(benchmark, case, peer):
    agree_on_losses()
    benchmark.extra_info.update(
        case=case, peer=PEER_LOSSES[peer], size="512 tokens, V = 32,000, with gradient"
    )
    benchmark.pedantic({"ours": our_loss, "peer": peer}[case], loss_problem(), rounds=12, warmup_rounds=2)


@both
@pytest.mark.benchmark(group="cross-entropy with z-loss")
def test_loss(benchmark, case):
    compare_losses(benchmark, case, separate_losses)


@both
@pytest.mark.benchmark(group="cross-entropy with z-loss, by one logsumexp")
def test_loss_by_one_logsumexp(benchmark, case):
    compare_losses(benchmark, case, one_logsumexp)


@both
@pytest.mark.benchmark(group="cross-entropy with z-loss against cross-entropy alone")
def test_loss_alone(benchmark, case):
    compare_losses(benchmark, case, cross_entropy_alone)


# --- updates ---------------------------------------------------------------------------------------


@cache
def optimizer_problem():
    generator = torch.Generator().manual_seed(0)
    shapes = [(1000, 1000)] * 10 + [(1000,)] * 100
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    optimizer = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()
    return optimizer


def foreach_lines(optimizer):
    """The vectorised lines that anyone writes."""
    group = optimizer.param_groups[0]
    states = [optimizer.state[parameter] for parameter in group["params"]]
    step = states[0]["step"].item()
    beta1, beta2 = group["betas"]
    roots = torch._foreach_sqrt([state["exp_avg_sq"] for state in states])
    torch._foreach_div_(roots, (1 - beta2**step) ** 0.5)
    torch._foreach_add_(roots, group["eps"])
    updates = torch._foreach_div([state["exp_avg"] for state in states], roots)
    norms = torch._foreach_norm(updates)
    sizes = [update.numel() ** 0.5 for update in updates]
    return [norm.item() / size / (1 - beta1**step) for norm, size in zip(norms, sizes, strict=True)]


@both
@pytest.mark.benchmark(group="update sizes of 10 million parameters")
def test_update_sizes(benchmark, case):
    ours, peer = adam_update_rms(optimizer_problem()), foreach_lines(optimizer_problem())
    assert [*ours.values()] == pytest.approx(peer, rel=1e-3)  # the peer's norms are sums in float32
    benchmark.extra_info.update(
        case=case, peer="torch._foreach lines", size="110 tensors, 10.1 M parameters, CPU"
    )
    run = {"ours": adam_update_rms, "peer": foreach_lines}[case]
    benchmark.pedantic(run, (optimizer_problem(),), rounds=12, warmup_rounds=2)
