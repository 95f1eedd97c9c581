"""The real ``pip-audit`` against a vulnerability service of our own."""

from __future__ import annotations

import json
import venv
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings

from coordinator.checks.adapter import Printed
from coordinator.checks.osv_scores import scores_of, service_of
from coordinator.checks.pip_audit import AuditAnswer, PipAudit, understood_audit
from coordinator.checks.tool import Surroundings, ToolRun
from coordinator.domain.finding import Fix, ScanReport, ScanStatus, Severity
from coordinator.domain.settings import GateSettings
from tests.checks.hostile import spoilt
from tests.checks.rig import files_of, order_for, told, write_tree
from tests.checks.vulnerability_service import vulnerability_service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.checks.vulnerability_service import VulnerabilityService

LOCK = 'version = 1\n\n[[package]]\nname = "jinja2"\nversion = "2.10"\nsource = { registry = "here" }\n\n[[package]]\nname = "shop"\nversion = "1.0"\nsource = { virtual = "." }\n'


@pytest.fixture
def service() -> Iterator[VulnerabilityService]:
    with vulnerability_service() as server:
        server.bad = {
            "jinja2": [
                ("GHSA-jjjj", ("PYSEC-2019-217", "CVE-2019-10906"), "0", ("2.10.1",)),
                ("PYSEC-2021-66", (), "0", ("2.11.3",)),
            ],
            "requests": [
                ("PYSEC-2018-28", ("CVE-2018-18074",), "0", ("2.20.0",)),
                ("PYSEC-2023-74", (), "2.20", ("2.31.0",)),
            ],
            "hopeless": [("PYSEC-2020-1", (), "0", ())],
        }
        yield server


async def scan(tree: Path, tmp_path: Path, service: VulnerabilityService, **more: Any) -> ScanReport:
    number = len(list(tmp_path.glob("scratch*")))
    arguments = more.pop("arguments", service.arguments)
    order = order_for(PipAudit(), tree, tmp_path / f"scratch{number}", arguments=arguments, **more)
    return await PipAudit().scan(order)


LETTERS = "CVSS:3.1/AV:N/AC:H/PR:N/UI:R/S:U/C:L/I:N/A:N"


async def test_how_grave_it_is_is_asked_for_and_remembered(tmp_path: Path, service: VulnerabilityService) -> None:
    service.records = {
        "GHSA-jjjj": {"severity": [{"type": "CVSS_V3", "score": LETTERS}], "database_specific": {"severity": "HIGH"}},
        "PYSEC-2021-66": {"database_specific": {"severity": "CRITICAL"}},
        "PYSEC-2018-28": {"severity": [{"type": "CVSS_V3", "score": "nonsense"}], "database_specific": "nonsense"},
    }
    tree = write_tree(tmp_path / "tree", **{"requirements.txt": "jinja2==2.10\nrequests==2.19.0\nhopeless==1.0\n"})
    order = order_for(PipAudit(), tree, tmp_path / "scratch", arguments=service.arguments)
    for silent in (False, True):
        report = await PipAudit().scan(order)
        grave = {one.rule: (one.cvss, one.severity) for one in report.findings}
        assert grave == {
            "PYSEC-2018-28": (None, Severity.HIGH),
            "PYSEC-2019-217": (3.1, Severity.LOW),
            "PYSEC-2020-1": (None, Severity.HIGH),
            "PYSEC-2021-66": (9.0, Severity.CRITICAL),
        }, silent
        service.records = {}


async def test_who_cannot_be_asked_how_grave_it_is_costs_one_question(tmp_path: Path) -> None:
    asked = []

    def clock() -> float:
        asked.append(1)
        return 0.0

    assert scores_of([("GHSA-1",), ("GHSA-2",)], "http://127.0.0.1:9/v1", tmp_path, clock) == {}
    assert len(asked) == 3, "the limit, and both questions about the first one"
    assert scores_of([("GHSA-1",)], "file:///etc", tmp_path, clock) == {}


@pytest.mark.parametrize(
    ("arguments", "service"),
    [
        ((), "https://api.osv.dev/v1"),
        (("-s", "osv", "--osv-url", "http://a.example/v1/query"), "http://a.example/v1"),
        (("--osv-url=http://a.example/v1/query",), "http://a.example/v1"),
        (("--osv-url",), "https://api.osv.dev/v1"),
    ],
)
def test_it_is_asked_where_the_tool_asks(arguments: tuple[str, ...], service: str) -> None:
    assert service_of(arguments) == service


