"""The norms of a model, their names, and a look at what they take and give in a forward pass."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from detectron2.layers import FrozenBatchNorm2d
from detectron2.layers.batch_norm import LayerNorm, NaiveSyncBatchNorm
from torch import Tensor, nn

from ..layers import GroupWhitening

__all__ = ["KINDS", "Look", "find_norms", "kind_of", "watch_next_pass", "watching"]

# Class -> its name in a config; the first that fits counts
KINDS: dict[type[nn.Module], str] = {
    GroupWhitening: "GW",
    nn.GroupNorm: "GN",
    FrozenBatchNorm2d: "FrozenBN",
    nn.SyncBatchNorm: "SyncBN",
    NaiveSyncBatchNorm: "SyncBN",
    nn.modules.batchnorm._BatchNorm: "BN",
    LayerNorm: "LN",
    nn.LayerNorm: "LN",
}

# Takes a module's name in the model, the module, its input and its output
Look = Callable[[str, nn.Module, Tensor, Tensor], None]


def kind_of(norm: nn.Module) -> str:
    """A value of KINDS."""
    return next(kind for of, kind in KINDS.items() if isinstance(norm, of))


def find_norms(
    model: nn.Module, kinds: tuple[type[nn.Module], ...] = tuple(KINDS)
) -> dict[str, nn.Module]:
    """
    The modules of those kinds, each once, by their names in the model, without the ".norm" that
    Detectron2's convolutions add and the "module." of DistributedDataParallel.
    """
    return {
        name.removeprefix("module.").removesuffix(".norm"): module
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    }


@contextmanager
def watching(
    model: nn.Module, look: Look, kinds: tuple[type[nn.Module], ...] = tuple(KINDS)
) -> Iterator[None]:
    """
    Calls look(name, norm, x, y) after every call of one of the model's norms, or of its modules of
    other kinds, with the name of :func:`find_norms`. A norm that runs several times in a pass, as
    those that RetinaNet's levels share, is looked at several times.
    """

    def hook(name: str) -> Callable[..., None]:
        return lambda norm, inputs, output: look(name, norm, inputs[0], output)

    with ExitStack() as stack:
        for name, norm in find_norms(model, kinds).items():
            stack.callback(norm.register_forward_hook(hook(name)).remove)
        yield


def watch_next_pass(model: nn.Module, look: Look, done: Callable[[], None]) -> None:
    """Watches the model's next forward pass alone, at the end of which it calls done()."""
    stack = ExitStack()

    def end(*_) -> None:
        stack.close()
        done()

    stack.enter_context(watching(model, look))
    stack.callback(model.register_forward_hook(end).remove)
