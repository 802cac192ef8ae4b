"""Folds that cover the data once, resumable training of them, and what is reported."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from potential_models import ethanol, graph_of, lively

from dcase.data.dataset import AtomicDataset, DatasetInfo
from dcase.errors import DataError, OptionError
from dcase.potentials.ensemble import Ensemble, load_model
from dcase.potentials.fitting.cross_validation import (
    batch_losses,
    cross_validate,
    make_folds,
    spread,
    statistics,
)
from dcase.potentials.fitting.fit_potential import fit_potential
from dcase.potentials.fitting.recipe import load_recipe
from dcase.runs import read_record
from dcase.units import KCAL_PER_MOL

TINY = {
    "model.size": "tiny",
    "model.activation": "silu",
    "training.epochs": 2,
    "training.batch_size": 4,
}


@pytest.fixture(scope="module")
def dataset():
    """Rattled ethanol, labelled by a potential that has random weights."""
    teacher = lively(dtype=torch.float64)
    frames = [ethanol(seed=n) for n in range(18)]
    results = [teacher(graph_of(teacher, atoms)) for atoms in frames]
    return AtomicDataset.from_arrays(
        frames[0].numbers,
        np.stack([atoms.positions for atoms in frames]),
        np.array([float(r["energy"][0]) for r in results]),
        np.stack([r["forces"].numpy() for r in results]),
        DatasetInfo("teacher", level_of_theory="teacher"),
    )


def run(dataset, out, *, folds=3, recipe=None, **options):
    recipe = recipe or load_recipe("default", TINY)
    return cross_validate(dataset, make_folds(len(dataset), folds, 0), recipe, out, **options)


@pytest.fixture(scope="module")
def done(dataset, tmp_path_factory):
    return run(dataset, tmp_path_factory.mktemp("cv") / "teacher.pt")


def test_folds_use_every_frame_once():
    folds = make_folds(103, 5, seed=1, n_test=10)
    assert sorted(len(p) for p in folds.parts) == [18, 18, 19, 19, 19]
    everything = np.concatenate([*folds.parts, folds.test])
    assert sorted(everything) == list(range(103))
    for number in range(5):
        splits = folds.splits(number)
        assert set(splits.val) == set(folds.parts[number])
        assert len(splits.train) == 93 - len(splits.val)
        assert not set(splits.train) & set(splits.val)


def test_folds_default_test_is_one_more_fold():
    folds = make_folds(120, 5, seed=0, use=60)
    assert [len(p) for p in folds.parts] == [10] * 5
    assert len(folds.test) == 10
    assert not np.array_equal(folds.test, make_folds(120, 5, seed=1, use=60).test)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"folds": 1}, OptionError, "at least 2 folds"),
        ({"folds": 5, "use": 11}, DataError, "only 10"),
        ({"folds": 5, "n_test": 6}, DataError, "too few"),
        ({"folds": 5, "seed": -1}, OptionError, "seed"),
    ],
)
def test_folds_that_cannot_be(arguments, error, words):
    with pytest.raises(error, match=words):
        make_folds(**{"n_frames": 10, "seed": 0, **arguments})


def test_cross_validation_result(done, dataset):
    assert done.finished
    ensemble = load_model(done.path)
    assert isinstance(ensemble, Ensemble)
    assert len(ensemble) == 3
    assert ensemble.metadata["cross_validation"]["n_folds"] == 3
    weights = [next(m.network.parameters()) for m in ensemble.members]
    assert not torch.equal(weights[0], weights[1])  # each from weights of its own
    report = json.loads((done.folder / "report.json").read_text())
    assert [row["fold"] for row in report["folds"]] == [1, 2, 3]
    means = [row["forces_mae_mev_angstrom"] for row in report["folds"]]
    assert report["over_folds"]["forces_mae_mev_angstrom"]["std"] == pytest.approx(np.std(means))
    assert report["test"]["n_frames"] == 4
    assert report["test"]["forces_rmse_mev_angstrom"] <= max(
        report["test_of_one"]["forces_rmse_mev_angstrom"] * 1.0001, 0
    )  # the mean is no worse than the members are on average (Jensen)
    assert report["spread"]["forces_x"]["max"] >= report["spread"]["forces_x"]["mean"] > 0


def test_cross_validation_each_fold_starts_from_weights_of_its_own(dataset, tmp_path):
    recipe = load_recipe("default", {**TINY, "training.epochs": 1, "training.seed": 40})
    starts = []

    def remember(potential, _):
        starts.append([w.detach().clone() for w in potential.network.parameters()])

    run(dataset, tmp_path / "t.pt", recipe=recipe, on_start=remember)
    assert len(starts) == 3
    for number, start in enumerate(starts):
        alone = load_recipe("default", {**TINY, "training.epochs": 1, "training.seed": 40 + number})
        (seen,) = first_weights(dataset, alone, tmp_path / f"{number}.pt")
        assert all(torch.equal(a, b) for a, b in zip(start, seen, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(starts[0], starts[1], strict=True))


def first_weights(dataset, recipe, out):
    """What one training by ``recipe`` starts from."""
    seen = []
    fit_potential(
        dataset,
        make_folds(len(dataset), 3, 0).splits(0),
        recipe,
        out,
        on_start=lambda p, _: seen.append([w.detach().clone() for w in p.network.parameters()]),
    )
    return seen


def test_cross_validation_each_member_never_saw_its_fold(done, dataset):
    folds = make_folds(len(dataset), 3, 0)
    for number, member in enumerate(load_model(done.path).members):
        assert member.metadata["split"]["hash"] == folds.splits(number).hash()


def test_cross_validation_losses_by_hand(done, dataset):
    """In kcal/mol whatever the label scale: from physical predictions and the recipe's weights."""
    recipe = load_recipe("default", TINY)
    member = load_model(done.path).members[0].with_dtype(torch.float64)
    part = dataset.subset([0, 1, 2])
    losses = batch_losses(member, part, recipe, 2)
    wanted = []
    for frames in ([0, 1], [2]):
        e, f = [], []
        for n in frames:
            found = member(graph_of(member, part.frame(n)))
            e.append((float(found["energy"][0]) - part.energies[n]) / KCAL_PER_MOL)
            f.append((found["forces"].numpy() - part.frame(n).get_forces()) / KCAL_PER_MOL)
        wanted.append(recipe.loss.energy_weight * np.mean(np.square(e)) + np.mean(np.square(f)))
    np.testing.assert_allclose(losses, wanted, rtol=1e-9)