async def test_each_pin_and_advisory_is_a_finding_and_its_fix_the_lowest_sound_version(
    tmp_path: Path, service: VulnerabilityService
) -> None:
    text = (
        "# ours\nJinja2==2.10 ; python_version > '2'\nrequests [socks] == 2.19.0\nhopeless==1.0\nflask>=1\nsound==3.0\n"
    )
    tree = write_tree(tmp_path / "tree", **{"requirements.txt": text})
    report = await scan(tree, tmp_path, service)
    assert report.status is ScanStatus.SCANNED, report.reason
    assert sorted(told(report)) == [
        ("PYSEC-2018-28", "requirements.txt", 3),
        ("PYSEC-2019-217", "requirements.txt", 2),
        ("PYSEC-2020-1", "requirements.txt", 4),
        ("PYSEC-2021-66", "requirements.txt", 2),
    ]
    by_rule = {one.rule: one for one in report.findings}
    first = by_rule["PYSEC-2019-217"]
    assert (first.package, first.installed, first.fix, first.fix_version) == ("jinja2", "2.10", Fix.VERSION, "2.11.3")
    assert first.advisories == ("PYSEC-2019-217", "CVE-2019-10906", "GHSA-jjjj")
    assert (first.about, first.severity) == ("jinja2|PYSEC-2019-217", Severity.HIGH)
    assert first.message == "jinja2 2.10 has a known vulnerability, PYSEC-2019-217: jinja2 is unwell"
    assert by_rule["PYSEC-2018-28"].fix_version == "2.31.0"  # 2.20.0 has one of its own
    assert (by_rule["PYSEC-2020-1"].fix, by_rule["PYSEC-2020-1"].fix_version) == (Fix.NONE, "")
    assert (tree / "requirements.txt").read_text() == text


async def test_what_identifies_a_finding_is_not_its_version_line_or_first_id(
    tmp_path: Path, service: VulnerabilityService
) -> None:
    tree = write_tree(tmp_path / "tree", **{"requirements.txt": "jinja2==2.10\n"})
    before = {one.fingerprint for one in (await scan(tree, tmp_path, service)).findings}
    service.bad["jinja2"][0] = ("PYSEC-2019-217", ("GHSA-jjjj", "CVE-2019-10906"), "0", ("2.10.1",))
    service.bad["jinja2"].reverse()
    (tree / "requirements.txt").write_text("\n\nsound==1.0\njinja2[i18n]==2.9\n")
    assert {one.fingerprint for one in (await scan(tree, tmp_path, service)).findings} == before


async def test_lock_files_rule_what_lies_beside_them_and_are_left_to_their_makers(
    tmp_path: Path, service: VulnerabilityService
) -> None:
    project = '[project]\nname = "shop"\ndependencies = ["jinja2==2.10", "requests==2.19.0"]\n'
    tree = write_tree(tmp_path / "tree", **{"pyproject.toml": project, "uv.lock": LOCK})
    write_tree(tree / "api", **{"requirements.txt": "# This file is autogenerated by pip-compile\nrequests==2.19.0\n"})
    write_tree(tree / "web", **{"requirements.txt": "requests==2.19.0 \\\n    --hash=sha256:aa\n"})
    report = await scan(tree, tmp_path, service)
    assert [(one.package, one.place.path, one.place.line, one.fix) for one in report.findings] == [
        ("requests", "api/requirements.txt", 2, Fix.NONE),
        ("requests", "pyproject.toml", 3, Fix.VERSION),
        ("jinja2", "uv.lock", 4, Fix.NONE),
        ("jinja2", "uv.lock", 4, Fix.NONE),
        ("requests", "web/requirements.txt", 1, Fix.NONE),
    ]
    assert "uv.lock, not by hand" in report.findings[2].suggestion
    assert ("shop", "1.0") not in service.asked


async def test_one_package_in_two_versions_is_asked_about_twice(tmp_path: Path, service: VulnerabilityService) -> None:
    tree = write_tree(
        tmp_path / "tree", **{"requirements.txt": "jinja2==2.10\n", "dev-requirements.txt": "jinja2==2.11\n"}
    )
    report = await scan(tree, tmp_path, service)
    assert [(one.place.path, one.installed) for one in report.findings] == [
        ("dev-requirements.txt", "2.11"),
        ("requirements.txt", "2.10"),
        ("requirements.txt", "2.10"),
    ]


