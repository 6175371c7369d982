"""Bad input is refused at the boundary, by the argument's name, with what it was and what it must be."""

import copy
import re
import sys

import pytest
import torch
from torch import nn

from robustmeanteacher import (
    EMATeacher,
    RobustMeanTeacherConfig,
    SlidingWindow,
    SplitModel,
    TestTimeAugment,
    continual_stream,
    correlated_stream,
    corrupt,
    evaluate_stream,
    gradual_stream,
    mixed_stream,
    nearest_prototypes,
    prototype_contrastive_loss,
    source_prototypes,
    symmetric_cross_entropy,
    symmetric_cross_entropy_gradient,
)

NAN = float("nan")
PAIR = (torch.zeros(3, 1), torch.zeros(3, dtype=torch.long))


def refuses(message, error=ValueError):
    return pytest.raises(error, match=re.escape(message))


# --- losses and prototypes ----------------------------------------------------------------------------


@pytest.mark.parametrize("function", [symmetric_cross_entropy, symmetric_cross_entropy_gradient])
def test_logits(function):
    with refuses("must have one shape (..., K), got (2, 3) and (2, 4)"):
        function(torch.zeros(2, 3), torch.zeros(2, 4))
    for alpha in (-0.1, 1.1, NAN):
        with refuses(f"alpha must be in [0, 1], got {alpha}"):
            function(torch.zeros(2, 3), torch.zeros(2, 3), alpha)


def test_reduction():
    with refuses("reduction must be 'mean', 'none' or 'sum', got 'max'"):
        symmetric_cross_entropy(torch.zeros(2, 3), torch.zeros(2, 3), reduction="max")


def test_contrastive_loss():
    features = torch.zeros(2, 3)
    with refuses("prototypes (K, D) with one D, got (2, 3) and (5, 4)"):
        prototype_contrastive_loss(torch.zeros(5, 4), features, features)
    with refuses("prototypes (K, D) with one D, got (2, 3) and (4,)"):
        nearest_prototypes(features, torch.zeros(4))
    with refuses("features_augmented must have the shape of features, (2, 3), got (1, 3)"):
        prototype_contrastive_loss(features, features, features[:1])
    for temperature in (0.0, -1.0, NAN):
        with refuses(f"temperature must be positive, got {temperature}"):
            prototype_contrastive_loss(features, features, features, temperature=temperature)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([0, 0, 2], ValueError, "has none of [1]"),
        ([0, 1, 3], ValueError, "labels must be in 0..2 (num_classes is 3), got 0..3"),
        ([0, 1, -1], ValueError, "labels must be in 0..2 (num_classes is 3), got -1..1"),
        ([0.0, 1.0, 2.0], TypeError, "labels must be integers, got torch.float32"),
    ],
)
def test_source_labels(labels, error, message):
    with refuses(message, error):
        source_prototypes(lambda x: x, [(torch.zeros(3, 2), torch.tensor(labels))], 3)


def test_source_prototypes():
    with refuses("num_classes must be at least 1, got 0"):
        source_prototypes(lambda x: x, [], 0)
    with refuses("max_samples must be at least 1 or None, got 0"):
        source_prototypes(lambda x: x, [], 2, max_samples=0)
    with refuses("loader must give at least one batch, got none"):
        source_prototypes(lambda x: x, [], 2)
    with refuses("features must be finite, got NaN or infinity"):
        source_prototypes(lambda x: x * NAN, [(torch.ones(2, 1), torch.arange(2))], 2)


# --- network --------------------------------------------------------------------------------------------


def test_split(network, images):
    for name in ("fc", ""):
        with refuses(f"split must name a layer of the model, got {name!r}"):
            SplitModel(network, name)
    with refuses("split must be the name of the last layer or (features, classifier), got 7", TypeError):
        SplitModel(network, 7)
    with refuses("got 'fc'; its linear layers are ['5', '7']"):
        SplitModel(network, "fc")
    with refuses("split's features must return a tensor (N, D), got tuple", TypeError):
        SplitModel(network, (lambda x: (x,), network[7]))(images)
    network.unused = nn.Linear(1, 1)
    network.forward = lambda x: x.mean((2, 3))
    with refuses("split must name a layer that the forward pass calls, 'unused' was not called"):
        SplitModel(network, "unused")(images)


