"""Networks by name (segmentation_models_pytorch with its own or timm's encoders): build, run, load, save.

Each network normalizes and pads its input by itself, so teacher and student may differ in both, and training,
scoring and the exported file share one forward pass.
"""

from __future__ import annotations

import copy
import io
import itertools
import json
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from distill.batch import MAX_CLASSES, RGB, ImageKind, Outputs
from distill.config.networks import NetworkConfig
from distill.errors import ConfigError
from distill.models.asked import Asked
from distill.models.classic import CNN, FCN
from distill.models.encoder import cut, load_encoder_weights
from distill.models.image_input import Input, check_bands, input_of
from distill.models.smp_files import HEAD, INPUT, read_classes, read_config, read_multilabel

# Architectures whose pooling turns the traced image size into a constant: exported for one size only.
FIXED_SIZE = ("pspnet", "upernet")
ARCHITECTURES = smp.MODEL_ARCHITECTURES_MAPPING | {"fcn": FCN, "cnn": CNN}
DEPTH = 5  # of SMP's encoders, unless options.encoder_depth says less


class _GroupNorm(nn.GroupNorm):
    """One that also takes a single value per group, as of an image of one stride: it gives the bias.

    torch refuses a batch of one such image, and multiplies the rounding errors of larger ones by 1/√eps.
    """

    def forward(self, input: Tensor) -> Tensor:
        """The normalized map, `[N, C, H, W]` as the input."""
        alone = self.num_groups == self.num_channels and not torch.compiler.is_exporting()
        if alone and input.shape[2:].numel() == 1:
            return torch.addcmul(self.bias.view(1, -1, 1, 1), input - input, self.weight.view(1, -1, 1, 1))
        return super().forward(input)