def installed(site: Path, name: str, version: str, *requires: str) -> None:
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True)
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {one}" for one in requires),
    ]
    (folder / "METADATA").write_text("\n".join(lines) + "\n")


async def test_what_is_left_open_is_asked_about_as_it_is_installed(
    tmp_path: Path, service: VulnerabilityService
) -> None:
    venv.create(tmp_path / "env", with_pip=False)
    (site,) = (tmp_path / "env/lib").glob("python3*/site-packages")
    installed(site, "Flask", "1.0", "Jinja2>=2.10", "requests; extra == 'more'")
    installed(site, "jinja2", "2.10")
    installed(site, "requests", "2.19.0")  # nobody here asks for it
    tree = write_tree(tmp_path / "tree", **{"requirements.txt": "sound\nflask>=1\n"})
    order = order_for(PipAudit(), tree, tmp_path / "scratch", arguments=service.arguments)
    around = Surroundings(gate=GateSettings(), first=(tmp_path / "env/bin",))
    report = await PipAudit().scan(replace(order, surroundings=around))
    assert {(one.package, one.place.path, one.fix) for one in report.findings} == {
        ("jinja2", "requirements.txt", Fix.NONE)
    }
    assert "jinja2>=2.11.3" in report.findings[0].suggestion
    (tree / "requirements.txt").write_text("flask>=1\njinja2>=2.11.3\n")  # then only the environment is old
    report = await PipAudit().scan(replace(order, surroundings=around))
    assert (report.status, report.findings) == (ScanStatus.SCANNED, ())


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
async def test_what_pip_reads_in_another_encoding_is_read(
    tmp_path: Path, service: VulnerabilityService, encoding: str
) -> None:
    service.bad = {"jinja2": [("PYSEC-2019-217", (), "0", ("2.10.1",))]}
    tree = write_tree(tmp_path / "tree", **{"requirements.txt": ""})
    (tree / "requirements.txt").write_bytes("# as PowerShell writes it\r\njinja2==2.10\r\n".encode(encoding))
    report = await scan(tree, tmp_path, service)
    assert report.status is ScanStatus.SCANNED, report.reason
    assert told(report) == [("PYSEC-2019-217", "requirements.txt", 2)]
    assert report.findings[0].evidence == "jinja2==2.10"


async def test_nothing_exact_is_not_clean(tmp_path: Path, service: VulnerabilityService) -> None:
    tree = write_tree(tmp_path / "tree", **{"requirements.txt": "jinja2>=2\n"})
    report = await scan(tree, tmp_path, service, env=())
    assert report.status is ScanStatus.UNAVAILABLE
    assert "no requirement is pinned" in report.reason
    (tree / "requirements.txt").write_text("jinja2 = = 2\n")
    report = await scan(tree, tmp_path, service)
    assert (report.status, report.reason) == (ScanStatus.BROKEN, "requirements.txt cannot be read")
    write_tree(tree, **{"dev-requirements.txt": "sound==1\n"})
    report = await scan(tree, tmp_path, service)
    assert (report.status, report.unread) == (ScanStatus.SCANNED, ("requirements.txt",))


async def test_a_service_that_does_not_answer_makes_nothing_clean(
    tmp_path: Path, service: VulnerabilityService
) -> None:
    tree = write_tree(tmp_path / "tree", **{"requirements.txt": "jinja2==2.10\n"})
    nowhere = ("-s", "osv", "--osv-url", "http://127.0.0.1:9/v1/query")
    report = await scan(tree, tmp_path, service, arguments=nowhere)
    assert (report.status, report.findings) == (ScanStatus.UNAVAILABLE, ())
    assert report.reason == "the vulnerability service did not answer: 127.0.0.1: the connection was refused"
    service.status = 503
    report = await scan(tree, tmp_path, service)
    assert report.status is ScanStatus.UNAVAILABLE
    assert "did not answer: 127.0.0.1 says 503 Server Error" in report.reason
    assert (await scan(tree, tmp_path, service, arguments=("--no-such-option",))).status is ScanStatus.BROKEN


def fake(tmp_path: Path, script: str) -> Path:
    program = tmp_path / "pip-audit"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return program


def skipping(*items: dict[str, Any]) -> str:
    return f"echo '{json.dumps({'dependencies': items, 'fixes': []})}'; exit {int(any('vulns' in one and one['vulns'] for one in items))}"


