"""A plug-in of pytest that notes which file each imported module came from; ``checks.origins`` reads the notes.

It runs inside of the project's own interpreter, whichever version that is, copied to where it is found: standard library
only, nothing of ours, no syntax younger than Python 3.7.
"""

from __future__ import annotations

import json
import os
import sys
import sysconfig
from types import ModuleType


def pytest_sessionfinish() -> None:
    """Beside this file, one note for each process. Modules may be anything: objects that tests put there included."""
    modules = []
    for name, module in sys.modules.copy().items():
        is_module = isinstance(module, ModuleType)
        # Past the module's own attribute access, which would wake one that is loaded lazily.
        file = object.__getattribute__(module, "__dict__").get("__file__") if is_module else None
        if isinstance(file, str):
            modules.append([str(name), os.path.abspath(file)])
    paths = sysconfig.get_paths()
    kinds = ("stdlib", "platstdlib", "purelib", "platlib", "scripts")
    note = {"folders": [paths[kind] for kind in kinds if paths.get(kind)], "modules": modules}
    name = os.path.join(os.path.dirname(os.path.abspath(__file__)), "notes-%d.json" % os.getpid())  # noqa: UP031
    with open(name, "w", encoding="utf-8") as target:
        json.dump(note, target)
