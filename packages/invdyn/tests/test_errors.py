"""Each bad input raises the error that names it."""

import math

import pytest
import torch
from helpers import ACTION, DIM, OBS, batch, encoder, episodes, make
from torch import nn

from invdyn import (
    Batch,
    BehaviorCloning,
    ColorJitter,
    ContrastiveDynamics,
    ForwardReconstruction,
    GaussianBlur,
    InverseDynamics,
    MultiHeadBC,
    MultiViewEncoder,
    PixelDecoder,
    PixelEncoder,
    RandomCrop,
    StateProbe,
    cross_prediction,
    encode,
    fit_probe,
    from_episodes,
    gather_frames,
    info_nce,
    iterate_batches,
    iterate_sequences,
    linear_bc_oracle,
    linear_id_oracle,
    stack_history,
    transition_index,
)

given = batch(4)
nan = torch.full((4, ACTION), math.nan)
eye, zero = torch.eye(2), torch.zeros(2, 2)
frames = torch.zeros(4, OBS)
sequence = torch.zeros(2, 4, OBS)
acts = torch.zeros(2, 3, ACTION)


def episode(**changed):
    return {"observations": torch.zeros(3, 4), "actions": torch.zeros(2, 1)} | changed


def buffer(**changed):
    return episodes([3, 2]) | changed


INDEX = transition_index([3, 2])

