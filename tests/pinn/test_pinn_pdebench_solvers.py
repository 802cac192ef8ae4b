"""The reference solvers against exact solutions and conservation laws."""

import numpy as np
import pytest

from dcase.errors import DataError, OptionError
from dcase.pinn.pdebench.advection import exact_shift, solve_advection
from dcase.pinn.pdebench.diffusion_reaction import (
    Constants,
    laplacian,
    solve_diffusion_reaction,
)
from dcase.pinn.pdebench.flow import GAMMA, conserved, hllc_flux, primitive, solve_flow
from dcase.pinn.pdebench.limiter import half_slopes, pad
from dcase.pinn.pdebench.random_fields import (
    advection_field,
    cell_centres,
    flow_fields,
    noise,
)

pytestmark = pytest.mark.physics


def relative(found, exact):
    return np.sqrt(np.mean((found - exact) ** 2, axis=-1) / np.mean(exact**2, axis=-1))


# ---------------------------------------------------------------------------------------------
# Advection


def test_advection_is_a_shift():
    field, x, t = advection_field(range(-9, 0)), cell_centres(0.0, 1.0, 1024), np.arange(201) / 100
    found = solve_advection(field(x), t, 0.1)
    errors = relative(found, exact_shift(field, x, t, 0.1))
    assert found.shape == (9, 201, 1024)
    assert (errors[:, 0] == 0).all()
    assert np.median(errors[:, -1]) < 1e-3
    assert errors[:, -1].max() < 6e-3  # the kinked and windowed sample -1
    # Nothing is made or lost, and no new extremum appears.
    np.testing.assert_allclose(found.sum(-1), found[:, :1].sum(-1).repeat(201, 1), atol=1e-10)
    assert found.max() <= found[:, 0].max() + 1e-12
    assert found.min() >= found[:, 0].min() - 1e-12


def sine(cells, beta, end=1.0):
    x = cell_centres(0.0, 1.0, cells)
    start = np.sin(2 * np.pi * x)[None]
    found = solve_advection(start, np.array([0.0, end]), beta)[0, -1]
    return np.mean(np.abs(found - np.sin(2 * np.pi * (x - beta * end))))


def test_advection_converges_with_second_order():
    errors = [sine(cells, 1.0) for cells in (64, 128, 256)]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert (orders > 1.7).all(), orders


def test_advection_backwards_is_the_mirror_image():
    assert sine(128, -0.7) == pytest.approx(sine(128, 0.7), rel=1e-9)
    assert sine(128, -0.7) < 2e-3


def test_advection_at_rest_and_at_no_speed():
    u = advection_field([2])(cell_centres(0.0, 1.0, 64))
    found = solve_advection(u, np.array([0.0, 1.0]), 0.0)
    np.testing.assert_array_equal(found[0, 1], u[0])
    with pytest.raises(OptionError, match="beta"):
        solve_advection(u, np.array([0.0, 1.0]), np.nan)


def test_the_limiter_reproduces_lines_and_cuts_extrema():
    u = np.array([3.0, 1.0, 2.0, 3.0, 4.0, 4.5, 9.0, 3.5])
    half = half_slopes(pad(u))[1:-1]
    # inside the line: half the slope; at minimum and maximum: 0; towards a plateau: bounded
    np.testing.assert_allclose(half[[2, 3]], [0.5, 0.5])
    assert half[1] == 0.0
    assert half[6] == 0.0
    assert half[5] == pytest.approx(0.5)  # twice the smaller one-sided difference, halved


# ---------------------------------------------------------------------------------------------
# Compressible flow


