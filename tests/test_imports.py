"""Imports point one way: a module may import only from its own rung of the ladder and the rungs below."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LADDER = [
    "data_tools",
    "biggan",
    "biggan.presets",
    "biggan.settings",
    "biggan.config",
    "biggan.latents",
    "biggan.data",
    "biggan.models",
    "biggan.training",
    "biggan.sampling",
    "biggan.metrics",
    "biggan.released",
    "biggan.cli",
]
MAY_READ = {  # of data_tools
    "biggan.data": {"data_tools.schema", "data_tools.images", "data_tools.folders"},
    "biggan.sampling": {"data_tools.fonts"},
    "biggan.cli": {"data_tools.usage"},
}
MODULES = sorted(p for package in ("biggan", "data_tools") for p in (ROOT / package).rglob("*.py"))


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def rung(module: str) -> int:
    return max(i for i, name in enumerate(LADDER) if module == name or module.startswith(name + "."))


def imported(path: Path) -> set[str]:
    """Modules of this project that a file imports anywhere, also inside functions."""
    known = {dotted(p) for p in MODULES}
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            children = {f"{node.module}.{alias.name}" for alias in node.names} & known
            names |= children or {node.module}
    return {name for name in names if name.split(".")[0] in ("biggan", "data_tools")}


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_imports_point_down_the_ladder(path):
    module = dotted(path)
    for name in imported(path):
        assert rung(name) <= rung(module), f"{module} imports {name}, which stands above it"
        if module.startswith("biggan") and name.startswith("data_tools"):
            assert name in MAY_READ.get(".".join(module.split(".")[:2]), ()), f"{module} imports {name}"


@pytest.mark.parametrize(
    "module", ["biggan.config", "biggan.latents", "biggan.data.order", "biggan.data.sampler", "data_tools.cli"]
)
def test_light_modules_do_not_load_torch(module):
    import subprocess
    import sys

    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
