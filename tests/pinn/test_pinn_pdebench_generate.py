"""Files made by ``dcase pinn data``: which samples, which options, and nothing half done."""

import signal
import subprocess
import sys

import numpy as np
import pytest

from dcase.errors import DataError, DcaseError, OptionError, RunError
from dcase.pinn.experiments.protocol import with_file
from dcase.pinn.pdebench import generate
from dcase.pinn.pdebench.generate import sample_numbers, write_advection, write_flow
from dcase.pinn.pdebench.reading import describe_file, read_sample
from dcase.pinn.source import Source


def test_samples_of_a_seed_do_not_depend_on_their_number(tmp_path):
    few = write_advection(tmp_path / "a", [3], seed=5, cells=16, times=3)
    many = write_advection(tmp_path / "b", range(20), seed=5, cells=16, times=3)  # two batches
    u = read_sample(few, 0).fields["u"]
    np.testing.assert_array_equal(u, read_sample(many, 3).fields["u"])
    assert describe_file(many).origin == "seed 5"
    published = write_advection(tmp_path / "c", [3], cells=16, times=3)
    assert not np.allclose(u, read_sample(published, 0).fields["u"])
    assert len({read_sample(many, i).fields["u"].tobytes() for i in range(20)}) == 20


def test_the_exact_scheme(tmp_path):
    path = write_advection(tmp_path / "e.hdf5", [9], beta=4.0, scheme="exact", cells=64, times=201)
    sample = read_sample(path, 0)
    u = sample.fields["u"]
    # beta t is a whole number of periods at t = 0.25, 0.5, ... 2
    np.testing.assert_allclose(u[:, 25::25], u[:, :1].repeat(8, axis=1), atol=1e-6)
    assert np.abs(u[:, 12] - u[:, 0]).max() > 0.1
    assert sample.parameters == {"beta": 4.0}


def test_a_file_that_is_there_is_not_replaced(tmp_path):
    (tmp_path / "a.hdf5").write_text("precious")
    with pytest.raises(DataError, match="exists; choose another name"):
        write_advection(tmp_path / "a.hdf5", [0])
    assert (tmp_path / "a.hdf5").read_text() == "precious"


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = write_flow(tmp_path / "c.hdf5", [0], cells=8, times=2)
    before = path.read_bytes()

    def fails(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "solve_flow", fails)
    with pytest.raises(KeyboardInterrupt):
        write_flow(path, [0], cells=8, times=2, overwrite=True)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


WRITE = """
import os, signal, sys
from dcase.pinn.pdebench.generate import write_flow
def progress(done, total):
    if done == 2:
        print("making", flush=True)
        if "kill" in sys.argv:
            os.kill(os.getpid(), signal.SIGKILL)
        sys.stdin.readline()
write_flow(sys.argv[1], [0], cells=16, times=5, overwrite="overwrite" in sys.argv,
           progress=progress)
"""


def writer(target, *options):
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    command = [sys.executable, "-c", WRITE, str(target), *options]
    return subprocess.Popen(command, text=True, **pipes)


def test_of_two_that_make_one_file_the_second_is_refused(tmp_path):
    with writer(tmp_path / "c.hdf5") as first:
        assert first.stdout.readline() == "making\n"
        for overwrite in (False, True):
            with pytest.raises(RunError, match=rf"\({first.pid} on .* is making .*c.hdf5"):
                write_flow(tmp_path / "c.hdf5", [1], cells=8, times=2, overwrite=overwrite)
        first.communicate("\n")
    assert describe_file(tmp_path / "c.hdf5").indices == (0,)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_kill_leaves_the_old_file_and_what_it_left_goes_with_the_next(tmp_path):
    path = write_flow(tmp_path / "c.hdf5", [1], cells=8, times=2)
    before = path.read_bytes()
    with writer(path, "overwrite", "kill") as process:
        process.communicate("\n")
    assert process.returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3  # half a file and the lock, both hidden
    with pytest.raises(DataError, match="exists"):
        write_flow(path, [0], cells=16, times=5)
    write_flow(path, [0], cells=16, times=5, overwrite=True)
    assert list(tmp_path.iterdir()) == [path]
    whole = write_flow(tmp_path / "d.hdf5", [0], cells=16, times=5)
    np.testing.assert_array_equal(
        read_sample(path, 0).fields["rho"], read_sample(whole, 0).fields["rho"]
    )


def test_the_file_of_a_table_is_believed_only_if_it_has_the_sample(tmp_path):
    source = Source("advection")
    there = write_advection(tmp_path / "advection-9990.hdf5", [9990], cells=16, times=3)
    assert with_file(source, tmp_path).file == str(there)
    for samples, options in (([9991], {}), ([90], {"seed": 1})):
        write_advection(there, samples, cells=16, times=3, overwrite=True, **options)
        with pytest.raises(DataError, match="is not sample 9990 of advection"):
            with_file(source, tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DcaseError, match="cannot write"):
        write_advection(tmp_path / "file" / "a.hdf5", [0], cells=8, times=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "upwind"}, "unknown scheme"),
        ({"cells": 2}, "at least 8 cells"),
        ({"times": 1}, "at least 2 stored times"),
        ({"seed": -1}, "0 or more"),
        ({"beta": np.inf}, "finite"),
    ],
)
def test_impossible_options(tmp_path, options, message):
    with pytest.raises(OptionError, match=message):
        write_advection(tmp_path / "a.hdf5", [0], **{"cells": 16, "times": 3, **options})
    assert not list(tmp_path.iterdir())


def test_samples_that_make_no_sense(tmp_path):
    with pytest.raises(OptionError, match="twice"):
        write_advection(tmp_path / "a.hdf5", [-1, 9999])
    with pytest.raises(OptionError, match="no samples"):
        write_advection(tmp_path / "a.hdf5", [])
    with pytest.raises(DataError, match="does not exist"):
        write_advection(tmp_path / "a.hdf5", [10000])


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("9", 0, 8),
        ("-9:0", 9991, 9999),
        ("-9:", 9991, 9999),
        ("0:20", 0, 19),
        (":5", 0, 4),
        ("-1", 9999, 9999),
        ("-9", 9991, 9991),
        ("-9:-1", 9991, 9998),
        ("9990:10000", 9990, 9999),
        (":", 0, 9999),
    ],
)
def test_sample_ranges(text, first, last):
    assert sample_numbers(text, "advection") == list(range(first, last + 1))


@pytest.mark.parametrize("text", ["", "a", "0", "5:3", "1:2:3", "--3", "0:20000", "-", "1.5"])
def test_sample_ranges_that_make_no_sense(text):
    with pytest.raises(OptionError) as error:
        sample_numbers(text, "advection")
    assert repr(text) in str(error.value)


def test_sample_ranges_of_a_seed():
    assert sample_numbers("20000:20002", "advection", published=False) == [20000, 20001]
    with pytest.raises(OptionError, match="no end"):
        sample_numbers("-9:0", "advection", published=False)
    with pytest.raises(OptionError, match="no end"):
        sample_numbers("3:", "advection", published=False)