def test_teacher(network):
    for momentum in (-0.1, 1.5, NAN):
        with refuses(f"momentum must be in [0, 1], got {momentum}"):
            EMATeacher(network, momentum)
    with refuses("buffers must be 'skip', 'copy' or 'ema', got 'drop'"):
        EMATeacher(network, buffers="drop")


# --- adapter --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"self_training_weight": -1.0}, "self_training_weight must be non-negative and finite, got -1.0"),
        ({"contrastive_weight": NAN}, "contrastive_weight must be non-negative and finite, got nan"),
        ({"source_weight": float("inf")}, "source_weight must be non-negative and finite, got inf"),
        ({"momentum": 1.1}, "momentum must be in [0, 1], got 1.1"),
        ({"alpha": -0.1}, "alpha must be in [0, 1], got -0.1"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"projection_dim": 0}, "projection_dim must be at least 1 or None, got 0"),
        ({"batch_norm": "train"}, "batch_norm must be 'batch' or 'source', got 'train'"),
    ],
)
def test_config(numbers, message):
    with refuses(message):
        RobustMeanTeacherConfig(**numbers)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"source_weight": 1.0}, ValueError, "source must give labelled batches while source_weight is 1.0"),
        ({"prototypes": None}, ValueError, "prototypes must be given while contrastive_weight is 1.0"),
        (
            {"prototypes": torch.zeros(3, 6)},
            ValueError,
            "prototypes must be (4, 6), the model's number of classes",
        ),
        ({"prototypes": torch.zeros(4, 5)}, ValueError, "of features, got (4, 5)"),
        ({"prototypes": torch.zeros(4)}, ValueError, "prototypes must be (K, D), got shape (4,)"),
        ({"prototypes": torch.full((4, 6), NAN)}, ValueError, "prototypes must be finite, got NaN"),
        ({"prototypes": torch.zeros(4, 6).long()}, TypeError, "must be floating-point, got torch.int64"),
    ],
)
def test_what_the_adapter_is_given(build, changes, error, message):
    with refuses(message, error):
        build(**changes)


def test_a_refused_model_is_as_it_was(build, build_network):
    bad = lambda parameters: torch.optim.SGD(parameters, lr=-1.0)  # noqa: E731
    for changes in ({"split": "fc"}, {"make_optimizer": bad}, {"prototypes": torch.zeros(3, 6)}):
        network = build_network().train()
        before = copy.deepcopy(network.state_dict())
        with pytest.raises(ValueError, match=r"split|learning rate|prototypes"):
            build(network, **changes)
        assert all(module.training for module in network.modules())
        assert all(parameter.requires_grad for parameter in network.parameters())
        after = network.state_dict()
        assert before.keys() == after.keys()  # running statistics too
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_failed_call_leaves_nothing_behind(build, build_network, images):
    """A backward pass that breaks, and the user's own, leave gradients, which are not learnt from."""
    sgd = lambda parameters: torch.optim.SGD(parameters, lr=0.1)  # noqa: E731
    adapters = [build(build_network(), make_optimizer=sgd, augment=lambda x: x * 0.9) for _ in range(2)]
    broken = adapters[0]
    with pytest.raises(RuntimeError):
        broken(images[:, :1])
    with torch.enable_grad():
        broken.student(images).square().sum().backward()
    layer = broken.student[1]
    handle = layer.register_full_backward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        broken(images)
    handle.remove()
    assert not any(module.training for module in broken.student.modules())
    assert all(parameter.requires_grad for parameter in broken.student.parameters())
    assert not broken.student[7]._forward_pre_hooks
    assert torch.equal(adapters[0](images), adapters[1](images))
    for one, other in zip(*(adapter.student.parameters() for adapter in adapters), strict=True):
        assert torch.equal(one, other)


def test_parts_that_are_not_of_the_model_are_named(build, build_network, images):
    network, other = build_network(), build_network()
    message = "split must be made of parts of the model"
    with refuses(message):
        build(network, split=(other[:7], other[7]))(images)
    closures = build(network, split=(lambda x: network[:7](x), lambda x: network[7](x)))
    closures(images)
    with refuses(message):
        copy.deepcopy(closures)(images)


