"""Each bad input raises its clear error."""

import pytest
import torch
from helpers import demonstrations
from torch import nn

import perceptualreward as pr

DEMOS, CUTS = demonstrations(3)
X = DEMOS[0]
NAN = X.clone()
NAN[3, 2] = torch.nan
NET = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
CASES = {
    "whole numbers": (lambda: pr.discover_steps(X.long(), 2), TypeError, "X must be floating point features"),
    "one dimension": (lambda: pr.discover_steps(X[0], 2), ValueError, r"X must be \(T, F\)"),
    "nan": (lambda: pr.discover_steps(NAN, 2), ValueError, "X must be finite"),
    "too short": (lambda: pr.discover_steps(X[:8], 3), ValueError, r"X must have at least 3 x 3 frames .* got 8"),
    "no steps": (lambda: pr.discover_steps(X, 0), ValueError, "n_steps must be at least 1, got 0"),
    "half a step": (lambda: pr.discover_steps(X, 1.5), TypeError, "n_steps must be an integer, got 1.5"),
    "min_size": (lambda: pr.discover_steps(X, 2, min_size=0), ValueError, "min_size must be at least 1"),
    "method": (lambda: pr.discover_steps(X, 2, method="beam"), ValueError, "method must be one of"),
    "weighting": (lambda: pr.segment_cost_table(X, weighting="area"), ValueError, "weighting must be one of"),
    "the short one": (
        lambda: pr.discover_steps_batch([X, X[:5]], 3), ValueError, r"demos\[1\] must have at least 3 x 3 frames",
    ),
    "none": (lambda: pr.PerceptualReward.fit([], 3), ValueError, "demos must hold at least one"),
    "other features": (
        lambda: pr.PerceptualReward.fit([X, X[:, :9]], 3), ValueError, r"demos\[1\] must have the 40 features",
    ),
    "nan in the second": (lambda: pr.PerceptualReward.fit([X, NAN], 3), ValueError, r"demos\[1\] must be finite"),
    "one step": (lambda: pr.PerceptualReward.fit(DEMOS, 1), ValueError, "n_steps must be at least 2, got 1"),
    "alpha": (lambda: pr.PerceptualReward.fit(DEMOS, 3, alpha=-1), ValueError, "alpha must be non-negative"),
    "alpha of scores": (
        lambda: pr.feature_scores(X, torch.arange(len(X)) % 2, 2, -1), ValueError, "alpha must be non-negative",
    ),
    "all constant": (
        lambda: pr.PerceptualReward.fit([torch.ones(12, 4)] * 2, 3), ValueError, "must have a feature that varies",
    ),
    "cuts of others": (lambda: pr.PerceptualReward.fit(DEMOS, 3, cuts=CUTS[:2]), ValueError, "cuts must be as many"),
    "cuts too few": (
        lambda: pr.PerceptualReward.fit(DEMOS, 3, cuts=[one[:1] for one in CUTS]), ValueError, r"cuts\[0\] must have 2",
    ),
    "cuts descend": (lambda: pr.step_labels(torch.tensor([5, 3]), 9), ValueError, "cuts must ascend strictly"),
    "cuts beyond": (lambda: pr.step_labels(torch.tensor([9]), 9), ValueError, "cuts must ascend strictly"),
    "cuts of fractions": (lambda: pr.step_labels(torch.tensor([2.5]), 9), ValueError, "whole numbers"),
    "form": (lambda: pr.PerceptualReward(3, 2, form="v2"), ValueError, "form must be one of"),
    "eps": (lambda: pr.PerceptualReward(3, 2, eps=0), ValueError, "eps must be positive"),
    "m": (lambda: pr.PerceptualReward.fit(DEMOS, 3, m=0), ValueError, "m must be at least 1"),
    "frames of bytes": (
        lambda: pr.PerceptualReward(3, 2)(torch.zeros(3, dtype=torch.uint8)), TypeError, "x must be a floating point",
    ),
    "frames of others": (lambda: pr.PerceptualReward(3, 2)(torch.zeros(4)), ValueError, r"x must be \(..., 3\)"),
    "labels missing": (lambda: pr.step_moments(X, torch.zeros(3).long(), 2), ValueError, "one a frame"),
    "labels outside": (lambda: pr.step_moments(X, torch.full((len(X),), 2), 2), ValueError, "must lie in 0 to 1"),
    "labels of fractions": (lambda: pr.step_moments(X, torch.zeros(len(X)), 2), TypeError, "whole numbers"),
    "a step of one frame": (
        lambda: pr.step_moments(X, torch.arange(len(X)).clamp(max=1), 2), ValueError, "step 0 two frames",
    ),
    "scores": (lambda: pr.select_features(torch.full((2, 3), torch.nan)), ValueError, "without NaN"),
    "nothing to choose": (
        lambda: pr.select_features(torch.full((2, 3), -torch.inf)), ValueError, "at least one feature to choose",
    ),
    "penalty": (lambda: pr.LinearStepReward.fit(DEMOS, 3, penalty=0), ValueError, "penalty must be positive"),
    "no layer": (lambda: pr.collect_activations(NET, ["5"], X), ValueError, "must be submodules .* got '5'"),
    "layers twice": (lambda: pr.collect_activations(NET, ["0", "0"], X), ValueError, "different names"),
    "layer not reached": (
        lambda: pr.collect_activations(nn.ModuleDict({"a": NET, "b": NET[0]}), [], X), ValueError, "different names",
    ),
    "threshold": (lambda: pr.SuccessDetector(X.mean, 1.5), ValueError, "threshold must lie in"),
    "hold": (lambda: pr.SuccessDetector(X.mean, 0.5, hold=0), ValueError, "hold must be at least 1"),
    "progress": (lambda: pr.episode_score(torch.tensor([torch.nan])), ValueError, "without NaN"),
    "rate": (lambda: pr.SuccessDetector.calibrate(X.mean, [], 0.0), ValueError, "false_alarm_rate must lie"),
    "few failures": (
        lambda: pr.SuccessDetector.calibrate(lambda x: x[:, 0], [X] * 8, 0.1), ValueError, "at least 9 episodes",
    ),
    "failures that succeed": (
        lambda: pr.SuccessDetector.calibrate(lambda x: torch.ones(len(x)), [X] * 9, 0.1), ValueError, "below full",
    ),
    "eta": (lambda: pr.pi2_update(X[None], None, X[None, :, 0], 0.0), ValueError, "eta must be positive"),
    "bound": (lambda: pr.pi2_update(X[None], None, X[None, :, 0], kl_bound=-1), ValueError, "kl_bound must be"),
    "costs": (lambda: pr.pi2_update(X[None], None, X[:1]), ValueError, "costs must be"),
    "costs of whole numbers": (
        lambda: pr.pi2_update(X[None], None, torch.zeros(1, len(X)).long()), TypeError, "costs must be floating",
    ),
    "states": (
        lambda: pr.pi2_update(X[None], None, X[None, :, 0], gains=X[None]), ValueError, "states must be given",
    ),
    "gains": (
        lambda: pr.pi2_update(X[None], X[None], X[None, :, 0], gains=X[None]), ValueError, "gains and states must be",
    ),
    "other cuts": (
        lambda: pr.jaccard(torch.tensor([2]), torch.tensor([2, 4]), 9), ValueError, "pred_cuts must be as many",
    ),
    "active": (lambda: pr.reward_jaccard(X, torch.tensor([2])), TypeError, "active must be bool"),
    "active steps": (lambda: pr.reward_jaccard(X > 0, torch.tensor([2])), ValueError, "active must be"),
    "no room": (lambda: pr.random_ordered_cuts(5, 3, 2), ValueError, "T must be at least 3 x 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_it_is_named(name):
    run, kind, message = CASES[name]
    with pytest.raises(kind, match=message):
        run()


def test_a_layer_that_is_called_twice_or_never_is_named():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.often, self.never = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.often(self.often(x))

    with pytest.raises(ValueError, match="'often' is called again"):
        pr.collect_activations(Odd(), ["often"], torch.zeros(2, 3))
    with pytest.raises(ValueError, match="must be reached by the pass"):
        pr.collect_activations(Odd(), ["never"], torch.zeros(2, 3))
