import onnx
import onnx_files
import pytest
from noise_scenes import scenes

from distill.deployment import fp16
from distill.deployment.runtime import OnnxModel
from distill.errors import ExportError


@pytest.fixture
def student(tmp_path):
    return onnx_files.write(tmp_path / "model.onnx")


def run(student):
    return fp16.export_fp16(student, student.with_name("model.fp16.onnx"), scenes(OnnxModel(student), 3, 0))


def test_same_contract_half_the_weights(student):
    facts = run(student)
    before, after = OnnxModel(student), OnnxModel(student.with_name("model.fp16.onnx"))
    assert (after.outputs, after.input, after.size) == (before.outputs, before.input, before.size)
    assert (after.classes, after.palette) == (before.classes, before.palette)
    weights = {t.name: t for t in onnx.load(after.path).graph.initializer}
    assert weights["w2"].data_type == onnx.TensorProto.FLOAT16
    assert 0.99 < facts.argmax_agreement <= 1
    assert facts.bytes < facts.float_bytes


def test_an_invalid_file_is_one_line_and_no_file(student, monkeypatch):
    convert = fp16.convert_float_to_float16

    def broken(model, **options):
        found = convert(model, **options)
        found.graph.node[3].input[0] = "nothing"
        return found

    monkeypatch.setattr(fp16, "convert_float_to_float16", broken)
    with pytest.raises(ExportError, match="float16 gives no valid file") as caught:
        run(student)
    assert "\n" not in str(caught.value)
    assert [p.name for p in student.parent.iterdir()] == ["model.onnx"]


def test_values_beyond_half_precision_are_not_published(student):
    model = onnx.load(student)
    for tensor in model.graph.initializer:
        if tensor.name in ("w2", "w3"):
            large = onnx.numpy_helper.to_array(tensor) * 1e4
            tensor.CopyFrom(onnx.numpy_helper.from_array(large.astype("float32"), tensor.name))
    onnx.save(model, student)
    with pytest.raises(ExportError, match=r"values reach .* float16 ends at 65504"):
        run(student)
    assert [p.name for p in student.parent.iterdir()] == ["model.onnx"]