def star_state(left, right, gamma):
    """Pressure and speed between the waves of the exact Riemann problem, by bisection."""

    def side(p, state):
        rho, _, pk = state
        if p > pk:  # shock
            a, b = 2 / ((gamma + 1) * rho), (gamma - 1) / (gamma + 1) * pk
            return (p - pk) * np.sqrt(a / (p + b))
        c = np.sqrt(gamma * pk / rho)
        return 2 * c / (gamma - 1) * ((p / pk) ** ((gamma - 1) / (2 * gamma)) - 1)

    low, high = 1e-9, 10 * max(left[2], right[2])
    for _ in range(200):
        p = 0.5 * (low + high)
        if side(p, left) + side(p, right) + right[1] - left[1] > 0:
            high = p
        else:
            low = p
    return p, 0.5 * (left[1] + right[1] + side(p, right) - side(p, left))


def exact_shock_tube(xi, left, right, gamma):
    """rho, v, p at x/t = xi for a left rarefaction and a right shock."""
    p, v = star_state(left, right, gamma)
    c_l, g = np.sqrt(gamma * left[2] / left[0]), (gamma - 1) / (gamma + 1)
    c_star = c_l * (p / left[2]) ** ((gamma - 1) / (2 * gamma))
    rho_l = left[0] * (p / left[2]) ** (1 / gamma)
    rho_r = right[0] * (p / right[2] + g) / (g * p / right[2] + 1)
    c_r = np.sqrt(gamma * right[2] / right[0])
    shock = right[1] + c_r * np.sqrt(
        (gamma + 1) / (2 * gamma) * p / right[2] + (gamma - 1) / 2 / gamma
    )
    fan = 2 / (gamma + 1) + g / c_l * (left[1] - xi)
    fan_v = 2 / (gamma + 1) * (c_l + (gamma - 1) / 2 * left[1] + xi)
    regions = [xi < left[1] - c_l, xi < v - c_star, xi < v, xi < shock]
    rho = np.select(
        regions,
        [left[0], left[0] * np.maximum(fan, 0) ** (2 / (gamma - 1)), rho_l, rho_r],
        right[0],
    )
    speed = np.select(regions, [left[1], fan_v, v, v], right[1])
    pressure = np.select(
        regions,
        [left[2], left[2] * np.maximum(fan, 0) ** (2 * gamma / (gamma - 1)), p, p],
        right[2],
    )
    return np.stack((rho, speed, pressure))


SOD = ((1.0, 0.0, 1.0), (0.125, 0.0, 0.1))


def sod_error(cells, gamma=1.4, end=0.2):
    # Two tubes back to back make a period; they do not meet before the end.
    x = cell_centres(-1.0, 1.0, cells)
    inside = np.abs(x) < 0.5
    start = {
        name: np.where(inside, left, right)[None]
        for name, left, right in zip(("rho", "v", "p"), *SOD, strict=True)
    }
    found = solve_flow(start, np.array([0.0, end]), gamma=gamma)
    half = x > 0
    exact = exact_shock_tube((x[half] - 0.5) / end, *SOD, gamma)
    fields = np.stack([found[name][0, -1] for name in ("rho", "v", "p")])
    mirrored = fields[:, ::-1] * np.array([1.0, -1.0, 1.0])[:, None]
    np.testing.assert_allclose(fields, mirrored, atol=1e-11)
    return np.abs(fields[:, half] - exact).mean(axis=1)


def test_the_shock_tubes_star_state_is_the_textbooks():
    # Toro, Riemann Solvers, table 4.2, test 1
    p, v = star_state(*SOD, 1.4)
    assert p == pytest.approx(0.30313, abs=1e-5)
    assert v == pytest.approx(0.92745, abs=1e-5)


def test_sods_shock_tube():
    coarse, fine = sod_error(200), sod_error(800)
    assert (fine < 2.5e-3).all(), fine
    # First order, as every scheme at a shock.
    assert (coarse / fine > 2.5).all(), coarse / fine


