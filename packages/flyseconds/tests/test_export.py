"""Policies in C: compiled with the system's compiler and held against torch."""

import ctypes
import shutil
import subprocess

import pytest
import torch
from helpers import seeded
from torch import nn

from flyseconds import TD3Agent, export_c

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")


def build(text, folder):
    source, library = folder / "policy.c", folder / "policy.so"
    source.write_text(text)
    flags = ["-std=c99", "-O1", "-Wall", "-Wextra", "-Werror", "-pedantic", "-shared", "-fPIC"]
    subprocess.run([COMPILER, *flags, str(source), "-o", str(library), "-lm"], check=True)
    return ctypes.CDLL(str(library))


def call(function, observation, outputs):
    given = (ctypes.c_float * len(observation))(*observation.tolist())
    action = (ctypes.c_float * outputs)()
    function(given, action)
    return torch.tensor(list(action))


@needs_compiler
def test_the_exported_policy_is_the_policy(tmp_path):
    policy = TD3Agent(generator=seeded(0)).policy()
    observations = torch.randn(50, 146, generator=seeded(1))
    library = build(export_c(policy, name="fly", self_test_observation=observations[0]), tmp_path)
    with torch.no_grad():
        expected = policy(observations)
    for observation, action in zip(observations, expected, strict=True):
        torch.testing.assert_close(call(library.fly, observation, 4), action, rtol=0, atol=1e-6)
    library.fly_self_test.restype = ctypes.c_float
    assert library.fly_self_test() <= 1e-6


@needs_compiler
def test_other_layers_are_written_too(tmp_path):
    policy = nn.Sequential(
        nn.Linear(5, 7, bias=False), nn.ReLU(), nn.Linear(7, 3), nn.Linear(3, 2), nn.Identity()
    )
    library = build(export_c(policy.double()), tmp_path)
    observation = torch.randn(5, generator=seeded(2))
    expected = policy(observation.double()).float()
    torch.testing.assert_close(call(library.policy, observation, 2), expected, rtol=1e-5, atol=1e-6)


@needs_compiler
def test_the_self_test_is_in_single_precision_whatever_the_actor(tmp_path):
    policy = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2), nn.Tanh()).bfloat16()
    library = build(export_c(policy, self_test_observation=torch.randn(6, generator=seeded(1))), tmp_path)
    library.policy_self_test.restype = ctypes.c_float
    assert library.policy_self_test() <= 1e-6
    assert policy[0].weight.dtype == torch.bfloat16


@needs_compiler
def test_the_self_test_notices_a_wrong_weight(tmp_path):
    policy = TD3Agent(generator=seeded(0)).policy()
    observation = torch.randn(146, generator=seeded(1))
    text = export_c(policy, self_test_observation=observation)
    start = text.index("policy_bias_2[4] = {") + len("policy_bias_2[4] = {")
    library = build(text[:start] + "\n    1.0f + " + text[start:].lstrip(), tmp_path)
    library.policy_self_test.restype = ctypes.c_float
    assert library.policy_self_test() > 0.1


def test_the_file_holds_every_weight_exactly_and_nothing_of_the_library(tmp_path):
    policy = TD3Agent(generator=seeded(0)).policy()
    text = export_c(policy, tmp_path / "policy.c")
    assert (tmp_path / "policy.c").read_text() == text
    assert [line for line in text.splitlines() if "include" in line] == ["#include <math.h>"]
    assert "malloc" not in text
    weights = text.split("policy_weight_0[9344] = {")[1].split("}")[0]
    numbers = torch.tensor([float(number.strip().rstrip("f")) for number in weights.split(",")])
    assert torch.equal(numbers, policy[0].weight.detach().flatten())
    assert "#include" not in export_c(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
