"""What the tests of the command line train on."""

import numpy as np

from dcase.data.md17 import embedded_file
from dcase.data.molecules import get_molecule

# Small, and never more than a few steps.
TINY = [
    "--size",
    "tiny",
    "--n-train",
    "20",
    "--n-val",
    "5",
    "--filter-knots",
    "0",
    "--device",
    "cpu",
]
ETHANOL = ["train", "md17", "-m", "ethanol", "--source", "xtb", *TINY]


def shipped_frames(name):
    """The arrays of the frames that ship with dcase, by key."""
    with np.load(embedded_file(get_molecule(name))) as file:
        return {key: file[key] for key in file.files}


def save_some(path, name, count):
    """The first frames in a file of their own, in MD17's layout, of unknown theory."""
    data = shipped_frames(name)
    np.savez(path, z=data["z"], **{key: data[key][:count] for key in "REF"})
