"""Derivatives of networks by name: three engines with one interface.

* :class:`AutogradEngine` nests reverse-mode autograd: any model, the reference for the others.
* :class:`JetEngine` carries truncated Taylor series (jets) through the network: value, first and
  second derivatives and the Laplacian in one batched forward pass.
* :class:`AdjointEngine` gets all first derivatives of *one* field by one explicit reverse pass,
  which is itself written forward, so that training needs a single ordinary backward pass.
"""

from dcase.pinn.derivatives.engines import (
    AdjointEngine,
    AutogradEngine,
    Engine,
    JetEngine,
    choose_engine,
    supports_jets,
)
from dcase.pinn.derivatives.jets import Jet, Plan
from dcase.pinn.derivatives.names import Named, Wanted, trace, wanted

__all__ = [
    "AdjointEngine",
    "AutogradEngine",
    "Engine",
    "Jet",
    "JetEngine",
    "Named",
    "Plan",
    "Wanted",
    "choose_engine",
    "supports_jets",
    "trace",
    "wanted",
]
