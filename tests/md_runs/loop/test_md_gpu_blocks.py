"""NVE in one recording: ASE's trajectory; on the CPU a tape stands in for a CUDA graph."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.constraints import FixAtoms
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet
from potential_models import crystal, ethanol, lively, lively_as_trained
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dcase import DCCalculator
from dcase.data.molecules import structure
from dcase.md_runs.loop import engine
from dcase.md_runs.loop import gpu_blocks as graph_blocks
from dcase.md_runs.loop.compiled_blocks import verlet_blocks
from dcase.md_runs.loop.gpu_blocks import nothing_beyond
from dcase.md_runs.loop.gpu_replay import CudaGraphRunner, EagerRunner, needs_host
from dcase.md_runs.loop.gpu_verlet import DeviceSteps, FixedGraph
from dcase.md_runs.loop.mechanics import degrees_of_freedom, draw_momenta, temperature
from dcase.md_runs.loop.watch import BlowUpWatch
from dcase.md_runs.settings import MDSettings
from dcase.md_runs.simulate import run_md
from dcase.potentials import calculator
from dcase.potentials.ensemble import Ensemble
from dcase.potentials.kernels.atom_kernel import available
from dcase.potentials.networks.splines import Located, UniformSpline
from dcase.units import FS

ANY = (None, 1e9)  # untrained potentials blow up
on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


class _Tape(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out


class TapeRunner:
    """What a CUDA graph does, on the CPU: the same operations on the same memory, and no Python."""

    def __init__(self, function, device=None):
        function()
        with _Tape() as tape:
            function()
        self.calls = [c for c in tape.calls if not self.is_view(c[0])]
        assert len(self.calls) > 50

    @staticmethod
    def is_view(func):
        schema = func._schema
        return not schema.is_mutable and any(r.alias_info is not None for r in schema.returns)

    @torch.no_grad()
    def __call__(self):
        for func, args, kwargs, out in self.calls:
            new = func(*args, **kwargs)
            if not func._schema.is_mutable:
                for old, fresh in zip(tree_leaves(out), tree_leaves(new), strict=True):
                    if old is not None:
                        old.copy_(fresh)


@pytest.fixture
def ending_splines(monkeypatch):
    """Splines that are exactly zero beyond the cutoff, not up to the rounding of their ends."""
    locate, weights = UniformSpline.locate, Located.weights

    def marked(self, distances):
        where = locate(self, distances)
        where.inside = distances <= self.cutoff
        return where

    def masked(self, order, dtype):
        return weights(self, order, dtype) * self.inside.unsqueeze(-1).to(dtype)

    monkeypatch.setattr(UniformSpline, "locate", marked)
    monkeypatch.setattr(Located, "weights", masked)


def with_calculator(atoms, potential, *, kelvin=300.0, seed=1, **options):
    atoms.calc = DCCalculator(
        potential, **{"dtype": "float64", "skin": 0.3, "allow_isolated": True, **options}
    )
    if kelvin:
        draw_momenta(atoms, kelvin, np.random.default_rng(seed))
    return atoms


def aspirin(**options):
    return with_calculator(structure("aspirin"), "aspirin_irelu.pt", **options)


def triclinic(architecture="schnet", device="cpu", **options):
    potential = lively(architecture, dtype=torch.float64, force=0.2, **options)
    return with_calculator(crystal(), potential, device=device)


def loop(atoms, runner=EagerRunner, *, timestep_fs=0.5, n_dof=None, limits=ANY, **options):
    """``graph_blocks``; ``limits``: bond stretch and temperature."""
    watch = BlowUpWatch(atoms, *limits)
    n_dof = degrees_of_freedom(atoms, "nve") if n_dof is None else n_dof
    options = {"steps_a_replay": 7, **options}
    return graph_blocks.graph_blocks(atoms, timestep_fs, watch, n_dof, runner=runner, **options)


def own_calculator(atoms, **options):
    copy = atoms.copy()
    calc = atoms.calc
    copy.calc = DCCalculator(
        calc.potential,
        **{
            "dtype": calc.dtype,
            "skin": calc.skin,
            "allow_isolated": calc.allow_isolated,
            "optimize": False,
            **options,
        },
    )
    return copy


def ase_trajectory(atoms, steps, timestep_fs=0.5):
    """Positions, momenta and both energies after each step."""
    atoms = own_calculator(atoms, device=atoms.calc.device)
    dynamics, forces, states = VelocityVerlet(atoms, timestep=timestep_fs * FS), None, []
    for _ in range(steps):
        forces = dynamics.step(forces)
        energies = atoms.get_potential_energy(), atoms.get_kinetic_energy()
        states.append((atoms.positions.copy(), atoms.get_momenta(), energies))
    return [np.array(column) for column in zip(*states, strict=True)]


def follow(atoms, blocks, steps, at_once=37):
    """All steps in blocks, each begun where the last one ended."""
    x, p = atoms.positions, atoms.get_momenta()
    f = own_calculator(atoms, device=atoms.calc.device).get_forces()
    found = []
    while (missing := steps - sum(map(len, found))) > 0:
        block = blocks.advance(x, p, f, min(at_once, missing))
        if not len(block):
            break
        x, p, f = block.positions[-1], block.momenta[-1], block.forces
        found.append(block)
    if not found:
        return np.empty((0, len(atoms), 3)), np.empty((0, len(atoms), 3)), np.empty((0, 2))
    names = ("positions", "momenta", "energies")
    return tuple(np.concatenate([getattr(b, name) for b in found]) for name in names)


def assert_same(found, wanted, atol=1e-11):
    for name, ours, theirs in zip(("x", "p"), found, wanted, strict=False):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol, err_msg=name)
    np.testing.assert_allclose(found[2], wanted[2], rtol=1e-13, atol=100 * atol)


# --- the trajectory ----------------------------------------------------------------------------


# A tape is of the same operations, played again.
RUNNERS = [pytest.param(EagerRunner, marks=pytest.mark.slow), TapeRunner]


@functools.cache
def trajectory_of_aspirin():
    return ase_trajectory(aspirin(kelvin=800.0, skin=0.2), 200)


@functools.cache
def trajectory_of_a_crystal(architecture, knots):
    return ase_trajectory(triclinic(architecture, **knots_option(knots)), 120)


def knots_option(knots):
    return {} if knots is None else {"filter_knots": knots}


@pytest.mark.physics
@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("every_pair", [True, False])
def test_a_molecule_follows_ase(runner, every_pair, monkeypatch):
    if not every_pair:
        monkeypatch.setattr(calculator, "FEW_ATOMS", 0)
    atoms = aspirin(kelvin=800.0, skin=0.2)
    wanted = trajectory_of_aspirin()
    assert np.ptp(wanted[0], axis=0).max() > 0.5
    blocks = loop(atoms, runner)
    assert_same(follow(atoms, blocks, 200), wanted, atol=2e-12)
    assert blocks.searches == 1 if every_pair else blocks.searches > 3
    assert blocks.recordings == 1
    assert blocks.model_seconds > 0


@pytest.mark.physics
@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize(
    ("architecture", "knots"),
    [
        ("schnet", None),
        pytest.param("schnet", 48, marks=pytest.mark.slow),
        ("cgcnn", None),
    ],
)
def test_a_crystal_follows_ase(runner, architecture, knots, ending_splines):
    atoms = triclinic(architecture, **knots_option(knots))
    wanted = trajectory_of_a_crystal(architecture, knots)
    blocks = loop(atoms, runner)
    assert_same(follow(atoms, blocks, 120), wanted)
    assert blocks.searches > 10


def test_forcenet_follows_ase():
    atoms = ethanol()
    potential = lively("forcenet", basis="gauss", dtype=torch.float64, force=0.2)
    with_calculator(atoms, potential)
    wanted = ase_trajectory(atoms, 40)
    assert_same(follow(atoms, loop(atoms, TapeRunner), 40), wanted)


def test_an_image_of_an_atom_stays_in_reach():
    """A fast atom crosses a cell that is hardly longer than the cutoff."""
    atoms = Atoms("CH", [(0, 0, 0), (2.0, 2.0, 2.0)], cell=[4.5, 4.4, 4.3], pbc=True)
    potential = lively(dtype=torch.float64, force=0.2)
    with_calculator(atoms, potential, skin=0.2, kelvin=3000.0)
    wanted = ase_trajectory(atoms, 150)
    found = follow(atoms, loop(atoms), 150)
    assert np.ptp(found[0][:, 1], axis=0).max() > 4.5
    assert_same(found, wanted)


def test_atoms_of_other_masses_and_a_wire():
    """Periodic in one direction, masses that are not the elements'."""
    atoms = ethanol()
    atoms.set_cell([0, 0, 6.0])
    atoms.pbc = (False, False, True)
    atoms.set_masses(np.linspace(1.0, 40.0, len(atoms)))
    with_calculator(atoms, lively(dtype=torch.float64, force=0.2))
    assert_same(follow(atoms, loop(atoms), 60), ase_trajectory(atoms, 60))


