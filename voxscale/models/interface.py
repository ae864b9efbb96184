"""What every backbone offers: features at several resolutions, a decoder or tokens where it has them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from voxscale.config import require
from voxscale.errors import ConfigError
from voxscale.models.recompute import recomputed
from voxscale.models.sizes import Dims, Level
from voxscale.models.sparse import hide, spread
from voxscale.seed import torch_generator

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a transformer's last layer says.

    Attributes:
        values: All tokens; those that belong to no place come first.
        prefix: How many belong to no place: class token, registers.
        grid: Places along (z, y, x) or (y, x) that the others fill in this order.
    """

    values: Float[Tensor, "b n c"]
    prefix: int
    grid: tuple[int, ...]


class Backbone(nn.Module, ABC):
    """A network from images to features, to be trained by any objective.

    Images are (b, in_channels, z, y, x), in 2D (b, in_channels, y, x). A stage
    is a part of the network that works at one level, in encoder and decoder
    alike; stages can be recomputed in the backward pass to save memory.

    Attributes:
        dims: 3 for volumes, 2 for images.
        levels: Resolutions of `features`, finest first.
        decoder_levels: How many of them, from the finest on, `decode` returns; 0 without a decoder.
        checkpoint_stages: Levels whose stages are recomputed in the backward pass.
        keep_convolutions: Whether these keep what convolutions return.
        head_prefixes: What the names of all weights of the heads start with.
        input_weights: Names of the weights (out, in, ...) whose second axis is the image channels.
        decay_free: Endings of names of matrices that weight decay should leave alone too.
        sees_parts: Whether `visible_features` is there.
    """

    dims: Dims
    levels: tuple[Level, ...]
    decoder_levels: int
    checkpoint_stages: tuple[int, ...]
    keep_convolutions: bool = False
    head_prefixes: ClassVar[tuple[str, ...]] = ()
    input_weights: ClassVar[tuple[str, ...]] = ()
    decay_free: ClassVar[tuple[str, ...]] = ()
    sees_parts: bool = False
    _visible: Tensor | None = None

    @abstractmethod
    def features(self, x: Float[Tensor, "b c *size"]) -> list[Tensor]:
        """Encoder features.

        Args:
            x: Images.

        Returns:
            A tensor (b, channels, ...) for each of `levels`.

        Raises:
            ConfigError: If the size is not one that the network takes; names the nearest that is.
        """

    def visible_features(self, x: Float[Tensor, "b c *size"], visible: Bool[Tensor, "b ..."]) -> list[Tensor]:
        """As `features`, of an image of which only some blocks are visible; 0 where it is hidden.

        Nothing that is visible depends on hidden voxels. Convolutional networks are computed as
        sparse ones (`voxscale.models.sparse`); a ViT reads the visible tokens alone.

        Args:
            x: Images, as in `features`.
            visible: Which blocks are, equally many in each sample; the sides of a block are multiples of the
                coarsest stride, and `visible.shape[1:]` blocks fill the image.

        Raises:
            ConfigError: As `features` does, or if the network cannot leave out parts of an image.
        """
        if not self.sees_parts:
            raise self._lacks("features of visible parts: STU-Net, nnU-Net, FMU-Net, ResNet or ViT")
        self._visible = visible
        try:
            with hide(self, visible):
                return self.features(x.masked_fill(~spread(visible, x.shape[2:]).unsqueeze(1), 0.0))
        finally:
            self._visible = None

    def up(self, features: Sequence[Tensor]) -> list[Tensor]:  # noqa: ARG002  # overridden where there is a decoder
        """Features of the decoder on the grids of the first `decoder_levels` levels, finest first.

        Args:
            features: What `features` returned, all of it.

        Raises:
            ConfigError: If there is no decoder.
        """
        raise self._lacks("a decoder")

    def decode(self, x: Float[Tensor, "b c *size"]) -> list[Tensor]:
        """Features of the decoder, see `up`.

        Args:
            x: Images, as in `features`.

        Raises:
            ConfigError: As `features` and `up` do.
        """
        if not self.decoder_levels:
            raise self._lacks("a decoder")
        return self.up(self.features(x))

    def tokens(self, x: Float[Tensor, "b c *size"]) -> Tokens:  # noqa: ARG002  # as above
        """Tokens of the last layer.

        Args:
            x: Images, as in `features`.

        Raises:
            ConfigError: As `features` does, or if the network is not a transformer.
        """
        raise self._lacks("tokens")

    def forward(self, x: Float[Tensor, "b c *size"]) -> list[Tensor]:
        """Class logits of each head, finest first; of a network without decoder, its features."""
        return self.features(x)

    @abstractmethod
    def legal_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """The input size nearest to the one wanted that the network takes; halfway cases are rounded up."""

    @abstractmethod
    def flops(self, size: Sequence[int]) -> int:
        """Floating-point operations of `forward` on one image: two per multiplication and addition.

        Convolutions, linear layers and attention are counted, as `torch.utils.flop_counter`
        does; biases, norms and activations are not.
        """

    @abstractmethod
    def encoder_flops(self, size: Sequence[int]) -> int:
        """As `flops`, of `features`."""

    def visible_flops(self, size: Sequence[int], share: float) -> int:  # noqa: ARG002  # of those that leave tokens out
        """As `flops`, of `visible_features` of an image of which a share is visible."""
        return self.encoder_flops(size)

    @abstractmethod
    def initialise(self, generator: torch.Generator) -> None:
        """Draw all weights afresh and set all buffers; the model must not be on the meta device.

        Weights are drawn on the generator's device and then copied, so a CPU
        generator gives the same network on every device.
        """

    @abstractmethod
    def layer_prefixes(self) -> Sequence[tuple[str, ...]]:
        """Beginnings of parameter names, layer by layer from the input to the output."""

    def parameter_layers(self) -> dict[str, int]:
        """The layer of each parameter, 0 at the input, for layer-wise decay of the learning rate."""
        layers = self.layer_prefixes()
        return {name: _layer(name, layers) for name, _ in self.named_parameters()}

    def no_decay(self) -> frozenset[str]:
        """Names of parameters that weight decay should leave alone: biases, norms, tokens, positions."""
        named = self.named_parameters()
        return frozenset(name for name, p in named if p.ndim <= 1 or name.endswith(self.decay_free or ("\0",)))

    def takes(self, size: Sequence[int]) -> bool:
        """Whether the network takes images of so many voxels along z, y, x, of which those of 2D have no z."""
        own = tuple(size)[3 - self.dims :]
        return self.legal_size(own) == own

    def check_size(self, x: Tensor) -> None:
        """Refuse images that the network does not take.

        Raises:
            ConfigError: Naming the nearest size that it does.
        """
        size = tuple(x.shape[2:])
        require(len(size) == self.dims, "model.input_size", f"{self.dims} numbers", size)
        legal = self.legal_size(size)
        if size != legal:
            require(False, "model.input_size", f"{self.size_rule()} (nearest: {legal})", size)

    def size_rule(self) -> str:
        """The sizes that the network takes, in words that follow "must be"."""
        return f"a multiple of {self.levels[-1].stride} voxels"

    def run_stage(self, level: int, function: Callable[..., T], *inputs: object) -> T:
        """Call a stage, keeping only its inputs for the backward pass if its level is to be recomputed."""
        if level not in self.checkpoint_stages or not torch.is_grad_enabled():
            return function(*inputs)
        if self._visible is not None:  # the recomputation comes when all is shown again
            function = partial(_hiding, self, self._visible, function)
        return recomputed(self, function, *inputs, keep_convolutions=self.keep_convolutions)

    def place(self, device: torch.device | str | None) -> None:
        """Give a model that was built on meta its device and its first weights, always alike.

        Args:
            device: Where the weights shall live; None for the default device. On `meta` they
                stay without values: follow with `to_empty` and `initialise`.
        """
        target = torch.get_default_device() if device is None else torch.device(device)
        if target.type != "meta":
            self.to_empty(device=target)
            self.initialise(torch_generator(0, "initialise"))

    def _lacks(self, what: str) -> ConfigError:
        return ConfigError(f"model must be one with {what}, not {type(self).__name__}")


def _hiding(model: Backbone, visible: Tensor, function: Callable[..., T], *inputs: object) -> T:
    if model._visible is not None:  # pyright: ignore[reportPrivateUsage]  # the first time all is hidden already
        return function(*inputs)
    with hide(model, visible):
        return function(*inputs)


def _layer(name: str, layers: Sequence[tuple[str, ...]]) -> int:
    found = [index for index, prefixes in enumerate(layers) if name.startswith(prefixes)]
    assert len(found) == 1, f"{name} must belong to one layer, not {found}"
    return found[0]
