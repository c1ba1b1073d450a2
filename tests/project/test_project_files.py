"""What stands in the project's files agrees: CI, the hook, versions, templates."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import ulmfit_fast as uf

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
DOCUMENTS = [ROOT / "CONTRIBUTING.md", ROOT / "RELEASING.md", ROOT / ".ci" / "run"]


def text_of(path):
    return path.read_text(encoding="utf-8")


def parsed(path):
    return pytest.importorskip("yaml").safe_load(text_of(path))


def make_targets():
    return set(re.findall(r"^([a-z][\w-]*):", text_of(ROOT / "Makefile"), flags=re.MULTILINE))


def steps(job):
    return [step for step in job["steps"] if "run" in step]


def commands(job):
    """Return what a job runs, once for each value of `matrix.target` where it has one."""
    targets = job.get("strategy", {}).get("matrix", {}).get("target", [""])
    lines = [step["run"] for step in steps(job)]
    return [line.replace("${{ matrix.target }}", target) for target in targets for line in lines]


def named_targets(lines):
    return {name for line in lines for name in re.findall(r"\bmake ([a-z][\w-]*)", line)}


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.name)
def workflow(request):
    return parsed(request.param)


def test_there_is_a_workflow():
    assert [path.name for path in WORKFLOWS] == ["ci.yml"]


def test_workflows_are_limited(workflow):
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["group"]
    for job in workflow["jobs"].values():
        assert 0 < job["timeout-minutes"] <= 60 and "permissions" not in job
        for step in job["steps"]:
            assert "pull_request_target" not in workflow[True]  # YAML reads the key `on` as true
            if "uses" in step:
                assert re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"])


def test_the_workflow_runs_targets_that_there_are():
    jobs = parsed(GITHUB / "workflows" / "ci.yml")["jobs"].values()
    named = named_targets(line for job in jobs for line in commands(job))
    gates = {"compile-gate", "compile-gate-oldest"}
    assert named == {"check", "test", "test-compat", "docs", "examples", *gates}
    assert named <= make_targets()


def test_only_what_nobody_has_seen_green_may_fail():
    jobs = parsed(GITHUB / "workflows" / "ci.yml")["jobs"]
    assert {name for name, job in jobs.items() if job.get("continue-on-error")} == {"elsewhere"}
    assert jobs["elsewhere"]["strategy"]["matrix"]["os"] == ["macos-latest", "windows-latest"]
    assert all(
        job["runs-on"] == "ubuntu-latest" for name, job in jobs.items() if name != "elsewhere"
    )


def test_documents_name_targets_that_there_are():
    for path in [*DOCUMENTS, *GITHUB.rglob("*.md")]:
        code = re.findall(r"`(make [\w-]+)`|^ *(make [\w-]+)", text_of(path), flags=re.MULTILINE)
        assert named_targets(a or b for a, b in code) <= make_targets(), path.name


def test_scripts_that_ci_runs_are_there():
    jobs = parsed(GITHUB / "workflows" / "ci.yml")["jobs"].values()
    for line in (line for job in jobs for line in commands(job) if line.startswith(".")):
        path = ROOT / line
        assert path.stat().st_mode & 0o111, f"{line} is not executable"
        subprocess.run(["bash", "-n", str(path)], check=True)


def test_ci_has_the_oldest_versions_of_setup_and_the_newest_of_the_constraints():
    setup, constraints = text_of(ROOT / "setup.py"), text_of(ROOT / "constraints.txt")
    matrix = parsed(GITHUB / "workflows" / "ci.yml")["jobs"]["test"]["strategy"]["matrix"]
    found = {entry["torch"]: entry["triton"] for entry in matrix["include"]}
    assert list(found) == matrix["torch"]
    oldest, newest = found.items()
    for name, low, high in zip(("torch", "triton"), oldest, newest, strict=True):
        bound = re.search(rf"['\"]{name}>=([\d.]+)", setup)[1]
        assert re.fullmatch(rf"{re.escape(bound)}(\.0)*", low), (name, bound, low)
        assert f"{name}=={high}\n" in constraints
    (python,) = re.findall(r'python_requires=">=([\d.]+)"', setup)
    assert matrix["python"][0] == python


def test_the_hook_is_make_check_and_nothing_else():
    (repository,) = parsed(ROOT / ".pre-commit-config.yaml")["repos"]
    (hook,) = repository["hooks"]
    assert repository["repo"] == "local" and hook["language"] == "system"
    assert hook["entry"] == "make check"
    assert hook["always_run"] and not hook["pass_filenames"]


def test_one_version_everywhere():
    command = [sys.executable, "setup.py", "--version"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split()[-1] == uf.__version__
    newest = re.search(r"^## (\S+)", text_of(ROOT / "CHANGELOG.md"), flags=re.MULTILINE)[1]
    assert newest == uf.__version__


@pytest.mark.parametrize("path", sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.md")), ids=str)
def test_issue_templates_have_a_head(path):
    yaml = pytest.importorskip("yaml")
    _, head, body = text_of(path).split("---\n", maxsplit=2)
    assert {"name", "about"} <= yaml.safe_load(head).keys()
    assert body.strip()


def test_no_secret_and_no_person_stands_in_the_files_of_ci():
    files = [path for path in GITHUB.rglob("*") if path.is_file()]
    for path in [*files, ROOT / ".pre-commit-config.yaml", ROOT / "RELEASING.md"]:
        text = text_of(path)
        assert not re.search(r"secrets\.|password|api[_-]?key|\b(ghp|github_pat|pypi)[-_]\w", text)
        assert not re.search(r"[\w.+-]+@[\w-]+\.\w+|(?<![\w/])@[A-Za-z]\w+|assignees", text), path
