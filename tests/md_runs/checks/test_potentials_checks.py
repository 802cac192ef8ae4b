"""The conformance suite: every architecture passes it, and broken ones fail it."""

from __future__ import annotations

import copy
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from potential_models import crystal, ethanol, lively

from dcase.errors import DcaseError
from dcase.md_runs.checks import conformance as checks
from dcase.md_runs.checks.structures import default_structure
from dcase.potentials.networks.registry import ARCHITECTURES, create_potential
from dcase.potentials.potential import Potential

pytestmark = pytest.mark.physics


def _failures(results):
    return [r for r in results if r.failed]


def small(name="CH3OH"):
    """Smaller than ethanol, and not flat."""
    atoms = molecule(name)
    return Atoms(atoms.numbers, atoms.positions)


def smallest():
    """Four atoms with a dihedral angle: no mirror image of themselves."""
    return small("H2O2")


def _by_design(architecture):
    """What an architecture does not promise: measured, and shown as such."""
    return {"rotation", "mirror", "torque"} if architecture == "forcenet" else set()


# A whole suite takes up to tens of seconds. For `make test` one network has it all; the others do
# without what costs most and takes the same forces as the rest. `make test-slow` does everything.
_COSTLY = {"forces, every component", "stress", "dt^2 law", "time reversal"}
_CASES = [
    pytest.param(
        name,
        activation,
        marks=() if (name, activation) == ("schnet", "irelu") else pytest.mark.slow,
    )
    for name in ARCHITECTURES
    for activation in ("irelu", "ssp", "silu")
]


def _without_the_costly(monkeypatch, costly=_COSTLY):
    cheap = [c for c in checks._CHECKS if c.name not in costly]
    assert len(cheap) == len(checks._CHECKS) - len(costly)
    monkeypatch.setattr(checks, "_CHECKS", cheap)


@pytest.mark.parametrize(("architecture", "activation"), _CASES)
def test_potentials_conform_in_float64(architecture, activation):
    results = checks.run_checks(lively(architecture, activation), ethanol(0.0))
    assert _failures(results) == [], checks.format_table(results)
    assert [r.name for r in results if r.skipped] == ["device equals CPU"]
    assert {r.name for r in results if not r.passed} == _by_design(architecture)


@pytest.mark.parametrize(
    ("architecture", "activation"),
    [
        pytest.param("schnet", "silu", marks=pytest.mark.slow),
        *((n, "irelu") for n in ARCHITECTURES if n != "schnet"),
    ],
)
def test_potentials_conform_in_float64_in_short(architecture, activation, monkeypatch):
    _without_the_costly(monkeypatch)
    results = checks.run_checks(lively(architecture, activation), smallest())
    assert _failures(results) == [], checks.format_table(results)
    assert [r.name for r in results if r.skipped] == ["device equals CPU"]
    assert {r.name for r in results if not r.passed} == _by_design(architecture)


# In float64 every architecture has its turn above.
@pytest.mark.parametrize(
    "architecture",
    [
        name if name == "schnet" else pytest.param(name, marks=pytest.mark.slow)
        for name in ARCHITECTURES
    ],
)
def test_potentials_conform_in_float32(architecture):
    results = checks.run_checks(lively(architecture), small(), dtype="float32")
    assert _failures(results) == [], checks.format_table(results)
    assert {r.name for r in results if not r.passed} == _by_design(architecture)
    # What float32 cannot tell is said to be skipped rather than passed.
    assert {"gradcheck", "time reversal"} <= {r.name for r in results if r.skipped}


# Triplets of a crystal's images take a minute; one network is enough every day.
@pytest.mark.parametrize(
    "architecture",
    [
        name if name == "cgcnn" else pytest.param(name, marks=pytest.mark.slow)
        for name in ARCHITECTURES
    ],
)
def test_potentials_conform_on_a_crystal(architecture, tmp_path, monkeypatch):
    if architecture != "schnet":
        _without_the_costly(monkeypatch, _COSTLY - {"stress"})
    path = tmp_path / "model.pt"
    lively(architecture, activation="silu").save(path)
    results = checks.run_checks(path, crystal())
    assert _failures(results) == [], checks.format_table(results)


class _Broken(torch.nn.Module):
    """A network with a fault put in; ``cutoff`` and parameters as the original's."""

    def __init__(self, network):
        super().__init__()
        self.inner, self.cutoff = network, network.cutoff

    def forward(self, species, graph):
        return self.inner(species, graph)


class DetachedAngles(_Broken):
    """Part of the geometry without gradient, as in OCP's DimeNet."""

    def forward(self, species, graph):
        fixed = replace(graph, positions=graph.positions.detach())
        return self.inner(species, graph) + 0.1 * self.inner(species, fixed)