@pytest.mark.parametrize("steps_a_replay", [1, 5, 20])
def test_the_trajectory_does_not_depend_on_the_steps_of_a_replay(steps_a_replay):
    atoms = triclinic()
    wanted = follow(atoms, loop(atoms, steps_a_replay=7), 60)
    blocks = loop(atoms, steps_a_replay=steps_a_replay)
    found = follow(atoms, blocks, 60, at_once=23)
    assert_same(found, wanted, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.skipif(not available(torch.float64), reason="no C compiler works here")
def test_the_compiled_loop_does_the_same(dtype, ending_splines):
    atoms = aspirin(dtype=dtype, allow_isolated=False)
    compiled = verlet_blocks(atoms, 0.5, BlowUpWatch(atoms, 0.5, 4000.0), 57)
    ours = loop(atoms, limits=(0.5, 4000.0))
    found, wanted = (follow(atoms, blocks, 100) for blocks in (ours, compiled))
    assert len(found[0]) == 100
    if dtype == "float64":
        assert_same(found, wanted, atol=1e-12)
    else:
        np.testing.assert_allclose(found[0], wanted[0], atol=1e-6)
        # Energies are not rounded to float32 with their offset, which would be by 1e-4 eV.
        np.testing.assert_allclose(found[2], wanted[2], atol=1e-5)
        assert wanted[2][0, 0] < -1000


@pytest.mark.slow
def test_room_for_pairs_grows(monkeypatch):
    """Four pairs far apart fly at one another until all atoms see all others."""
    monkeypatch.setattr(calculator, "FEW_ATOMS", 0)
    base = np.array([[x, y, 0.0] for x in (-1.0, 1.0) for y in (-1.0, 1.0)])
    far = np.concatenate([base * 6.0, base * 6.0 + [0, 0, 1.2]])
    atoms = Atoms("C8", far)
    with_calculator(atoms, lively(dtype=torch.float64, force=0.05), kelvin=0.0)
    velocities = np.concatenate([-base, -base]) * 0.4
    atoms.set_momenta(velocities * atoms.get_masses()[:, None])
    wanted = ase_trajectory(atoms, 150, timestep_fs=1.0)
    for runner in (EagerRunner, TapeRunner):
        blocks = loop(atoms, runner, timestep_fs=1.0)
        found = follow(atoms, blocks, 150)
        assert_same(found, wanted)
        assert blocks.recordings > 1


def test_copies_go_their_own_ways():
    """Three copies in one recording, each as alone."""
    atoms, copies = triclinic(), 3
    n, k, dt = len(atoms), 5, 0.5 * FS
    watch = BlowUpWatch(atoms, 0.5, 5000.0)
    rng = np.random.default_rng(0)
    x = atoms.positions + rng.normal(0, 0.02, (copies, n, 3))
    p = rng.normal(0, 0.3, (copies, n, 3))
    p[2, 0] = 500.0  # the last copy is too hot, and leaves the reach of its list
    f = np.zeros_like(x)
    lists = []
    for positions in x:
        atoms.positions = positions
        lists.append(atoms.calc.search(atoms))
    pairs = np.concatenate([one.pairs + n * r for r, one in enumerate(lists)], axis=1)
    offsets = np.concatenate([one.offsets for one in lists])
    together = DeviceSteps(atoms, watch, 10.0, dt, k, pairs.shape[1] + 9, copies)
    together.list_pairs(pairs, offsets, x, lists[0].limit)
    together.start(np.stack([x, p, f]))
    found = together.replay()
    for r, one in enumerate(lists):
        alone = DeviceSteps(atoms, watch, 10.0, dt, k, one.pairs.shape[1])
        alone.list_pairs(one.pairs, one.offsets, x[r], one.limit)
        alone.start(np.stack([x[r], p[r], f[r]])[:, None])
        wanted = alone.replay()
        for name in ("energies", "state"):
            ours, theirs = getattr(found, name)[..., r : r + 1], getattr(wanted, name)
            if name == "state":
                ours = found.state[:, :, r : r + 1]
            if r < 2:
                np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(found.outside[:, r], wanted.outside[:, 0])
        np.testing.assert_array_equal(found.unsound[:, r], wanted.unsound[:, 0])
    assert found.outside[:, 2].all()
    assert found.unsound[:, 2].all()
    assert not (found.outside | found.unsound)[:, :2].any()


# --- blocks end --------------------------------------------------------------------------------


def end_of(atoms, steps, runner=EagerRunner, **options):
    """Steps done before the loop refuses one, and what was done."""
    found = follow(atoms, loop(atoms, runner, **options), steps)
    return len(found[0]), found


@pytest.mark.parametrize(("limits", "words"), [((None, 250.0), "rose"), ((0.06, 1e9), "broke")])
def test_a_block_ends_before_the_blow_up(limits, words):
    atoms = aspirin(kelvin=0.0)
    atoms.positions += np.random.default_rng(5).normal(0, 0.03, (21, 3))
    x, _, energies = ase_trajectory(atoms, 40)
    watch, n_dof = BlowUpWatch(atoms, *limits), degrees_of_freedom(atoms, "nve")
    kelvin = temperature(energies[:, 1], n_dof)
    said = [watch.look(x[k], *energies[k], kelvin[k]) for k in range(40)]
    first = next(k for k, text in enumerate(said) if text)
    assert words in said[first]
    assert first > 5
    for k in (1, 5, 16):
        done, found = end_of(atoms, 40, TapeRunner, steps_a_replay=k, limits=limits)
        assert done == first
        np.testing.assert_allclose(found[0], x[:done], atol=1e-12)


def test_a_block_ends_before_an_atom_is_alone(monkeypatch):
    atoms = Atoms("CHO", [(0, 0, 0), (1.1, 0, 0), (0, 3.7, 0)])
    with_calculator(atoms, lively(dtype=torch.float64, force=0.05), kelvin=0.0)
    atoms.set_momenta([(0, 0, 0), (0, 0, 0), (0, 8.0, 0)])
    x = ase_trajectory(atoms, 100)[0]
    distances = np.linalg.norm(x[:, 2:] - x[:, :2], axis=-1)
    alone = int(np.argmax((distances >= 4.0).all(axis=1)))
    assert 3 < alone < 90
    assert end_of(atoms, 100)[0] == 100
    strict = own_calculator(atoms, allow_isolated=False)
    assert end_of(strict, 100)[0] == alone
    monkeypatch.setattr(calculator, "FEW_ATOMS", 0)
    assert end_of(strict, 100)[0] == alone


@pytest.mark.parametrize("few_atoms", [50, 0])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e200, 1e300])
def test_what_is_not_finite_ends_a_block(few_atoms, value, monkeypatch):
    """Also past the bad step nothing is looked up out of bounds, which would end the process."""
    monkeypatch.setattr(calculator, "FEW_ATOMS", few_atoms)
    atoms = aspirin()
    blocks = loop(atoms, limits=(None, 3000.0))
    x, p, f = atoms.positions, atoms.get_momenta(), np.zeros((21, 3))
    for which in (p, f, x) if value > 1e300 or np.isnan(value) else (p, f):
        kept, which[3, 1] = which[3, 1], value
        block = blocks.advance(x, p, f, 12)
        assert len(block) == 0
        assert block.positions.shape == (0, 21, 3)
        which[3, 1] = kept
    assert len(blocks.advance(x, p, f, 12)) == 12  # and it goes on


