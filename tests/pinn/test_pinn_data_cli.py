"""``dcase pinn data``, run in this process; downloads come from a server of the tests' own."""

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from dcase.cli.pinn_data import data
from dcase.data.download import DownloadError
from dcase.errors import DataError, OptionError
from dcase.pinn.pdebench import download as downloads
from dcase.pinn.pdebench.download import RemoteFile, download, remote_file
from dcase.pinn.pdebench.reading import describe_file, read_sample


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DCASE_DATA_DIR", str(tmp_path / "cache"))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def run(*arguments):
    outcome = CliRunner().invoke(data, [str(a) for a in arguments])
    assert outcome.exit_code == 0, outcome.output
    return outcome


def fails(*arguments):
    """The error of a command that fails (the main program prints it as one line)."""
    outcome = CliRunner().invoke(data, [str(a) for a in arguments])
    assert outcome.exit_code != 0
    return outcome


# ---------------------------------------------------------------------------------------------
# Making files


def test_advection():
    outcome = run("advection", "--samples", "-2:0", "--nx", 64, "--nt", 5, "--beta", 0.4)
    line = "advection: 2 samples (9998, 9999, published), 64 values of x, 5 values of t, beta=0.4"
    assert outcome.stdout.strip() == f"advection.hdf5: {line}"
    muscl = read_sample("advection.hdf5", -1)
    run(
        *("advection", "--samples", "-2:0", "--nx", 64, "--nt", 5, "--beta", 0.4),
        *("--scheme", "exact", "--out", "e.hdf5"),
    )
    exact = read_sample("e.hdf5", -1)
    assert muscl.axes["t"][-1] == 2.0
    error = np.abs(muscl.fields["u"] - exact.fields["u"]).max()
    assert 1e-4 < error < 0.3


def test_the_default_is_the_baselines_nine_samples():
    run("advection", "--nx", 16, "--nt", 2)
    assert describe_file("advection.hdf5").indices == tuple(range(9991, 10000))
    run("advection", "--nx", 16, "--nt", 2, "--seed", 1, "--out", "n.hdf5")
    assert describe_file("n.hdf5").indices == tuple(range(9))
    assert describe_file("n.hdf5").origin == "seed 1"


def test_flow_and_diffusion_reaction():
    assert "cfd: 2 samples" in run("cfd", "--samples", 2, "--nx", 16, "--nt", 3).stdout
    assert read_sample("cfd.hdf5", 1).shape == (16, 3)
    run("diffusion-reaction", "--resolution", 8, "--nt", 4, "--samples", "3:5", "--quiet")
    assert describe_file("diffusion_reaction.h5").indices == (3, 4)
    assert read_sample("diffusion_reaction.h5", 4).shape == (8, 8, 4)


def test_an_old_file_stays_unless_asked():
    arguments = ("cfd", "--samples", 1, "--nx", 8, "--nt", 2, "--out", "c.hdf5")
    run(*arguments)
    before = Path("c.hdf5").read_bytes()
    error = fails(*arguments, "--seed", 3).exception
    assert isinstance(error, DataError)
    assert "--overwrite" in str(error)
    assert Path("c.hdf5").read_bytes() == before
    run(*arguments, "--seed", 3, "--overwrite")
    assert describe_file("c.hdf5").origin == "seed 3"


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (("--samples", "many"), OptionError, "names no samples"),
        (("--samples", "-3:0", "--seed", 1), OptionError, "with a seed"),
        (("--samples", "0:20000"), OptionError, "leaves the 10000"),
    ],
)
def test_samples_that_make_no_sense(arguments, kind, message):
    error = fails("advection", *arguments).exception
    assert isinstance(error, kind)
    assert message in str(error)
    assert not Path("advection.hdf5").exists()


@pytest.mark.parametrize(
    "arguments", [("--beta", "nan"), ("--nx", 3), ("--nt", 1), ("--scheme", "upwind")]
)
def test_wrong_usage(arguments):
    outcome = fails("advection", *arguments)
    assert outcome.exit_code == 2
    assert arguments[0] in outcome.output


def test_info():
    run("advection", "--samples", 3, "--nx", 8, "--nt", 2)
    lines = run("info", "advection.hdf5").stdout.splitlines()
    assert lines[0].startswith("advection: 3 samples (0..2, published)")
    assert lines[1].strip() == "scheme: muscl"
    assert "does not exist" in str(fails("info", "nothing.hdf5").exception)


# ---------------------------------------------------------------------------------------------
# Downloads


@pytest.fixture
def server():
    path = Path(__file__).parents[1] / "data" / "data_server.py"
    spec = importlib.util.spec_from_file_location("pinn_data_server", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    server = module.Server()
    yield server
    server.stop()


@pytest.fixture
def published(server, monkeypatch):
    """A small "published" file of advection on the local server."""
    run("advection", "--samples", 3, "--nx", 512, "--nt", 50, "--out", "made.hdf5")
    content = Path("made.hdf5").read_bytes()
    assert len(content) > 250_000
    server.files["/api/access/datafile/255672"] = content
    monkeypatch.setattr(downloads, "_SERVER", server.url("/api/access/datafile"))
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    file = RemoteFile("1D_Advection_Sols_beta0.1.hdf5", 255672, md5, 3e-4)
    monkeypatch.setitem(downloads.ADVECTION, 0.1, file)
    return file


def test_download(server, published):
    outcome = run("download", "advection", "--out", "there", "--quiet")
    path = Path("there") / published.name
    assert outcome.stdout.strip() == str(path)
    assert describe_file(path).samples == 3
    run("download", "advection", "--out", "there")
    assert len(server.requests) == 1  # the second time it is there


def test_a_broken_download_goes_on(server, published):
    server.drops = 3
    error = fails("download", "advection", "--quiet").exception
    assert isinstance(error, DownloadError)
    assert "goes on from there" in str(error)
    part = Path("cache") / f"{published.name}.part"
    have = part.stat().st_size
    assert have > 0
    run("download", "advection", "--quiet")
    assert server.requests[-1][1]["Range"] == f"bytes={have}-"
    assert not part.exists()
    assert describe_file(Path("cache") / published.name).samples == 3


def test_a_wrong_checksum(server, published):
    server.files["/api/access/datafile/255672"] = b"something else"
    error = fails("download", "advection", "--quiet").exception
    assert isinstance(error, DataError)
    assert "wrong checksum" in str(error)
    assert not list(Path("cache").glob("*.hdf5"))


def test_a_mirror(server, published):
    server.files["/mirror"] = server.files.pop("/api/access/datafile/255672")
    path = download(published, "m", progress=False, url=server.url("/mirror"))
    assert path == Path("m") / published.name


def test_the_table_of_published_files():
    names = [remote_file("advection", b).name for b in (0.1, 0.2, 0.4, 0.7, 1, 2, 4, 7)]
    assert names[4] == "1D_Advection_Sols_beta1.0.hdf5"
    files = [*downloads.ADVECTION.values(), downloads.FLOW, downloads.DIFFUSION_REACTION]
    for one in files:
        assert len(one.md5) == 32
        int(one.md5, 16)
        assert one.url == f"https://darus.uni-stuttgart.de/api/access/datafile/{one.number}"
    assert len({one.number for one in files}) == len({one.md5 for one in files}) == 10
    error = fails("download", "advection", "--beta", "0.3").exception
    assert isinstance(error, OptionError)
    assert "no published file has beta = 0.3; there are 0.1, 0.2" in str(error)
    with pytest.raises(OptionError, match="unknown task"):
        remote_file("burgers")
