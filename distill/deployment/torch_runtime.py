"""Networks in torch, such as those in a folder written by SMP's `save_pretrained`, asked like an ONNX file."""

from __future__ import annotations

from pathlib import Path
from threading import Lock

import numpy as np
import torch

from distill import models
from distill.config.networks import NetworkConfig
from distill.errors import ConfigError
from distill.models import Network
from distill.visualize import default_palette


class TorchSegmenter:
    """A network on the GPU, if there is one; see `runtime.Segmenter`. Colors are made up.

    Args:
        network: the network.
        name: what it is called in messages.
        named: whether its classes have names.
    """

    def __init__(self, network: Network, name: str, named: bool = True):
        self.network, self.name, self.named = network.eval(), name, named
        self.classes = network.classes
        self.palette = default_palette(len(self.classes))
        self.image = (network.image.channels, network.image.dtype)
        self.multilabel = network.multilabel
        self.network.to("cuda" if torch.cuda.is_available() else "cpu")
        self.lock = Lock()  # torch spreads one image over the cores; several at once would only share them

    @torch.no_grad()
    def logits(self, image: np.ndarray) -> np.ndarray:
        """Logits float32 `[C, H, W]` of an image `[H, W, C]`."""
        return self._upsampled(image).cpu().numpy()

    @torch.no_grad()
    def mask(self, image: np.ndarray) -> np.ndarray:
        """Class ids uint8 `[H, W]` of an image `[H, W, C]`; with many labels a pixel, `[C, H, W]` of 0 and 1."""
        return self.network.decide(self._upsampled(image)[None])[0].byte().cpu().numpy()

    def _upsampled(self, image: np.ndarray) -> torch.Tensor:
        batch = torch.tensor(image[None], device=self.network.mean.device).permute(0, 3, 1, 2)
        try:
            with self.lock:
                return self.network(batch).upsampled()[0]
        except Exception as error:  # some networks take one size only, and memory ends
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ConfigError(f"{self.name}: failed on an image of {image.shape}: {reason}") from error


class SmpFolder(TorchSegmenter):
    """The network in a folder written by SMP's `save_pretrained`.

    Normalization is that of the folder's `albumentations_config_eval.json`, ImageNet's if it has none.

    Args:
        folder: holds `config.json` and `model.safetensors`, and `id2label.json` if the classes have names.
    """

    def __init__(self, folder: Path):
        usual = NetworkConfig()
        named = (folder / "id2label.json").is_file()
        super().__init__(models.load(folder, None, usual.mean, usual.std), str(folder), named)
