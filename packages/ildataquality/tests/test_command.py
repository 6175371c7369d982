"""`ildataquality report`: what it prints, writes and refuses."""

import json
from importlib.metadata import entry_points

import h5py
import numpy as np
import pytest
import torch

from ildataquality import Episodes, PMObstacle, episode_scores, quality_report, rank_episodes
from ildataquality.command import main


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory):
    """A robomimic file: four careful episodes, called demo_0 to demo_3, and four noisy ones."""
    task, generator = PMObstacle(), torch.Generator().manual_seed(0)
    parts = [task.collect(4, policy_noise=noise, generator=generator) for noise in (0.05, 0.9)]
    path = tmp_path_factory.mktemp("data") / "demos.hdf5"
    with h5py.File(path, "w") as file:
        for number, episode in enumerate(Episodes.concatenate(parts).to_arrays()):
            group = file.create_group(f"data/demo_{number}")
            states = np.asarray(episode["observations"])
            following = (
                np.asarray(episode["next_observations"]) if "next_observations" in episode else states[1:]
            )
            group["actions"] = np.asarray(episode["actions"])
            group["obs/object"], group["next_obs/object"] = states[: len(following)], following
    return path


def test_the_table_ranks_by_the_sources_own_names(demonstrations, capsys, tmp_path):
    assert (
        main(["report", str(demonstrations), "--keep", "0.5", "--json", str(tmp_path / "report.json")]) == 0
    )
    printed = capsys.readouterr().out
    episodes = Episodes.from_robomimic_hdf5(demonstrations)
    report = quality_report(episodes)
    rows = [line.split() for line in printed.splitlines() if "demo_" in line]
    assert [next(word for word in row if "demo_" in word) for row in rows] == [
        report.names[index] for index in rank_episodes(report).tolist()
    ]
    assert {row[1] for row in rows if row[0] == "*"} == {f"demo_{number}" for number in range(4)}
    assert [float(row[-5]) for row in rows] == pytest.approx(
        episode_scores(report).sort(descending=True).values.tolist(), abs=6e-4
    )
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["kept"] == [f"demo_{number}" for number in range(4)]
    assert found["action_variance"] == pytest.approx(report.action_variance)
    assert found["scores"] == pytest.approx(episode_scores(report).tolist())


def test_what_is_kept_becomes_a_filter_of_the_file(demonstrations, capsys):
    assert main(["report", str(demonstrations), "--keep", "0.5", "--mask", "kept"]) == 0
    assert "hdf5_filter_key=kept" in capsys.readouterr().out
    kept = Episodes.from_robomimic_hdf5(demonstrations, filter_key="kept")
    assert kept.names == tuple(f"demo_{number}" for number in range(4))
    assert main(["report", str(demonstrations), "--filter", "kept"]) == 0
    assert "4 episodes" in capsys.readouterr().out
    assert main(["report", str(demonstrations), "--keep", "0.5", "--mask", "kept"]) == 2  # there already
    assert "kept" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.hdf5"], "nowhere.hdf5"),
        (["{file}", "--filter", "best"], "filter_key must be one of"),
        (["{file}", "--mask", "kept"], "--mask needs --keep"),
        (["{file}", "--keep", "1.5"], "keep must lie in"),
        (["{file}", "--observations", "force"], "observation_keys must be among"),
        (["some/dataset-v0"], "local Minari data set"),
        (["some/dataset-v0", "--filter", "x"], "--filter needs a robomimic file"),
        (["some/dataset-v0", "--keep", "0.5", "--mask", "x"], "a robomimic file"),
    ],
)
def test_what_it_cannot_do_is_said_without_a_traceback(
    demonstrations, arguments, message, capsys, monkeypatch, tmp_path
):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    assert main(["report", *(word.replace("{file}", str(demonstrations)) for word in arguments)]) == 2
    assert message in capsys.readouterr().err


def test_the_command_is_installed():
    (found,) = entry_points(group="console_scripts", name="ildataquality")
    assert found.load() is main