def test_no_more_steps_than_asked_for(monkeypatch):
    atoms = aspirin()
    monkeypatch.setattr(graph_blocks, "MOST_STEPS", 11)
    blocks = loop(atoms)
    x, p, f = atoms.positions, atoms.get_momenta(), atoms.get_forces()
    assert blocks.most_steps == 11
    for steps in (0, 1, 7, 10, 500):
        assert len(blocks.advance(x, p, f, steps)) == min(steps, 11)
    monkeypatch.setattr(graph_blocks, "MOST_VALUES", 6 * 21 * 4)
    assert blocks.most_steps == 4
    monkeypatch.setattr(graph_blocks, "MOST_VALUES", 1)
    assert blocks.most_steps == 1


def test_what_comes_after_forgetting_does_not_depend_on_what_was_before():
    atoms = triclinic()
    blocks = loop(atoms)
    state = atoms.positions.copy(), atoms.get_momenta(), atoms.get_forces()
    for forgotten in (0, 1, 2):  # a list of the same place holds until then
        assert len(blocks.advance(*state, 1)) == 1
        assert blocks.searches == 1 + forgotten
        blocks.forget()
    first = blocks.advance(*state, 20)
    blocks.advance(first.positions[-1], first.momenta[-1], first.forces, 20)
    blocks.forget()
    np.testing.assert_array_equal(blocks.advance(*state, 20).positions, first.positions)


