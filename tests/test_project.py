"""Facts about the project as a whole: dependency lists agree, imports point one way, nothing private leaks."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "vantage"

# A package may import itself and what stands to its left; `data` stands apart and knows no model.
ALLOWED = {
    "ops": {"ops"},
    "position": {"position", "ops"},
    "attention": {"attention", "position", "ops"},
    "plugs": {"plugs", "ops"},
    "backbones": {"backbones", "attention", "position", "plugs", "ops"},
    "data": {"data", "ops"},
}


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout: no list of tracked files")
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


def test_environment_yml_and_pyproject_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = set(project["dependencies"]) | set(project["optional-dependencies"]["dev"])
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(entry["pip"] for entry in conda if isinstance(entry, dict))
    assert set(pip) - {"-e ."} == wanted
    assert "-e ." in pip
    assert f"python{project['requires-python']}" in conda


def test_every_dependency_is_imported_somewhere():
    """A dependency nobody imports is one to remove."""
    module_of = {
        "scikit-learn": "sklearn",
        "scikit-image": "skimage",
        "hydra-core": "hydra",
        "pytorch-lightning": "pytorch_lightning",
    }
    source = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    for requirement in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
        name = re.split(r"[<>=]", requirement)[0]
        module = module_of.get(name, name.replace("-", "_"))
        assert re.search(rf"^\s*(import|from) {module}\b", source, re.M), f"{name} is never imported"


def imported_packages(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return {name.split(".")[1] for name in found if name.startswith("vantage.")}


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_one_way(package):
    packages = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    for path in (PACKAGE / package).rglob("*.py"):
        wrong = (imported_packages(path) & packages) - ALLOWED[package]
        assert not wrong, f"{path.relative_to(ROOT)} imports vantage.{', vantage.'.join(sorted(wrong))}"


def test_only_the_entry_points_import_the_command_line():
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] != "cli" and path.name != "bench.py":  # a bench is an entry point
            assert "cli" not in imported_packages(path), f"{path.relative_to(ROOT)} imports vantage.cli"


def test_ops_know_nothing_but_torch():
    standard = {"torch", "triton", "vantage"}
    import sys

    for path in (PACKAGE / "ops").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                top = name.split(".")[0]
                assert top in standard or top in sys.stdlib_module_names, f"{path.relative_to(ROOT)} imports {name}"


def test_nothing_of_a_machine_is_written_down():
    """No registry host, no lock file, no absolute home or work path in what is tracked."""
    forbidden = re.compile(
        r"https?://[^\s\"')]*(pypi|index-url|download\.pytorch)|--(extra-)?index-url|/home/\w+/|/root/"
    )
    for path in tracked_files():
        assert path.name not in {"poetry.lock", "uv.lock", "Pipfile.lock", "package-lock.json"}
        if path.suffix in {".py", ".yaml", ".yml", ".toml", ".md", ""} and path != Path(__file__).resolve():
            hit = forbidden.search(path.read_text(errors="ignore"))
            assert not hit, f"{path.relative_to(ROOT)} says {hit.group(0)!r}"


def test_ci_runs_the_readme_command():
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert "make test" in (ROOT / "README.md").read_text()