def test_a_state_of_another_config(build, images, tmp_path):
    adapter = build()
    adapter(images)
    adapter.save(tmp_path / "state.safetensors")
    changes = [("alpha", 0.1), ("momentum", 0.9), ("temperature", 0.2), ("self_training_weight", 0.3)]
    for name, value in [*changes, ("batch_norm", "source"), ("projection_dim", None)]:
        other = build(**{name: value})
        before = copy.deepcopy(other.state_dict())
        for load in (
            lambda to: to.load_state_dict(adapter.state_dict()),
            lambda to: to.load(tmp_path / "state.safetensors"),
        ):
            with refuses(f"config must be that of the state: {name} "):
                load(other)
        after = other.state_dict()
        assert all(torch.equal(before[key], after[key]) for key in before if key != "_extra_state")
    build(check_finite=False).load(tmp_path / "state.safetensors")
    old = adapter.state_dict()
    del old["_extra_state"]["config"]  # a state of version 0.1
    build(alpha=0.1).load_state_dict(old)


def test_models_that_cannot_adapt(build, build_network, monkeypatch):
    with refuses("model must have a parameter with requires_grad=True, got none"):
        build(build_network().requires_grad_(False))
    with torch.inference_mode():
        made_inside = build_network()
    with refuses("model must not be made inside torch.inference_mode()", TypeError):
        build(made_inside)
    from robustmeanteacher import checks

    monkeypatch.setattr(checks, "DistributedDataParallel", type("Wrapped", (nn.Sequential,), {}))
    with refuses("got DistributedDataParallel: pass model.module and process_group", TypeError):
        build(checks.DistributedDataParallel(build_network()))


def test_outputs_without_logits_are_named(build, network, images):
    network.register_forward_hook(lambda module, inputs, logits: (None, logits))
    adapter = build(network)
    message = "model must return logits (N, K), or an output with logits as `.logits`, got tuple"
    for call in (adapter, adapter.predict, lambda x: evaluate_stream(network, [(x, PAIR[1], "day")])):
        with refuses(message, TypeError):
            call(images)
    with refuses("model must be a torch.nn.Module, got function", TypeError):
        build(lambda x: x)


def test_a_model_given_in_parts_is_checked_when_it_is_called(build, network, images):
    adapter = build(network, split=(network[:7], network[7]), prototypes=torch.zeros(5, 6).double())
    with refuses("prototypes must be (4, 6), the model's number of classes and of features, got (5, 6)"):
        adapter(images)
    network.append(nn.Unflatten(1, (2, 2)))
    adapter = build(network, split="7")
    with refuses("model must give logits (N, K), got shape (8, 2, 2)"):
        adapter(images)


@pytest.mark.parametrize("method", ["adapt", "predict"])
def test_batches(build, images, method):
    call = getattr(build(), method)
    with refuses("images must hold at least two samples while BatchNorm uses batch statistics, got one"):
        call(images[:1])
    with refuses("wrap the adapter in SlidingWindow"):
        call(images[:1])
    with refuses("images must hold at least one sample, got shape (0, 3, 9, 9)"):
        call(images[:0])
    with refuses("images must be a floating-point tensor, got torch.uint8", TypeError):
        call((255 * images).byte())
    with refuses("images must be a floating-point tensor, got list", TypeError):
        call([images])


@pytest.mark.parametrize("broken", ["images", "logits"])
def test_nan_is_refused_before_it_destroys_the_weights(build, network, images, broken):
    adapter = build(network)
    adapter(images)
    before = copy.deepcopy(adapter.state_dict())
    if broken == "images":
        images = images.clone()
        images[3, 0, 0, 0] = NAN
    else:
        network.register_forward_hook(lambda module, inputs, logits: logits / 0)
    with refuses("images must give a finite loss, got"):
        adapter(images)
    after = adapter.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before if key != "_extra_state")


def test_the_finite_check_can_be_switched_off(build, images):
    adapter = build(check_finite=False)
    adapter(images * NAN)
    assert not adapter.student[0].weight.isfinite().any()


def test_sources_that_end(build, images):
    labels = torch.zeros(8, dtype=torch.long)
    adapter = build(source=iter([(images, labels)]), source_weight=1.0)
    adapter(images)
    with refuses(
        "source must give batches for as long as it is asked: it is empty, or an iterator that is used up"
    ):
        adapter(images)
    with refuses("loader must give batches for as long as it is asked"):
        adapter.warm_up([], 1)
    with refuses("steps must be at least 1, got 0"):
        adapter.warm_up([images], 0)


