"""The structure a command works on: a file, a molecule's name, or the one a potential suggests."""

from __future__ import annotations

from pathlib import Path

import ase
import ase.io

from dcase.data.molecules import find_molecule, structure
from dcase.errors import DataError
from dcase.potentials.potential import Potential


def load_structure(given: str | None, potential: Potential) -> tuple[ase.Atoms, str]:
    """Atoms, and where they came from.

    Args:
        given: A file that ASE reads (its last frame), the name of an MD17 molecule, or None: the
            molecule that the potential was trained on.
        potential: Asked for that molecule.

    Raises:
        DataError: If there is no such file or molecule, or it cannot be read.
    """
    if given is None:
        trained_on = potential.metadata.get("dataset", {}).get("molecule", "")
        if find_molecule(trained_on) is None:
            raise DataError(
                "the potential was not trained on a molecule that dcase knows; give a structure "
                "with --structure FILE"
            )
        return structure(trained_on), f"{trained_on} (shipped geometry)"
    path = Path(given)
    if path.exists():
        try:
            atoms = ase.io.read(path)
        except Exception as error:  # ASE's readers raise all sorts
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(f"{path}: cannot be read as a structure ({reason})") from error
        assert isinstance(atoms, ase.Atoms)
        return atoms, str(path)
    if find_molecule(given) is not None:
        return structure(given), f"{given} (shipped geometry)"
    raise DataError(f"{given}: no such file, and no molecule of that name")
