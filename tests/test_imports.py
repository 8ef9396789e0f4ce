"""What imports what: the two root files travel alone, and imports of the package run one way."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
REMOTE_CODE = ["configuration_text_jepa", "modeling_text_jepa"]
PACKAGE = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "text_jepa").rglob("*.py"))
}

# The wings from the ground up: one imports only what stands before it, and itself.
WINGS = [
    "registration",
    "errors",
    "cli",
    "metrics",
    "data",
    "show",
    "opening",
    "sentence_head",
    "embeddings",
    "search",
    "share",
    "probe",
    "train",
    "commands",
]

SIBLING_IMPORT = """try:
    from .configuration_text_jepa import TextJepaConfig
except ImportError:
    from configuration_text_jepa import TextJepaConfig
"""
# As `transformers.dynamic_module_utils.get_relative_imports` finds the files of a Hub repository: in the plain text.
RELATIVE_IMPORT = re.compile(r"^\s*(?:import|from)\s+\.\S*.*$", flags=re.MULTILINE)


def source_of(name):
    return (ROOT / f"{name}.py").read_text(encoding="utf-8")


def imported_by(source):
    """Full names of imported modules, wherever in the file; relative ones with their dots."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names.add(module)
            names |= {f"{module}.{alias.name}" for alias in node.names} & set(PACKAGE)
    return names


def packages(names):
    return {name.split(".")[0] if not name.startswith(".") else name for name in names}


def wing_of(name):
    """The wing of a module; `None` for the package itself."""
    _, _, rest = name.partition("text_jepa.")
    return rest.split(".")[0] or None


@pytest.mark.parametrize("name", REMOTE_CODE)
def test_remote_code_imports_only_what_a_hub_user_has(name):
    siblings = {"configuration_text_jepa", ".configuration_text_jepa"} if name == "modeling_text_jepa" else set()
    allowed = {"torch", "transformers", "huggingface_hub"} | set(sys.stdlib_module_names) | siblings
    assert packages(imported_by(source_of(name))) <= allowed


def test_modeling_imports_the_configuration_in_the_one_form_that_works_as_module_and_as_remote_code():
    source = source_of("modeling_text_jepa")
    assert source.count(SIBLING_IMPORT) == 1
    assert source.count("import TextJepaConfig") == 2


@pytest.mark.parametrize("name", REMOTE_CODE)
def test_no_other_line_of_remote_code_looks_like_a_relative_import(name):
    assert not RELATIVE_IMPORT.findall(source_of(name).replace(SIBLING_IMPORT, ""))


@pytest.mark.parametrize("name", REMOTE_CODE)
def test_remote_code_keeps_its_annotations_evaluated(name):
    """`from __future__ import annotations` switches off field validation and breaks `config: TextJepaConfig`."""
    assert "__future__" not in packages(imported_by(source_of(name)))


def test_configuration_imports_nothing_of_ours():
    assert not {name for name in imported_by(source_of("configuration_text_jepa")) if "jepa" in name}


@pytest.mark.parametrize("name", [*REMOTE_CODE, *PACKAGE])
def test_no_module_imports_what_stands_above_it(name):
    source = PACKAGE[name].read_text(encoding="utf-8") if name in PACKAGE else source_of(name)
    above = {"run_pretraining", "run_probe", "tests"}
    if name in REMOTE_CODE:
        above.add("text_jepa")
    assert not packages(imported_by(source)) & above


def test_every_module_stands_in_a_wing():
    wings = {wing_of(name) for name in PACKAGE} - {None, "__main__"}
    assert wings == set(WINGS)


@pytest.mark.parametrize("name", [name for name in PACKAGE if wing_of(name) in WINGS])
def test_a_wing_imports_only_wings_below_it(name):
    imported = {
        wing_of(module) for module in imported_by(PACKAGE[name].read_text(encoding="utf-8")) if module in PACKAGE
    }
    allowed = WINGS[: WINGS.index(wing_of(name)) + 1]
    assert imported - {None} <= set(allowed)


@pytest.mark.parametrize("name", ["text_jepa.data.masking", "text_jepa.metrics"])
def test_masking_and_metrics_know_only_torch_and_numpy(name):
    names = packages(imported_by(PACKAGE[name].read_text(encoding="utf-8")))
    assert names <= {"torch", "numpy"} | set(sys.stdlib_module_names)


def test_imports_within_the_package_form_no_circle():
    modules = {name: path for name, path in PACKAGE.items() if path.name != "__init__.py"}
    known = {name: imported_by(path.read_text(encoding="utf-8")) & set(modules) for name, path in modules.items()}
    while known:
        leaves = {name for name, needs in known.items() if not needs & set(known)}
        assert leaves, f"these import each other: {sorted(known)}"
        known = {name: needs for name, needs in known.items() if name not in leaves}


def test_a_search_that_finds_its_index_complete_needs_no_torch():
    code = (
        "import sys; sys.argv = ['text-jepa', 'search', 'notes', 'query']; import text_jepa_command;"
        "import text_jepa.commands.search;"
        "print([n for n in ('torch', 'transformers', 'datasets', 'scipy') if n in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.slow
def test_importing_the_package_leaves_the_heavy_libraries_alone():
    """What transformers itself brings with its models does not count: some versions import scikit-learn."""
    heavy = ["datasets", "sklearn", "matplotlib", "transformers.trainer"]
    code = (
        "import sys; from transformers import PreTrainedModel, AutoModel; import transformers.activations;"
        f"before = set(sys.modules); import text_jepa; print([n for n in {heavy} if n in set(sys.modules) - before])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
