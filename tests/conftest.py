"""Pictures are drawn by the tests that are about them; elsewhere a blank one is written."""

import base64

import pytest

BLANK = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTj2FAAAAABJRU5ErkJggg=="
)


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """Runs draw what they did: a third of the time of a small one.

    Tests marked ``pictures``, and fixtures of a module or session, draw as ever.
    """
    if request.node.get_closest_marker("pictures") is None:
        monkeypatch.setattr(
            "matplotlib.figure.Figure.savefig", lambda self, file, **_: file.write(BLANK)
        )
