"""The same numbers from elsewhere: loops, closed forms, scikit-learn, torch, hand counts."""

import copy
import math

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import nn
from torch.nn.functional import cosine_similarity, gumbel_softmax, kl_div

from timex_explain import (
    MaskGenerator,
    Objective,
    Replacement,
    SequenceEncoder,
    TimeX,
    attribution,
    auroc,
    connectedness_loss,
    encode_positions,
    freq_shapes,
    gradient_times_input,
    integrated_gradients,
    label_consistency,
    low_variance,
    mbc_loss,
    occlusion_curve,
    occlusion_saliency,
    saliency_scores,
    seq_comb,
    simclr_loss,
    sparsity_loss,
    straight_through_bernoulli,
)
from timex_explain._classifier import may_recur
from timex_explain._transformer import DecoderLayer, EncoderLayer

LENGTH, NUM_FEATURES = 12, 3


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- losses against loops --------------------------------------------------------------------------


def test_mbc_is_the_mean_over_all_pairs():
    z, other = normal(5, 4), normal(5, 3, seed=1)
    pairs = [
        (cosine_similarity(z[i], z[j], dim=0) - cosine_similarity(other[i], other[j], dim=0)) ** 2
        for i in range(5)
        for j in range(5)
    ]
    torch.testing.assert_close(mbc_loss(z, other), torch.stack(pairs).mean())
    similarity = torch.stack([cosine_similarity(z[i], z[j], dim=0) for i in range(5) for j in range(5)])
    torch.testing.assert_close(
        mbc_loss(z, other, normalized=True), torch.stack(pairs).mean() / similarity.var()
    )


def test_simclr_is_minus_the_log_of_own_over_others():
    z, other = normal(4, 3), normal(4, 3, seed=1)
    scores = [[math.exp(cosine_similarity(other[i], z[j], dim=0) / 0.5) for j in range(4)] for i in range(4)]
    loss = -sum(math.log(scores[i][i] / (sum(scores[i]) - scores[i][i])) for i in range(4)) / 4
    assert float(simclr_loss(z, other, temperature=0.5)) == pytest.approx(loss)


def pairwise_js(logits):
    """Textbook: the mean of the divergences of both predictions from their mean."""
    prob = logits.softmax(-1)
    found = []
    for i in range(len(prob)):
        for j in range(i + 1, len(prob)):
            mean = (prob[i] + prob[j]) / 2
            found.append(
                ((prob[i] * (prob[i] / mean).log()).sum() + (prob[j] * (prob[j] / mean).log()).sum()) / 2
            )
    return torch.stack(found)


def test_label_consistency_and_its_gradient_are_those_of_all_pairs():
    logits, other = 2 * normal(7, 3), (2 * normal(7, 3, seed=1)).requires_grad_()
    naive = (pairwise_js(other) - pairwise_js(logits)).square().mean()
    ours = label_consistency(logits, other, chunk_rows=3)
    torch.testing.assert_close(ours, naive)
    torch.testing.assert_close(torch.autograd.grad(ours, other)[0], torch.autograd.grad(naive, other)[0])


def test_the_official_label_consistency_compares_two_numbers():
    logits, other = normal(6, 4), normal(6, 4, seed=1)
    numbers = []
    for values in (other, logits):
        log_prob = values.log_softmax(-1)
        total = []
        for i in range(6):
            for j in range(i + 1, 6):
                mean = (log_prob[i].exp() + log_prob[j].exp()) / 2
                total.append(sum(kl_div(log_prob[k], mean, reduction="none") for k in (i, j)) / 2)
        numbers.append(torch.stack(total).mean())
    expected = (numbers[0] - numbers[1]) ** 2
    torch.testing.assert_close(label_consistency(logits, other, official=True), expected)


