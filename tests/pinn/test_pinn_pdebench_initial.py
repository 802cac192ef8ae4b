import numpy as np
import pytest

from dcase.errors import DataError
from dcase.pinn.pdebench import threefry
from dcase.pinn.pdebench.random_fields import (
    advection_field,
    cell_centres,
    flow_fields,
    noise,
    published_initial,
)

# u(x_0) of samples 0 to 9, as the public viewer of the data set prints them (float32).
VIEWER = (
    *(0.83192390, -0.52124417, -1.0200479, 1.3885224, -0.24340093),
    *(-0.69242471, 0.72484428, -0.06851752, 0.37747782, 0.89424902),
)


@pytest.mark.parametrize(
    ("key", "counter", "cipher"),
    [  # known answers of the Random123 library
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((2**32 - 1,) * 2, (2**32 - 1,) * 2, (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_known_answers(key, counter, cipher):
    words = threefry.threefry_2x32(key, np.array(counter, dtype=np.uint32))
    assert tuple(int(word) for word in words) == cipher


def test_keys_and_numbers_are_those_of_jax():
    # jax.random.split(PRNGKey(0)) and uniform(PRNGKey(0)), as its documentation shows them
    assert threefry.split(threefry.prng_key(0)) == (
        (4146024105, 967050713),
        (2718843009, 1272950319),
    )
    assert threefry.uniform(threefry.prng_key(0), (1,))[0] == np.float32(0.41845703)


def test_an_odd_number_of_words_is_padded():
    key = threefry.prng_key(3)
    counters = np.arange(8, dtype=np.uint32)
    counters[7] = 0
    np.testing.assert_array_equal(
        threefry.random_bits(key, (7,)), threefry.threefry_2x32(key, counters)[:7]
    )


def test_drawn_numbers_have_their_distributions():
    key, number = threefry.prng_key(11), 40_000
    numbers = threefry.uniform(key, (number,), -1.0, 3.0)
    assert numbers.dtype == np.float32
    assert numbers.min() >= -1.0
    assert numbers.max() < 3.0
    assert abs(numbers.mean() - 1.0) < 4 * np.sqrt(16 / 12 / number)
    counts = np.bincount(threefry.randint(key, (number,), 2, 7))
    assert counts[:2].sum() == 0
    assert np.abs(counts[2:] / number - 0.2).max() < 0.01
    picks = np.bincount(threefry.choice(key, (number,), (0.9, 0.1)))
    assert abs(picks[1] / number - 0.1) < 0.006


def test_published_advection_profiles():
    x = cell_centres(0.0, 1.0, 1024).astype(np.float32)
    u = advection_field(range(10))(x)
    assert u.dtype == np.float32
    np.testing.assert_allclose(u[:, 0], VIEWER, rtol=0, atol=1.2e-7)
    for sample in (3, 3 - 10_000):
        np.testing.assert_array_equal(published_initial("advection", sample)["u"], u[3])


def test_the_published_period_is_one_cell_short():
    x = cell_centres(0.0, 1.0, 1024)
    field = advection_field(range(200))
    u = field(x)[~field.windowed]
    assert len(u) > 150
    # The wave numbers are stored in float32, hence the tolerance.
    np.testing.assert_allclose(u[:, -1], u[:, 0], atol=2e-5)


def test_the_same_profile_on_every_grid():
    for fields in ({"u": advection_field([-1])}, flow_fields([-1])):
        for field in fields.values():
            coarse, fine = (field(cell_centres(0.0, 1.0, n))[0] for n in (64, 192))
            np.testing.assert_allclose(coarse, fine[1::3], rtol=1e-12)


@pytest.mark.parametrize("seed", [None, 5])
def test_flow_states_are_physical_and_in_range(seed):
    x = cell_centres(-1.0, 1.0, 1024)
    fields = flow_fields(range(60), seed)
    rho, v, p = (fields[name](x) for name in ("rho", "v", "p"))
    # m f + b with f from 0 to 1 exactly, m and b in [1, 10] or [10, 100]
    for values, low in ((rho, 1.0), (p, 10.0)):
        bottom, height = values.min(axis=1), np.ptp(values, axis=1)
        for part in (bottom, height):
            assert part.min() > low * 0.999
            assert part.max() < 10 * low * 1.001
            # log-uniform: the median is the geometric middle
            assert abs(np.log(np.median(part) / low) / np.log(10) - 0.5) < 0.25
    assert np.abs(v).max() < 3.0
    windowed = [fields[name].windowed.mean() for name in fields]
    assert 0.25 < np.mean(windowed) < 0.75


def test_published_flow_samples_come_from_ten_runs_of_a_thousand():
    x = cell_centres(-1.0, 1.0, 32)
    together = flow_fields([9999, 0, 1500, -9])
    for i, sample in enumerate((-1, 0, 1500, 9991)):
        for name, field in flow_fields([sample]).items():
            np.testing.assert_array_equal(field(x)[0], together[name](x)[i])
    # The second run's velocity has the key of the first run's pressure plus one: not the same.
    assert not np.allclose(flow_fields([0])["v"](x), flow_fields([1000])["v"](x))


def test_each_profile_has_two_waves():
    for field in (advection_field(range(300)), advection_field(range(40), seed=1)):
        modes = field.wave_number * (1023 / 1024) / (2 * np.pi)
        times = np.round(modes / np.arange(1, 5)).astype(int)
        np.testing.assert_allclose(modes, times * np.arange(1, 5), atol=1e-5)
        assert (times.sum(axis=1) == 2).all()


def test_new_samples_do_not_depend_on_their_company():
    x = cell_centres(0.0, 1.0, 50)
    np.testing.assert_array_equal(
        advection_field([4], seed=7)(x)[0], advection_field(range(6), seed=7)(x)[4]
    )
    assert not np.allclose(advection_field([4], seed=7)(x), advection_field([4], seed=8)(x))
    np.testing.assert_array_equal(noise(4, 8, seed=7)["u"], noise(4, 8, seed=7)["u"])
    assert not np.allclose(noise(4, 8, seed=7)["u"], noise(5, 8, seed=7)["u"])


def test_published_noise_is_numpys_old_generator():
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    found = noise(0)
    # The first normal numbers of np.random.seed(0), which half of all tutorials print.
    np.testing.assert_allclose(found["u"][0, :3], [1.76405235, 0.40015721, 0.97873798], atol=1e-8)
    assert found["v"].shape == (128, 128)
    values = np.stack(list(found.values()))
    assert abs(values.mean()) < 4 / np.sqrt(values.size)
    assert abs(values.std() - 1) < 4 / np.sqrt(2 * values.size)
    assert (np.random.get_state()[1] == state).all(), "the global generator was touched"  # noqa: NPY002


@pytest.mark.parametrize(
    ("task", "sample"),
    [("advection", 10_000), ("cfd", -10_001), ("diffusion-reaction", 1000)],
)
def test_samples_that_were_not_published(task, sample):
    with pytest.raises(DataError, match=rf"sample {sample} of {task} does not exist"):
        published_initial(task, sample)


def test_unknown_task():
    with pytest.raises(DataError, match="unknown task 'burgers'"):
        published_initial("burgers", 0)
