"""PDEBench's layouts, written and read, and what is said of files that are not in order."""

import tracemalloc

import h5py
import numpy as np
import pytest

from dcase.errors import DataError
from dcase.pinn.pdebench.advection import exact_shift
from dcase.pinn.pdebench.generate import (
    write_advection,
    write_diffusion_reaction,
    write_flow,
)
from dcase.pinn.pdebench.layout import config_numbers, edges
from dcase.pinn.pdebench.random_fields import advection_field, cell_centres, noise
from dcase.pinn.pdebench.reading import describe_file, read_sample
from dcase.pinn.sample import Sample


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pdebench")
    return {
        "advection": write_advection(folder / "a.hdf5", range(-3, 0), cells=256, times=21),
        "cfd": write_flow(folder / "c.hdf5", range(-2, 0), cells=32, times=6),
        "diffusion-reaction": write_diffusion_reaction(folder / "d.h5", [0, 2], cells=12, times=11),
    }


@pytest.fixture
def copy(files, tmp_path):
    """A copy of a file, to be spoilt."""

    def make(task):
        path = tmp_path / files[task].name
        path.write_bytes(files[task].read_bytes())
        return path

    return make


def tell(path, sample=0, task=None):
    """The one line that is said of a bad file."""
    with pytest.raises(DataError) as error:
        read_sample(path, sample, task)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---------------------------------------------------------------------------------------------
# Layout


def test_advection_layout(files):
    with h5py.File(files["advection"]) as file:
        assert set(file) == {"tensor", "x-coordinate", "t-coordinate"}
        assert file["tensor"].shape == (3, 21, 256)  # [sample, t, x]
        assert {file[key].dtype for key in file} == {np.dtype("f4")}
        assert len(file["t-coordinate"]) == 22  # one more than the data, as published
        np.testing.assert_allclose(file["t-coordinate"][[0, 20, 21]], [0, 2, 2.1], rtol=1e-6)
        np.testing.assert_allclose(file["x-coordinate"][[0, 255]], [1 / 512, 511 / 512])
        assert file.attrs["beta"] == 0.1
        assert list(file.attrs["sample_indices"]) == [9997, 9998, 9999]
        np.testing.assert_array_equal(
            file["tensor"][:, 0], advection_field([-3, -2, -1])(file["x-coordinate"][:])
        )


def test_flow_layout(files):
    with h5py.File(files["cfd"]) as file:
        assert set(file) == {"density", "Vx", "pressure", "x-coordinate", "t-coordinate"}
        assert {file[key].shape for key in ("density", "Vx", "pressure")} == {(2, 6, 32)}
        assert len(file["t-coordinate"]) == 7
        assert file.attrs["eta"] == file.attrs["zeta"] == 1e-8
        np.testing.assert_allclose(file["x-coordinate"][[0, 31]], [-31 / 32, 31 / 32])


def test_diffusion_reaction_layout(files):
    with h5py.File(files["diffusion-reaction"]) as file:
        assert set(file) == {"0000", "0002"}
        group = file["0002"]
        assert group["data"].shape == (11, 12, 12, 2)  # [t, y, x, (u, v)]
        assert group["data"].compression == "lzf"
        assert group["data"].dtype == np.float32
        assert {name: len(group["grid"][name]) for name in "xyt"} == {"x": 12, "y": 12, "t": 11}
        first = np.stack([noise(2, 12)[name] for name in "uv"], axis=-1)
        np.testing.assert_allclose(group["data"][0], first, rtol=1e-6)
        config = group.attrs["config"]
        assert config_numbers(config, "sim") == {
            "Du": 1e-3,
            "Dv": 5e-3,
            "k": 5e-3,
            "t": 5,
            "tdim": 11,
            "x_left": -1,
            "x_right": 1,
            "xdim": 12,
            "y_bottom": -1,
            "y_top": 1,
            "ydim": 12,
            "n": 1,
            "seed": 2,
        }


def test_yaml_as_the_publisher_wrote_it():
    text = (
        "defaults:\n- mode: default\nsim:\n  Du: 1E-3 # coefficient\n  k: '0.005'\n  seed: '???'\n"
    )
    assert config_numbers(text + "plot:\n  dim: 2\n", "sim") == {"Du": 1e-3, "k": 5e-3}


# ---------------------------------------------------------------------------------------------
# Reading


def test_advection_sample(files):
    sample = read_sample(files["advection"], -1)
    assert isinstance(sample, Sample)
    assert (sample.task, sample.coordinates, sample.shape) == ("advection", ("x", "t"), (256, 21))
    assert sample.domain == {"x": (0.0, 1.0), "t": (0.0, 2.0)}
    assert sample.parameters == {"beta": 0.1}
    assert sample.periodic == ("x",)
    assert sample.warnings == ()
    assert sample.source.endswith("a.hdf5 sample -1 (9999, published)")
    assert sample.fields["u"].dtype == sample.axes["x"].dtype == np.float64
    x = cell_centres(0, 1, 256)
    exact = exact_shift(advection_field([-1]), x, sample.axes["t"], 0.1)[0].T
    assert np.sqrt(np.mean((sample.fields["u"] - exact) ** 2) / np.mean(exact**2)) < 0.02
    np.testing.assert_array_equal(
        read_sample(files["advection"], "2").fields["u"], sample.fields["u"]
    )