def test_sparsity_is_the_divergence_of_two_coins():
    prob = torch.tensor([[[0.2, 0.9], [0.5, 0.7]]], dtype=torch.float64)
    ours = torch.distributions.Bernoulli(prob)
    theirs = torch.distributions.Bernoulli(torch.tensor(0.3, dtype=torch.float64))
    expected = torch.distributions.kl_divergence(ours, theirs).mean()
    torch.testing.assert_close(sparsity_loss(prob, 0.3), expected, atol=1e-5, rtol=0)


def test_connectedness_of_a_mask_by_hand():
    prob = torch.tensor([[[0.0], [1.0], [0.5], [0.5]]])
    assert float(connectedness_loss(prob)) == 0.5  # (1 + 1/2 + 0) / 3
    assert float(connectedness_loss(prob, mode="official")) == pytest.approx(math.sqrt(1.25) / 3)
    padding = torch.tensor([[False, False, True, True]])
    assert float(connectedness_loss(prob, padding=padding)) == 1.0  # one step is left


# --- masks against torch and closed forms ----------------------------------------------------------


def test_the_draw_is_distributed_as_torchs_gumbel_softmax():
    prob = torch.tensor(0.3, dtype=torch.float64).expand(20000)
    ours = straight_through_bernoulli(prob, 0.7, hard=False, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = gumbel_softmax(torch.stack([1 - prob, prob], -1).log(), tau=0.7)[..., 1]
    distance = (ours.sort().values - theirs.sort().values).abs().mean()  # Wasserstein
    assert distance < 0.01


def test_positions_are_waves_of_geometric_scales():
    times = torch.tensor([[0.0, 2.5, 7.0]], dtype=torch.float64)
    code = encode_positions(times, 6, base=100.0)
    for i, scale in enumerate((1.0, 10.0, 100.0)):
        torch.testing.assert_close(code[..., i], (times / scale).sin())
        torch.testing.assert_close(code[..., 3 + i], (times / scale).cos())


def copy_layer(ours, theirs):
    """Give torch's layer the parameters of ours."""
    attentions = [(ours.attention, theirs.self_attn)]
    if isinstance(ours, DecoderLayer):
        attentions.append((ours.cross_attention, theirs.multihead_attn))
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, dtype=parameter.dtype))
        for mine, other in attentions:
            other.in_proj_weight.copy_(mine.project_in.weight)
            other.in_proj_bias.copy_(mine.project_in.bias)
            other.out_proj.load_state_dict(mine.project_out.state_dict())
        theirs.linear1.load_state_dict(ours.feedforward[0].state_dict())
        theirs.linear2.load_state_dict(ours.feedforward[3].state_dict())
        for number, norm in enumerate(ours.norms, 1):
            getattr(theirs, f"norm{number}").load_state_dict(norm.state_dict())


@pytest.mark.filterwarnings("ignore:.*nested tensor.*")
def test_transformer_layers_are_torchs():
    x, memory = normal(3, 6, 10), normal(3, 4, 10, seed=1)
    padding = torch.arange(6) >= torch.tensor([[6], [3], [5]])
    options = {"batch_first": True, "dtype": torch.float64}
    encoder, theirs = (
        EncoderLayer(10, 8, 0.1, dtype=torch.float64),
        nn.TransformerEncoderLayer(10, 1, 8, **options),
    )
    copy_layer(encoder, theirs)
    expected = theirs.eval()(x, src_key_padding_mask=padding)
    torch.testing.assert_close(encoder.eval()(x, padding)[~padding], expected[~padding])
    decoder, theirs = (
        DecoderLayer(10, 8, 0.1, dtype=torch.float64),
        nn.TransformerDecoderLayer(10, 1, 8, **options),
    )
    copy_layer(decoder, theirs)
    expected = theirs.eval()(x, memory, tgt_key_padding_mask=padding, memory_key_padding_mask=padding[:, :4])
    torch.testing.assert_close(
        decoder.eval()(x, memory, padding, padding[:, :4])[~padding], expected[~padding]
    )