class Network(Asked):
    """An SMP network that takes raw images.

    Args:
        model: the SMP network, with a channel for each class; or with one for two classes, a logit z that stands for
            the logits `[0, z]`.
        classes: class names in the order of their ids.
        mean: of each channel that the network takes; of images of 8 bits in 0 to 1, else in the images' own units.
        std: standard deviation likewise.
        image: the images.
        bands: which of their channels the network takes, counted from 0; all if not given.
        multilabel: its classes do not exclude each other, see `Asked`.

    Raises:
        ConfigError: not one mean and one standard deviation for each channel.
    """

    def __init__(
        self,
        model: nn.Module,
        classes: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        image: ImageKind = RGB,
        bands: Sequence[int] | None = None,
        multilabel: bool = False,
    ):
        super().__init__()
        self.multilabel = multilabel
        self.model = model.to(memory_format=torch.channels_last)  # as the images come
        for layer in model.modules():
            if type(layer) is nn.GroupNorm:
                layer.__class__ = _GroupNorm
        self.classes = list(classes)
        # PAN pools the stride-16 map three times more.
        self.stride = 128 if isinstance(model, smp.PAN) else max(32, self.model.encoder.output_stride)
        self.takes(image, bands, mean, std)

    def takes(self, image: ImageKind, bands: Sequence[int] | None, mean: Sequence[float], std: Sequence[float]) -> None:
        """Sets what images there are, and how they are normalized; see the class."""
        self.image, self.bands = image, None if bands is None else list(bands)
        count = image.channels if bands is None else len(bands)
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != count:
                has = f"{len(values)} number{'s' * (len(values) > 1)}"
                raise ConfigError(f"{name}: {has} for {count} channels; give one for each, or leave it out")
            numbers = image.white * torch.tensor(list(values), dtype=torch.float32)
            self.register_buffer(name, numbers.view(1, count, 1, 1), persistent=False)

    @property
    def channels(self) -> dict[str, int]:
        """Channels of every map that `forward` can return, and of the `logits`."""
        logits = {"logits": len(self.classes)}
        if isinstance(self.model, smp.DPT):
            return logits
        stages = {f"encoder.{i}": n for i, n in enumerate(self.model.encoder.out_channels) if i}
        return stages | {"decoder": self.model.segmentation_head[0].in_channels} | logits

    def normalize(self, image: Tensor) -> Tensor:
        """What the SMP network takes: the image less its mean, in standard deviations."""
        image = image.to(self.mean.dtype)
        return ((image if self.bands is None else image[:, self.bands]) - self.mean) / self.std

    def black(self, size: Sequence[int], count: int = 1) -> Tensor:
        """Images `[count, C, height, width]` of zeros, such as the network takes."""
        return torch.zeros(count, self.image.channels, *size, device=self.mean.device)

    @staticmethod
    def pad(x: Tensor, stride: int) -> Tensor:
        """Adds zeros below and on the right, up to a multiple of the stride."""
        height, width = x.shape[-2:]
        return F.pad(x, (0, -width % stride, 0, -height % stride))

    def forward(self, image: Tensor, features: Sequence[str] = ()) -> Outputs:
        """Logits, and intermediate maps by name.

        Args:
            image: `[N, C, H, W]` of `self.image.channels`, its numbers as stored, of any type and size.
            features: names of the maps to return: `encoder.1` … `encoder.5`, `decoder`.

        Raises:
            ConfigError: the network has no map of that name.
        """
        return self.outputs(self.pad(self.normalize(image), self.stride), image.shape[-2:], features)

    def outputs(self, x: Tensor, size: Sequence[int], features: Sequence[str] = ()) -> Outputs:
        """What `forward` returns, of images that are normalized and padded.

        Args:
            x: `[N, C, H', W']` of the channels that it takes, multiples of the stride.
            size: `(height, width)` before the padding.
            features: as for `forward`.
        """
        (height, width), padded_size = size, (x.shape[-2], x.shape[-1])
        if isinstance(self.model, smp.DPT):
            if features:
                raise ConfigError(f"arch dpt: has no feature maps {', '.join(features)}; use terms on logits only")
            return Outputs(class_logits(self.model(x)), (height, width), padded_size)
        stages = self.model.encoder(x)
        decoded = self.model.decoder(stages)
        convolution, upsampling, _ = self.model.segmentation_head  # the third would turn logits into probabilities
        maps = {f"encoder.{i}": stage for i, stage in enumerate(stages) if i} | {"decoder": decoded}
        if missing := [name for name in features if name not in maps]:
            raise ConfigError(f"feature map {missing[0]!r}: the network has {', '.join(maps)}")
        return Outputs(
            class_logits(convolution(decoded)),
            (height, width),
            padded_size,
            getattr(upsampling, "align_corners", True),
            {name: maps[name] for name in features},
        )

    def save_weights(self, folder: Path) -> None:
        """Writes the weights, and what the network is built with, as SMP does."""
        # SMP writes a model card with a license of its own choosing beside the weights; that file is replaced by ours.
        self.model.save_pretrained(str(folder))
        (folder / "README.md").unlink(missing_ok=True)

    @property
    def normalization(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation in the units in which settings and files give them."""
        mean, std = ((buffer / self.image.white).flatten().tolist() for buffer in (self.mean, self.std))
        return mean, std


def class_logits(logits: Tensor) -> Tensor:
    """A logit for each class, `[N, C, h, w]`, of a head's channels.

    A head of one channel z, made for a sigmoid, gives the logits `[0, z]` of two classes: softmax of these is the
    sigmoid of z, so every loss and metric means the same for both kinds of head. A softmax over z alone would be 1
    everywhere, and its divergence from any teacher 0.
    """
    return F.pad(logits, (0, 0, 0, 0, 1, 0)) if logits.shape[1] == 1 else logits


def head_channels(head: str, classes: Sequence[str]) -> int:
    """Channels of a network's head.

    Raises:
        ConfigError: a sigmoid for other than two classes.
    """
    if head != "sigmoid":
        return len(classes)
    if len(classes) != 2:
        raise ConfigError(f"head: sigmoid decides between two classes, here are {len(classes)}; set softmax")
    return 1


def build(network: NetworkConfig, classes: Sequence[str], image: ImageKind = RGB) -> Network:
    """A new network.

    Args:
        network: the settings.
        classes: class names in the order of their ids.
        image: the images.

    Raises:
        ConfigError: unknown architecture, encoder or option, or weights that could not be downloaded.
    """
    channels = head_channels(network.head, classes)
    if network.arch.lower() not in ARCHITECTURES:
        raise ConfigError(f"arch: {network.arch!r} is not one of {', '.join(ARCHITECTURES)}")
    try:
        model = ARCHITECTURES[network.arch.lower()](
            encoder_name=network.encoder_name,
            encoder_weights=None if network.weights_file else network.encoder_weights,
            classes=channels,
            in_channels=check_bands(network.channels, image),
            **network.options,
        )
    except Exception as error:  # whatever SMP, timm or the hub raise, the cause is one of these settings
        reason = " ".join(str(error).split())[:300]
        if network.encoder_weights and not network.weights_file:
            hint = "with no access to the hub, set encoder_weights to null or fill its cache elsewhere"
            raise ConfigError(
                f"encoder_weights: {network.encoder_weights!r} for {network.encoder_name!r} failed: {reason}; {hint}"
            ) from error
        raise ConfigError(
            f"{network.arch} with encoder_name {network.encoder_name!r} and options {network.options}: {reason}"
        ) from error
    if network.options.get("encoder_depth", DEPTH) < DEPTH:
        cut(model)
    if network.weights_file:
        load_encoder_weights(model, network.weights_file)
    multilabel = network.head == "multilabel"
    return Network(model, classes, network.mean, network.std, image, network.channels, multilabel)


def save(network: Network, folder: Path) -> None:
    """Weights and class names into a folder that `smp.from_pretrained` and `load` read."""
    network.save_weights(folder)
    names = {str(i): name for i, name in enumerate(network.classes)}
    (folder / "id2label.json").write_text(json.dumps(names, indent=2, ensure_ascii=False) + "\n")
    if network.multilabel:
        (folder / HEAD).write_text(json.dumps({"head": "multilabel"}) + "\n")
    if network.image != RGB or network.bands is not None:
        mean, std = network.normalization
        known = Input(network.image.channels, network.image.dtype, network.bands, mean, std)
        (folder / INPUT).write_text(json.dumps(asdict(known), indent=2) + "\n")


def load(
    folder: Path,
    classes: Sequence[str] | None,
    mean: Sequence[float],
    std: Sequence[float],
    image: ImageKind | None = None,
    bands: Sequence[int] | None = None,
    multilabel: bool | None = None,
) -> Network:
    """A network from a folder written by `save` or by SMP's `save_pretrained`, in eval mode.

    Args:
        folder: the folder.
        classes: the class names that it must have; those of the folder (else `class 0`, `class 1`, …) if not given.
        mean: used if the folder does not say (`input.json`, `albumentations_config_eval.json`).
        std: likewise.
        image: the images that it must take; as many channels of 8 bits as it has if neither this nor the folder says.
        bands: which of their channels it takes, if the folder does not say.
        multilabel: whether its classes must not exclude each other; as the folder says if not given.

    Raises:
        ConfigError: no such folder, one whose files do not say what they should, unreadable weights, or other classes.
    """
    config, found = read_config(folder), read_classes(folder)
    image, bands, (mean, std) = input_of(folder, config["in_channels"], image, bands, (mean, std))
    multilabel = read_multilabel(folder, multilabel)
    count = config["classes"]
    if found is not None and count == len(found) == 1:  # the only name is that of the yes
        found = ["background", *found]
    wanted = classes or found or [f"class {i}" for i in range(max(count, 2))]
    if count == 1 and len(wanted) != 2:
        raise ConfigError(
            f"{folder}: predicts one class (config.json: classes 1), a yes or no for each pixel, and so tells two "
            f"classes apart, background and it; but the data has {len(wanted)}"
        )
    if found is not None and found != list(wanted):
        raise ConfigError(f"{folder}: was trained for the classes {found}, but the data has {list(wanted)}")
    if count not in (1, len(wanted)):
        source = "the data" if classes else "id2label.json"
        raise ConfigError(f"{folder}: predicts {count} classes, but {source} has {len(wanted)}")
    if count > MAX_CLASSES:
        raise ConfigError(f"{folder}: predicts {count} classes; masks of 8 bits hold at most {MAX_CLASSES}")
    try:
        # What SMP prints and warns of, mismatched weights, it also raises.
        with redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
            model = _smp_network(folder, config)
    except Exception as error:
        raise ConfigError(f"{folder}: cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    return Network(model, wanted, mean, std, image, bands, multilabel).eval()


class _LinspaceOnCpu(TorchFunctionMode):
    """Numbers for `Tensor.item()`, which the meta device does not have: some encoders compute their drop rates so."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **({"device": "cpu"} if func is torch.linspace else {}) | (kwargs or {}))


def _smp_network(folder: Path, config: dict[str, Any]) -> Any:
    """SMP's own loading, of its architectures alone; fetches nothing, builds nothing larger than the weights."""
    arguments = {name: value for name, value in config.items() if name != "_model_class"} | {"encoder_weights": None}
    known = {cls.__name__: cls for cls in ARCHITECTURES.values()}
    if (name := config["_model_class"]) not in known:
        raise ValueError(f"config.json: _model_class {name!r} is not one of {', '.join(known)}")
    with safe_open(folder / "model.safetensors", "pt") as weights:
        # Layers that are built and then thrown away make up to 1.7 times as many.
        layers = itertools.count(-4 * len(weights.keys()) - 1000)

    def stop(*_: object) -> None:
        if next(layers) > 0:
            raise ValueError("config.json: asks for far more layers than model.safetensors holds")

    hook = register_module_parameter_registration_hook(stop)
    try:
        with torch.device("meta"), _LinspaceOnCpu():
            model = known[name](**arguments)
            if config.get("encoder_depth", DEPTH) < DEPTH:
                cut(model)
            count = count_parameters(model)
    finally:
        hook.remove()
    if count > (folder / "model.safetensors").stat().st_size:
        raise ValueError(f"config.json: asks for {count:,} parameters, more than model.safetensors has bytes")
    if config.get("encoder_depth", DEPTH) < DEPTH:
        return _cut_network(known[name](**arguments), load_file(folder / "model.safetensors"))
    return known[name].from_pretrained(str(folder), strict=True, encoder_weights=None)


def _cut_network(model: Any, weights: dict[str, Tensor]) -> Any:
    """The weights of a network whose encoder's unused stages may have been removed before they were saved."""
    if model.state_dict().keys() - weights.keys():
        cut(model)
    model.load_state_dict(weights)
    return model


def freeze_unused(network: Network, size: Sequence[int], features: Sequence[str] = ()) -> list[str]:
    """Freezes parameters that no output depends on, which DistributedDataParallel would refuse; returns their names.

    Some SMP networks have them: encoder stages behind the last one used, unused heads.
    """
    network.eval()  # so that the dry run leaves BatchNorm statistics alone
    height, width = (max(32, n) for n in size)
    outputs = network(network.black((height, width)), features)
    sum(t.float().sum() for t in (outputs.logits, *outputs.features.values())).backward()
    unused = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    for name, p in network.named_parameters():
        p.requires_grad_(p.requires_grad and name not in unused)
    network.zero_grad(set_to_none=True)
    return unused


def count_parameters(network: nn.Module) -> int:
    """Number of weights."""
    return sum(p.numel() for p in network.parameters())


def count_flops(network: Network, size: Sequence[int]) -> int:
    """Floating point operations (2 a multiply-add) for one image of `size`; convolutions and products only."""

    def count(twin: Network) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            twin.eval()(twin.black(size))
        return int(counter.get_total_flops())

    twin = copy.deepcopy(network)
    try:
        return count(twin.to("meta"))
    except Exception:  # a module of somebody's own may make tensors on a device of its choice
        return count(copy.deepcopy(network))
