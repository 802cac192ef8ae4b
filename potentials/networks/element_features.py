"""Features of the elements that CGCNN and ForceNet start from.

Sources, read off as plain numbers:

* k-hot features: ``atom_init.json`` of CGCNN (Xie and Grossman, PRL 120, 145301 (2018)), the same
  as Open Catalyst's ``KHOT_EMBEDDINGS``; 92 numbers 0 or 1 for Z = 1 ... 100. Nine properties, each
  cut into bins: 92 = 19 + 7 + 10 + 10 + 12 + 10 + 10 + 4 + 10. The table below has one character a
  property, the bin in base 36, and ``-`` where the source sets no bin.
* continuous features of the same nine properties and the empirical radii: Open Catalyst's
  ``CONTINUOUS_EMBEDDINGS`` and ``ATOMIC_RADII`` (from pymatgen and mendeleev); ``-`` where the
  source has none.

These features label elements; they need not be, and are not, good values of the properties.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from ase.data import chemical_symbols
from torch import Tensor

from dcase.errors import OptionError

#: Bins of group, period, electronegativity, covalent radius, valence electrons, ionization energy,
#: electron affinity, block and atomic volume.
BINS = (19, 7, 10, 10, 12, 10, 10, 4, 10)

# fmt: off
_K_HOT = """
104006504 i0-019-06 111401503 213314000 d14224410 e15235610 f17246214 g18156614 h19167914
i1-178-14 121501505 222513-04 d23422512 e23433613 f24345514 g25355714 h27366915 i2-377-16
130700508 231612406 332522424 432433423 533443522 633453521 733463-21 833473421 933383521
a34393621 b333a3621 c334b4-22 d33422513 e34433613 f34444513 g35454714 h37365915 i3-476-17
140800509 241712407 342622425 442532524 543543523 644553522 744463522 844473622 945483622
a444b4522 b444a3622 c434b4-23 d43522414 e44533614 f44544615 g44454715 h46465916 i46475418
150900509 251711407 051612535 051612535 051611535 051612735 05-612-3- 051612-35 05-612536
051612-35 05-612635 052612535 052612-35 052612-35 052612634 05-612436 351621424 452533423
552543423 653453522 753463422 854474622 954484622 a54494722 b554a4722 c534b5-24 d53522514
e53533515 f53543515 g54554715 h5456481- i5-575-1- 16080050- 261711408 061711535 062612-35
062612-34 063612-33 062612-35 062612-3- 06-612-35 06-612-35 06-612-3- 06-612-3- 06-612-3-
06-612-3-
"""
_CONTINUOUS = {
    "group": """
1 18 1 2 13 14 15 16 17 18 1 2 13 14 15 16 17 18 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 1 2
3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 4 5 6 7 8 9 10
11 12 13 14 15 16 - 18 - 2 3 4 5 6 7 8 9 10 - - - -
    """,
    "period": """
1 1 2 2 2 2 2 2 2 2 3 3 3 3 3 3 3 3 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 5 5 5 5 5 5 5 5 5 5 5 5 5
5 5 5 5 5 6 6 6 6 6 6 6 6 6 6 6 6 6 6 6 6 6 6 6 6 6 6 6 6 6 6 6 6 6 6 - 6 - 7 7 7 7 7 7 7 7 7 - -
- -
    """,
    "electronegativity": """
2.18777 1 0.0488679 0.126847 0.254627 0.427525 0.577482 0.941649 1.01768 1 0.0945976 0.152421
0.236093 0.346816 0.451027 0.639725 0.812377 1 0.121838 0.190158 0.303867 0.405546 0.43889
0.601772 0.670726 0.748727 0.883242 0.937704 0.917554 0.810088 0.720541 0.800147 0.825337 0.965912
1.04903 1 0.176414 0.263179 0.392394 0.474447 0.55617 0.685295 0.875361 0.957937 0.976191 1.12426
0.943796 0.801562 0.717275 0.76228 0.776272 0.862251 0.938643 1 0.181453 0.303295 0.394651
0.535618 0.428804 0.447218 0.458554 0.470215 0.508508 0.503386 0.51637 0.529734 0.543492 0.557657
0.572244 0.517668 0.60274 0.735212 0.835883 1.01928 1.17459 1.23928 1.476 1.45101 1.4267 1.16479
0.92451 0.931323 0.81365 0.925631 - 1 - 0.359625 0.458316 0.555702 0.623066 0.618118 0.613254
0.608472 0.683416 0.690009 - - - -
    """,
    "covalent radius, pm": """
