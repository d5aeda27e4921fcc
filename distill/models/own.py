"""Networks handed over in Python, any module or function from images to logits, with the interface of `Network`."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from distill.batch import RGB, ImageKind, Outputs
from distill.config.networks import OWN, NetworkConfig
from distill.errors import ConfigError
from distill.models import asked
from distill.models import network as named
from distill.models.asked import weights
from distill.models.image_input import check_bands, input_of
from distill.models.network import Network, class_logits
from distill.models.smp_files import read_classes, read_multilabel, read_object

OPTIONS = {"stride": 32, "align_corners": False}


class OwnNetwork(Network):
    """A module of somebody's own, or a function without weights, that takes raw images.

    Args:
        model: takes normalized float images `[N, 3, H, W]`, whose sizes are multiples of the stride, and gives logits
            `[N, C, h, w]`, or one for two classes (see `class_logits`): a tensor, the first of several, or as `out` or
            `logits` of a dict or an object.
        classes: class names in the order of their ids.
        mean: see `Network`.
        std: likewise.
        stride: images are padded to multiples of it, below and on the right.
        align_corners: how logits of a smaller map are upsampled (bilinear).
        image: see `Network`.
        bands: likewise.
        multilabel: likewise.
    """

    def __init__(
        self,
        model: Any,
        classes: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        stride: int = 32,
        align_corners: bool = False,
        image: ImageKind = RGB,
        bands: Sequence[int] | None = None,
        multilabel: bool = False,
    ):
        nn.Module.__init__(self)
        self.model = model if isinstance(model, nn.Module) else _Function(model)
        self.classes, self.stride, self.align_corners = list(classes), stride, align_corners
        self.multilabel = multilabel
        self.fixed_size = False  # whether its file takes one size only; found out when it is exported
        self.takes(image, bands, mean, std)

    @property
    def kind(self) -> str:
        """What it is called in messages and reports."""
        return name_of(self.model)

    @property
    def channels(self) -> dict[str, int]:
        """Channels of the only map that `forward` can return, the logits."""
        return {"logits": len(self.classes)}

    def outputs(self, x: Tensor, size: Sequence[int], features: Sequence[str] = ()) -> Outputs:
        """See `Network.outputs`.

        Raises:
            ConfigError: a feature map was asked for, or the module does not give logits of the classes.
        """
        if features:
            raise ConfigError(f"{self.kind}: is a network of your own, which gives no feature map {features[0]}")
        logits = logits_of(self.model(x.contiguous()))
        if isinstance(logits, Tensor) and logits.ndim == 4 and len(self.classes) == 2 and not self.multilabel:
            logits = class_logits(logits)
        if not isinstance(logits, Tensor) or logits.ndim != 4 or logits.shape[1] != len(self.classes):
            found = f"a tensor {list(logits.shape)}" if isinstance(logits, Tensor) else f"{type(logits).__name__}"
            expected = f"logits [N, {len(self.classes)}, h, w], one channel for each of the classes"
            raise ConfigError(f"{self.kind}: gives {found} for images {list(x.shape)}; expected {expected}")
        return Outputs(logits, (size[0], size[1]), (x.shape[-2], x.shape[-1]), self.align_corners)

    def save_weights(self, folder: Path) -> None:
        """Writes `model.safetensors`, and in `config.json` that it takes the module to read it."""
        save_file(weights(self.model), folder / "model.safetensors")
        options = {"stride": self.stride, "align_corners": self.align_corners}
        record = {"own_module": self.kind, "classes": len(self.classes), **options}
        (folder / "config.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    def try_out(self, size: Sequence[int]) -> None:
        """Runs it once, on black images of `[height, width]`.

        Raises:
            ConfigError: it fails, or gives something else than logits; the cause is what it raised.
        """
        training = self.training
        try:
            with torch.no_grad():
                self.eval()(self.black(size, 2))
        except ConfigError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ConfigError(f"{self.kind}: fails on two images of {size[0]}×{size[1]}: {reason}") from error
        finally:
            self.train(training)


class _Function(nn.Module):
    """A function from images to logits as a module without weights; copies share the function."""

    def __init__(self, function: Callable[[Tensor], Any]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        """What the function gives."""
        return self.function(x)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Function:
        return _Function(self.function)


def logits_of(output: Any) -> Any:
    """The logits in what a module gives."""
    if isinstance(output, Mapping):
        return next((output[key] for key in ("out", "logits") if key in output), output)
    if isinstance(output, (tuple, list)) and not hasattr(output, "logits") and output:
        return output[0]
    return getattr(output, "logits", output)


def build(config: NetworkConfig, classes: Sequence[str], own: Any = None, image: ImageKind = RGB) -> Network:
    """A new network by the names of the settings; or, if one is handed over, a copy of that one as it is.

    Raises:
        ConfigError: unknown names; or the settings say `own`, and none is handed over.
    """
    if config.arch != OWN:
        return named.build(config, classes, image)
    if own is None:
        raise ConfigError(f"arch: {OWN!r} is a network that was handed over in Python; call distill.distill as before")
    if unknown := config.options.keys() - OPTIONS.keys():
        raise ConfigError(f"options: {min(unknown)!r} is not one of {', '.join(OPTIONS)}, all that yours can have")
    options = OPTIONS | config.options
    if type(options["stride"]) is not int or options["stride"] < 1:
        raise ConfigError(f"options: stride {options['stride']!r} must be a whole number above 0")
    check_bands(config.channels, image)
    mean, std, bands, many = config.mean, config.std, config.channels, config.head == "multilabel"
    return OwnNetwork(
        copy.deepcopy(_bare(own)), classes, mean, std, **options, image=image, bands=bands, multilabel=many
    )


def load(
    folder: Path,
    classes: Sequence[str] | None,
    mean: Sequence[float],
    std: Sequence[float],
    own: Any = None,
    image: ImageKind | None = None,
    bands: Sequence[int] | None = None,
    multilabel: bool | None = None,
) -> Network:
    """A network from a folder, in eval mode; see `network.load`.

    Args:
        folder: written by `save`, or by SMP's `save_pretrained`.
        classes: the class names that it must have; those of the folder if not given.
        mean: used if the folder does not say.
        std: likewise.
        own: the module whose weights are in the folder, if it is one of somebody's own; it is copied.
        image: the images that it must take.
        bands: which of their channels it takes, if the folder does not say.
        multilabel: whether its classes must not exclude each other; as the folder says if not given.

    Raises:
        ConfigError: something else than expected.
    """
    if own is None:
        return named.load(folder, classes, mean, std, image, bands, multilabel)
    path, found = folder / "model.safetensors", read_classes(folder)
    if not path.is_file():
        raise ConfigError(f"{folder}: holds no model.safetensors; expected the folder of a student or a run")
    if classes is not None and found is not None and list(classes) != found:
        raise ConfigError(f"{folder}: was trained for the classes {found}, but the data has {list(classes)}")
    if not (wanted := classes or found):
        raise ConfigError(f"{folder}: holds no id2label.json, which names the classes")
    count = check_bands(bands, image or RGB)
    image, bands, (mean, std) = input_of(folder, count, image, bands, (mean, std))
    record = read_object(folder / "config.json") if (folder / "config.json").is_file() else {}
    options = {key: record.get(key, value) for key, value in OPTIONS.items()}
    many = read_multilabel(folder, multilabel)
    network = OwnNetwork(
        copy.deepcopy(_bare(own)), wanted, mean, std, **options, image=image, bands=bands, multilabel=many
    )
    try:
        network.model.load_state_dict(load_file(path), strict=True)
    except Exception as error:  # safetensors' and torch's
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{path}: does not fit {network.kind} ({reason}); hand over the same module") from error
    return network.eval()


def name_of(own: Any) -> str:
    """The name of a function, or of the class of a module."""
    own = own.function if isinstance(own, _Function) else own
    return str(getattr(own, "__name__", type(own).__name__))


def _bare(own: Any) -> Any:
    return _Function(own) if not isinstance(own, nn.Module) else own


def fingerprint(own: Any) -> str:
    """SHA-256 over names, types, shapes and values of a module's state; of a function nothing is known."""
    return asked.fingerprint(_bare(own))