# --- whole runs --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 65, "equilibrate": 10, "checkpoint_every": 30, "log_every": 3},
        {"steps": 300, "equilibrate": 0, "timestep_fs": 4.0, "force_timestep": True},
    ],
)
def test_a_run_is_the_same_run(settings, tmp_path, monkeypatch):
    """By this loop and by ASE's, finished or blown up."""
    settings = MDSettings(**settings)
    atoms = aspirin(kelvin=0.0, allow_isolated=False)
    begin, results, used = engine.Simulation.begin_phase, [], []
    for recorded in (True, False):

        def begin_phase(self, ensemble, recorded=recorded):
            begin(self, ensemble)
            self.blocks = None
            if recorded:
                arguments = self.atoms, self.settings.timestep_fs, self.watch, self.n_dof
                options = {"dynamics": self.motion.dynamics, "runner": EagerRunner}
                self.blocks = graph_blocks.graph_blocks(*arguments, **options)
                used.append((ensemble, self.blocks))

        monkeypatch.setattr(engine.Simulation, "begin_phase", begin_phase)
        results.append(run_md(own_calculator(atoms), settings, tmp_path / str(recorded)))
    ours, theirs = results
    assert all((blocks is not None) == (ensemble == "nve") for ensemble, blocks in used)
    assert used[-1][1].model_seconds > 0
    assert ours.status == theirs.status
    assert ours.status.startswith("stopped early" if settings.force_timestep else "finished")
    assert ours.steps == theirs.steps
    np.testing.assert_allclose(ours.atoms.positions, theirs.atoms.positions, atol=1e-8)