31 28 128 96 84 73 71 66 57 58 166 141 121 111 107 105 102 106 203 176 170 160 153 139 150 142 138
124 132 122 122 120 119 120 120 116 220 195 190 175 164 154 147 146 142 139 145 144 142 139 139
138 139 140 244 215 207 204 203 201 199 198 198 196 194 192 192 189 190 187 187 175 170 162 151
144 141 136 136 132 145 146 148 140 - 150 - 221 215 206 200 196 190 187 180 169 - - - -
    """,
    "valence electrons": """
1 2 1 2 3 4 5 6 7 8 1 2 3 4 5 6 7 8 1 2 3 4 5 6 7 8 9 10 11 12 3 4 5 6 7 8 1 2 3 4 5 6 7 8 9 12 11
12 3 4 5 6 7 8 1 2 3 2 2 2 2 2 2 2 2 2 2 2 2 2 2 4 5 6 7 8 9 10 11 12 3 4 5 6 - 8 - 2 3 2 2 2 2 2
2 2 - - - -
    """,
    "first ionization energy, eV": """
13.5984 24.5874 5.39171 9.3227 8.29802 11.2603 14.5341 13.6181 17.4228 21.5645 5.13908 7.64623
5.98577 8.15168 10.4867 10.36 12.9676 15.7596 4.34066 6.11316 6.56149 6.82812 6.74619 6.76651
7.43402 7.90247 7.88101 7.63988 7.72638 9.3942 5.9993 7.89944 9.789 9.75239 11.8138 13.9996
4.17713 5.69487 6.21726 6.6339 6.75885 7.09243 7.11938 7.3605 7.4589 8.33686 7.57623 8.99382
5.78636 7.34392 8.60839 9.00966 10.4513 12.1298 3.89391 5.21166 5.5769 5.5386 5.473 5.525 5.582
5.64371 5.67038 6.1498 5.8638 5.93905 6.0215 6.1077 6.18431 6.25416 5.42587 6.82507 7.54957
7.86403 7.83352 8.43823 8.96702 8.95883 9.22555 10.4375 6.10829 7.41668 7.28552 8.414 - 10.7485 -
5.27842 5.38023 6.3067 5.89 6.19405 6.2655 6.0258 5.9738 5.9914 - - - -
    """,
    "electron affinity, eV": """
0.754195 -19.7 0.618049 -2.4 0.279723 1.26212 -1.4 1.46111 3.40119 -3 0.547926 -3 0.43283 1.38952
0.746607 2.0771 3.61273 -11.5 0.50147 0.02455 0.188 0.079 0.525 0.666 -3 0.151 0.662256 1.156
1.235 -3 0.43 1.23271 0.804 2.02067 3.36359 -3 0.48592 0.048 0.307 0.426 0.917406 0.748 0.55 1.05
1.137 0.562 1.302 -3 0.3 1.11207 1.046 1.97088 3.05904 -0.056 0.471626 0.14462 0.47 0.65 0.962
1.916 -3 -3 0.864 -3 1.165 0.352 -3 -3 1.029 -0.02 0.34 0.014 0.322 0.81626 0.15 1.1 1.5638 2.128
2.30863 -3 0.377 0.356743 0.942362 1.9 - -3 - 0.1 0.35 -3 -3 -3 -3 -3 -3 -3 - - - -
    """,
    "block (s 1, p 2, d 3, f 4)": """
1 1 1 1 2 2 2 2 2 2 1 1 2 2 2 2 2 2 1 1 3 3 3 3 3 3 3 3 3 3 2 2 2 2 2 2 1 1 3 3 3 3 3 3 3 3 3 3 2
2 2 2 2 2 1 1 3 4 4 4 4 4 4 4 4 4 4 4 4 4 4 3 3 3 3 3 3 3 3 3 2 2 2 2 - 2 - 1 3 4 4 4 4 4 4 4 - -
- -
    """,
    "atomic volume, cm^3/mol": """
