"""The state of an optimizer as torch.save wrote it, read without trust."""

from __future__ import annotations

import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# All that torch.save puts into the pickle of an optimizer: dicts, lists, numbers, words and tensors.
OPCODES = (
    r"PROTO|STOP|MARK|EMPTY_(DICT|LIST|TUPLE)|TUPLE[123]?|SETITEMS?|APPENDS?|BINUNICODE|BININT[12]?|LONG1|BINFLOAT|NONE|"
    r"NEW(TRUE|FALSE)|(LONG_)?BIN(PUT|GET)|GLOBAL|BINPERSID|REDUCE"
)
GLOBALS = r"collections OrderedDict|torch\._utils _rebuild_tensor_v2|torch [A-Z]\w+(?<!ed)Storage"


def read_optimizer(path: Path) -> dict[str, Any]:
    """What torch.save wrote of an optimizer, in no more memory than the file has bytes.

    `weights_only` keeps code out, but lets a pickle of 100 bytes ask for gigabytes (`bytearray`) and copy dicts.

    Raises:
        ValueError: the file holds something else.
    """
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        items = archive.infolist()
        if any(item.compress_type != zipfile.ZIP_STORED for item in items):
            raise ValueError(f"{path.name}: is compressed; torch.save does not do that")
        if sum(item.file_size for item in items) > size or len({item.filename for item in items}) < len(items):
            raise ValueError(f"{path.name}: its parts overlap")
        pickles = [item for item in items if item.filename.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"{path.name}: holds {len(pickles)} pickles; torch.save writes one")
        steps: list[str] = []
        kept: set[Any] = set()  # where the pickle keeps the function OrderedDict
        for opcode, value, _ in pickletools.genops(archive.read(pickles[0])):
            called = str(value) if opcode.name == "GLOBAL" else ""
            if not re.fullmatch(OPCODES, opcode.name) or (called and not re.fullmatch(GLOBALS, called)):
                raise ValueError(f"{path.name}: holds {opcode.name} {value!r:.50}, which no optimizer needs")
            if opcode.name.endswith("BINPUT"):
                kept |= {value} if steps[-1:] == ["dict"] else set()
                continue
            known = opcode.name.endswith("BINGET") and value in kept
            steps.append("dict" if known or called.endswith("Dict") else opcode.name)
        if re.search("dict (?!EMPTY_TUPLE REDUCE )", " ".join([*steps, ""])):
            raise ValueError(f"{path.name}: copies a dict, which no optimizer needs")
    optimizer = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(optimizer, dict) or _bytes(optimizer) > size:
        raise ValueError(f"{path.name}: its tensors are larger than the file")
    return optimizer


def _bytes(value: Any) -> int:
    """Bytes of the tensors in dicts and lists, were each written out in full."""
    total, seen, waiting = 0, set(), [value]
    while waiting:
        value = waiting.pop()
        if id(value) not in seen:  # a list can hold itself, or another one twice, and so on
            seen.add(id(value))
            total += value.nbytes if isinstance(value, Tensor) else 0
            waiting += value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return total