def test_flow_sample(files):
    sample = read_sample(files["cfd"], 0, "cfd")
    assert (sample.task, sample.shape) == ("cfd", (32, 6))
    assert list(sample.fields) == ["rho", "v", "p"]
    assert sample.domain == {"x": (-1.0, 1.0), "t": (0.0, 1.0)}
    assert sample.parameters == {"eta": 1e-8, "zeta": 1e-8, "gamma": pytest.approx(5 / 3)}
    assert sample.fields["p"].min() > 5 > sample.fields["v"].max()
    with h5py.File(files["cfd"]) as file:
        np.testing.assert_array_equal(sample.fields["rho"][:, 5], file["density"][0, 5])


def test_diffusion_reaction_sample_has_x_before_y(files):
    sample = read_sample(files["diffusion-reaction"], "0002")
    assert sample.coordinates == ("x", "y", "t")
    assert sample.shape == (12, 12, 11)
    assert sample.periodic == ()
    assert sample.domain == {"x": (-1.0, 1.0), "y": (-1.0, 1.0), "t": (0.0, 5.0)}
    assert sample.parameters == {"Du": 1e-3, "Dv": 5e-3, "k": 5e-3}
    start = noise(2, 12)
    for name in ("u", "v"):  # noise has axes (y, x)
        np.testing.assert_allclose(sample.fields[name][..., 0], start[name].T, rtol=1e-6)
    # A negative number counts the groups that are there.
    same = read_sample(files["diffusion-reaction"], -1)
    np.testing.assert_array_equal(same.fields["v"], sample.fields["v"])


