"""Who may import whom: nothing points up, and each library has one home."""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROWS = [
    {"config", "config_terms", "config_help", "config_parse", "batch"}
    | {"pictures", "text", "smp_files", "sandbox", "launcher"},
    {"models", "losses", "metrics", "data", "media", "scoring", "optimizer_file", "provenance"},
    {"teacher", "objective", "evaluate", "optim", "checkpoint", "tracking", "export", "report", "eight_bits"},
    {"run", "launch", "smp_folder", "deployed", "quantize", "half", "inference", "rounding"},
    {"large", "predict", "assess"},
    {"state", "card", "files"},
    {"train"},
    {"results"},
    {"pipeline"},
    {"sweep"},
]
HOMES = {
    "segmentation_models_pytorch": {"models"},
    "albumentations": {"data"},
    "jsonargparse": {"config_parse", "config_help"},
}
ACCELERATE = {"run", "launch", "state", "tracking", "train", "pipeline"}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules() -> dict[str, set[str]]:
    """Part of the package (a module, or a sub-package as one) → full names of what it imports."""
    parts: dict[str, set[str]] = {}
    for path in (ROOT / "distill").rglob("*.py"):
        part = path.relative_to(ROOT / "distill").parts[0].removesuffix(".py")
        parts[part] = parts.get(part, set()) | imports(path)
    return parts


def test_nothing_imports_what_stands_above_it():
    row = {part: i for i, parts in enumerate(ROWS) for part in parts}
    for part, names in modules().items():
        if part == "__init__":
            continue
        for name in names:
            if name.startswith("distill.") and (other := name.split(".")[1]) != part:
                assert row[other] <= row[part], f"{part} imports {other}, which stands above it"


def test_losses_need_only_torch():
    own = {n for n in modules()["losses"] if n.startswith("distill.")}
    assert all(n.startswith(("distill.losses", "distill.batch")) for n in own), own
    libraries = {n.split(".")[0] for n in modules()["losses"]} - {"distill", "torch"}
    assert libraries <= set(sys.stdlib_module_names), libraries


def test_libraries_have_one_home():
    for part, names in modules().items():
        tops = {name.split(".")[0] for name in names}
        for library, homes in HOMES.items():
            assert library not in tops or part in homes, f"{part} imports {library}"
        assert "accelerate" not in tops or part in ACCELERATE, f"{part} imports accelerate"


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