class HardCutoff(_Broken):
    """Neighbours counted without an envelope, as in OCP's CGCNN."""

    def forward(self, species, graph):
        d = graph.distances().to(torch.float64)
        own = self.inner(species, graph)
        return own + 0.1 * own.new_zeros(len(own)).index_add(0, graph.pairs[0], d.to(own.dtype))


class SlopeAtCutoff(_Broken):
    """An envelope that reaches zero with a slope, as in OCP's ForceNet."""

    def forward(self, species, graph):
        d = graph.distances()
        edge = torch.cos(0.5 * np.pi * d / self.cutoff)
        own = self.inner(species, graph)
        return own + own.new_zeros(len(own)).index_add(0, graph.pairs[0], edge.to(own.dtype))


class CartesianFeatures(_Broken):
    """Not invariant to rotation: looks at the x component of the pair vectors."""

    def forward(self, species, graph):
        r = graph.vectors()
        edge = (r[:, 0] ** 2 * (1 + torch.cos(np.pi * graph.distances() / self.cutoff))).to(
            next(self.parameters()).dtype
        )
        own = self.inner(species, graph)
        return own + 0.01 * own.new_zeros(len(own)).index_add(0, graph.pairs[0], edge)


class Handed(_Broken):
    """Mirror images differ: a triple product of the first pair vectors."""

    def forward(self, species, graph):
        own = self.inner(species, graph)
        x = graph.positions
        if len(x) < 4:
            return own
        volume = torch.linalg.det(torch.stack([x[1] - x[0], x[2] - x[0], x[3] - x[0]]))
        return own + 0.001 * volume.to(own.dtype)


class External(_Broken):
    """A field that pulls at the centre of mass."""

    def forward(self, species, graph):
        own = self.inner(species, graph)
        return own + 0.01 * (graph.positions**2).sum(1).to(own.dtype)


class OrderMatters(_Broken):
    """The first atom is special."""

    def forward(self, species, graph):
        own = self.inner(species, graph)
        factor = torch.ones_like(own)
        factor[0] = 1.3
        return own * factor


class BatchMixes(_Broken):
    """Systems in one batch see each other, as with batch normalisation in training mode."""

    def forward(self, species, graph):
        own = self.inner(species, graph)
        return own * (1 + 0.01 * own.mean())


class Intensive(_Broken):
    """A mean over atoms, as in OCP's CGCNN: two fragments do not add up."""

    def forward(self, species, graph):
        own = self.inner(species, graph)
        counts = torch.bincount(graph.system, minlength=graph.n_systems)
        return own / counts[graph.system]


class HalfPrecision(_Broken):
    """Loses digits on the way."""

    def forward(self, species, graph):
        return self.inner(species, graph).to(torch.bfloat16).to(next(self.parameters()).dtype)


class Remembers(_Broken):
    """Depends on what was evaluated before."""

    calls = 0

    def forward(self, species, graph):
        self.calls += 1
        return self.inner(species, graph) * (1 + 1e-6 * self.calls)