def test_a_file_of_8_gigabytes_is_read_by_the_slice(tmp_path):
    path = tmp_path / "1D_Advection_Sols_beta0.1.hdf5"
    x, t = cell_centres(0, 1, 1024), np.arange(201) / 100
    with h5py.File(path, "w") as file:
        # Chunks that were never written take no room on the disk.
        tensor = file.create_dataset("tensor", (10000, 201, 1024), "f4", chunks=(1, 201, 1024))
        tensor[9991] = exact_shift(advection_field([9991]), x, t, 0.1)[0]
        file["x-coordinate"], file["t-coordinate"] = x.astype("f4"), np.arange(202.0) / 100
        file.attrs["beta"] = 0.1
    tracemalloc.start()
    try:
        sample = read_sample(path, -9)
        describe_file(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sample.fields["u"].std() > 0.1
    assert peak < 60e6  # the whole is 8.2 GB; one sample in float64 is 1.6 MB
    assert len(describe_file(path).indices) == 10000


def test_what_a_file_holds(files):
    summary = describe_file(files["advection"])
    assert (summary.task, summary.samples) == ("advection", 3)
    assert summary.shape == {"x": 256, "t": 21}
    assert summary.indices == (9997, 9998, 9999)
    assert summary.notes["scheme"] == "muscl"
    assert "3 samples (9997..9999, published)" in str(summary)
    summary = describe_file(files["diffusion-reaction"])
    assert summary.indices == (0, 2)
    assert summary.shape == {"x": 12, "y": 12, "t": 11}
    assert describe_file(files["cfd"]).parameters["gamma"] == pytest.approx(5 / 3)


def test_the_domain_is_cleared_of_single_precision():
    for low, high in ((-1.0, 1.0), (0.0, 1.0), (2.0, 2.5), (-3e-9, 4e-9)):
        centres = cell_centres(low, high, 1024).astype(np.float32).astype(float)
        assert edges(centres) == (pytest.approx(low, rel=1e-9), pytest.approx(high, rel=1e-9))


# ---------------------------------------------------------------------------------------------
# Files that are not as they should be


def test_no_file(tmp_path):
    assert "does not exist" in tell(tmp_path / "nothing.hdf5")
    assert "is a folder" in tell(tmp_path)


def test_not_hdf5(tmp_path):
    path = tmp_path / "page.hdf5"
    path.write_text("<html>not found</html>")
    assert "is not an HDF5 file" in tell(path)
    path.write_bytes(b"")
    assert "is empty" in tell(path)


@pytest.mark.parametrize("task", ["advection", "cfd", "diffusion-reaction"])
def test_cut_short(copy, task):
    path = copy(task)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    assert "is cut short" in tell(path)


def test_damaged(copy):
    path = copy("diffusion-reaction")
    content = bytearray(path.read_bytes())
    for start in range(1000, len(content), 701):
        content[start : start + 97] = bytes(b ^ 0x5A for b in content[start : start + 97])
    path.write_bytes(content)
    assert str(path) in tell(path)


@pytest.mark.parametrize(
    ("task", "key"),
    [
        ("advection", "x-coordinate"),
        ("advection", "t-coordinate"),
        ("cfd", "density"),
        ("cfd", "Vx"),
        ("cfd", "pressure"),
        ("diffusion-reaction", "0000/data"),
        ("diffusion-reaction", "0000/grid"),
        ("diffusion-reaction", "0000/grid/y"),
    ],
)
def test_a_missing_dataset_is_named(copy, task, key):
    path = copy(task)
    with h5py.File(path, "a") as file:
        del file[key]
    assert key.rpartition("/")[2] in tell(path)


def test_other_files(copy, tmp_path):
    path = copy("advection")
    with h5py.File(path, "a") as file:
        del file.attrs["beta"]
        file.attrs["Nu"] = 0.01
    assert "no attribute 'beta'" in tell(path)  # Burgers has the same layout
    with h5py.File(path, "a") as file:
        file.attrs["beta"] = "fast"
    assert "no number as its attribute 'beta'" in tell(path)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["energies"] = np.zeros(3)
    assert "not a PDEBench file" in tell(tmp_path / "other.h5")
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    assert "but nothing" in tell(tmp_path / "empty.h5")
    path = copy("cfd")
    with h5py.File(path, "a") as file:
        file["Vy"] = file["Vx"][:]
    assert "more than one dimension" in tell(path)


def test_the_wrong_task(files):
    assert "is a file of cfd, not of advection" in tell(files["cfd"], 0, "advection")
    assert "unknown task 'burgers'" in tell(files["cfd"], 0, "burgers")


@pytest.mark.parametrize("sample", [3, -4])
def test_a_sample_that_is_not_there(files, sample):
    message = tell(files["advection"], sample)
    assert f"no sample {sample}: it has 3, 0 to 2 (or -3 to -1)" in message
    assert "numbers 9997..9999" in message


def test_a_group_that_is_not_there(files):
    message = tell(files["diffusion-reaction"], 1)
    assert "no group '0001' for sample 1; it has 2 groups: 0, 2" in message
    assert "no sample -3" in tell(files["diffusion-reaction"], -3)
    assert "'first'" in tell(files["diffusion-reaction"], "first")


def replace_dataset(path, key, change):
    with h5py.File(path, "a") as file:
        values = change(file[key][...])
        del file[key]
        file[key] = values


@pytest.mark.parametrize(
    ("task", "key"), [("advection", "tensor"), ("cfd", "Vx"), ("diffusion-reaction", "0000/data")]
)
def test_half_precision_and_integers(copy, task, key):
    path = copy(task)
    replace_dataset(path, key, lambda values: values.astype(np.float16))
    assert "stored as float16, not float32" in tell(path)
    replace_dataset(path, key, lambda values: values.astype(np.int32))
    assert "stored as int32" in tell(path)


@pytest.mark.parametrize(
    ("task", "key", "name"),
    [
        ("advection", "tensor", "'u'"),
        ("cfd", "Vx", "'v'"),
        ("diffusion-reaction", "0000/data", "'v'"),
        ("advection", "x-coordinate", "'x'"),
    ],
)
def test_nan(copy, task, key, name):
    path = copy(task)

    def spoil(values):
        values.reshape(-1)[5] = np.nan
        return values

    replace_dataset(path, key, spoil)
    message = tell(path)
    assert "NaN" in message
    assert name in message


def test_nan_in_another_sample_is_no_matter(copy):
    path = copy("cfd")
    with h5py.File(path, "a") as file:
        file["pressure"][1] = np.nan
    read_sample(path, 0)
    assert "NaN" in tell(path, 1)


def test_a_pressure_that_is_not_positive(copy):
    path = copy("cfd")
    replace_dataset(path, "pressure", lambda values: values - 500)
    assert "pressure is not positive" in tell(path)


@pytest.mark.parametrize(
    ("task", "key", "change", "message"),
    [
        ("advection", "tensor", lambda v: v[0], "3 axes are expected"),
        ("advection", "tensor", lambda v: v[..., :-1], "'x-coordinate'"),
        ("advection", "t-coordinate", lambda v: v[:5], "'t-coordinate'"),
        ("advection", "x-coordinate", lambda v: v[::-1], "does not increase"),
        ("cfd", "Vx", lambda v: v[:, :4], "differ in shape"),
        ("diffusion-reaction", "0000/data", lambda v: v[..., :1], "1 channels"),
        ("diffusion-reaction", "0000/grid/y", lambda v: v[1:], "'y'"),
    ],
)
def test_shapes(copy, task, key, change, message):
    path = copy(task)
    replace_dataset(path, key, change)
    assert message in tell(path)


def test_constants_that_are_not_stated(copy):
    path = copy("diffusion-reaction")
    with h5py.File(path, "a") as file:
        file["0000"].attrs["config"] = "sim:\n  Du: 0.002\n  k: 0.005\n"
    sample = read_sample(path, 0)
    assert sample.parameters == {"Du": 0.002, "Dv": 5e-3, "k": 5e-3}
    assert "does not state Dv" in sample.warnings[0]