def test_the_flux_is_consistent_and_resolves_a_contact_exactly():
    generator = np.random.default_rng(1)
    state = np.stack(
        (generator.uniform(1, 9, 50), generator.normal(0, 9, 50), generator.uniform(1, 90, 50))
    )
    rho, v, p = state
    energy = conserved(rho, v, p)[2]
    exact = np.stack((rho * v, rho * v**2 + p, v * (energy + p)))
    np.testing.assert_allclose(hllc_flux(state, state), exact, rtol=1e-12, atol=1e-10)
    # A jump of density alone moves with the flow and leaves pressure and speed as they are.
    other = np.stack((2 * rho, v, p))
    side = np.where(v >= 0, rho, 2 * rho)
    energy = conserved(side, v, p)[2]
    exact = np.stack((side * v, side * v**2 + p, v * (energy + p)))
    np.testing.assert_allclose(hllc_flux(state, other), exact, rtol=1e-11, atol=1e-9)


def test_primitive_and_conserved_are_inverses():
    values = np.array([[2.0, 0.3], [-1.5, 4.0], [7.0, 80.0]])
    np.testing.assert_allclose(primitive(conserved(*values)), values, rtol=1e-13)


@pytest.fixture(scope="module")
def flow():
    x = cell_centres(-1.0, 1.0, 128)
    start = {name: field(x) for name, field in flow_fields([-9, -8, -1]).items()}
    return start, solve_flow(start, np.linspace(0, 1, 6))


def test_mass_momentum_and_energy_are_conserved_to_rounding(flow):
    _, found = flow
    totals = conserved(found["rho"], found["v"], found["p"]).sum(axis=-1)
    scale = np.abs(conserved(found["rho"], found["v"], found["p"])).sum(axis=-1)[..., :1]
    assert np.abs((totals - totals[..., :1]) / scale).max() < 1e-12
    assert np.ptp(found["v"][:, -1], axis=-1).min() > 0.1  # and not because nothing happened


def test_entropy_does_not_decrease(flow):
    _, found = flow
    entropy = (found["rho"] * np.log(found["p"] / found["rho"] ** GAMMA)).sum(axis=-1)
    assert (np.diff(entropy, axis=1) > 0).all()


def test_samples_do_not_depend_on_their_company(flow):
    start, together = flow
    alone = solve_flow({name: values[2:] for name, values in start.items()}, np.linspace(0, 1, 6))
    for name, values in alone.items():
        np.testing.assert_array_equal(values[0], together[name][2])


def test_a_density_wave_moves_with_the_flow():
    """rho(x - v t) with v and p constant is an exact, smooth solution: second order."""
    errors = []
    for cells in (32, 64, 128):
        x = cell_centres(-1.0, 1.0, cells)
        wave = 2 + np.sin(np.pi * x)
        start = {"rho": wave[None], "v": np.ones((1, cells)), "p": np.full((1, cells), 3.0)}
        found = solve_flow(start, np.array([0.0, 2.0]))  # once around
        np.testing.assert_allclose(found["p"], 3.0, rtol=1e-12)
        np.testing.assert_allclose(found["v"], 1.0, rtol=1e-12)
        errors.append(np.mean(np.abs(found["rho"][0, -1] - wave)))
    assert (np.log2(np.array(errors[:-1]) / errors[1:]) > 1.6).all()


def test_a_flow_needs_positive_density_and_pressure():
    ones = np.ones((1, 8))
    with pytest.raises(DataError, match="positive"):
        solve_flow({"rho": ones, "v": ones, "p": 0 * ones}, np.array([0.0, 1.0]))
    with pytest.raises(DataError, match="positive"):
        solve_flow({"rho": np.nan * ones, "v": ones, "p": ones}, np.array([0.0, 1.0]))


def test_a_flow_torn_apart_is_solved_or_refused():
    """Two streams part and leave a near vacuum; at an absurd speed the energy overflows."""
    x = cell_centres(-1.0, 1.0, 100)
    ones = np.ones((1, 100))
    away = {"rho": ones, "v": 2 * np.sign(x)[None], "p": 0.4 * ones}
    found = solve_flow(away, np.array([0.0, 0.15]), gamma=1.4)
    assert found["rho"][:, -1].min() > 0
    assert found["rho"][:, -1].min() < 0.1
    assert found["p"].min() >= 1e-4
    away["v"] = 1e160 * away["v"]
    with pytest.raises(DataError, match="blows up before t = 0.1"):
        solve_flow(away, np.array([0.0, 0.1]), gamma=1.4)


