"""Recipes: what they hold, and what is said about what they cannot hold."""

import pytest

from dcase.errors import OptionError
from dcase.potentials.fitting.recipe import RECIPE_DIR, Recipe, load_recipe, recipe_names
from dcase.potentials.networks.registry import create_potential

PAPER = {
    # ../shared/facts/dc-protocol.md, "loss (code)", "optimiser", "label rescaling", "Sizes".
    "model": {"architecture": "schnet", "size": "paper", "activation": "irelu",
              "initialization": "default", "hyper_parameters": {}},
    "labels": {"rescale": "paper", "offset": "none", "energy_per_atom": False},
    "loss": {"energy_weight": 1.0, "forces_weight": 30.0, "energy_loss": "l1", "forces_loss": "l1"},
    "training": {"optimizer": "adam", "lr": 1e-4, "weight_decay": 0.0, "beta1": 0.9, "beta2": 0.999,
                 "eps": 1e-8, "amsgrad": False, "schedule": "constant", "warmup_steps": 0,
                 "epochs": 50, "batch_size": 20, "seed": 0, "ema": 0.0, "clip_norm": 0.0,
                 "early_stopping": 0, "time_limit": None},
    "acceleration": {"filter_table": 0},
}  # fmt: skip


def test_paper_recipe_is_the_protocol_to_the_letter():
    recipe = load_recipe("paper").to_dict()
    for table, entries in PAPER.items():
        assert {k: recipe[table][k] for k in entries} == entries
    potential = create_potential("schnet", elements="H", size=recipe["model"]["size"])
    sizes = {"hidden_channels": 1024, "num_filters": 256, "num_interactions": 5,
             "num_gaussians": 200, "cutoff": 6.0}  # fmt: skip
    assert {k: potential.hyper_parameters[k] for k in sizes} == sizes


def test_every_recipe_loads_and_survives_a_checkpoint():
    assert {"default", "paper"} <= set(recipe_names())
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.description
        assert Recipe.from_dict(recipe.to_dict()) == recipe
        assert any(term.weight > 0 for term in recipe.loss.terms().values())
    assert load_recipe() == load_recipe("default")


def test_overrides_reach_their_place():
    recipe = load_recipe(
        "default",
        {
            "training.lr": 1,  # an int where a float is meant
            "training.epochs": None,  # an option that was not given
            "labels.rescale": 2.5,
            "model.size": "tiny",
            "model.num_filters": 24,
            "model.cutoff": 3.5,
            "acceleration.filter_table": 0,
        },
    )
    default = load_recipe()
    assert recipe.training.lr == 1.0
    assert isinstance(recipe.training.lr, float)
    assert recipe.training.epochs == default.training.epochs
    assert recipe.labels.rescale == 2.5
    assert recipe.model.hyper_parameters == {"num_filters": 24, "cutoff": 3.5}
    assert recipe.acceleration.filter_table == 0
    assert default.model.hyper_parameters == {}


