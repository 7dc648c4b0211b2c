"""
The name of the norm: "GW" and "GW(option=value, ...)" wherever Detectron2 takes one, and "+WS".

Detectron2's get_norm knows a fixed set of names, and its modules import it by name, so binding the
name anew would miss whatever was imported before. Instead the function itself, which they all
share, gets the code of a call to ours.
"""

import difflib
import inspect
import re
from collections.abc import Callable
from types import FunctionType

from detectron2.layers import batch_norm
from fvcore.nn.flop_count import _DEFAULT_SUPPORTED_OPS
from torch import nn

from ..errors import UsageError
from ..layers import GroupWhitening
from .weight_standardization import SUFFIX, with_weight_standardization

# What Detectron2's own get_norm knows, for error messages; get_norm decides.
STOCK_NAMES = ("BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")

# The options of "GW(...)" with their defaults: the arguments of GroupWhitening after num_channels.
OPTIONS = {
    name: parameter.default
    for name, parameter in list(inspect.signature(GroupWhitening).parameters.items())[1:]
}


def get_norm(norm: str | Callable[[int], nn.Module] | None, out_channels: int) -> nn.Module | None:
    """
    Detectron2's get_norm, with GW.

    Args:
        norm: "GW" (the paper's layer: 64 groups, T = 5), "GW(option=value, ...)" with the options
            of :class:`GroupWhitening`, e.g. "GW(num_groups=16, method=zca)"; or whatever Detectron2
            takes: another norm's name, a callable of the channel count, "" or None. A name with
            "+WS" also standardises the weights of the convolution before the norm.
        out_channels: the number of channels it normalises.

    Raises:
        UsageError: on an unknown name, option or value.
    """
    if isinstance(norm, str) and norm.rstrip().endswith(SUFFIX):
        layer = get_norm(norm.rstrip().removesuffix(SUFFIX).rstrip(), out_channels)
        if layer is None:
            raise UsageError(f'norm "{norm}" has no norm before {SUFFIX}')
        return with_weight_standardization(layer)
    options = parse_gw(norm) if isinstance(norm, str) else None
    if options is not None:
        try:
            return GroupWhitening(out_channels, **options)
        except ValueError as error:
            raise UsageError(f'norm "{norm}": {error}') from None
    try:
        return _stock_get_norm(norm, out_channels)
    except KeyError:
        raise UsageError(
            f'unknown norm "{norm}"; {_choices(norm, ("GW", *STOCK_NAMES))}; '
            f'GW takes options, e.g. "GW(num_groups=32)"; "GN{SUFFIX}" standardises weights, too'
        ) from None


def parse_gw(norm: str) -> dict[str, int | float | str | bool] | None:
    """
    The options in "GW" or "GW(option=value, ...)"; None if norm is another norm's name.

    Raises:
        UsageError: on an unknown or repeated option, or a value of the wrong kind.
    """
    match = re.fullmatch(r"\s*GW\s*(?:\((.*)\)\s*)?", norm, re.DOTALL)
    if match is None:
        if re.match(r"\s*GW\s*[^\w]", norm):
            raise UsageError(f'norm "{norm}" should read "GW" or "GW(option=value, ...)"')
        return None
    options = {}
    for item in filter(None, map(str.strip, (match[1] or "").split(","))):
        name, equals, value = map(str.strip, item.partition("="))
        if not equals:
            raise UsageError(f'norm "{norm}": "{item}" should read option=value')
        if name not in OPTIONS:
            raise UsageError(f'norm "{norm}": unknown option "{name}"; {_choices(name, OPTIONS)}')
        if name in options:
            raise UsageError(f'norm "{norm}": option "{name}" is given twice')
        try:
            options[name] = _convert(value, type(OPTIONS[name]))
        except ValueError as error:
            raise UsageError(f'norm "{norm}": {name} must be {error}, not "{value}"') from None
    return options


def _convert(value: str, kind: type) -> int | float | str | bool:
    if kind is bool:
        if value.lower() not in ("true", "false"):
            raise ValueError("true or false")
        return value.lower() == "true"
    if kind is str:
        return value.strip("\"'")
    try:
        return kind(value)
    except ValueError:
        raise ValueError("a whole number" if kind is int else "a number") from None


def _choices(written: str, names) -> str:
    nearest = difflib.get_close_matches(written.upper(), [name.upper() for name in names], 1, 0)
    nearest = next(name for name in names if name.upper() == nearest[0])
    return f"the nearest is {nearest}, of {', '.join(names)}"


def _call_ours(
    norm, out_channels
):  # runs as detectron2's get_norm, so it must import what it calls
    from gw_detectron.modeling.norm import get_norm

    return get_norm(norm, out_channels)


def _take_over(function: FunctionType) -> FunctionType:
    """Makes function run `_call_ours`; returns a function that does what it did before."""
    if not hasattr(function, "without_gw"):
        function.without_gw = FunctionType(
            function.__code__,
            function.__globals__,
            function.__name__,
            function.__defaults__,
            function.__closure__,
        )
        function.__code__ = _call_ours.__code__
    return function.without_gw


_stock_get_norm = _take_over(batch_norm.get_norm)

# fvcore's FLOP counter, which Detectron2's analyze_model uses, counts the matrix products of a GW
# layer. These operators multiply no matrices: it leaves them out without a warning, in every model.
for _name in ("eye", "mean", "sum", "unflatten", "view_as", "where"):
    _DEFAULT_SUPPORTED_OPS.setdefault(f"aten::{_name}", None)