# ---------------------------------------------------------------------------------------------
# Diffusion and reaction


def cosine(cells, a, b):
    x = cell_centres(-1.0, 1.0, cells)
    return np.cos(b * np.pi * (x[:, None] + 1) / 2) * np.cos(a * np.pi * (x + 1) / 2)


def test_the_laplacians_modes_are_cosines():
    cells = 24
    dx = 2 / cells
    for a, b in ((0, 0), (1, 0), (3, 5)):
        mode = cosine(cells, a, b)
        # Eigenvalues of the discrete operator with closed walls.
        exact = sum(-4 / dx**2 * np.sin(np.pi * n / (2 * cells)) ** 2 for n in (a, b))
        np.testing.assert_allclose(laplacian(mode, dx, dx), exact * mode, atol=1e-10)


def test_nothing_flows_through_the_walls():
    values = np.random.default_rng(0).normal(size=(2, 12, 15))
    flow = laplacian(values, 0.1, 0.2)
    assert np.abs(flow.sum(axis=(1, 2))).max() < 1e-9
    assert np.abs(flow).max() > 1


def test_diffusion_reaction_agrees_with_a_tight_integration():
    times, start = np.linspace(0, 5, 21), noise(0, 24)
    found = solve_diffusion_reaction(start, times)
    tight = solve_diffusion_reaction(start, times, rtol=1e-9, atol=1e-10)
    for name in ("u", "v"):
        assert found[name].shape == (21, 24, 24)
        np.testing.assert_array_equal(found[name][0], start[name])
        error = relative(found[name].reshape(21, -1), tight[name].reshape(21, -1))
        assert error.max() < 2e-3  # at SciPy's default tolerance of 1e-3
        assert error[-1] < 5e-4


def test_the_mass_changes_by_the_reaction_alone():
    """d/dt mean(u) = mean(u - u^3 - k - v), d/dt mean(v) = mean(u - v), integrated by Simpson."""
    from scipy.integrate import simpson

    times = np.linspace(0, 1, 401)
    found = solve_diffusion_reaction(noise(3, 16), times, rtol=1e-9, atol=1e-11)
    u, v = found["u"], found["v"]
    for values, rate in ((u, u - u**3 - 5e-3 - v), (v, u - v)):
        change = values[-1].mean() - values[0].mean()
        assert change == pytest.approx(simpson(rate.mean(axis=(1, 2)), x=times), rel=1e-6)
        assert abs(change) > 1e-3


def test_a_mode_decays_at_its_exact_rate():
    cells, times = 16, np.linspace(0, 0.1, 3)
    constants = Constants(Du=0.3, Dv=0.3, k=0.0)
    tiny = 1e-6 * cosine(cells, 2, 1)
    # So small that u^3 is nothing: u' = (1 - q) u - v and v' = u - (1 + q) v, and with the same q
    # for both, u = v decays as exp(-q t).
    rate = 0.3 * sum(4 / (2 / cells) ** 2 * np.sin(np.pi * n / (2 * cells)) ** 2 for n in (2, 1))
    found = solve_diffusion_reaction(
        {"u": tiny, "v": tiny}, times, constants=constants, rtol=1e-9, atol=1e-16
    )
    for name in ("u", "v"):
        np.testing.assert_allclose(found[name][-1], tiny * np.exp(-rate * 0.1), atol=1e-12)


def test_a_solution_that_blows_up_is_said_so():
    start = {"u": np.full((4, 4), 1e150), "v": np.zeros((4, 4))}
    with pytest.raises(DataError, match="blows up"):
        solve_diffusion_reaction(start, np.array([0.0, 1.0]))


def test_progress_reaches_the_end():
    seen = []
    solve_diffusion_reaction(noise(0, 8), np.linspace(0, 5, 11), progress=lambda *p: seen.append(p))
    assert seen == sorted(set(seen))
    assert seen[-1] == (10, 10)
