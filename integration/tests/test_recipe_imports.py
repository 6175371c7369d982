import importlib
import sys

import pytest

RECIPES = {
    "continual_stream": ("gacil", "neuralcollapse", "robustmeanteacher"),
    "language_model": ("sortedft", "emulatedft"),
    "offline_control": ("ildataquality", "morec"),
    "physics": ("koopmanlimits", "poseidon-lite"),
    "training_probes": ("localcomplexity", "neuralcollapse"),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_whose_package_is_missing_says_what_to_install(recipe, monkeypatch):
    names = RECIPES[recipe]
    missing = names[-1].replace("-", "_")
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, f"armillary.recipes.{recipe}", raising=False)
    with pytest.raises(ModuleNotFoundError) as caught:
        importlib.import_module(f"armillary.recipes.{recipe}")
    assert str(caught.value) == f"this recipe needs {missing}: pip install {' '.join(names)}"
    assert caught.value.name == missing
