"""What imports what: the two root files travel alone, and imports of the package run one way."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import text_jepa


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
    "names",
    "cli",
    "metrics",
    "data",
    "show",
    "encoders",
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


PURE = {f"text_jepa.{name}" for name in ("data.strategies", "data.draws", "data.masking", "data.windows", "metrics")}


@pytest.mark.parametrize("name", sorted(PURE))
def test_masks_windows_and_metrics_know_only_torch_and_numpy(name):
    imported = imported_by(PACKAGE[name].read_text(encoding="utf-8"))
    ours = imported & set(PACKAGE) - {"text_jepa", "text_jepa.data"}
    assert ours <= PURE
    assert packages(imported) <= {"torch", "numpy", "text_jepa"} | set(sys.stdlib_module_names)


def test_imports_within_the_package_form_no_circle():
    modules = {name: path for name, path in PACKAGE.items() if path.name != "__init__.py"}
    known = {name: imported_by(path.read_text(encoding="utf-8")) & set(modules) for name, path in modules.items()}
    while known:
        leaves = {name for name, needs in known.items() if not needs & set(known)}
        assert leaves, f"these import each other: {sorted(known)}"
        known = {name: needs for name, needs in known.items() if name not in leaves}


def loaded_after(code, names):
    """Which of some modules a fresh process has imported after some code."""
    code = f"{code}; import sys; print([name for name in {list(names)} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return ast.literal_eval(result.stdout)


def test_that_an_encoder_of_a_search_is_not_there_is_said_before_torch_is_imported():
    code = (
        "import contextlib, sys; sys.argv = ['bin/text-jepa']; from text_jepa.commands import search\n"
        "with contextlib.suppress(ValueError):\n"
        "    search.open_quietly('/nowhere/encoder')\n"
        "    raise AssertionError\n"
        "print(end='')"
    )
    assert loaded_after(code, ["torch", "transformers"]) == []


def test_a_search_that_finds_its_index_complete_needs_no_torch():
    code = "import sys; sys.argv = ['bin/text-jepa']; import text_jepa.commands.main, text_jepa.commands.search"
    assert loaded_after(code, ["torch", "transformers", "datasets", "scipy"]) == []


def test_editors_see_the_public_names_where_they_are():
    """The imports for type checkers in the package's own file are those that its first use makes."""
    block = next(node for node in ast.parse(PACKAGE["text_jepa"].read_text()).body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == text_jepa._MODULE_OF
    for name, module in seen.items():
        assert getattr(text_jepa, name) is getattr(importlib.import_module(module), name)
    with pytest.raises(AttributeError, match="has no attribute 'TextJepa'"):
        _ = text_jepa.TextJepa


@pytest.mark.slow
def test_importing_the_package_registers_the_model():
    code = "import text_jepa; from transformers import AutoConfig; AutoConfig.for_model('text_jepa')"
    assert loaded_after(code, ["modeling_text_jepa"]) == ["modeling_text_jepa"]


@pytest.mark.slow
def test_using_the_model_leaves_the_heavy_libraries_alone():
    """What transformers itself brings with its models does not count: some versions import scikit-learn."""
    heavy = ["datasets", "sklearn", "matplotlib", "transformers.trainer"]
    known = loaded_after("from transformers import PreTrainedModel, AutoModel; import transformers.activations", heavy)
    assert loaded_after("from text_jepa import TextJepaModel", heavy) == known
