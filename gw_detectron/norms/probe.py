"""The norms of a model, their names, and a look at what they take and give in a forward pass."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from detectron2.layers import FrozenBatchNorm2d
from detectron2.layers.batch_norm import LayerNorm, NaiveSyncBatchNorm
from torch import Tensor, nn

from ..layers import GroupWhitening

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


@contextmanager
def watching(
    model: nn.Module, look: Look, kinds: tuple[type[nn.Module], ...] = tuple(KINDS)
) -> Iterator[None]:
    """
    Calls look(name, norm, x, y) after every call of one of the model's norms, or of its modules of
    other kinds; several times in a pass where a norm is called so, as those that RetinaNet's levels
    share. Names are those in the model, without the ".norm" that Detectron2's convolutions add and
    the "module." of DistributedDataParallel.
    """

    def hook(name: str) -> Callable[..., None]:
        return lambda norm, inputs, output: look(name, norm, inputs[0], output)

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, kinds):
                known = name.removeprefix("module.").removesuffix(".norm")
                stack.callback(module.register_forward_hook(hook(known)).remove)
        yield


def watch_next_pass(model: nn.Module, look: Look, done: Callable[[], None]) -> None:
    """Watches the model's next forward pass alone, at the end of which it calls done()."""
    stack = ExitStack()

    def end(*_) -> None:
        stack.close()
        done()

    stack.enter_context(watching(model, look))
    stack.callback(model.register_forward_hook(end).remove)
