"""ONNX files of any inputs and outputs, in a process with limits on memory and time; needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from distill.deployment import sandbox
from distill.deployment.runtime import LimitedProcess, start_session
from distill.errors import ConfigError

TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}
LARGER = 4  # times what a student may take, per pixel


class AnyOnnx:
    """An ONNX file in this process.

    Args:
        path: the file.
        threads: that it runs on; 0 leaves it to onnxruntime.

    Attributes:
        about: `inputs` and `outputs`, each with name, type and shape, and `metadata`.

    Raises:
        ConfigError: not such a file, or one that would make onnxruntime open others.
    """

    def __init__(self, path: Path, threads: int = 0):
        self.path = path
        self.session, self.only_asked = start_session(path, threads)
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        self.about: dict[str, Any] = {
            "inputs": [_port(port) for port in inputs],
            "outputs": [_port(port) for port in outputs],
            "metadata": dict(self.session.get_modelmeta().custom_metadata_map),
        }

    def run(self, output: str, array: np.ndarray) -> np.ndarray:
        """One output for the only input."""
        name = self.session.get_inputs()[0].name
        try:
            found = np.asarray(self.session.run([output], {name: array}, self.only_asked)[0])
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(f"{self.path}: failed on an input of {list(array.shape)}: {reason}") from None
        return found.astype(np.uint8) if found.dtype.kind == "b" else found


class AnyOnnxProcess(LimitedProcess):
    """The same in a process with limits: a file of a kilobyte can ask for any amount of memory and time.

    Args:
        path: the file.
        threads: that it runs on; 0 leaves it to onnxruntime.
    """

    def __init__(self, path: Path, threads: int = 0):
        super().__init__(path, threads, __name__, "teacher.trusted true")
        self.about = self.told

    def run(self, output: str, array: np.ndarray) -> np.ndarray:
        """One output for the only input."""
        return self.ask(output, array, LARGER * array.size // 3)


def serve() -> None:
    """In the process of an `AnyOnnxProcess`: opens the file, then answers."""
    opened: list[AnyOnnx] = []

    def answer(request: dict[str, Any], array: np.ndarray | None) -> sandbox.Message:
        if array is None:
            opened.append(AnyOnnx(Path(request["path"]), request["threads"]))
            return opened[0].about, None
        return {}, opened[0].run(request["output"], array)

    sandbox.serve(answer)


def _port(port: Any) -> dict[str, Any]:
    """Name, type as NumPy calls it, and shape with None for what may vary."""
    dtype = TYPES.get(port.type, port.type.removeprefix("tensor(").removesuffix(")"))
    shape = [n if isinstance(n, int) and n > 0 else None for n in port.shape]
    return {"name": port.name, "dtype": dtype, "shape": shape}