14.1 31.8 13.1 5 4.6 5.3 17.3 14 17.1 16.8 23.7 14 10 12.1 17 15.5 18.7 24.2 45.3 29.9 15 10.6
8.35 7.23 7.39 7.1 6.7 6.6 7.1 9.2 11.8 13.6 13.1 16.5 23.5 32.2 55.9 33.7 19.8 14.1 10.8 9.4 8.5
8.3 8.3 8.9 10.3 13.1 15.7 16.3 18.4 20.5 25.7 42.9 70 39 22.5 21 20.8 20.6 20.23 19.9 28.9 19.9
19.2 19 18.7 18.4 18.1 24.8 17.8 13.6 10.9 9.53 8.85 8.43 8.54 9.1 10.2 14.8 17.2 18.3 21.3 22.7 -
50.5 - 45 22.54 19.8 15 12.5 21.1 12.29 20.8 18.28 - - - -
    """,
}
_RADII = """
25 120 145 105 85 70 65 60 50 160 180 150 125 110 100 100 100 71 220 180 160 140 135 140 140 140
135 135 135 135 130 125 115 115 115 - 235 200 180 155 145 145 135 130 135 140 160 155 155 145 145
140 140 - 260 215 195 185 185 185 185 185 185 180 175 175 175 175 175 175 175 155 145 135 135 130
135 135 135 150 190 180 160 190 - - - 215 195 180 180 175 175 175 175 - - - - -
"""
# fmt: on


def k_hot_features(elements: Sequence[int]) -> Tensor:
    """CGCNN's features of ``elements`` (atomic numbers), 0 or 1, float32, shape [n_elements, 92].

    Raises:
        OptionError: For an element beyond fermium (Z = 100).
    """
    words = _K_HOT.split()
    _require(
        elements, [True] * len(words), "CGCNN has no element features for {}: it knows H to Fm"
    )
    features = torch.zeros(len(elements), sum(BINS))
    for row, z in zip(features, elements, strict=True):
        start = 0
        for character, bins in zip(words[z - 1], BINS, strict=True):
            if character != "-":
                row[start + int(character, 36)] = 1.0
            start += bins
    return features


def continuous_features(elements: Sequence[int]) -> Tensor:
    """ForceNet's features of ``elements``, float64, shape [n_elements, 9], each scaled to [0, 1].

    Scaled by the smallest and largest value over all elements that have features, whatever
    ``elements`` are.

    Raises:
        OptionError: For an element without features (At, Fr, and beyond Cm).
    """
    table = torch.stack([_numbers(text) for text in _CONTINUOUS.values()], dim=1)  # [100, 9]
    known = torch.isfinite(table).all(dim=1)
    _require(elements, known.tolist(), "ForceNet has no element features for {}")
    low, high = table[known].amin(0), table[known].amax(0)
    return ((table - low) / (high - low))[_rows(elements)]


def atomic_radii(elements: Sequence[int]) -> Tensor:
    """Empirical radii of ``elements``, A, float64, shape [n_elements].

    Raises:
        OptionError: For an element without a radius (Kr, Xe, At, Rn, Fr, Cm and beyond).
    """
    table = _numbers(_RADII)
    _require(elements, torch.isfinite(table).tolist(), "ForceNet has no atomic radius for {}")
    return table[_rows(elements)] / 100.0


def _numbers(text: str) -> Tensor:
    values = [float("nan") if word == "-" else float(word) for word in text.split()]
    return torch.tensor(values, dtype=torch.float64)


def _rows(elements: Sequence[int]) -> Tensor:
    return torch.tensor(list(elements)) - 1


def _require(elements: Sequence[int], known: Sequence[bool], message: str) -> None:
    missing = [z for z in elements if not (1 <= z <= len(known) and known[z - 1])]
    if missing:
        raise OptionError(message.format(", ".join(chemical_symbols[z] for z in missing)))