def test_batches_of_another_form(build, network, images):
    labels = torch.arange(8) % 4
    features = SplitModel(network, "7").features
    message = "must give pairs of tensors (images, labels), got dict with ['labels', 'pixel_values']"
    mapping = [{"pixel_values": images, "labels": labels}]

    def replay(batches):
        build(source=batches, source_weight=1.0)(images)

    for name, use in (
        ("source", replay),
        ("loader", lambda batches: source_prototypes(features, batches, 4)),
    ):
        with refuses(f"{name} {message}", TypeError):
            use(mapping)
        with refuses(f"{name} must give pairs of tensors (images, labels), got Tensor", TypeError):
            use([images])
        for wrong in (labels[:, None], labels[:5]):
            with refuses(
                f"{name} must give one label per image, (n,), got shapes (8, 3, 9, 9) and {tuple(wrong.shape)}"
            ):
                use([(images, wrong)])
        with refuses(f"{name}'s labels must be integers, got torch.bool", TypeError):
            use([(images, labels > 1)])
        use([[images, labels.int()]])
    with refuses("loader's labels must be integers, got torch.float64", TypeError):
        source_prototypes(features, [(images, torch.eye(4).double()[labels])], 4)
    with refuses(
        "loader must give images, or pairs that start with them, got dict with ['labels', 'pixel_values']",
        TypeError,
    ):
        build().warm_up(mapping, 1)


def test_features_in_training_mode(network, images):
    pair = [(images, torch.arange(8) % 4)]
    network.train()
    for features in (SplitModel(network, "7").features, network[:7], network.forward):
        with refuses("features must be those of a model in evaluation mode, got training mode"):
            source_prototypes(features, pair, 4)
    source_prototypes(nn.Flatten().train(), pair, 4)  # nothing in it depends on the mode


def test_a_failed_warm_up_leaves_the_learning_rate(build, images):
    adapter = build()
    with refuses("loader must give batches"):
        adapter.warm_up(iter([images]), 5)
    assert adapter.optimizer.param_groups[0]["lr"] == 1e-2


def test_reset_needs_a_copy(build):
    with refuses("made with resettable=False", RuntimeError):
        build(resettable=False).reset()


def test_windows(build, images):
    adapter = build()
    with refuses("window must be at least 2, got 1"):
        SlidingWindow(adapter, 1)
    with refuses("window must be an integer, got 4.0", TypeError):
        SlidingWindow(adapter, 4.0)
    with refuses("images must hold at least one sample, got shape (0, 3, 9, 9)"):
        SlidingWindow(adapter, 4)(images[:0])
    serve = SlidingWindow(adapter, 4)
    with refuses("images must be a floating-point tensor, got torch.uint8", TypeError):
        serve((255 * images).byte())
    with pytest.raises(RuntimeError):
        serve(images[:2, :1])  # of another form: the model refuses, and the window does not keep it
    assert serve(images[:2]).shape == (2, 4)
    with refuses("images must have the shape of those in the window, (n, 3, 9, 9), got (1, 3, 9, 8)"):
        serve(images[:1, ..., 1:])
    with refuses("window must be that of the state, 4, got 8"):
        SlidingWindow(adapter, 8).load_state_dict(serve.state_dict())


def test_a_window_takes_in_nothing_that_would_spoil_it(build, images):
    serve = SlidingWindow(build(), 4)
    expected = SlidingWindow(build(), 4)
    serve(images[:1])
    with refuses("images must be finite: one that is not would spoil the whole window"):
        serve(images[1:2] * NAN)
    expected(images[:1])
    assert torch.equal(serve(images[1:2]), expected(images[1:2]))


