from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.checks.inroads import Inroads, find_inroads


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    path = tmp_path / "checkout"
    path.mkdir()
    return path


@pytest.fixture
def site(checkout: Path) -> Path:
    """The packages of an environment in the checkout."""
    folder = checkout / ".venv" / "lib" / "python3.12" / "site-packages"
    folder.mkdir(parents=True)
    (checkout / ".venv" / "pyvenv.cfg").touch()
    return folder


def found(checkout: Path) -> Inroads:
    return find_inroads(checkout / ".venv" / "bin" / "python", checkout)


def distribution(site: Path, name: str, root: Path, *, editable: bool) -> Path:
    folder = site / f"{name}-1.dist-info"
    folder.mkdir()
    about = {"editable": True} if editable else {}
    (folder / "direct_url.json").write_text(json.dumps({"url": root.as_uri(), "dir_info": about}))
    return folder


def test_nothing_installed_leads_nowhere(checkout: Path, site: Path) -> None:
    (site / "distutils-precedence.pth").write_text("import os; var = 'X'; __import__('_hack')\n")
    (site / "other.pth").write_text(f"# a remark\n\n/elsewhere\n{site / 'inner'}\ninner\n")
    assert found(checkout) == Inroads()
    assert find_inroads(Path("/no/such/bin/python"), checkout).links == ()


def test_lines_of_pth_files(checkout: Path, site: Path) -> None:
    (site / "_editable_impl_a.pth").write_text(f"{checkout / 'packages/x/src'}\n{checkout}")
    (site / "easy-install.pth").write_bytes(b"\xef\xbb\xbf" + os.fsencode(checkout / "lib") + b"\r\n\xff\xfe\n")
    (site / "relative.pth").write_text("../../../../python\n")
    assert found(checkout).folders == ("packages/x/src", ".", "lib", "python")


def test_a_symlink_to_the_checkout_is_the_checkout(checkout: Path, site: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(checkout)
    (site / "a.pth").write_text(f"{tmp_path / 'link' / 'lib'}\n")
    assert found(checkout).folders == ("lib",)
    assert found(tmp_path / "link").folders == ("lib",)


def test_finders_that_build_tools_generate(checkout: Path, site: Path) -> None:
    (site / "__editable__.p-1.pth").write_text("import __editable___p_1_finder; __editable___p_1_finder.install()")
    (site / "__editable___p_1_finder.py").write_text(
        f"MAPPING: dict[str, str] = {{'p': '{checkout}/python/p', 'odd': '{checkout}/src', 'm': '{checkout}/one/m'}}\n"
        f"NAMESPACES: dict[str, list[str]] = {{'ns': ['{checkout}/nested/ns'], 'x': 'relative', 'y': '/elsewhere/y'}}\n"
    )
    (site / "_q.pth").write_text("import _q_editable")
    (site / "_q_editable.py").write_text(
        f"F.map_module('q.inner', '{checkout}/deep/q/inner/__init__.py')\ninstall({{'r': '{checkout}/flat/r.py'}}, 1)\n"
    )
    (site / "_no_path.pth").write_text("import _no_path")
    (site / "_no_path.py").write_text("X = {'z': '/\\ud800'}")
    (site / "_broken.pth").write_text("import _broken")
    (site / "_broken.py").write_text("def (:")
    assert set(found(checkout).folders) == {"python", "one", "nested", "deep", "flat"}
    assert found(checkout).links == (("odd", "src"),)


def test_a_package_with_another_name_than_its_folder_is_found_by_its_name(tmp_path: Path) -> None:
    tree, scratch = tmp_path / "tree", tmp_path / "scratch"
    (tree / "source").mkdir(parents=True)
    (tree / "source" / "__init__.py").touch()
    scratch.mkdir()
    inroads = Inroads(folders=("lib",), links=(("odd", "source"),))
    for _ in range(2):
        assert inroads.in_tree(tree, scratch) == [tree / "lib", scratch / "packages"]
    assert (scratch / "packages" / "odd" / "__init__.py").exists()


def test_what_a_distribution_says_about_its_origin(checkout: Path, site: Path, tmp_path: Path) -> None:
    (checkout / "packages" / "one" / "src").mkdir(parents=True)
    (checkout / "packages" / "known").mkdir()
    (site / "known.pth").write_text(f"{checkout}/packages/known/lib")
    distribution(site, "one", checkout / "packages" / "one", editable=True)
    distribution(site, "known", checkout / "packages" / "known", editable=True)
    distribution(site, "elsewhere", tmp_path / "elsewhere", editable=True)
    copied = distribution(site, "copied", checkout / "packages" / "two", editable=False)
    (copied / "RECORD").write_text("two/__init__.py,sha256=x,1\n../../../bin/two,,\ncopied-1.dist-info/METADATA,,\n")
    for number, text in enumerate(
        ("", "[]", '{"url": 1}', '{"url": "file:///x"}', '{"url": "file:///x", "dir_info": 1}')
    ):
        (distribution(site, f"bad{number}", checkout, editable=True) / "direct_url.json").write_text(text)
    inroads = found(checkout)
    assert inroads.folders == ("packages/known/lib", "packages/one/src")
    assert inroads.copies == {os.path.realpath(site / "two" / "__init__.py")}


@given(st.binary(max_size=200))
def test_damaged_files_lead_nowhere(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    checkout = tmp_path_factory.mktemp("checkout", numbered=True)
    site = checkout / ".venv" / "lib" / "python3.12" / "site-packages"
    site.mkdir(parents=True)
    (checkout / ".venv" / "pyvenv.cfg").touch()
    (site / "a.pth").write_bytes(b"import a\n" + data)
    (site / "a.py").write_bytes(data)
    folder = site / "a.dist-info"
    folder.mkdir()
    (folder / "direct_url.json").write_bytes(data)
    found(checkout)
