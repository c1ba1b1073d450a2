"""Whole files: on the disk before they have their name, and written in one place of the package."""

import ast
import os
from pathlib import Path

import pytest

from ulmfit_fast.system.files import file_in_place, files_in_place, write_text

PACKAGE = Path(__file__).parents[1] / "ulmfit_fast"


def test_a_file_is_on_the_disk_before_it_has_its_name_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("the names of open files are not known here")
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{handle}")).name
        steps.append("sync folder" if name == tmp_path.name else f"sync {name.split('-')[0]}")
        fsync(handle)

    def replaced(source: Path, target: Path) -> None:
        steps.append(f"name {target.name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    write_text(tmp_path / "a.txt", "é")
    assert steps == ["sync .a.txt", "name a.txt", "sync folder"]
    steps.clear()
    with files_in_place(tmp_path / "b", tmp_path / "c"):
        pass
    assert steps == ["sync .b", "sync .c", "name b", "name c", "sync folder"]
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa9"


@pytest.mark.parametrize("failing", ["fsync", "replace", "write"])
def test_what_fails_leaves_the_older_files_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("a", "b"):
        write_text(tmp_path / name, "old")
    if failing != "write":
        monkeypatch.setattr(os, failing, full)
    with (
        pytest.raises(OSError, match="No space"),
        files_in_place(tmp_path / "a", tmp_path / "b") as (first, second),
    ):
        first.write_text("new")
        second.write_text("new")
        if failing == "write":
            full()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old", "b": "old"}


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_file_has_the_permissions_of_the_umask_and_replaces_what_a_link_leads_to(
    tmp_path: Path,
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "there" / "file")
    umask = os.umask(0o027)
    try:
        with file_in_place(tmp_path / "link") as file:
            file.write_text("new")
    finally:
        os.umask(umask)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "file").stat().st_mode & 0o777 == 0o640


def test_nothing_else_gives_files_their_names() -> None:
    others = ("os.replace", "mkstemp", "NamedTemporaryFile", "fdopen", "rename", "write_bytes")
    found = {
        f"{path.name}: {ast.unparse(node)}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node).endswith(others)
        if path.parent.name != "system"
    }
    assert not found
