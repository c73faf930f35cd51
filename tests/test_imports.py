"""Who may import what, read from the source, and what importing costs, tried in fresh processes."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "platform"
HEAVY = ("torch", "torchvision", "timm", "ray", "mlflow", "matplotlib", "pyarrow", "cv2")

ALLOWED = {
    "checks": set(),
    "config": {"checks"},
    "settings": {"checks", "config"},
    "files": set(),
    "signals": set(),
    "method": {"config", "settings", "files"},
    "model": {"config", "settings", "files"},
    "data": {"config", "settings", "files", "model"},
    "evaluation": {"config", "settings", "files", "model", "data"},
    "training": {"config", "settings", "files", "signals", "method", "model", "data", "evaluation"},
    "run_logging": {"config", "settings", "files", "signals", "method", "model", "data", "evaluation", "training"},
    "search": {"config", "settings", "files", "signals", "method", "model", "data", "evaluation", "training", "run_logging"},
    "commands": {"config", "settings", "files", "method", "model", "data", "evaluation", "training", "run_logging", "search"},
    "cli": {"commands"},
}
"""Parts of the package that each part may import besides itself."""

ONLY = {
    "ray": {
        "srft.training.cluster",
        "srft.training.distributed",
        "srft.training.ray_loader",
        "srft.training.sparsity_actor",
        "srft.evaluation.runner",
        "srft.search.*",
    },
    "mlflow": {"srft.run_logging.*"},
    "matplotlib": {"srft.evaluation.plots", "srft.search.charts"},
    "vot": set(),
}
"""Modules that alone may import a package."""


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted((SOURCE / "srft").rglob("*.py"))}


def imported(tree: ast.AST, module: str) -> set[str]:
    """Every module that is imported anywhere in a file, inside functions and type-checking blocks too."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parent = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*parent, *([node.module] if node.module else [])])
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in ("import_module", "__import__"):
            names |= {str(argument.value) for argument in node.args if isinstance(argument, ast.Constant)}
    return names


IMPORTS = {module: imported(ast.parse(path.read_text()), module) for module, path in MODULES.items()}


def python(*arguments: str, **environment: str) -> str:
    """Output of a fresh interpreter that knows the package by its source root alone."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))}
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**kept, "PYTHONPATH": str(SOURCE), **environment},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_reader_of_imports_sees_all_kinds():
    source = (
        "import a.b\nfrom c import d\nfrom . import e\ndef f():\n    import g\n    from ..h import i\n    importlib.import_module('j')\n"
    )
    found = imported(ast.parse(source), "srft.x.y")
    assert {"a.b", "c", "c.d", "srft.x.e", "g", "srft.h", "srft.h.i", "j"} <= found


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module):
    parts = module.split(".")
    if len(parts) == 1:
        assert not any(name.startswith("srft") for name in IMPORTS[module])
        return
    assert parts[1] in ALLOWED, f"{module}: say in ALLOWED what this new part may import"
    used = {name.split(".")[1] for name in IMPORTS[module] if name.startswith("srft.")}
    assert used <= ALLOWED[parts[1]] | {parts[1], "__version__"}


@pytest.mark.parametrize("package", ONLY)
def test_a_package_is_imported_where_it_belongs_and_nowhere_else(package):
    users = {module for module, names in IMPORTS.items() if any(name.split(".")[0] == package for name in names)}
    strangers = {user for user in users if user not in ONLY[package] and f"{user.rpartition('.')[0]}.*" not in ONLY[package]}
    assert strangers == set()


def test_there_is_no_python_file_directly_below_platform():
    assert list(SOURCE.glob("*.py")) == []
    out = python("-c", "import platform, srft; print(platform.python_version(), platform.__file__)").split()
    assert out[0].count(".") == 2
    assert not out[1].startswith(str(ROOT / "platform"))


def test_the_core_works_without_ray_and_mlflow():
    """Machines that train may have neither: importing either is made to fail."""
    core = [m for m in MODULES if m.split(".")[1:2] in (["method"], ["model"], ["data"], ["evaluation"])]
    core += ["srft.training.step", "srft.training.prior", "srft.training.checkpoint"]
    assert len(core) > 20
    program = f"""
import importlib, sys
sys.modules["ray"] = sys.modules["mlflow"] = None
for module in {core}:
    importlib.import_module(module)
print(sorted({{m.split(".")[0] for m, found in sys.modules.items() if found}} & {{"ray", "mlflow", "matplotlib"}}))
"""
    assert python("-c", program).strip() == "[]"


@pytest.mark.parametrize(
    "module", [m for m in ("srft", "srft.config", "srft.cli", "srft.search.space", "srft.run_logging") if m in MODULES]
)
def test_importing_the_outside_is_light(module):
    program = f"""
import sys, time
started = time.process_time()
import {module}
print(time.process_time() - started)
print(*sorted({{m.split(".")[0] for m in sys.modules}} & set({HEAVY + (("numpy",) if module in ("srft", "srft.config") else ())})))
"""
    seconds, loaded = python("-c", program).splitlines()
    assert loaded == ""
    if module == "srft":
        assert float(seconds) < 0.3


def test_the_actor_side_of_the_statistics_needs_numpy_only():
    program = f"import sys, srft.training.sparsity_actor; print(*sorted({{m.split('.')[0] for m in sys.modules}} & set({HEAVY})))"
    assert python("-c", program).strip() == ""


def test_help_of_the_command_line_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['srft', '--help']\n"
        "import srft.cli\n"
        "try: srft.cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'timm', 'ray', 'mlflow', 'matplotlib', 'cv2', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'loaded {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT / "platform")}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "evaluate" in done.stdout
