"""Initialisation of networks with integrated activations.

With zero bias and weights of variance ``sigma_w^2 / fan_in``, pre-activations ``z ~ N(0, q)`` of
one layer give the next one (deep information propagation, 1611.01232)

    q' = sigma_w^2 E[Phi(z)^2] + sigma_b^2,     chi = sigma_w^2 E[Phi'(z)^2],

chi being the growth of squared input gradients.  For the integrated ReLU ``q' = (3 sigma_w^2/8)
q^2``: the logarithmic slope is 2, so that any deviation from the fixed point *doubles in every
layer* (10 % becomes a factor of e^6 in six layers) and a ten-layer network collapses or explodes.
Two remedies, which belong together:

* :func:`lsuv_` sets the scale of each layer on a real batch, in the order of the forward pass.  It
  fixes the *batch's* standard deviation; the spread *among samples* still doubles per layer, so
  that deep down one large sample can carry it all while the others vanish.
* a spread of biases (:func:`stable_variances`, ``init_linear_(mode="stable")``) lowers the slope.
  For IReLU slope 1/2 at q = 1 takes sigma_b^2 = 3/4 and bears samples of up to 3 q; slope 1 bears
  none above q.  The price is chi = 2/3 slope: input gradients shrink by 0.58 a layer (no choice
  gives chi = 1 with slope <= 1).
"""

from __future__ import annotations

from dcase.initialization.draw import INIT_MODES, init_linear_, residual_alpha
from dcase.initialization.lsuv import LayerScale, LSUVReport, lsuv_
from dcase.initialization.variance import VarianceMap, gain, stable_variances, variance_map

__all__ = [
    "INIT_MODES",
    "LSUVReport",
    "LayerScale",
    "VarianceMap",
    "gain",
    "init_linear_",
    "lsuv_",
    "residual_alpha",
    "stable_variances",
    "variance_map",
]
