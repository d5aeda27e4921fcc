"""What others run: the README's lines and predict.py, where importing torch fails."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_files
import onnxruntime
from PIL import Image

from distill.media import read_image

ROOT = Path(__file__).resolve().parents[1]
WITHOUT_TORCH = "import sys\nfor name in ('torch', 'segmentation_models_pytorch', 'timm'): sys.modules[name] = None\n"


def run(code: str, folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", WITHOUT_TORCH + code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_the_lines_of_the_readme_need_only_onnxruntime_numpy_and_pil(tmp_path):
    (code,) = re.findall(r"```python\n(import numpy.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(code.strip().splitlines()) <= 10
    imported = set(re.findall(r"^(?:import|from) (.*?)(?: import.*)?$", code, re.M))
    assert {name.split(" ")[0] for line in imported for name in line.split(", ")} == {"numpy", "onnxruntime", "PIL"}
    path = onnx_files.write(tmp_path / re.search(r'"(\S+\.onnx)"', code)[1])
    image = np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # a portrait photo: predict.py and viewers turn it
    Image.fromarray(image).save(tmp_path / "image.jpg", quality=100, exif=exif)
    result = run(
        f"{code}\nassert not any(m.startswith('torch.') for m in sys.modules)\nnp.save('mask.npy', mask)", tmp_path
    )
    assert result.returncode == 0, result.stderr
    mask = np.load(tmp_path / "mask.npy")
    decoded = read_image(tmp_path / "image.jpg")[None]
    assert (mask.dtype, mask.shape) == (np.uint8, (41, 30))
    assert (mask == onnxruntime.InferenceSession(path).run(["mask"], {"image": decoded})[0][0]).all()


def test_predict_needs_no_torch_for_an_onnx_file(tmp_path):
    onnx_files.write(tmp_path / "model.onnx")
    Image.new("RGB", (40, 30), "navy").save(tmp_path / "photo.png")
    code = f"sys.path.insert(0, {str(ROOT)!r})\nfrom distill.predict import main\n"
    result = run(code + "sys.exit(main(['model.onnx', 'photo.png', '--overlay', '0.5']))", tmp_path)
    assert result.returncode == 0, result.stderr
    assert Image.open(tmp_path / "predictions" / "masks" / "photo.png").size == (40, 30)


def test_onnxruntime_reports_to_nobody(tmp_path):
    code = f"sys.path.insert(0, {str(ROOT)!r})\nimport os, distill\nassert 'onnxruntime' not in sys.modules\n"
    result = run(code + "assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'\nimport distill.deployed", tmp_path)
    assert result.returncode == 0, result.stderr
