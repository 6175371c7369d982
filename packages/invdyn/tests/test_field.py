"""What users bring: their encoders, files, dtypes, loaders, wrappers and checkpoints."""

import copy
import io
import pickle
import types

import numpy as np
import pytest
import torch
from helpers import ACTION, DIM, OBS, SEVEN, batch, encoder, episodes, make, seeded
from torch import nn

from invdyn import (
    Batch,
    BehaviorCloning,
    ForwardReconstruction,
    InverseDynamics,
    MultiViewEncoder,
    PixelDecoder,
    PixelEncoder,
    StateEncoder,
    StaticContrast,
    encode,
    fit_probe,
    from_episodes,
    gather_frames,
    info_nce,
    iterate_batches,
    iterate_sequences,
    stack_history,
    to_unit,
    transition_index,
)

# --- observations ---------------------------------------------------------------------------------


def cameras(size, seed=0):
    generator = seeded(seed)
    return {
        "observation.images.top": torch.randint(256, (size, 3, 24, 24), generator=generator).to(torch.uint8),
        "observation.state": torch.randn(size, 4, generator=generator),
    }


def camera_encoder():
    pixels = PixelEncoder(3, 24, 4, channels=(4, 4), strides=(2, 2), keypoints=4)
    return MultiViewEncoder({"observation.images.top": pixels, "observation.state": StateEncoder(4, 2)})


def test_several_views_pass_every_entry():
    phi = camera_encoder()
    buffer = {"obs": cameras(9), "action": torch.zeros(7, ACTION), "lengths": torch.tensor([4, 3])}
    index = transition_index([4, 3])
    (pairs,) = iterate_batches(buffer, index, 7, shuffle=False)
    (sequences,) = iterate_sequences(buffer, 2, shuffle=False)
    for objective in (InverseDynamics(phi, DIM, ACTION), StaticContrast(phi, DIM)):
        objective.eval()
        given = pairs if objective.nstep else pairs._replace(next_obs=pairs.obs)
        torch.testing.assert_close(objective(sequences), objective(given))
    features = encode(phi, buffer["obs"], batch_size=4)
    scaled = {name: view / 255 if view.dtype == torch.uint8 else view for name, view in buffer["obs"].items()}
    torch.testing.assert_close(features, phi(scaled).detach())


def test_several_views_are_reconstructed_together():
    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.pixels, self.state = (
                PixelDecoder(DIM + 64, 24, channels=(2, 2, 2, 2)),
                nn.Linear(DIM + 64, 4),
            )

        def forward(self, joint):
            return {"observation.images.top": self.pixels(joint), "observation.state": self.state(joint)}

    objective = ForwardReconstruction(camera_encoder(), Decoder(), DIM, ACTION).eval()
    given = Batch(cameras(5), torch.zeros(5, ACTION), cameras(5, 1))
    found = objective(given.obs, given.action)
    errors = [
        (found["observation.images.top"] - given.next_obs["observation.images.top"] / 255).square().mean(),
        (found["observation.state"] - given.next_obs["observation.state"]).square().mean(),
    ]
    torch.testing.assert_close(objective.loss(given), torch.stack(errors).mean())


def test_bytes_are_pixels_unless_told_otherwise():
    class Half(nn.Module):
        def forward(self, images):
            assert images.dtype == torch.uint8
            return images.flatten(1).float()[:, :DIM]

    images = torch.full((4, 3, 2, 2), 51, dtype=torch.uint8)
    assert to_unit(images).unique().tolist() == pytest.approx([0.2])
    assert to_unit(images, torch.bfloat16).dtype == torch.bfloat16
    objective = BehaviorCloning(Half(), DIM, ACTION, unit_pixels=False)
    assert objective(images).shape == (4, ACTION)
    assert encode(Half(), images, unit_pixels=False).unique().tolist() == [51]
    doubled = BehaviorCloning(nn.Sequential(nn.Flatten(), nn.Linear(12, DIM).double()), DIM, ACTION)
    assert doubled.embed(images).dtype == torch.float64