def test_one_sensor_has_a_softmax_over_two_and_several_have_sigmoids():
    for sensors in (1, 3):
        generator = MaskGenerator(sensors, dtype=torch.float64).eval()
        x, memory = normal(2, 5, sensors), normal(2, 5, sensors + 16, seed=1)
        caught = []
        generator.head.register_forward_hook(lambda *call, caught=caught: caught.append(call[-1]))
        prob = generator(x, memory).prob
        scores = caught[0]
        expected = scores.softmax(-1)[..., 1:] if sensors == 1 else scores.sigmoid()
        torch.testing.assert_close(prob, expected)
        assert torch.equal(generator.head.bias, torch.full_like(generator.head.bias, 0.01))
        limit = math.sqrt(6 / sum(generator.head.weight.shape))
        assert generator.head.weight.abs().max() <= limit


def test_replacement_takes_the_statistics_of_every_point_and_sensor():
    x = normal(8, 4, 2)
    replacement = Replacement.fit(x)
    torch.testing.assert_close(replacement.mean, x.mean(0))
    torch.testing.assert_close(replacement.std, x.std(0))
    draws = replacement.draw(x[:1].expand(4000, -1, -1), torch.Generator().manual_seed(0))
    assert ((draws.mean(0) - x.mean(0)).abs() < 5 * x.std(0) / 4000**0.5).all()
    torch.testing.assert_close(draws.std(0), x.std(0), rtol=0.1, atol=0)

    padding = torch.zeros(8, 4, dtype=torch.bool)
    padding[5:, 2], padding[1:, 3] = True, True  # five series reach the third point, one the last
    partial = Replacement.fit(x.masked_fill(padding.unsqueeze(-1), 99.0), padding)
    torch.testing.assert_close(partial.mean[2], x[:5, 2].mean(0))
    torch.testing.assert_close(partial.std[2], x[:5, 2].std(0))
    torch.testing.assert_close(partial.mean[3], x[0, 3])
    assert torch.equal(partial.std[3], torch.zeros(2, dtype=torch.float64))


# --- the explainer ---------------------------------------------------------------------------------


