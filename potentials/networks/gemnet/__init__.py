"""GemNet-T: geometric message passing over triplets (Gasteiger et al., NeurIPS 2021).

Read in this order:

* :mod:`.layers`: dense layers, their activations and initial weights, residual layers;
* :mod:`.scaling`: the factors that keep variances, and how they are fitted;
* :mod:`.triplets`: the two-hop interaction, with the sum over triplets as matrix products;
* :mod:`.blocks`: interaction, atom update and output blocks;
* :mod:`.network`: the network, its sizes and its registry entry.
"""

from __future__ import annotations

from dcase.potentials.networks.gemnet.network import ARCHITECTURE, GemNetT
from dcase.potentials.networks.gemnet.scaling import refit_scale_factors

__all__ = ["ARCHITECTURE", "GemNetT", "refit_scale_factors"]