def test_frames_are_stacked_along_their_channels():
    buffer = episodes([3, 2])
    buffer["obs"] = torch.arange(7.0).view(7, 1, 1, 1).expand(7, 3, 4, 4)
    index = transition_index([3, 2], history=2)
    (pairs,) = iterate_batches(buffer, index, 5, shuffle=False)
    assert pairs.obs.shape == (5, 6, 4, 4)
    assert pairs.obs[:, [0, 3], 0, 0].tolist() == [[0, 0], [0, 1], [1, 2], [4, 4], [4, 5]]
    assert pairs.next_obs[:, [0, 3], 0, 0].tolist() == [[0, 1], [1, 2], [2, 3], [4, 5], [5, 6]]
    last = gather_frames(buffer["obs"].movedim(1, -1), index.obs_idx, channel_dim=-1)
    assert torch.equal(last.movedim(-1, 1), pairs.obs)
    (sequences,) = iterate_sequences(buffer, 2, shuffle=False)
    stacked = stack_history(sequences.obs, 2)
    assert torch.equal(stacked[0, :3], pairs.obs[:3])
    assert torch.equal(stacked[1, :2], pairs.obs[3:])


def test_views_that_are_not_contiguous_or_expanded_change_nothing():
    objective, given = make("inverse").eval(), batch(8)
    strided = given.obs.repeat_interleave(2, 1)[:, ::2]
    assert not strided.is_contiguous()
    torch.testing.assert_close(objective.loss(given._replace(obs=strided)), objective.loss(given))
    one = given._replace(obs=given.obs[:1].expand(8, -1))
    torch.testing.assert_close(objective.loss(one), objective.loss(one._replace(obs=one.obs.clone())))


# --- encoders and modes ---------------------------------------------------------------------------


