"""Who may import whom: nothing points up, nothing runs in a circle, and each library has one home."""

import ast
import sys
from pathlib import Path

from conftest import ROOT

# Bottom to top; parts of one row do not import each other.
ORDER = (
    {"errors", "batch", "visualize"},
    {"storage", "metrics", "losses"},
    {"config"},
    {"models"},
    {"data"},
    {"deployment"},
    {"evaluation"},
    {"training"},
    {"reporting"},
    {"pipeline"},
    {"sweep", "api"},
    {"cli"},
    {"__main__"},
)
MOST_PARTS, MOST_ARROWS = 22, 90
HOMES = {
    "segmentation_models_pytorch": {"models"},
    "torchvision": {"models"},
    "transformers": {"models"},
    "albumentations": {"data"},
    "jsonargparse": {"config"},
    "accelerate": {"training", "pipeline"},
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def parts() -> dict[str, set[str]]:
    """Part of the package (a module, or a folder as one) → full names of what it imports."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "distill").rglob("*.py"):
        part = path.relative_to(ROOT / "distill").parts[0].removesuffix(".py")
        found[part] = found.get(part, set()) | imports(path)
    return found


def test_nothing_imports_what_stands_above_or_beside_it():
    row = {part: i for i, row_parts in enumerate(ORDER) for part in row_parts}
    for part, names in parts().items():
        if part == "__init__":
            continue
        for name in names:
            if name.startswith("distill.") and (other := name.split(".")[1]) != part and other in row:
                assert row[other] < row[part], f"{part} imports {other}, which does not stand below it"


def test_the_house_stays_easy_to_walk():
    found = parts()
    arrows = {
        (part, other)
        for part, names in found.items()
        for name in names
        if name.startswith("distill.") and (other := name.split(".")[1]) in found and other != part
    }
    assert len(found) <= MOST_PARTS
    assert len(arrows) <= MOST_ARROWS


def test_losses_need_only_torch():
    own = {n for n in parts()["losses"] if n.startswith("distill.")}
    assert all(n.startswith(("distill.losses", "distill.batch")) for n in own), own
    libraries = {n.split(".")[0] for n in parts()["losses"]} - {"distill", "torch"}
    assert libraries <= set(sys.stdlib_module_names), libraries


def test_libraries_have_one_home():
    for part, names in parts().items():
        tops = {name.split(".")[0] for name in names}
        for library, homes in HOMES.items():
            assert library not in tops or part in homes, f"{part} imports {library}"


def test_what_runs_the_files_needs_no_torch():
    for name in ("runtime", "predict", "media", "sandbox", "tiles"):
        tree = ast.parse((ROOT / "distill" / "deployment" / f"{name}.py").read_text())
        top = [ast.unparse(node) for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        assert not [line for line in top if line.split()[1].split(".")[0] in ("torch", "timm", "accelerate")], name


def test_nothing_can_run_code_from_a_file():
    names = {
        "eval",
        "exec",
        "os.system",
        "yaml.unsafe_load",
        "yaml.full_load",
        "importlib.import_module",
        "pickle.load",
    }
    for path in [*(ROOT / "distill").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        tree = ast.parse(path.read_text())
        calls = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Call)]
        for call in calls:
            name = call.split("(")[0]
            assert name not in names, call
            assert "shell=True" not in call, call
            assert name != "torch.load" or "weights_only=True" in call, call