def test_saving_names_its_extra(build, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for method in ("save", "load"):
        with refuses("pip install 'robustmeanteacher[safetensors]'", ImportError):
            getattr(build(), method)(tmp_path / "x")


def test_loading_another_file(build, tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with refuses("path must name a file that save() wrote, got"):
        build().load(tmp_path / "model.safetensors")


# --- images ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"brightness": (1.4, 0.6)}, "brightness must be an increasing range, non-negative, got (1.4, 0.6)"),
        (
            {"saturation": (-0.1, 1.0)},
            "saturation must be an increasing range, non-negative, got (-0.1, 1.0)",
        ),
        ({"gamma": (0.0, 1.0)}, "gamma must be an increasing range, positive, got (0.0, 1.0)"),
        ({"scale": (0.0, 1.0)}, "scale must be an increasing range, positive, got (0.0, 1.0)"),
        ({"hue": (-0.6, 0.0)}, "hue must be an increasing range, in [-0.5, 0.5], got (-0.6, 0.0)"),
        ({"mean": 0.5}, "mean and std must be given together, got mean=0.5 and std=None"),
        ({"mean": (NAN, 0.5), "std": 1.0}, "mean must be finite, got (nan, 0.5)"),
        ({"mean": 0.5, "std": (0.2, 0.0)}, "std must be positive and finite, got (0.2, 0.0)"),
        ({"degrees": -1.0}, "degrees must be non-negative, got -1.0"),
        ({"noise_std": NAN}, "noise_std must be non-negative, got nan"),
        ({"flip_probability": 1.5}, "flip_probability must be in [0, 1], got 1.5"),
    ],
)
def test_augmentations(changes, message):
    with refuses(message):
        TestTimeAugment(**changes)


@pytest.mark.parametrize("function", [TestTimeAugment(), lambda x: corrupt(x, "fog", 1)])
def test_images(function):
    with refuses("images must be (N, C, H, W), got shape (3, 4, 4)"):
        function(torch.zeros(3, 4, 4))
    with refuses("images must be floating-point in [0, 1], got torch.uint8", TypeError):
        function(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))


def test_normalisation_must_fit_the_channels():
    with refuses("mean must be one number or one per channel, 3, got (2,) numbers"):
        TestTimeAugment(mean=(0.5, 0.5), std=1.0)(torch.zeros(2, 3, 4, 4))


def test_normalised_images_are_warned_of_once(recwarn):
    augment = TestTimeAugment(generator=torch.Generator().manual_seed(0))
    with pytest.warns(
        UserWarning, match=r"images must be in \[0, 1\] for the built-in augmentation"
    ) as warned:
        augment(torch.full((2, 3, 4, 4), -1.5))
    assert warned[0].filename == __file__
    augment(torch.full((2, 3, 4, 4), -1.5))


def test_corruptions():
    images = torch.zeros(1, 1, 4, 4)
    with refuses("kind must be one of ['contrast', 'fog',"):
        corrupt(images, "rain", 1)
    for severity in (0, 6, 2.5):
        with refuses(f"severity must be 1, 2, 3, 4 or 5, got {severity}"):
            corrupt(images, "fog", severity)


# --- streams --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [continual_stream, mixed_stream, correlated_stream])
def test_streams(make):
    with refuses("domains must not be empty, got {}"):
        make({}, 2)
    with refuses("domains must have samples, 'night' has none"):
        make({"day": PAIR, "night": (PAIR[0][:0], PAIR[1][:0])}, 2)
    with refuses("domains must pair every image with a label, 'day' has 3 and 2"):
        make({"day": (PAIR[0], PAIR[1][:2])}, 2)
    with refuses("batch_size must be at least 1, got 0"):
        make({"day": PAIR}, 0)


def test_other_streams():
    with refuses("loops must be at least 1, got 0"):
        continual_stream({"day": PAIR}, 2, loops=0)
    with refuses("corruptions must have at least one severity each, 'fog' has none"):
        gradual_stream({"fog": []}, 2)
    with refuses("corruptions must not be empty, got {}"):
        gradual_stream({}, 2)


def test_evaluation():
    three = torch.eye(3)
    for labels, domains in (
        (torch.zeros(3, 1), "day"),
        (torch.zeros(2), "day"),
        (torch.zeros(3), ["day"] * 2),
    ):
        with refuses("stream must give one label and one domain for each of 3 samples, got labels of shape"):
            evaluate_stream(lambda x: three, [(three, labels.long(), domains)])
    for label in (-1, 10**6):
        with refuses("stream's labels must be in 0..2, the classes of the logits"):
            evaluate_stream(lambda x: three, [(three, torch.tensor([0, 1, label]), "day")])
    with refuses("stream must have at least one batch, got none"):
        evaluate_stream(lambda x: x, [])
    with refuses("adapter must have a reset method for reset_each_shift, got function", TypeError):
        evaluate_stream(lambda x: x, [(*PAIR, "day")], reset_each_shift=True)