def test_encode_leaves_every_mode_as_it_was():
    phi = nn.Sequential(nn.Linear(OBS, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    phi[1].eval()
    before = phi[1].running_mean.clone()
    first, second = (encode(phi, torch.randn(6, OBS, generator=seeded(0))) for _ in range(2))
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert [module.training for module in phi] == [True, False, True]
    assert torch.equal(phi[1].running_mean, before)
    with pytest.raises(RuntimeError):
        encode(phi, torch.zeros(3, OBS + 1))
    assert [module.training for module in phi] == [True, False, True]
    with torch.inference_mode():
        features = encode(phi, torch.randn(6, OBS))
    assert not features.is_inference()


def test_a_frozen_encoder_gets_no_gradient_and_a_shared_one_is_kept_shared():
    phi = encoder().requires_grad_(False)
    objective = make("inverse", phi)
    objective.loss(batch()).backward()
    assert all(p.grad is None for p in phi.parameters())
    assert objective.head[0].weight.grad is not None
    rival = make("bc", phi)
    assert rival.encoder is objective.encoder


def test_policies_on_embeddings_made_once_are_policies_on_frames():
    phi, buffer, index = encoder(), episodes([4, 5]), transition_index([4, 5])
    frozen = buffer | {"obs": encode(phi, buffer["obs"])}
    policy = BehaviorCloning(nn.Identity(), DIM, ACTION).eval()
    (fast,) = iterate_batches(frozen, index, 9, shuffle=False)
    (slow,) = iterate_batches(buffer, index, 9, shuffle=False)
    ours = policy.loss(fast)
    policy.encoder = phi
    torch.testing.assert_close(policy.loss(slow), ours)


@pytest.mark.parametrize("name", SEVEN)
def test_half_precision_keeps_losses_in_float32(name):
    objective, given = make(name).eval(), batch(8)
    exact = objective.loss(given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = objective.loss(given)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, exact, rtol=0.05, atol=0.02)
    halved = objective.to(torch.bfloat16).loss(batch(8, dtype=torch.bfloat16))
    assert halved.dtype == torch.float32
    torch.testing.assert_close(halved, exact, rtol=0.1, atol=0.05)
    assert objective.double().loss(batch(8, dtype=torch.float64)).dtype == torch.float64


def test_float64_actions_of_numpy_meet_a_float32_model():
    for name in ("inverse", "forward", "contrast"):
        objective, given = make(name).eval(), batch(8)
        loss = objective.loss(given._replace(action=given.action.double()))
        torch.testing.assert_close(loss, objective.loss(given))


def test_one_transition_is_enough_but_for_a_contrast():
    for name in SEVEN:
        objective = make(name)
        if name in ("contrast", "simclr"):
            with pytest.raises(ValueError, match=r"batch must have at least 2 transitions"):
                objective.loss(batch(1))
        else:
            assert objective.loss(batch(1)).isfinite()


# --- torch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["inverse", "contrast"])
def test_losses_compile_whole_for_any_batch(name):
    objective = make(name).eval()
    compiled = torch.compile(objective.loss, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in (8, 5, 3) if name == "inverse" else (5,):
        torch.testing.assert_close(compiled(batch(size)), objective.loss(batch(size)))


@pytest.mark.parametrize("name", SEVEN)
def test_copies_and_checkpoints_give_the_same_loss(name):
    objective, given = make(name).eval(), batch(8)
    wanted = objective.loss(given)
    for copied in (copy.deepcopy(objective), pickle.loads(pickle.dumps(objective))):
        assert torch.equal(copied.loss(given), wanted)
    file = io.BytesIO()
    torch.save(objective.state_dict(), file)
    file.seek(0)
    loaded = make(name).eval()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(loaded.loss(given), wanted)
    assert all(isinstance(value, torch.Tensor) for value in objective.state_dict().values())


def test_a_checkpoint_of_other_settings_is_refused():
    state = make("inverse").state_dict()
    for options, name in (({"squash": False}, "squash"), ({"stop_grad_next": True}, "stop_grad_next")):
        with pytest.raises(ValueError, match=f"{name} is False there and True here|{name} is True there"):
            make("inverse", **options).load_state_dict(state)
    with pytest.raises(ValueError, match=r"temperature is 1\.0 there and 0\.5 here"):
        make("contrast", temperature=0.5).load_state_dict(make("contrast").state_dict())


def test_training_resumes_where_it_was():
    def train(objective, optimizer, steps):
        for step in steps:
            optimizer.zero_grad()
            objective.loss(batch(8, step)).backward()
            optimizer.step()

    whole = make("inverse", dropout=0.0)
    half = copy.deepcopy(whole)
    train(whole, torch.optim.AdamW(whole.parameters(), lr=1e-2), range(6))
    first = torch.optim.AdamW(half.parameters(), lr=1e-2)
    train(half, first, range(3))
    resumed = make("inverse", dropout=0.0)
    resumed.load_state_dict(half.state_dict())
    second = torch.optim.AdamW(resumed.parameters(), lr=1e-2)
    second.load_state_dict(first.state_dict())
    train(resumed, second, range(3, 6))
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_distributed_wrappers_reduce_the_loss_of_a_batch(tmp_path):
    """One process: the wrapper's hooks must have seen the call, which `.loss` of the module inside would avoid."""
    from torch import distributed

    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        inner = make("inverse", dropout=0.0)
        wrapped, reduced = nn.parallel.DistributedDataParallel(inner), []

        def hook(state, bucket):
            reduced.append(bucket.buffer().numel())
            future = torch.futures.Future()
            future.set_result(bucket.buffer())
            return future

        wrapped.register_comm_hook(None, hook)
        loss = wrapped(batch(8))
        loss.backward()
        assert sum(reduced) == sum(p.numel() for p in inner.parameters())
        torch.testing.assert_close(loss, inner.loss(batch(8)))
    finally:
        distributed.destroy_process_group()


def test_nothing_draws_from_the_global_generator():
    buffer, index = episodes([4, 5]), transition_index([4, 5])
    x = torch.randn(50, 3, generator=seeded(0))
    before = torch.get_rng_state()
    list(iterate_batches(buffer, index, 3, generator=seeded(0)))
    fit_probe(x, x, steps=3, generator=seeded(0))
    assert torch.equal(torch.get_rng_state(), before)
    first, second = (fit_probe(x, x.square(), steps=9, generator=seeded(1)) for _ in range(2))
    assert (first.r2, first.r2_low, first.mse) == (second.r2, second.r2_low, second.mse)


def test_a_loader_with_workers_may_collate_batches():
    items = [Batch(*(field[i] for field in batch(6))) for i in range(6)]
    (given,) = torch.utils.data.DataLoader(items, batch_size=6)
    assert isinstance(given, Batch)
    objective = make("inverse").eval()
    torch.testing.assert_close(objective.loss(given), objective.loss(batch(6)))


def test_gradients_of_a_contrast_flow_to_a_learned_temperature():
    u, v = torch.randn(2, 6, 3, generator=seeded(0))
    temperature = torch.tensor(0.5, requires_grad=True)
    info_nce(u, v, temperature).backward()
    step = 1e-3
    slope = (info_nce(u, v, 0.5 + step) - info_nce(u, v, 0.5 - step)) / (2 * step)
    assert temperature.grad.item() == pytest.approx(slope.item(), rel=1e-2)


# --- files ----------------------------------------------------------------------------------------


def test_minari_episodes_with_nested_spaces():
    def episode(steps):
        images = np.zeros((steps + 1, 8, 6, 3), np.uint8)
        images[:, 2, 4, 1] = np.arange(steps + 1)
        state = (np.arange(steps + 1.0)[:, None], {"hand": np.ones((steps + 1, 2))})
        return types.SimpleNamespace(
            observations={"camera": images, "state": state}, actions=np.zeros((steps, 2)), infos={}
        )

    buffer = from_episodes([episode(3), episode(2)], channels_last=True)
    assert set(buffer["obs"]) == {"camera", "state/0", "state/1/hand"}
    assert buffer["obs"]["camera"].shape == (7, 3, 8, 6)
    assert buffer["obs"]["camera"].dtype == torch.uint8
    assert buffer["obs"]["camera"][:, 1, 2, 4].tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert buffer["obs"]["state/0"].dtype == buffer["action"].dtype == torch.float32
    assert buffer["lengths"].tolist() == [3, 2]


def test_minari_itself():
    minari = pytest.importorskip("minari")
    rewards, ends = np.zeros(3), np.zeros(3, bool)
    episode = minari.EpisodeData(0, np.zeros((4, 5)), np.array([0, 1, 1]), rewards, ends, ends, {})
    buffer = from_episodes([episode])
    assert buffer["action"].tolist() == [0, 1, 1]
    assert buffer["obs"].shape == (4, 5)


def test_robomimic_demonstrations_end_with_their_next_observation():
    obs = {"arm0": np.arange(3.0)[:, None], "arm1": np.zeros((3, 2))}
    following = {"arm0": np.arange(1.0, 4.0)[:, None], "arm1": np.zeros((3, 2))}
    buffer = from_episodes([{"obs": obs, "next_obs": following, "actions": np.zeros((3, 2, 7)), "task": 4}])
    assert buffer["obs"]["arm0"].flatten().tolist() == [0, 1, 2, 3]
    assert buffer["action"].shape == (3, 14)
    assert buffer["task"].tolist() == [4]


def test_logs_without_a_last_observation_lose_their_last_action():
    episode = {"observation": torch.arange(3.0)[:, None], "action": torch.arange(3.0)[:, None]}
    buffer = from_episodes([episode], drop_last_action=True)
    assert buffer["action"].flatten().tolist() == [0, 1]
    assert buffer["obs"].flatten().tolist() == [0, 1, 2]


def test_every_transition_finds_its_way_back():
    index = transition_index([2, 1])
    assert list(zip(index.episode.tolist(), index.step.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 0)]


def test_importing_is_light():
    import subprocess
    import sys

    code = "import sys, torch; before = set(sys.modules); import invdyn; print(*(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    new = set(done.stdout.split())
    assert "invdyn.objective" in new
    assert not new & {"torch._dynamo", "numpy", "scipy", "transformers", "torchdiffeq", "minari"}