# --- what can be recorded ----------------------------------------------------------------------


def steps_of(atoms, k=2, **options):
    watch = BlowUpWatch(atoms, 0.5, 5000.0)
    listed = atoms.calc.search(atoms)
    steps = DeviceSteps(atoms, watch, 10.0, 0.5 * FS, k, listed.pairs.shape[1] + 3, **options)
    steps.list_pairs(listed.pairs, listed.offsets, atoms.positions, listed.limit)
    state = np.stack([atoms.positions, atoms.get_momenta(), 0 * atoms.positions])
    steps.start(state[:, None])
    return steps


@pytest.mark.parametrize(
    ("architecture", "options", "operation"),
    [
        ("schnet", {}, ""),
        ("schnet", {"filter_knots": 32}, ""),
        ("cgcnn", {}, ""),
        ("cgcnn", {"variant": "paper"}, "bincount"),
        ("forcenet", {"basis": "gauss"}, ""),
        ("forcenet", {"basis": "gauss", "variant": "paper"}, "bincount"),
        ("dimenet++", {}, "bincount"),
        ("gemnet-t", {}, "bincount"),
    ],
)
@pytest.mark.filterwarnings("ignore::dcase.errors.PaperVariantWarning")
def test_what_can_be_recorded(architecture, options, operation):
    atoms = crystal()
    with_calculator(atoms, lively_as_trained(architecture, **options), allow_isolated=False)
    assert needs_host(steps_of(atoms)) == operation