async def test_a_mirror_that_knows_nothing_makes_nothing_clean(tmp_path: Path, service: VulnerabilityService) -> None:
    """Exit code 0 and "No known vulnerabilities found" is what the real one says where all are unknown (PyPI's service)."""
    tree = write_tree(tmp_path / "tree", **{"requirements.txt": "jinja2==2.10\nours==1.0\n"})
    gone = [{"name": name, "skip_reason": "not found on PyPI"} for name in ("jinja2", "ours")]
    report = await scan(tree, tmp_path, service, program=fake(tmp_path, skipping(*gone)))
    assert report.status is ScanStatus.UNAVAILABLE
    assert "knows none of the packages: not found on PyPI" in report.reason


async def test_a_vulnerable_one_that_the_service_forgot_is_not_closed(
    tmp_path: Path, service: VulnerabilityService
) -> None:
    tree = write_tree(
        tmp_path / "tree", **{"requirements.txt": "hopeless==1.0\nours==1.0\n", "x/requirements.txt": "ours==1.0\n"}
    )
    assert len((await scan(tree, tmp_path, service)).findings) == 1
    program = fake(
        tmp_path, skipping({"name": "hopeless", "skip_reason": "gone"}, {"name": "ours", "version": "1.0", "vulns": []})
    )
    for _ in range(2):
        report = await scan(tree, tmp_path, service, program=program)
        assert (report.status, report.unread) == (ScanStatus.SCANNED, ("requirements.txt",))
    forgotten = fake(
        tmp_path,
        skipping({"name": "hopeless", "version": "1.0", "vulns": []}, {"name": "ours", "skip_reason": "private"}),
    )
    assert (await scan(tree, tmp_path, service, program=forgotten)).unread == ()


@pytest.mark.parametrize(
    "script",
    ["exit 0", "exit 1", "echo '{'; exit 1", "echo '{}'", "echo '[]'; exit 1", "kill -9 $$",
     """echo '{"dependencies": []}'""", """echo '{"dependencies": [{"name": "jinja2", "vulns": []}]}'; exit 1"""],
)  # fmt: skip
async def test_what_nobody_can_read_is_broken(tmp_path: Path, service: VulnerabilityService, script: str) -> None:
    tree = write_tree(tmp_path / "tree", **{"requirements.txt": "jinja2==2.10\n"})
    report = await scan(tree, tmp_path, service, program=fake(tmp_path, script))
    assert report.status is ScanStatus.BROKEN
    assert report.reason


@pytest.mark.parametrize(
    ("name", "text", "called"),
    [
        ("requirements.txt", "jinja2==2.10\n", True),
        ("requirements-dev.txt", "jinja2\n", True),
        ("requirements/base.txt", "jinja2\n", True),
        ("pyproject.toml", '[project]\nname = "shop"\ndependencies = ["jinja2"]\n', True),
        ("pyproject.toml", '[dependency-groups]\ndev = ["jinja2"]\n', True),
        ("pyproject.toml", "[tool.ruff]\nline-length = 100\n", False),
        ("requirements.txt", "# nothing\n-r other.txt\nhttps://a.example/b.whl\n", False),
        ("Pipfile.lock", '{"default": {"jinja2": {"version": "==2.10"}}}', True),
        ("pylock.toml", '[[packages]]\nname = "jinja2"\nversion = "2.10"\n', True),
        ("notes.txt", "jinja2==2.10\n", False),
    ],
)
def test_it_is_called_for_where_packages_are_asked_for(tmp_path: Path, name: str, text: str, called: bool) -> None:
    tree = write_tree(tmp_path, **{name: text})
    assert (not PipAudit().uncalled(files_of(tree), named=False)) is called


HONEST = {
    "dependencies": [
        {"name": "jinja2", "version": "2.10", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.11.3"], "aliases": ["CVE-1"], "description": "x"}]},
        {"name": "ours", "skip_reason": "not found"},
    ],
    "fixes": [],
}  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(spoilt(HONEST))
def test_whatever_the_report_holds_it_is_read_or_broken(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    out = tmp_path_factory.mktemp("report") / "out"
    out.write_bytes(raw)
    answer = understood_audit(Printed(out=out, ran=ToolRun(code=1, output="")), {"jinja2": "2.10", "ours": "1.0"})
    if isinstance(answer, AuditAnswer):
        assert set(answer.skipped) | {package for package, _ in answer.advisories} >= {"jinja2", "ours"}
        assert all(isinstance(one.id, str) for found in answer.advisories.values() for one in found)
    else:
        assert answer.status is ScanStatus.BROKEN
        assert answer.reason
