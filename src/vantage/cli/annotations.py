"""Does a config value fit a type annotation? Simple types are compared, anything else is let through."""

import collections.abc
import inspect
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

SCALARS = (bool, int, float, str)
UNION = (Union, types.UnionType)


def fits(value: Any, annotation: Any) -> bool:
    """True unless `value` (plain YAML data, its nodes as dicts) cannot be meant where `annotation` stands.

    Stricter than Python where typos hide: true is no int, 3.0 is no int, '3' is no number; an int is a float, and a
    list is any sequence. A mapping with a `_target_` becomes an object when it is built, so it fits every class.
    """
    if annotation is Any:
        return True
    if annotation is None or annotation is type(None):
        return value is None
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in UNION:
        return any(fits(value, choice) for choice in arguments)
    if origin is Annotated:
        return fits(value, arguments[0])
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if isinstance(value, Mapping) and "_target_" in value:
        return annotation not in SCALARS
    kind = origin or annotation
    if not isinstance(kind, type) or kind is object:
        return True  # Any, type variables, names that could not be resolved
    if kind in SCALARS:
        if isinstance(value, bool):
            return kind is bool
        return isinstance(value, kind) or (kind is float and isinstance(value, int))
    if value is None:
        return False
    if issubclass(kind, Mapping):
        return isinstance(value, Mapping) and fits_items(value.values(), arguments[1:])
    if issubclass(kind, tuple):
        return isinstance(value, list) and fits_tuple(value, arguments)
    if issubclass(kind, (list, set, frozenset)) or kind in (Sequence, collections.abc.Iterable, collections.abc.Set):
        return isinstance(value, list) and fits_items(value, arguments)
    # A class that only code can make (a Tensor, a Module) is not written as a number; a path or a protocol may be.
    if isinstance(value, SCALARS) and kind.__module__.split(".")[0] in ("torch", "pytorch_lightning", "vantage"):
        return hasattr(kind, "__members__") or getattr(kind, "_is_protocol", False)
    return True


def fits_items(values: collections.abc.Iterable, arguments: tuple) -> bool:
    return not arguments or all(fits(value, arguments[0]) for value in values)


def fits_tuple(value: list, arguments: tuple) -> bool:
    if not arguments:
        return True
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return fits_items(value, arguments[:1])
    return len(value) == len(arguments) and all(fits(item, kind) for item, kind in zip(value, arguments))


def describe(annotation: Any) -> str:
    """The annotation in words: `int or null`, `one of 'norm', 'value'`, `list of int`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return "null"
    if origin in UNION:
        return " or ".join(dict.fromkeys(describe(choice) for choice in arguments))
    if origin is Annotated:
        return describe(arguments[0])
    if origin is Literal:
        choices = ", ".join(repr(choice) for choice in arguments)
        return choices if len(arguments) == 1 else f"one of {choices}"
    kind = origin or annotation
    if not isinstance(kind, type):
        return str(annotation)
    if arguments and issubclass(kind, Sequence):
        inner = " and ".join(dict.fromkeys(describe(item) for item in arguments if item is not Ellipsis))
        return f"list of {inner}"
    if issubclass(kind, Mapping):
        return "mapping"
    return {bool: "bool (true or false)", tuple: "list", Sequence: "list"}.get(kind, kind.__name__)


def hints_of(function: Any) -> dict[str, Any]:
    """Parameter name -> annotation; what cannot be resolved is left out, so that it lets everything through."""
    target = function.__init__ if inspect.isclass(function) else function
    try:
        return get_type_hints(target, include_extras=True)
    except Exception:  # a name imported under TYPE_CHECKING, a forward reference to nothing
        raw = getattr(inspect.unwrap(target), "__annotations__", {})
        return {name: hint for name, hint in raw.items() if not isinstance(hint, str)}
