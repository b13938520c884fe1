"""Paths in a recipe begin at its folder, and at the working directory only if they exist nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from foveal.errors import ConfigError
from foveal.training.config import resolve_config


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe with a class map in its folder, and another working directory."""
    for folder in ("recipes", "work"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    (tmp_path / "recipes" / "maps").mkdir()
    (tmp_path / "recipes" / "maps" / "a.yaml").write_text("x: y")
    return tmp_path / "recipes" / "recipe.yaml"


def test_paths_beside_the_recipe(recipe: Path) -> None:
    recipe.write_text("class_map: maps/a.yaml\nweights: in1k")
    for given in (recipe, Path("../recipes/recipe.yaml")):
        config = resolve_config(given, {})
        assert config.class_map == str(given.parent / "maps" / "a.yaml")
        assert config.weights == "in1k"
    assert resolve_config(recipe, {"class_map": "maps/b.yaml"}).class_map == "maps/b.yaml"  # an option of the command


def test_paths_in_the_working_directory(recipe: Path) -> None:
    recipe.write_text("class_map: own/b.yaml\nweights: ../runs/x")
    Path("own").mkdir()
    Path("own/b.yaml").write_text("x: y")
    config = resolve_config(recipe, {})
    assert (config.class_map, config.weights) == ("own/b.yaml", "../runs/x")
    (recipe.parent / "own").mkdir()
    (recipe.parent / "own" / "b.yaml").write_text("x: z")
    with pytest.raises(ConfigError, match=r"class_map: own/b\.yaml exists in the recipe's folder and in the working"):
        resolve_config(recipe, {})
    (recipe.parent / "own" / "b.yaml").unlink()
    (recipe.parent / "own" / "b.yaml").hardlink_to(Path("own/b.yaml"))
    assert resolve_config(recipe, {}).class_map == str(recipe.parent / "own" / "b.yaml")  # the same file


def test_a_folder_named_like_weights(recipe: Path) -> None:
    """A data set beside the recipe is not mistaken for weights, a run is not mistaken for a name."""
    recipe.write_text("weights: cityscapes")
    (recipe.parent / "cityscapes").mkdir()
    assert resolve_config(recipe, {}).weights == "cityscapes"
    (recipe.parent / "cityscapes" / "best.safetensors").touch()
    assert resolve_config(recipe, {}).weights == str(recipe.parent / "cityscapes")
    recipe.write_text('weights: "a\\0b"')
    assert resolve_config(recipe, {}).weights == "a\0b"