def test_operations_that_need_the_host():
    a, i = torch.arange(6.0), torch.tensor([0, 2])

    class Reads(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, grad):
            return grad * float(grad.sum())

    def backward():
        x = a.clone().requires_grad_(True)
        torch.autograd.grad(Reads.apply(x).sum(), x)

    bad = {
        "item": lambda: a.sum().item(),
        "if": lambda: bool((a > 2).any()),
        "mask": lambda: a[a > 2],
        "put": lambda: a.clone().index_put_((a > 2,), torch.zeros(())),
        "nonzero": lambda: a.nonzero(),
        "constant": lambda: a * a.new_tensor([1.0] * 6),
        "unique": lambda: a.unique(),
        "repeat": lambda: torch.repeat_interleave(i),
        "masked_select": lambda: a.masked_select(a > 1),
        "copied": lambda: a.to("meta"),
        "in backward": backward,
    }
    for name, function in bad.items():
        assert needs_host(function), name
    good = {
        "index": lambda: a[i],
        "where": lambda: torch.where(a > 2, a, 0.0).clamp(max=1.0),
        "cast": lambda: a.double().to("cpu").float(),
        "copy": lambda: a.clone().copy_(a),
        "repeat": lambda: i.repeat_interleave(3),
    }
    for name, function in good.items():
        assert not needs_host(function), name


