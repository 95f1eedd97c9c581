"""A vulnerable pin from scan to task to agent to scan, by the real ``pip-audit``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from coordinator.domain.settings import ToolSettings
from coordinator.domain.task import TaskState
from coordinator.domain.taskfile import parse
from coordinator.fleet.autofix import FIXED, mend
from tests.checks.vulnerability_service import vulnerability_service
from tests.improve.rig import Rig, commit, git


def looks(line: str, folder: Path) -> int:
    path = os.pathsep.join((os.environ["PATH"], str(Path(sys.executable).parent)))
    return subprocess.run(line, shell=True, cwd=folder, env={"PATH": path}, check=False).returncode


async def test_a_vulnerable_pin_is_moved_by_the_embedded_agent_and_a_scan_closes_it(repository: Path) -> None:
    with vulnerability_service() as service:
        service.bad = {
            "jinja2": [("PYSEC-2019-217", (), "0", ("2.10.1",)), ("PYSEC-2021-66", (), "0", ("2.11.3",))],
            "hopeless": [("PYSEC-2020-1", (), "0", ())],
        }
        told = f'[[discovery.tool]]\nname = "pip-audit"\narguments = {json.dumps(service.arguments)}\n'
        commit(repository, {"requirements.txt": "jinja2==2.10\nhopeless==1.0\n", "coordinator.toml": told})
        tool = ToolSettings(name="pip-audit", arguments=service.arguments)
        rig = Rig(repository, tool=(tool,))
        (report,) = await rig.discovery.scan(["pip-audit"], write=True)
        assert (report.tool, report.total, report.queued) == ("pip-audit", 3, 1)
        ((task_id, text),) = rig.files().items()
        (task,) = parse(text, "x.toml").tasks
        assert (task.role, task.paths) == ("upgrade", ("requirements.txt",))
        assert "names a version without these findings" in task.prompt
        assert looks(task.accept[0], repository) == 1
        assert await mend(repository, task.prompt, {}) == FIXED
        assert git(repository, "log", "-1", "--format=%s") == "pip-audit: jinja2 2.10 → 2.11.3 in requirements.txt"
        assert (repository / "requirements.txt").read_text() == "jinja2==2.11.3\nhopeless==1.0\n"
        assert looks(task.accept[0], repository) == 0
        service.status = 503
        assert looks(task.accept[0], repository) == 126  # the gate's "could not look", not "is clean"
        rig.set_state(task_id, TaskState.COMPLETED)
        (report,) = await rig.discovery.scan(["pip-audit"], write=True)
        assert (report.status, report.closed) == ("unavailable", 0)
        service.status = 200
        (report,) = await rig.discovery.scan(["pip-audit"], write=True)
        assert (report.status, report.closed, report.total) == ("scanned", 2, 1)
        assert rig.states() == {"fixed": 2, "open": 1}