CASES = {
    # indices
    "no episode": (lambda: transition_index([]), ValueError, "lengths must be .* at least one episode"),
    "an empty episode": (lambda: transition_index([3, 0]), ValueError, "lengths .* got 0 in episode 1"),
    "real lengths": (lambda: transition_index([1.5]), TypeError, "lengths must be integers"),
    "negative nstep": (
        lambda: transition_index([3], nstep=-1),
        ValueError,
        "nstep must be at least 0, got -1",
    ),
    "no history": (lambda: transition_index([3], history=0), ValueError, "history must be at least 1, got 0"),
    "a real nstep": (lambda: transition_index([3], nstep=1.0), TypeError, "nstep must be an integer"),
    # buffers
    "short obs": (
        lambda: iterate_batches(buffer(obs=torch.zeros(5, OBS)), INDEX, 2),
        ValueError,
        r"buffer\['obs'\] must have 7 rows",
    ),
    "short action": (
        lambda: iterate_batches(buffer(action=torch.zeros(4, 2)), INDEX, 2),
        ValueError,
        r"buffer\['action'\] must be \(5, A\)",
    ),
    "flat real actions": (
        lambda: iterate_batches(buffer(action=torch.zeros(5)), INDEX, 2),
        ValueError,
        r"action\[:, None\]",
    ),
    "no action": (
        lambda: iterate_batches({"obs": frames}, INDEX, 2),
        ValueError,
        "buffer must have 'obs' and",
    ),
    "a large batch": (
        lambda: iterate_batches(buffer(), INDEX, 6),
        ValueError,
        "batch_size must be at most 5",
    ),
    "odd tasks": (
        lambda: iterate_batches(buffer(task=torch.zeros(3).long()), INDEX, 2),
        ValueError,
        r"buffer\['task'\] must be \(2,\) or \(5,\)",
    ),
    "no lengths": (
        lambda: iterate_sequences({"obs": frames, "action": given.action}, 2),
        ValueError,
        "buffer must have 'lengths'",
    ),
    "many episodes": (
        lambda: iterate_sequences(buffer(), 3, drop_last=True),
        ValueError,
        "batch_size must be at most 2",
    ),
    "odd views": (
        lambda: iterate_batches(buffer(obs={"a": torch.zeros(7, 1), "b": torch.zeros(6, 1)}), INDEX, 2),
        ValueError,
        r"views of one length, got \[7, 6\]",
    ),
    "no channel dim": (
        lambda: gather_frames(frames, torch.zeros(2, 2).long(), channel_dim=1),
        ValueError,
        "channel_dim must be a dimension of a frame",
    ),
    "no stack": (lambda: stack_history(sequence, 0), ValueError, "history must be at least 1"),
    # episodes
    "no episodes": (lambda: from_episodes([]), ValueError, "episodes must have at least one"),
    "T observations": (
        lambda: from_episodes([episode(), episode(observations=torch.zeros(2, 4))]),
        ValueError,
        r"observations of episode 1 must be T \+ 1 .* drop_last_action",
    ),
    "no actions at all": (
        lambda: from_episodes([{"observations": torch.zeros(3, 4), "reward": 1}]),
        ValueError,
        r"episode 0 must have 'actions', got \['observations', 'reward'\]",
    ),
    "NaN observations": (
        lambda: from_episodes([episode(observations=torch.full((3, 4), math.nan))]),
        ValueError,
        "observations of episode 0 must be finite",
    ),
    "inf actions": (
        lambda: from_episodes([episode(actions=torch.full((2, 1), math.inf))]),
        ValueError,
        "actions of episode 0 must be finite",
    ),
    "other shapes": (
        lambda: from_episodes([episode(), episode(observations=torch.zeros(3, 5))]),
        ValueError,
        "observations of episode 1 must be as those of episode 0",
    ),
    "other actions": (
        lambda: from_episodes([episode(), episode(actions=torch.zeros(2).long())]),
        ValueError,
        "actions of episode 1 must be as those of episode 0",
    ),
    "dict actions": (lambda: from_episodes([episode(actions={"arm": 1})]), TypeError, "actions of episode 0"),
    "a task here and there": (
        lambda: from_episodes([episode(task=1), episode()]),
        ValueError,
        "task must be given for all episodes or for none",
    ),
    "an episode of no action": (
        lambda: from_episodes([{"observations": torch.zeros(1, 4), "actions": torch.zeros(0, 1)}]),
        ValueError,
        "actions of episode 0 must be at least one",
    ),
    # objectives
    "a function as encoder": (lambda: make("bc", torch.tanh), TypeError, "encoder must be a torch.nn.Module"),
    "a function as decoder": (
        lambda: ForwardReconstruction(encoder(), torch.tanh, DIM, 2),
        TypeError,
        "decoder must be a torch.nn.Module",
    ),
    "another embed_dim": (
        lambda: make("bc", encoder(4)).loss(given),
        ValueError,
        r"embed_dim .* got \(4, 4\)",
    ),
    "a map of features": (
        lambda: BehaviorCloning(nn.Unflatten(1, (OBS, 1, 1)), OBS, 2).loss(given),
        ValueError,
        r"embed_dim .* got \(4, 5, 1, 1\)",
    ),
    "a tuple of features": (
        lambda: BehaviorCloning(nn.LSTM(OBS, DIM), DIM, 2).loss(given),
        TypeError,
        "encoder must return a tensor .* got tuple",
    ),
    "no next_obs": (
        lambda: make("inverse").loss(given._replace(next_obs=None)),
        ValueError,
        "next_obs must be in the batch for InverseDynamics",
    ),
    "no goal": (
        lambda: make("goal").loss(given._replace(goal=None)),
        ValueError,
        "goal must be in the batch",
    ),
    "no task": (lambda: make("multihead").loss(given._replace(task=None)), ValueError, "task must be in the"),
    "a task too far": (
        lambda: make("multihead").loss(given._replace(task=torch.tensor([0, 1, 2, 3]))),
        ValueError,
        r"task must lie in 0..2 \(n_tasks\), got 0..3",
    ),
    "real tasks": (
        lambda: make("multihead").loss(given._replace(task=torch.zeros(4))),
        TypeError,
        "task must be integers",
    ),
    "no action_seq": (
        lambda: make("forward", nstep=2).loss(given._replace(action_seq=None)),
        ValueError,
        "action_seq must be in the batch for nstep=2",
    ),
    "no actions to predict": (
        lambda: make("inverse", nstep=2, predict_all_actions=True).loss(given),
        ValueError,
        r"action_seq must be \(4, 2, 2\), got \(4, 2, 1\)",
    ),
    "an action_seq of another n": (
        lambda: make("contrast", nstep=2).loss(given),
        ValueError,
        r"action_seq must be \(4, 2, 2\), got \(4, 2, 1\)",
    ),
    "other rows": (
        lambda: make("inverse").loss(given._replace(next_obs=torch.zeros(3, OBS))),
        ValueError,
        "next_obs must have 4 rows, as obs, got 3",
    ),
    "a column for a row": (
        lambda: BehaviorCloning(encoder(), DIM, 1).loss(given._replace(action=torch.zeros(4))),
        ValueError,
        r"action must be \(4, 1\), got \(4,\)",
    ),
    "other actions' rows": (
        lambda: make("bc").loss(given._replace(action=torch.zeros(3, ACTION))),
        ValueError,
        r"action must be \(4, 2\), got \(3, 2\)",
    ),
    "NaN actions": (
        lambda: make("forward").loss(given._replace(action=nan)),
        ValueError,
        "action must be finite",
    ),
    "large actions": (
        lambda: make("inverse").loss(given._replace(action=torch.full((4, 2), -1.01))),
        ValueError,
        r"action must lie in \[-1, 1\] with squash=True, got 1.01: rescale or pass squash=False",
    ),
    "integers for reals": (
        lambda: make("inverse").loss(given._replace(action=torch.ones(4).long())),
        TypeError,
        "action must be real numbers with discrete=False, got torch.int64",
    ),
    "reals for integers": (
        lambda: make("inverse", discrete=True).loss(given),
        TypeError,
        "action must be integers with discrete=True, got torch.float32",
    ),
    "an action too far": (
        lambda: make("bc", discrete=True).loss(given._replace(action=torch.tensor([0, 1, 1, 10**6]))),
        ValueError,
        "action must lie in 0..1 .* got 0..1000000",
    ),
    "a masked action": (
        lambda: make("bc", discrete=True).loss(given._replace(action=torch.tensor([0, 1, 1, -100]))),
        ValueError,
        "action must lie in 0..1 .* got -100..1",
    ),
    "an empty batch": (
        lambda: make("bc").loss(Batch(torch.zeros(0, OBS), torch.zeros(0, ACTION))),
        ValueError,
        "batch must have at least one transition",
    ),
    "other views": (
        lambda: make("inverse").loss(given._replace(next_obs={"a": frames})),
        ValueError,
        "observations must all be tensors or all be mappings",
    ),
    "an array": (
        lambda: make("bc").loss(given._replace(obs=frames.numpy())),
        TypeError,
        "obs must be a tensor",
    ),
    "a decoder of another shape": (
        lambda: make("forward", decoder=nn.Linear(DIM + 64, 1)).loss(given),
        ValueError,
        r"decoder must return the shape of next_obs, \(4, 5\), got \(4, 1\)",
    ),
    "no temperature": (
        lambda: make("contrast", temperature=0.0),
        ValueError,
        r"temperature must lie in \(0, inf",
    ),
    "NaN temperature": (lambda: info_nce(frames, frames, math.nan), ValueError, "temperature must lie in"),
    "a text temperature": (
        lambda: info_nce(frames, frames, "warm"),
        TypeError,
        "temperature must be a number",
    ),
    "rows that differ": (lambda: info_nce(frames, frames[:2]), ValueError, r"u and v must be \(B, k\)"),
    "one row": (lambda: info_nce(frames[:1], frames[:1]), ValueError, "at least 2 transitions"),
    "much smoothing": (
        lambda: make("contrast", label_smoothing=1.5),
        ValueError,
        "label_smoothing must lie in",
    ),
    "an encoder too many": (
        lambda: ContrastiveDynamics(encoder(), DIM, 2, next_encoder=encoder()),
        ValueError,
        "next_encoder must be None with share_encoder=True",
    ),
    "no action for psi": (
        lambda: make("forward")(frames),
        ValueError,
        "action must be given with include_action=True",
    ),
    "no steps between": (
        lambda: InverseDynamics(encoder(), DIM, 2, nstep=0),
        ValueError,
        "nstep must be at least",
    ),
    "no tasks": (lambda: MultiHeadBC(encoder(), DIM, 2, 0), ValueError, "n_tasks must be at least 1"),
    "all dropped": (lambda: make("bc", dropout=1.0), ValueError, r"dropout must lie in \[0, 1\)"),
    "a number of sizes": (lambda: make("bc", hidden=8), TypeError, "hidden must be a sequence"),
    # sequences
    "as many frames as actions": (
        lambda: make("bc").loss_sequence(sequence[:, :3], acts),
        ValueError,
        r"obs must be \(2, 4, ...\), one frame more",
    ),
    "flat actions": (
        lambda: make("bc").loss_sequence(sequence, acts[0]),
        ValueError,
        r"action must be \(B, T, A\)",
    ),
    "long lengths": (
        lambda: make("bc").loss_sequence(sequence, acts, torch.tensor([3, 4])),
        ValueError,
        "lengths must lie in 0..3 .* got 3..4",
    ),
    "nothing left": (
        lambda: make("bc").loss_sequence(sequence, acts, torch.tensor([0, 0])),
        ValueError,
        "at least one transition",
    ),
    "real lengths of sequences": (
        lambda: make("bc").loss_sequence(sequence, acts, torch.tensor([3.0, 3.0])),
        TypeError,
        "lengths must be integers",
    ),
    "a task an action": (
        lambda: make("multihead").loss_sequence(sequence, acts, task=torch.zeros(2, 3).long()),
        ValueError,
        r"task must be \(2,\)",
    ),
    # networks
    "channels last": (
        lambda: PixelEncoder(3, 32, 4)(torch.zeros(2, 32, 32, 3)),
        ValueError,
        r"images must be \(B, 3, 32, 32\), channels first",
    ),
    "small images": (lambda: PixelEncoder(3, 12), ValueError, "image_size must be larger for 4 convolutions"),
    "strides amiss": (
        lambda: PixelEncoder(3, 32, strides=(2, 2)),
        ValueError,
        "strides must be one for each",
    ),
    "an odd decoder": (lambda: PixelDecoder(8, 30), ValueError, "image_size must be a multiple of 4"),
    "no views": (lambda: MultiViewEncoder({}), ValueError, "encoders must name at least one view"),
    "a missing view": (
        lambda: MultiViewEncoder({"a": nn.Identity()})({"b": frames}),
        ValueError,
        r"views must have \['a'\], got \['b'\]",
    ),
    # probes
    "nothing to encode": (
        lambda: encode(encoder(), frames[:0]),
        ValueError,
        "obs must have at least one row",
    ),
    "maps to encode": (lambda: encode(nn.Identity(), sequence), ValueError, r"encoder must return \(2, d\)"),
    "NaN features": (lambda: fit_probe(nan, given.action), ValueError, "features must be finite"),
    "flat targets": (lambda: fit_probe(frames, torch.zeros(4)), ValueError, r"targets must be \(N, d\)"),
    "rows amiss": (
        lambda: fit_probe(torch.zeros(9, 2), frames, hidden=()),
        ValueError,
        "targets must have 9 rows",
    ),
    "constant targets": (
        lambda: fit_probe(torch.randn(9, 2), torch.full((9, 1), 0.1), hidden=()),
        ValueError,
        "targets must vary on the held-out rows",
    ),
    "few groups": (
        lambda: fit_probe(torch.randn(9, 2), torch.randn(9, 1), groups=torch.arange(9) % 3),
        ValueError,
        "groups must be at least 4",
    ),
    "groups amiss": (
        lambda: fit_probe(torch.randn(9, 2), torch.randn(9, 1), groups=torch.arange(8)),
        ValueError,
        r"groups must be \(9,\)",
    ),
    "all held out": (
        lambda: fit_probe(torch.randn(9, 2), torch.randn(9, 1), test_fraction=1.0),
        ValueError,
        r"test_fraction must lie in \(0, 1\)",
    ),
    "no representation": (lambda: cross_prediction({}), ValueError, "reps must have at least one"),
    "a collapsed one": (
        lambda: cross_prediction({"a": torch.randn(9, 2), "b": torch.ones(9, 2)}, hidden=()),
        ValueError,
        r"reps\['b'\] must vary",
    ),
    "representations amiss": (
        lambda: cross_prediction({"a": torch.randn(9, 2), "b": torch.ones(8, 2)}),
        ValueError,
        r"reps\['b'\] must have 9 rows",
    ),
    "a state amiss": (
        lambda: StateProbe(3, 2).loss(torch.zeros(4, 3), torch.zeros(4)),
        ValueError,
        r"target must be \(4, 2\), got \(4,\)",
    ),
    # augmentations
    "flat images": (lambda: RandomCrop()(frames), ValueError, r"images must be \(B, C, H, W\)"),
    "four channels": (
        lambda: ColorJitter()(torch.zeros(1, 4, 8, 8)),
        ValueError,
        "multiple of 3 channels, got 4",
    ),
    "a crop inwards": (lambda: RandomCrop(-1), ValueError, "padding must be at least 0"),
    "odd sigma": (lambda: GaussianBlur(sigma=(2.0, 1.0)), ValueError, r"sigma\[1\] must lie in \[2, inf"),
    # theory
    "no covariance": (
        lambda: linear_bc_oracle(zero, -eye),
        ValueError,
        "policy_cov .* no negative eigenvalue",
    ),
    "not symmetric": (
        lambda: linear_bc_oracle(zero, torch.tensor([[1.0, 1.0], [0.0, 1.0]])),
        ValueError,
        "policy_cov must be symmetric",
    ),
    "dynamics amiss": (
        lambda: linear_id_oracle(torch.eye(3), eye, zero, zero, eye, eye),
        ValueError,
        r"A must be \(2, 2\), got \(3, 3\)",
    ),
    "a vector": (lambda: linear_bc_oracle(torch.zeros(2), eye), ValueError, "policy_gain must be a matrix"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_error_names_it(name):
    run, kind, says = CASES[name]
    with pytest.raises(kind, match=says):
        run()


def test_values_are_not_looked_at_where_it_is_not_wanted():
    loose = make("inverse", validate=False)
    assert loose.loss(given._replace(action=nan)).isnan()
    assert loose.loss(given._replace(action=torch.full((4, 2), 2.0))).isfinite()
    with pytest.raises(ValueError, match="action must be"):
        loose.loss(given._replace(action=nan[:2]))


def test_bytes_and_small_integers_are_actions_to_choose():
    objective = make("bc", discrete=True).eval()
    wanted = objective.loss(given._replace(action=torch.tensor([0, 1, 1, 0])))
    for dtype in (torch.uint8, torch.int32):
        chosen = torch.tensor([0, 1, 1, 0], dtype=dtype)
        torch.testing.assert_close(objective.loss(given._replace(action=chosen)), wanted)