@pytest.mark.parametrize(
    ("architecture", "options"),
    [("schnet", {}), ("schnet", {"filter_knots": 48}), ("cgcnn", {}), ("forcenet", {})],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pairs_beyond_the_cutoff_do_nothing(architecture, options, dtype, ending_splines):
    potential = lively(architecture, dtype=dtype, **options)
    numbers = ethanol().numbers
    assert nothing_beyond(potential, numbers, potential.cutoff + 1.0)
    assert nothing_beyond(potential, numbers[:1], potential.cutoff + 1.0)
    potential.network.cutoff -= 0.2  # as if it ended too late
    assert not nothing_beyond(potential, numbers, potential.cutoff + 1.0)


def test_a_slope_beyond_the_cutoff_is_noticed():
    potential = lively(dtype=torch.float64)
    numbers, inner = ethanol().numbers, potential.network.envelope

    class Sloping(torch.nn.Module):
        def forward(self, d):
            return inner(d) + 1e-6 * (d - d.detach())  # adds nothing to the value

    assert nothing_beyond(potential, numbers, 4.5)
    potential.network.envelope = Sloping()
    assert not nothing_beyond(potential, numbers, 4.5)


@pytest.mark.parametrize("architecture", ["cgcnn", "forcenet"])
def test_published_cutoffs_do_not_end_at_nothing(architecture):
    options = {"basis": "gauss"} if architecture == "forcenet" else {}
    potential = lively_as_trained(architecture, variant="paper", **options)
    assert not nothing_beyond(potential, ethanol().numbers, potential.cutoff + 1.0)


def test_wide_lists_with_idle_pairs_give_the_same_forces():
    atoms = triclinic()
    steps = steps_of(atoms)
    graph = replace(steps.graph, positions=torch.as_tensor(atoms.positions))
    assert isinstance(graph, FixedGraph)
    energies, forces = steps.potential.energies_and_forces(graph)
    scale = steps.scale
    assert float(energies.detach()) * scale + steps.offset == pytest.approx(
        atoms.get_potential_energy(), abs=1e-9
    )
    np.testing.assert_allclose(forces * scale, atoms.get_forces(), atol=1e-12)
    r = graph.vectors().norm(dim=1)
    assert (r > steps.potential.cutoff).sum() > 3 + 5  # not only the idle ones


def test_where_there_is_no_such_loop():
    atoms = aspirin()
    assert loop(atoms) is not None
    assert loop(atoms, runner=None) is None  # on the CPU
    assert loop(atoms, dynamics=VelocityVerlet(atoms, 0.5 * FS)) is not None
    assert loop(atoms, dynamics=Langevin(atoms, 0.5 * FS, temperature_K=300, friction=0.1)) is None
    held = own_calculator(atoms)
    held.set_constraint(FixAtoms([0]))
    assert loop(held) is None
    assert loop(own_calculator(atoms, skin=0.0)) is None
    for architecture in ("dimenet++", "gemnet-t"):
        other = with_calculator(ethanol(), lively(architecture))
        assert loop(other) is None
    members = [lively(), lively(seed=5)]
    assert loop(with_calculator(ethanol(), Ensemble(members))) is None
    unknown = with_calculator(Atoms("NH", [(0, 0, 0), (1.0, 0, 0)]), lively())
    assert loop(unknown, n_dof=1) is None


def test_a_potential_that_does_not_end_is_refused(monkeypatch):
    atoms = aspirin()
    monkeypatch.setattr(graph_blocks, "nothing_beyond", lambda *arguments: False)
    assert loop(atoms) is None


def test_a_recording_that_fails_is_told(monkeypatch):
    class Broken(EagerRunner):
        def __init__(self, function, device=None):
            raise RuntimeError("CUDA error: no\nmore lines")

    with pytest.warns(UserWarning, match="simulating by single steps: CUDA error: no$"):
        assert loop(aspirin(), Broken) is None


def test_a_recording_that_does_something_else_is_not_used():
    class Deaf(EagerRunner):
        def __call__(self):
            pass

    with pytest.warns(UserWarning, match="recorded steps are not those"):
        assert loop(aspirin(), Deaf) is None


# --- with a GPU --------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [aspirin, triclinic])
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=on_gpu)])
def test_a_cuda_graph_follows_ase(make, device):
    atoms = make(device=device)
    wanted = ase_trajectory(atoms, 200)
    blocks = loop(atoms, runner=None, steps_a_replay=20)
    assert blocks is not None
    found = follow(atoms, blocks, 200)
    assert len(found[0]) == 200
    assert_same(found, wanted, atol=1e-9)
    eager = follow(atoms, loop(atoms, EagerRunner), 200)
    assert_same(found, eager, atol=1e-9)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=on_gpu)])
@pytest.mark.parametrize("architecture", ["schnet", "cgcnn", "forcenet"])
def test_what_is_replayed_is_what_is_calculated(architecture, device):
    options = {"basis": "gauss"} if architecture == "forcenet" else {}
    atoms = triclinic(architecture, device, **options)
    steps = steps_of(atoms, k=3)
    assert needs_host(steps) == ""
    eager = steps.replay()
    steps.run = CudaGraphRunner(steps, atoms.calc.device)
    for _ in range(2):
        replayed = steps.replay()
        np.testing.assert_allclose(replayed.state, eager.state, atol=1e-11)
        np.testing.assert_allclose(replayed.energies, eager.energies, rtol=1e-12)
        np.testing.assert_array_equal(replayed.unsound, eager.unsound)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=on_gpu)])
def test_what_is_not_finite_leaves_the_gpu_usable(device):
    atoms = aspirin(device=device)
    blocks = loop(atoms, runner=None)
    x, p, f = atoms.positions, atoms.get_momenta(), np.zeros((21, 3))
    for value in (np.nan, np.inf, 1e200):
        f[3, 1] = value
        assert len(blocks.advance(x, p, f, 12)) == 0
    f[3, 1] = 0.0
    assert len(blocks.advance(x, p, f, 12)) == 12