def test_spread_is_of_the_ensemble(done, dataset):
    ensemble = load_model(done.path).with_dtype(torch.float64)
    found = spread(ensemble, dataset.subset([0, 5]))
    values = [ensemble(graph_of(ensemble, dataset.frame(n))) for n in (0, 5)]
    energies = [float(v["energy_std"][0]) / KCAL_PER_MOL for v in values]
    assert found["energy"] == pytest.approx(statistics(energies))
    y = np.concatenate([v["forces_std"][:, 1].numpy() for v in values]) / KCAL_PER_MOL
    assert found["forces_y"] == pytest.approx(statistics(y))


def test_cross_validation_in_processes_is_the_same(done, dataset, tmp_path):
    steps = []
    other = run(
        dataset, tmp_path / "t.pt", jobs=2, on_step=lambda fold, p: steps.append((fold, p.step))
    )
    assert other.finished
    assert {fold for fold, _ in steps} == {0, 1, 2}
    one, two = load_model(done.path), load_model(other.path)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_cross_validation_failure_in_a_process_is_one_error(dataset, tmp_path):
    recipe = load_recipe("default", {**TINY, "training.lr": 1e30, "training.clip_norm": 0.0})
    with pytest.raises(Exception, match="fold [123]: .*NaN") as error:
        run(dataset, tmp_path / "t.pt", jobs=2, recipe=recipe)
    assert "\n" not in str(error.value)


def test_cross_validation_resume_keeps_finished_folds(done, dataset, tmp_path):
    stop_in = 1

    class Stop(Exception):
        pass

    def stop(fold, progress):
        if fold == stop_in:
            raise Stop

    with pytest.raises(Stop):
        run(dataset, tmp_path / "t.pt", on_step=stop)
    assert not (tmp_path / "t.pt").exists()
    begun = []
    again = run(
        dataset, tmp_path / "t.pt", resume=True, on_fold=lambda fold, of: begun.append((fold, of))
    )
    assert begun == [(1, 3), (2, 3)]
    for a, b in zip(
        load_model(done.path).parameters(), load_model(again.path).parameters(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("status", ["running", "clearing"])
def test_cross_validation_ends_a_fold_that_was_killed_in_its_last_write(
    status, done, dataset, tmp_path
):
    shutil.copytree(done.folder, tmp_path / "t.run")
    fold = tmp_path / "t.run" / "fold-2.run"
    record = json.loads((fold / "run.json").read_text())
    (fold / "run.json").write_text(json.dumps(record | {"status": status}))
    (fold / ".run.json.0123456789ab.json").write_text('{"half')
    (fold / ".lock").touch()
    begun = []
    again = run(
        dataset, tmp_path / "t.pt", resume=True, on_fold=lambda fold, of: begun.append(fold)
    )
    assert begun == [1]
    assert read_record(fold)["status"] == "finished"
    names = {path.name for path in fold.iterdir()}
    assert names == {path.name for path in (done.folder / "fold-2.run").iterdir()}
    for a, b in zip(
        load_model(done.path).parameters(), load_model(again.path).parameters(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_cross_validation_refuses_to_mix_runs(done, dataset, tmp_path):
    with pytest.raises(OptionError, match="--resume"):
        run(dataset, done.path)
    with pytest.raises(OptionError, match="other folds"):
        run(dataset, done.path, folds=4, resume=True)
    other = load_recipe("default", {**TINY, "training.lr": 1e-3})
    with pytest.raises(OptionError, match="training.lr was"):
        run(dataset, done.path, recipe=other, resume=True)
    with pytest.raises(OptionError, match="other frames"):
        run(replace(dataset, energies=dataset.energies + 1), done.path, resume=True)


def test_cross_validation_with_more_epochs_goes_on(done, dataset, tmp_path):
    shutil.copytree(done.folder, tmp_path / "t.run")
    recipe = load_recipe("default", {**TINY, "training.epochs": 3})
    begun = []
    run(
        dataset,
        tmp_path / "t.pt",
        recipe=recipe,
        resume=True,
        on_step=lambda fold, p: begun.append(p.epoch),
    )
    assert set(begun) == {3}  # the first two are not repeated
