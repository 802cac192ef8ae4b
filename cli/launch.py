"""Several processes for one training: by ``--devices``, or started by torchrun."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from typing import Any, TypeVar

from dcase.errors import DcaseError, OptionError

T = TypeVar("T")


def launch(devices: int, num_nodes: int, accelerator: str) -> Any:
    """A launched Lightning Fabric over all processes, or None for a single one.

    Under torchrun the numbers are torchrun's, so that nobody has to say them twice; processes that
    knew nothing of each other would train on their own and write the same files.

    Args:
        devices: Processes on each node, as asked for.
        num_nodes: Nodes, as asked for.
        accelerator: Type of device.

    Raises:
        OptionError: If the numbers contradict torchrun's, or there are not so many devices.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    if TorchElasticEnvironment.detect():
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // here
        for option, given, actual in (("devices", devices, here), ("num-nodes", num_nodes, nodes)):
            if given not in (1, actual):
                raise OptionError(f"--{option} {given}, but torchrun started {actual}; drop one")
        devices, num_nodes = here, nodes
    elif num_nodes > 1 and not SLURMEnvironment.detect():
        raise OptionError("--num-nodes needs torchrun (or SLURM's srun) on every node")
    if devices * num_nodes == 1:
        return None
    try:
        fabric = Fabric(
            accelerator=accelerator, devices=devices, num_nodes=num_nodes, strategy="ddp"
        )
        fabric.launch()
        atexit.register(_leave)
    except (RuntimeError, ValueError) as error:
        # Lightning's own exceptions are of these kinds, too.
        raise OptionError(
            f"cannot start {devices} processes on {accelerator}: {' '.join(str(error).split())}"
        ) from error
    except Exception as error:
        if type(error).__name__ != "MisconfigurationException":
            raise
        raise OptionError(f"cannot start {devices} processes on {accelerator}: {error}") from error
    return fabric


def first_then_others(fabric: Any, make: Callable[[], T]) -> T:
    """What ``make`` returns, in every process; the first one goes first (and fills the caches).

    Raises:
        DcaseError: In every process, if it is raised in any.
    """
    if fabric is None:
        return make()
    from dcase.training.processes import Processes

    result, error = None, None
    with fabric.rank_zero_first():
        try:
            result = make()
        except DcaseError as caught:
            error = caught
    for found in Processes(fabric).gather(error):
        if found is not None:
            raise found
    assert result is not None
    return result


def _leave() -> None:
    """Leave the process group: gloo's threads abort a process that ends while they run."""
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
