"""A scripted stand-in for the ``claude`` command: speaks stream-json and calls the base URL as the real one does.

``PATH`` with ``FOLDER`` in front makes it be found. What it does is said by a line in its prompt, so that one fleet mixes
behaviours: ``STANDIN: BEHAVIOUR key=value …``, with `` | `` between what it does at the first attempt, the second, and so
on (the last one repeats). ``tests.standin.play`` lists the behaviours; without such a line it does good work.
"""

from __future__ import annotations

import os

FOLDER = os.path.dirname(os.path.abspath(__file__))
"""Where ``claude`` lies."""


def search_path(python: str, path: str) -> str:
    """A ``PATH`` by which ``claude`` is the stand-in, run by that interpreter."""
    return os.pathsep.join((FOLDER, os.path.dirname(python), path))