def test_own_file_and_its_defaults(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[training]\nepochs = 7\n[model.hyper_parameters]\nnum_filters = 8\n")
    recipe = load_recipe(str(path), {"model.cutoff": 4.0})
    assert recipe.name == "mine"
    assert recipe.training.epochs == 7
    assert recipe.model.hyper_parameters == {"num_filters": 8, "cutoff": 4.0}
    assert recipe.loss == Recipe().loss


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[trainng]\nlr = 1", r"unknown table \[trainng\]; known: model, labels"),
        ("[training]\nlearning_rat = 1", r"\[training\] has no entry 'learning_rat'$"),
        ("[training]\nepoch = 1", r"no entry 'epoch'; did you mean epochs\?"),
        ("[loss]\nforce_weight = 1", "did you mean forces_weight"),
        ('[training]\nepochs = "ten"', "epochs must be a whole number, got 'ten'"),
        ("[training]\nepochs = 10.0", "epochs must be a whole number, got 10.0"),
        ("[training]\nbatch_size = true", "batch_size must be a whole number, got True"),
        ('[training]\nlr = "1e-3"', "lr must be a finite number, got '1e-3'"),
        ("[training]\nlr = nan", "lr must be a finite number, got nan"),
        ('[training]\namsgrad = "no"', "amsgrad must be true or false, got 'no'"),
        ("[training]\ntime_limit = [1]", "time_limit must be a finite number, got "),
        ('[training]\nschedule = "cosin"', "schedule must be one of .*; got 'cosin'"),
        ('[labels]\nenergy_per_atom = "no"', "energy_per_atom must be true or false, got 'no'"),
        ("[labels]\nrescale = true", "rescale must be text or a finite number, got True"),
        ('[loss]\nenergy_weight = "heavy"', "energy_weight must be a finite number"),
        ("[loss]\nenergy_weight = -1", "zero or positive, got -1"),
        ('[loss]\nforces_loss = "mse"', "one of l1, l2, huber; got 'mse'"),
        ("[model]\nsize = 3", "size must be text, got 3"),
        ("[model]\nhyper_parameters = 3", "hyper_parameters must be a table, got 3"),
        ("[acceleration]\nfilter_table = -1", "filter_table must not be negative"),
        ("training = 3", "training must be a table, got 3"),
        ("[training\nlr = 1", "not valid TOML"),
    ],
)
def test_mistakes_in_a_file_get_one_line(tmp_path, toml, message):
    path = tmp_path / "r.toml"
    path.write_text(toml)
    with pytest.raises(OptionError, match=message) as caught:
        load_recipe(str(path), {"training.seed": 1, "model.cutoff": 4.0})
    # (A hyper-parameter meant for [model] cannot hide that it is no table.)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(OptionError, match="no recipe 'nope'; there are: default, materials, paper"):
        load_recipe("nope")
    with pytest.raises(OptionError, match=r"no such file: .*none\.toml"):
        load_recipe(str(tmp_path / "none.toml"))
    (tmp_path / "latin.toml").write_bytes('description = "Ångström"'.encode("latin-1"))
    with pytest.raises(OptionError, match="not valid TOML"):
        load_recipe(str(tmp_path / "latin.toml"))
    (tmp_path / "long.toml").write_text("[training]\nepochs = 1" + "0" * 5000)
    with pytest.raises(OptionError, match="not valid TOML"):
        load_recipe(str(tmp_path / "long.toml"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"trainig.lr": 1.0}, "unknown table"),
        ({"training.lrr": 1.0}, "did you mean lr"),
        ({"training.lr": -1.0}, "lr must be positive, got -1.0"),
    ],
)
def test_mistakes_in_overrides(override, message):
    with pytest.raises(OptionError, match=message):
        load_recipe("default", override)


def test_recipes_are_packaged():
    assert (RECIPE_DIR / "__init__.py").exists()


def test_default_recipe_turns_frames_for_forcenet_only():
    turned = {
        name: load_recipe("default", {"model.architecture": name}).data.augment_rotations
        for name in ("schnet", "cgcnn", "dimenet++", "forcenet", "gemnet-t")
    }
    assert [name for name, is_turned in turned.items() if is_turned] == ["forcenet"]
    asked = {"model.architecture": "forcenet", "data.augment_rotations": False}
    assert not load_recipe("default", asked).data.augment_rotations
    assert not load_recipe("paper", {"model.architecture": "forcenet"}).data.augment_rotations


def test_tables_of_an_architecture_apply_to_it_alone(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        """
        [training]
        lr = 1e-2
        epochs = 7
        [architecture."dimenet++".training]
        lr = 1e-4
        """
    )
    assert load_recipe(str(file)).training.lr == 1e-2
    special = load_recipe(str(file), {"model.architecture": "dimenetpp"})  # an alias
    assert (special.training.lr, special.training.epochs) == (1e-4, 7)
    chosen = load_recipe(str(file), {"model.architecture": "dimenet++", "training.lr": 3e-4})
    assert chosen.training.lr == 3e-4  # what is asked for goes before both
    file.write_text('[architecture."dimenet+".training]\nlr = 1e-4\n')
    with pytest.raises(OptionError, match="unknown architecture 'dimenet\\+'"):
        load_recipe(str(file))
    file.write_text("[architecture.schnet.training]\nlearning = 1e-4\n")
    with pytest.raises(OptionError, match="no entry 'learning'"):
        load_recipe(str(file))
    file.write_text("[architecture]\nschnet = 3\n")
    with pytest.raises(OptionError, match=r"\[architecture.schnet\] must hold tables"):
        load_recipe(str(file))
