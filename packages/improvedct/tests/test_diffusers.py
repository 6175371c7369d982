"""A model trained here answers in diffusers' pipeline as it does here."""

import pytest
import torch
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, DDPMScheduler, UNet2DModel
from torch import nn

from improvedct import Consistency, NoiseRange, consistency_loss, sample
from improvedct.diffusers import from_diffusers, to_diffusers


def unet(**options):
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1, **options,
    ).eval()  # fmt: skip


def test_one_step_of_the_pipeline_is_the_model_at_the_largest_noise():
    model = from_diffusers(unet())
    pipeline = ConsistencyModelPipeline(*to_diffusers(model))
    pipeline.set_progress_bar_config(disable=True)
    latents = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    found = pipeline(batch_size=2, latents=latents, num_inference_steps=1, output_type="pt").images
    with torch.no_grad():
        wanted = model(80 * latents, torch.full((2,), 80.0))
    torch.testing.assert_close(found, (wanted.clamp(-1, 1) / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=1e-5)


def test_each_level_of_another_range_and_with_labels():
    noise, net = NoiseRange(0.01, 40.0, 5.0, 0.7), unet(num_class_embeds=3)
    model = from_diffusers(
        net, CMStochasticIterativeScheduler(sigma_min=0.01, sigma_max=40.0, rho=5.0, sigma_data=0.7)
    )
    assert model.noise_range == noise
    same, scheduler = to_diffusers(model, clip=False)
    assert same is net
    scheduler.set_timesteps(timesteps=[30, 12, 0])
    labels = torch.tensor([0, 2])
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for index, timestep in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[index]
        with torch.no_grad():
            answer = net(scheduler.scale_model_input(x, timestep), timestep, class_labels=labels).sample
            skip, out = scheduler.get_scalings_for_boundary_condition(sigma)
            wanted = out * answer + skip * x
            found = model(x, sigma.expand(2), class_labels=labels)
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
        scheduler._step_index += 1


def test_it_trains_and_samples_and_saves(tmp_path):
    model = from_diffusers(unet())
    data = torch.rand(4, 3, 8, 8) * 2 - 1
    loss = consistency_loss(model, data, 11).loss
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.net.unet.conv_out.parameters())
    network, scheduler = to_diffusers(model)
    network.save_pretrained(tmp_path / "unet")
    scheduler.save_pretrained(tmp_path / "scheduler")
    again = from_diffusers(
        UNet2DModel.from_pretrained(tmp_path / "unet"),
        CMStochasticIterativeScheduler.from_pretrained(tmp_path / "scheduler"),
    ).eval()
    found = [
        sample(each.eval(), (2, 3, 8, 8), generator=torch.Generator().manual_seed(0))
        for each in (model, again)
    ]
    assert torch.equal(*found)


def test_what_is_no_consistency_model_is_named():
    with pytest.raises(TypeError, match="DDPMScheduler has no sigma_min"):
        from_diffusers(unet(), DDPMScheduler())
    with pytest.raises(TypeError, match="Consistency of from_diffusers, got Identity"):
        to_diffusers(Consistency(nn.Identity()))
    with pytest.raises(TypeError, match="Consistency of from_diffusers, got UNet2DModel"):
        to_diffusers(unet())