class WrongSecond(torch.autograd.Function):
    """Right first derivative of ``x**2 / 2``, second derivative forgotten (detached)."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return 0.5 * x * x

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * x.detach()


class OnceDifferentiable(_Broken):
    """Forces are right, but training on them would follow a wrong gradient."""

    def forward(self, species, graph):
        own = self.inner(species, graph)
        return own + 0.3 * WrongSecond.apply(own)


def _broken(fault):
    potential = lively()
    return Potential(
        fault(potential.network),
        potential.elements,
        architecture="schnet",
        hyper_parameters=potential.hyper_parameters,
        scale=potential.scale,
    )


def _clone(potential):
    """A faulty network has no registry entry to be rebuilt from: copies are made by hand."""
    return Potential(
        copy.deepcopy(potential.network), potential.elements, architecture="schnet",
        hyper_parameters={}, scale=potential.scale,
    ).requires_grad_(True)  # fmt: skip


def _copy_by_hand(patch):
    patch.setattr("dcase.potentials.calculator._copy", _clone)
    patch.setattr("dcase.md_runs.checks.measures.copy_potential", _clone)


@pytest.fixture(scope="module")
def healthy():
    """The results of a network without a fault, by check."""
    with pytest.MonkeyPatch.context() as patch:
        _copy_by_hand(patch)
        return {r.name: r for r in checks.run_checks(_broken(_Broken), ethanol(0.0))}


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (DetachedAngles, {"forces, every component", "forces, along directions", "stress",
                          "gradcheck", "dt^2 law"}),
        (HardCutoff, {"smooth at the cutoff"}),
        (SlopeAtCutoff, {"smooth at the cutoff"}),
        (CartesianFeatures, {"rotation", "mirror", "torque"}),
        (Handed, {"mirror"}),
        (External, {"translation", "sum of forces"}),
        (OrderMatters, {"permutation"}),
        (BatchMixes, {"batch equals single", "separated fragments add up"}),
        (Intensive, {"separated fragments add up", "supercell is n cells"}),
        (HalfPrecision, {"forces, every component"}),
        (Remembers, {"time reversal"}),
        (OnceDifferentiable, {"gradgradcheck", "gradient of a force loss"}),
    ],
)  # fmt: skip
def test_potentials_checks_catch(fault, expected, healthy, monkeypatch):
    _copy_by_hand(monkeypatch)
    wanted = [c for c in checks._CHECKS if c.name in expected]
    assert len(wanted) == len(expected)
    monkeypatch.setattr(checks, "_CHECKS", wanted)
    results = checks.run_checks(_broken(fault), ethanol(0.0))
    assert {r.name for r in _failures(results)} == expected, checks.format_table(results)
    # The same checks pass without the fault: it is the fault that they see.
    assert all(healthy[name].passed for name in expected), checks.format_table(healthy.values())


def test_potentials_checks_catch_a_stale_neighbour_list(monkeypatch):
    from dcase.potentials import calculator

    only = [c for c in checks._CHECKS if c.name == "kept neighbour list"]
    monkeypatch.setattr(checks, "_CHECKS", only)
    assert checks.run_checks(lively(), crystal())[0].passed
    monkeypatch.setattr(
        calculator.NeighbourList,
        "covers",
        lambda self, atoms: bool(self.numbers.tolist() == atoms.numbers.tolist()),
    )
    assert not checks.run_checks(lively(), crystal())[0].passed


def test_potentials_checks_report_a_crash_as_a_failure(monkeypatch):
    def crash(subject):
        raise RuntimeError("no\nsecond line")

    monkeypatch.setattr(checks, "_CHECKS", [checks._Check("crash", crash, 1.0, 1.0)])
    (result,) = checks.run_checks(lively(), ethanol())
    assert (result.passed, result.skipped) == (False, False)
    assert result.detail == "RuntimeError: no"


def test_potentials_checks_excuse_no_nan_by_design(monkeypatch):
    for value, by_design in ((1.0, True), (float("inf"), False), (float("nan"), False)):
        check = checks._Check(
            "rotation", lambda _, v=value: (v, ""), 1e-9, 1e-4, "F", (), "rotation_invariant"
        )
        monkeypatch.setattr(checks, "_CHECKS", [check])
        (result,) = checks.run_checks(lively("forcenet"), ethanol())
        assert (result.by_design, result.failed) == (by_design, not by_design)


def test_potentials_checks_refuse_an_unknown_element():
    with pytest.raises(DcaseError, match="not trained on Cu"):
        checks.run_checks(lively(), bulk("Cu"))


def test_potentials_checks_leave_the_potential_alone():
    potential = lively()
    before = {k: v.clone() for k, v in potential.state_dict().items()}
    state = torch.get_rng_state()
    checks.run_checks(potential, smallest())
    assert potential.dtype == torch.float32
    assert all(p.requires_grad for p in potential.parameters())
    assert all(torch.equal(v, before[k]) for k, v in potential.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_potentials_checks_print_verdicts_and_reasons():
    from rich.console import Console

    results = [
        checks.CheckResult("good", True, 1e-9, 1e-6, "F"),
        checks.CheckResult("bad", False, 1.0, 1e-6, "F", "off [by] a lot"),
        checks.CheckResult("left out", True, float("nan"), 1.0, "F", "no GPU", skipped=True),
        checks.CheckResult("known", False, 2.0, 1e-6, "F", "not promised", by_design=True),
    ]
    assert [r.failed for r in results] == [False, True, False, False]
    text = checks.format_table(results)
    assert "FAILED" in text.splitlines()[2]
    assert "off [by] a lot" in text
    assert "no GPU" in text
    # Not passed, and the number stands.
    assert text.splitlines()[4].split()[1:4] == ["by", "design", "2.0e+00"]
    out = io.StringIO()
    checks.print_results(results, Console(file=out, width=120))
    printed = out.getvalue().splitlines()
    assert "off [by] a lot" in printed[2]
    assert "ok" in printed[1]
    assert "skipped" in printed[3]
    assert "by design" in printed[4]
    assert "2.0e+00" in printed[4]


@pytest.mark.parametrize("elements", [["H", "C", "O"], ["Si"], ["Cu", "Zr"], ["Og"], ["H"]])
def test_potentials_default_structure_is_of_known_elements(elements):
    potential = create_potential(elements=elements, size="tiny")
    atoms = default_structure(potential)
    assert set(atoms.numbers) <= set(potential.elements)
    assert len(atoms) >= 3
    d = atoms.get_all_distances() + 100 * np.eye(len(atoms))
    assert d.min() > 0.5
    assert d.min(axis=1).max() < potential.cutoff


def test_potentials_default_structure_is_what_was_trained_on():
    potential = create_potential(elements=["H", "C", "O"], size="tiny")
    potential.metadata["dataset"] = {"molecule": "salicylic acid"}
    assert default_structure(potential).get_chemical_formula() == "C7H6O3"