def test_the_classifier_is_not_touched_and_its_copy_never_changes(series, recurrent):
    x, _, replacement = series
    model = recurrent().double().train()
    before = copy.deepcopy(model.state_dict())
    explainer = TimeX(model, replacement, embed="head", embed_side="input", num_landmarks=4)
    logits = explainer.eval()(x).logits
    torch.testing.assert_close(logits, model.eval()(x))
    model.train()
    explainer.train()
    optimizer = torch.optim.SGD([p for p in explainer.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        loss = explainer.losses(explainer(x))["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert not explainer.reference.training
    assert all(p.grad is None for p in explainer.reference.parameters())
    assert torch.equal(explainer.eval()(x).logits, logits)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not model.head._forward_pre_hooks
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
        assert torch.equal(value, explainer.reference.state_dict()[name])
    trained = dict(explainer.encoder.named_parameters())
    assert any(not torch.equal(value, before[name]) for name, value in trained.items())


def test_explanations_are_per_series_and_deterministic_even_in_training_mode(series, make_explainer):
    x, _, _ = series
    explainer = make_explainer().train()
    saliency = explainer.explain(x)
    assert explainer.training
    assert explainer.sequence_encoder.training
    assert not saliency.requires_grad
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(explainer.explain(x[order]), saliency[order])
    torch.testing.assert_close(explainer.explain(x[:1]), saliency[:1])
    torch.testing.assert_close(explainer.explain(x, batch_size=5), saliency)
    torch.testing.assert_close(explainer.eval()(x).prob, saliency)


def test_a_pass_is_made_of_its_parts(series, make_explainer):
    x, _, replacement = series
    explainer = make_explainer().eval()
    out = explainer(x, generator=torch.Generator().manual_seed(5))
    source = torch.Generator().manual_seed(5)
    times = torch.arange(1.0, LENGTH + 1, dtype=x.dtype).expand(len(x), -1)
    standard = replacement.standardize(x)
    mask = explainer.mask_generator(standard, explainer.sequence_encoder(standard, times), generator=source)
    assert torch.equal(out.mask, mask.sample)
    seen = replacement(x, mask.sample, source)
    caught = []
    with torch.no_grad():
        hook = explainer.encoder.head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        explainer.encoder(seen)
        hook.remove()
    torch.testing.assert_close(out.z_explanation, caught[0])
    torch.testing.assert_close(out.logits_explanation, explainer.head(caught[0]))
    nearest = cosine_similarity(caught[0].unsqueeze(1), explainer.landmarks, dim=-1).argmax(1)
    assert torch.equal(out.assignment, nearest)
    torch.testing.assert_close(out.z_landmark, explainer.landmarks[nearest])


def test_the_total_is_the_weighted_sum_of_the_papers_terms(series, make_explainer):
    x, _, _ = series
    explainer = make_explainer().train()
    out = explainer(x, generator=torch.Generator().manual_seed(0))
    terms = explainer.losses(out)
    torch.testing.assert_close(terms["consistency"], mbc_loss(out.z, out.z_explanation))
    torch.testing.assert_close(terms["landmark"], mbc_loss(out.z, out.z_landmark))
    torch.testing.assert_close(terms["label"], label_consistency(out.logits, out.logits_explanation))
    torch.testing.assert_close(terms["sparsity"], sparsity_loss(out.prob, 0.5))
    torch.testing.assert_close(
        terms["connectedness"], connectedness_loss(out.prob, mode=explainer.objective.connectedness_mode)
    )
    behaviour = terms["consistency"] + terms["landmark"] + terms["label"]
    mask = 2 * (terms["sparsity"] + 2 * terms["connectedness"])
    torch.testing.assert_close(terms["total"], mask + behaviour)

    trained = {name: p for name, p in explainer.named_parameters() if p.requires_grad}

    def parameters_moved_by(term):
        moved = torch.autograd.grad(terms[term], list(trained.values()), allow_unused=True, retain_graph=True)
        return {name for name, g in zip(trained, moved, strict=True) if g is not None and g.abs().sum() > 0}

    assert parameters_moved_by("landmark") == {"landmarks"}  # the side branch moves nothing else
    assert "landmarks" not in parameters_moved_by("consistency") | parameters_moved_by("label")
    assert any(name.startswith("mask_generator") for name in parameters_moved_by("consistency"))
    assert any(name.startswith("explanation_encoder") for name in parameters_moved_by("consistency"))
    assert all(
        name.startswith(("mask_generator", "sequence_encoder")) for name in parameters_moved_by("sparsity")
    )


@pytest.mark.parametrize(
    ("objective", "zero"),
    [
        (Objective(consistency="none"), {"consistency"}),
        (Objective(label=0), {"label"}),
        (Objective(landmark=0), {"landmark"}),
        (Objective(consistency="simclr", label_mode="official", connectedness_mode="l1"), set()),
    ],
)
def test_ablations_leave_out_what_they_say(series, make_explainer, objective, zero):
    x, _, _ = series
    explainer = make_explainer(objective=objective).train()
    terms = explainer.losses(explainer(x))
    assert {name for name, value in terms.items() if float(value.detach()) == 0} == zero
    terms["total"].backward()


def test_variants_of_the_encoder(series, make_explainer, recurrent):
    x, _, _ = series
    shared = make_explainer(encoder="shared")
    assert shared.encoder is shared.reference
    assert not any(name.startswith("explanation_encoder") for name in shared.state_dict())
    shared.losses(shared(x))["total"].backward()
    assert all(p.grad is None for p in shared.reference.parameters())
    untrained = recurrent().double()
    assert make_explainer(encoder=untrained).encoder is untrained
    copied = make_explainer()
    for mine, other in zip(copied.encoder.parameters(), copied.reference.parameters(), strict=True):
        assert torch.equal(mine, other)
        assert mine is not other
        assert mine.requires_grad
    soft = make_explainer(hard=False).train()(x).mask
    assert ((soft > 0) & (soft < 1)).all()


def test_embed_may_be_a_callable_the_output_of_a_module_or_the_input_of_one(series, make_explainer):
    x, _, _ = series

    def embed(model, series):
        states, _ = model.rnn(series)
        z = model.drop(states.sum(1))
        return model.head(z), z

    outputs = [
        make_explainer(embed=embed).eval()(x),
        make_explainer(embed="drop", embed_side="output").eval()(x),
        make_explainer().eval()(x),
    ]
    for out in outputs[1:]:
        assert torch.equal(out.z, outputs[0].z)
        assert torch.equal(out.logits, outputs[0].logits)


def test_the_decoder_may_look_at_states_of_the_classifier_or_of_a_module(series, make_explainer):
    x, _, _ = series
    borrowed = make_explainer(memory="rnn")
    assert borrowed.sequence_encoder is None
    assert borrowed.mask_generator.project_memory.in_features == 10
    own = SequenceEncoder(NUM_FEATURES, position_size=4, dtype=torch.float64)
    for explainer in (borrowed, make_explainer(memory=own)):
        torch.testing.assert_close(explainer.eval()(x).prob, explainer.explain(x))
        explainer.train().losses(explainer(x))["total"].backward()
        assert all(p.grad is None for p in explainer.reference.parameters())


def test_attention_masking_leaves_the_values_and_gates_the_attention(series, make_explainer, attentive):
    x, _, _ = series
    options = {"model": attentive, "extra_inputs": {"attention": "gate"}}
    for masking in ("attention", "both"):
        explainer = make_explainer(masking=masking, **options).eval()
        out = explainer(x, generator=torch.Generator().manual_seed(3))
        point = out.mask.any(-1).double()
        gate = point.unsqueeze(1) * point.unsqueeze(2)
        source = torch.Generator().manual_seed(3)
        torch.rand(out.mask.shape, dtype=x.dtype, generator=source)
        seen = explainer.replacement(x, out.mask, source) if masking == "both" else x
        z = (((seen @ seen.mT).softmax(-1) * gate) @ explainer.encoder.value(seen)).mean(1)
        torch.testing.assert_close(out.z_explanation, z)


def test_times_and_padding_reach_the_classifier_and_padding_is_left_alone(series, make_explainer):
    x, y, _ = series
    extra = {"times": "stamps", "padding": "lengths_mask"}
    explainer = make_explainer(extra_inputs=extra).eval()
    times = torch.linspace(0, 30, LENGTH, dtype=x.dtype).expand(len(x), -1)
    padding = torch.arange(LENGTH) >= torch.arange(4, 20).clamp_max(LENGTH).unsqueeze(1)
    out = explainer(x, times, padding, torch.Generator().manual_seed(0))
    torch.testing.assert_close(out.logits, explainer.reference(x, padding, times))
    assert (out.prob[padding] == 0).all()
    assert (out.mask[padding] == 0).all()
    saliency = explainer.explain(x, times, padding)
    torch.testing.assert_close(saliency, out.prob)
    noisy = torch.where(padding.unsqueeze(-1), 50.0, x)
    torch.testing.assert_close(explainer.explain(noisy, times, padding), saliency)
    assert not torch.allclose(explainer.explain(x, 2 * times, padding), saliency)
    explainer.init_landmarks([(x, y, times, padding)])
    assert torch.isin(explainer.landmarks, out.z).all()


def test_state_dict_makes_the_round_trip_through_safetensors(series, make_explainer, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    x, _, _ = series
    explainer = make_explainer()
    optimizer = torch.optim.SGD([p for p in explainer.parameters() if p.requires_grad], lr=0.1)
    explainer.losses(explainer(x))["total"].backward()
    optimizer.step()
    safetensors.save_file(explainer.state_dict(), tmp_path / "explainer.safetensors")
    fresh = make_explainer()
    assert not torch.equal(fresh.explain(x), explainer.explain(x))
    fresh.load_state_dict(safetensors.load_file(tmp_path / "explainer.safetensors"))
    assert torch.equal(fresh.explain(x), explainer.explain(x))
    outputs = [one.eval()(x, generator=torch.Generator().manual_seed(0)) for one in (fresh, explainer)]
    assert all(torch.equal(a, b) for a, b in zip(*(out[:8] for out in outputs), strict=True))


@pytest.mark.filterwarnings("ignore:.*autocast.*")
def test_autocast_and_half_precision_give_finite_losses(series, recurrent):
    x, y, _ = series
    x = x.float()
    explainer = TimeX(recurrent(), Replacement.fit(x), embed="head", embed_side="input", num_landmarks=4)
    explainer.init_landmarks([(x, y)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = explainer.losses(explainer(x))
    terms["total"].backward()
    assert all(value.isfinite() for value in terms.values())
    exact = explainer.explain(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = explainer.explain(x)
    torch.testing.assert_close(rough.float(), exact, atol=0.05, rtol=0)


def test_landmarks_begin_at_embeddings_of_every_class(series, make_explainer):
    x, y, _ = series
    explainer = make_explainer(num_landmarks=8)
    explainer.init_landmarks([(x[:7], y[:7]), (x[7:], y[7:])], torch.Generator().manual_seed(1))
    z = explainer.eval()(x).z
    rows = torch.cdist(explainer.landmarks, z).argmin(1)
    torch.testing.assert_close(explainer.landmarks.detach(), z[rows])
    assert y[rows].bincount().tolist() == [2, 2, 2, 2]


# --- attributions and scores -----------------------------------------------------------------------


def test_attributions_of_a_linear_model_are_weight_times_input():
    weight, x = normal(2, 8), normal(5, 4, 2, seed=1)

    def model(series):
        return series.flatten(1) @ weight.T

    target = torch.tensor([0, 1, 0, 1, 1])
    expected = (weight[target] * x.flatten(1)).view_as(x)
    torch.testing.assert_close(gradient_times_input(model, x, target), expected)
    torch.testing.assert_close(integrated_gradients(model, x, target, num_steps=3), expected)
    baseline = normal(1, 4, 2, seed=2)
    moved = integrated_gradients(model, x, target, num_steps=3, baseline=baseline)
    torch.testing.assert_close(moved, (weight[target] * (x - baseline).flatten(1)).view_as(x))


def test_integrated_gradients_add_up_to_the_difference_of_the_logits():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    x, target = normal(6, 4, 2), torch.arange(6) % 3
    total = integrated_gradients(model, x, target, num_steps=400).sum((1, 2))
    difference = (model(x) - model(torch.zeros_like(x))).gather(1, target.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(total, difference.detach(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("batch_size", [1, 4, 25, 1000])
def test_integrated_gradients_are_the_same_in_any_chunks(batch_size):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, target, baseline = normal(6, 4, 2), torch.arange(6) % 3, normal(4, 2, seed=1)
    sizes = []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    chunked = integrated_gradients(model, x, target, num_steps=7, baseline=baseline, batch_size=batch_size)
    assert (max(sizes), sum(sizes)) == (min(batch_size, 42), 42)
    whole = integrated_gradients(model, x, target, num_steps=7, baseline=baseline)
    torch.testing.assert_close(chunked, whole)
    alone = integrated_gradients(model, x[4:5], target[4:5], num_steps=7, baseline=baseline)
    torch.testing.assert_close(alone, whole[4:5])


def test_cudnn_is_left_out_where_a_recurrent_layer_may_be(recurrent):
    assert may_recur(recurrent())
    assert may_recur(lambda x: x)
    assert not may_recur(nn.Sequential(nn.Conv1d(1, 1, 1)))
    if not torch.cuda.is_available():
        pytest.skip("the rest needs CUDA")
    model, x, target = recurrent().cuda().eval(), normal(4, 12, 3).float(), torch.arange(4)
    on_cuda = integrated_gradients(model, x.cuda(), target.cuda(), num_steps=5)
    torch.testing.assert_close(
        on_cuda.cpu(), integrated_gradients(model.cpu(), x, target, num_steps=5), atol=1e-4, rtol=1e-3
    )


@pytest.mark.parametrize("at_once", [1, 9, 512])  # one value, a few, and all of them in a pass
def test_occlusion_is_what_one_replaced_value_costs(monkeypatch, at_once):
    monkeypatch.setattr(attribution, "_OCCLUDED_AT_ONCE", at_once)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 3)).double().eval()
    x, target = normal(4, 3, 2), torch.tensor([0, 1, 2, 0])
    mean = Replacement(normal(3, 2, seed=1), torch.zeros(3, 2, dtype=torch.float64))
    saliency = occlusion_saliency(model, x, target, mean, num_draws=2)
    for row in range(4):
        for time in range(3):
            for sensor in range(2):
                series = x[row : row + 1].clone()
                series[0, time, sensor] = mean.mean[time, sensor]
                lost = (model(x[row : row + 1]).softmax(-1) - model(series).softmax(-1))[0, target[row]]
                torch.testing.assert_close(saliency[row, time, sensor], lost.detach())


def area(values, places):
    return float(torch.trapezoid(torch.as_tensor(values.copy()), torch.as_tensor(places.copy())))


@pytest.mark.parametrize("levels", [3, 10**6])
def test_saliency_scores_are_those_of_scikit_learn_on_each_series(levels):
    generator = torch.Generator().manual_seed(0)
    saliency = (levels * torch.rand(20, 9, 2, generator=generator, dtype=torch.float64)).floor()  # ties
    truth = torch.rand(20, 9, 2, generator=generator) < 0.3
    truth[:, 0] = True
    padding = torch.arange(9) >= torch.randint(2, 10, (20, 1), generator=generator)
    for pad in (None, padding):
        scores = saliency_scores(saliency, truth, padding=pad)
        for row in range(20):
            inside = slice(None) if pad is None else ~pad[row]
            value, true = saliency[row][inside].flatten().numpy(), truth[row][inside].flatten().numpy()
            span = np.ptp(value)
            value = (value - value.min()) / (span or 1)
            precision, recall, thresholds = metrics.precision_recall_curve(true, value)
            assert float(scores.auprc[row]) == pytest.approx(metrics.average_precision_score(true, value))
            assert float(scores.aup[row]) == pytest.approx(area(precision[:-1], thresholds))
            assert float(scores.aur[row]) == pytest.approx(area(recall[:-1], thresholds))


@pytest.mark.parametrize("classes", [2, 4])
def test_auroc_is_that_of_scikit_learn(classes):
    prob = (8 * normal(60, classes)).round().div(4).softmax(-1)  # ties
    y = torch.arange(60) % classes
    if classes == 2:
        expected = metrics.roc_auc_score(y, prob[:, 1])
    else:
        expected = metrics.roc_auc_score(y, prob, multi_class="ovo", average="macro")
    assert float(auroc(prob, y)) == pytest.approx(expected)


def test_an_occlusion_curve_replaces_the_lowest_ranked_part_of_every_series():
    x, y = normal(30, 4, 1), torch.arange(30) % 2
    saliency = normal(30, 4, 1, seed=1)
    mean = Replacement(torch.full((4, 1), 9.0, dtype=torch.float64), torch.zeros(4, 1, dtype=torch.float64))
    seen = []

    def model(series):
        seen.append(series)
        return torch.cat(
            [series.sum((1, 2)).unsqueeze(1), torch.zeros(len(series), 1, dtype=series.dtype)], 1
        )

    occlusion_curve(model, x, y, saliency, [0, 0.5, 1], mean)
    assert torch.equal(seen[0], x)
    for row in range(30):
        lowest = saliency[row, :, 0].argsort()[:2]
        expected = x[row].clone()
        expected[lowest] = 9.0
        assert torch.equal(seen[1][row], expected)
    assert (seen[2] == 9).all()


# --- data by hand ----------------------------------------------------------------------------------


def test_freq_shapes_are_the_papers_spikes():
    data = freq_shapes(400, noise=0.0, generator=torch.Generator().manual_seed(0))
    for x, y, truth in zip(data.x[..., 0], data.y.tolist(), data.truth[..., 0], strict=True):
        sign, period = (1 if y % 2 else -1), (10 if y < 2 else 17)
        assert torch.equal(x != 0, truth)
        centres = (x * sign == 2).nonzero().squeeze(1)
        assert (centres.diff() == period).all()
        for centre in centres.tolist():
            assert x[centre - 1 : centre + 2].tolist() == [1.75 * sign, 2.0 * sign, 1.75 * sign]
        assert int(truth.sum()) == 3 * len(centres) > 0
        assert int(centres[0]) <= 50 - period
        assert int(centres[-1]) + period > 48  # none is missing after the last
    noisy = freq_shapes(400, generator=torch.Generator().manual_seed(0))
    assert float(noisy.x[~noisy.truth].std()) == pytest.approx(0.25, rel=0.05)


@pytest.mark.parametrize("sensors", [1, 4])
def test_seq_comb_has_two_segments_that_rise_and_fall_as_the_class_says(sensors):
    data = seq_comb(200, num_features=sensors, generator=torch.Generator().manual_seed(0))
    directions = {1: (-1, -1), 2: (1, 1), 3: (1, -1)}
    for x, y, truth in zip(data.x, data.y.tolist(), data.truth, strict=True):
        assert not truth.any() if y == 0 else truth.any()
        if y == 0:
            continue
        points = truth.any(1).nonzero().squeeze(1)
        used = truth.any(0).nonzero().squeeze(1)
        assert 20 <= len(points) <= 38
        assert len(used) == min(sensors, 2)
        if sensors == 1:  # the segments are two runs of points, unless they touch
            breaks = (points.diff() > 1).nonzero().squeeze(1)
            if len(breaks) == 0:
                continue
            runs = [(points[: breaks[0] + 1], 0), (points[breaks[0] + 1 :], 0)]
        else:
            runs = [(truth[:, sensor].nonzero().squeeze(1), sensor) for sensor in used.tolist()]
            runs.sort(key=lambda run: int(run[0][0]))
        slopes = []
        for run, sensor in runs:
            assert (run.diff() == 1).all()
            assert 10 <= len(run) <= 19
            slopes.append(float((x[run[-1], sensor] - x[run[0], sensor]).sign()))
        assert tuple(slopes) == directions[y]


def test_low_variance_segments_are_quiet_at_their_level():
    data = low_variance(200, generator=torch.Generator().manual_seed(0))
    for x, y, truth in zip(data.x, data.y.tolist(), data.truth, strict=True):
        points, sensors = truth.nonzero().T
        assert set(sensors.tolist()) == {y // 2}
        assert 10 <= len(points) <= 19
        assert int(points[0]) >= 20
        assert (points.diff() == 1).all()
        quiet = x[truth]
        assert float(quiet.mean()) == pytest.approx(1.5 if y % 2 else -1.5, abs=0.2)
        assert quiet.std() < 0.25
    assert float(data.x[~data.truth].std()) == pytest.approx(1.0, abs=0.1)
