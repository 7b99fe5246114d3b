"""Check the arrays of a call against the signature of a bundle, before the model sees them.

`InputChecks` prepares the signature once, because a service checks a million times. What it accepts has the names,
dtypes, ranks and sizes of the signature; with `cast`, arrays and lists are converted if every value survives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from packager.errors import DataDoesNotFit, did_you_mean

Array = NDArray[Any]


@dataclass(frozen=True)
class _NamedDim:
    name: str
    min: int
    max: int | None


@dataclass(frozen=True)
class _Tensor:
    """An input or output as it is passed: bfloat16 as float32. A dim that is None may have any size."""

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int | _NamedDim | None, ...]
    range: tuple[float, float] | None

    def describe(self) -> str:
        dims = (dim.name if isinstance(dim, _NamedDim) else "?" if dim is None else str(dim) for dim in self.dims)
        return f"[{', '.join(dims)}]"


class InputChecks:
    """The signature in config.json, ready to check arrays with."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._inputs = [_prepare_tensor(spec, config["dims"]) for spec in config["inputs"]]
        self._outputs = {spec["name"]: _prepare_tensor(spec, config["dims"]) for spec in config["outputs"]}

    def check(self, arrays: Mapping[str, Any], *, cast: bool, check_values: bool) -> dict[str, Array]:
        """Return the arrays by input name, converted if `cast` is true.

        With `check_values`, the values must lie within the ranges of the manifest. Raises `DataDoesNotFit`.
        """
        if not isinstance(arrays, Mapping):
            raise DataDoesNotFit("inputs", f"expected a mapping of arrays by name, got {type(arrays).__name__}")
        if len(arrays) != len(self._inputs):
            raise self._explain_names(arrays)
        sizes: dict[str, int] = {}
        checked = {}
        for tensor in self._inputs:
            try:
                array = arrays[tensor.name]
            except KeyError:
                raise self._explain_names(arrays) from None
            if type(array) is not np.ndarray or array.dtype != tensor.dtype:
                array = _convert(tensor, array, cast=cast)
            _check_shape(tensor, array.shape, sizes)
            if check_values and tensor.range is not None:
                _check_range(tensor, tensor.range, array)
            checked[tensor.name] = array
        return checked

    def check_out(self, out: Mapping[str, Any], inputs: Mapping[str, Array]) -> None:
        """Check the arrays that a caller provides for outputs, by name, for the inputs of the same call.

        Raises `DataDoesNotFit`.
        """
        sizes: dict[str, int] = {}
        for tensor in self._inputs:
            _check_shape(tensor, inputs[tensor.name].shape, sizes)
        for name, array in out.items():
            output = self._outputs.get(name)
            if output is None:
                hint = did_you_mean(str(name), list(self._outputs))
                raise DataDoesNotFit("out", f"there is no output {name!r}", hint or "leave out= away")
            if type(array) is not np.ndarray or array.dtype != output.dtype:
                raise DataDoesNotFit(f"out: {name}", _compare_types(output, array), "use an array of that dtype")
            if not (array.flags.c_contiguous and array.flags.writeable):
                why = "the array must be C-contiguous and writeable"
                raise DataDoesNotFit(f"out: {name}", why, "use an array of np.empty")
            _check_shape(output, array.shape, sizes, of=f"out: {name}")

    def _explain_names(self, arrays: Mapping[str, Any]) -> DataDoesNotFit:
        names = [tensor.name for tensor in self._inputs]
        unknown = [str(name) for name in arrays if name not in names]
        given = ", ".join(map(str, arrays)) or "none"
        hint = did_you_mean(unknown[0], names) if unknown else None
        why = f"the inputs are {', '.join(names)}; given: {given}"
        return DataDoesNotFit("inputs", why + (f"; {hint}" if hint else ""))


def _prepare_tensor(spec: Mapping[str, Any], dims: Mapping[str, Any]) -> _Tensor:
    prepared = [
        _NamedDim(dim, dims[dim]["min"], dims[dim]["max"])
        if isinstance(dim, str) and dim in dims
        else _NamedDim(dim, 0, None)
        if isinstance(dim, str)
        else dim
        for dim in spec["shape"]
    ]
    dtype = np.dtype("float32" if spec["dtype"] == "bfloat16" else spec["dtype"])
    bounds = spec.get("range")
    return _Tensor(spec["name"], dtype, tuple(prepared), None if bounds is None else (bounds[0], bounds[1]))


def _check_shape(tensor: _Tensor, shape: Sequence[int], sizes: dict[str, int], of: str | None = None) -> None:
    """Check a shape; `sizes` has the sizes of named dims that were seen already, and gets those of this tensor."""
    if len(shape) != len(tensor.dims):
        raise DataDoesNotFit(of or tensor.name, f"it has the shape {list(shape)}, expected {tensor.describe()}")
    for axis, (dim, size) in enumerate(zip(tensor.dims, shape, strict=True)):
        if type(dim) is int:
            if dim != size:
                why = f"its shape must be {tensor.describe()}; it is {list(shape)}, and axis {axis} must be {dim}"
                raise DataDoesNotFit(of or tensor.name, why)
        elif type(dim) is not _NamedDim:
            continue
        elif size < dim.min or (dim.max is not None and size > dim.max):
            at_most = "" if dim.max is None else f" and at most {dim.max}"
            why = f"{dim.name} is {size}, and must be at least {dim.min}{at_most}"
            raise DataDoesNotFit(of or tensor.name, why)
        elif sizes.setdefault(dim.name, size) != size:
            why = f"{dim.name} is {size} here and {sizes[dim.name]} in a different input"
            raise DataDoesNotFit(of or tensor.name, why)


def _convert(tensor: _Tensor, value: Any, *, cast: bool) -> Array:
    """Return a value as an array of the dtype of its input; without `cast`, only an array of that dtype is accepted."""
    if isinstance(value, np.ma.MaskedArray):
        raise DataDoesNotFit(
            tensor.name, "it is a masked array, and a model sees no mask", "fill it first: x.filled(0)"
        )
    if isinstance(value, np.ndarray) and value.dtype == tensor.dtype:
        return np.asarray(value)
    if not cast:
        raise DataDoesNotFit(tensor.name, _compare_types(tensor, value), _suggest_conversion(tensor, value))
    if not isinstance(value, (np.ndarray, np.generic, bool, int, float, list, tuple)):
        raise DataDoesNotFit(tensor.name, _compare_types(tensor, value), _suggest_conversion(tensor, value))
    try:
        source = np.asarray(value)
        if source.dtype.kind not in "biuf":
            raise ValueError(f"its values are of type {source.dtype}")
        with np.errstate(all="ignore"):
            converted = source.astype(tensor.dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataDoesNotFit(tensor.name, f"it cannot be converted to {tensor.dtype}: {error}") from None
    _check_conversion(tensor, source, converted, exact=isinstance(value, (np.ndarray, np.generic)))
    return converted


def _check_conversion(tensor: _Tensor, source: Array, converted: Array, *, exact: bool) -> None:
    """Refuse a conversion that changes a value.

    Numbers of Python have no dtype that they would lose: a float of a list is rounded to a float as a literal is.
    """
    if np.can_cast(source.dtype, tensor.dtype, "safe"):
        return
    if not exact and source.dtype.kind == tensor.dtype.kind == "f":
        changed = np.isinf(converted) & ~np.isinf(source)
    else:
        with np.errstate(all="ignore"):
            back = converted.astype(source.dtype)
        same_sign = (source < 0) == (converted < 0) if source.dtype.kind != "b" else True
        changed = ~(((back == source) & same_sign) | ((back != back) & (source != source)))
    if changed.any():
        index = tuple(int(axis) for axis in np.argwhere(changed)[0])
        why = f"converted to {tensor.dtype}, {int(changed.sum())} of {source.size} values would change, such as "
        why += f"{source[index]} at {list(index)}"
        raise DataDoesNotFit(tensor.name, why, f"convert it yourself if that is right: x.astype({str(tensor.dtype)!r})")


def _compare_types(tensor: _Tensor, value: Any) -> str:
    expected = f"{tensor.dtype}{tensor.describe()}"
    if isinstance(value, np.ndarray):
        return f"it is {value.dtype}{list(value.shape)}, expected {expected}"
    return f"expected a numpy array, {expected}; got {type(value).__name__}"


def _suggest_conversion(tensor: _Tensor, value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"convert it: x.astype({str(tensor.dtype)!r}); cast=True does it if no value changes"
    if type(value).__module__.partition(".")[0] == "torch":
        return "pass x.numpy(force=True)"
    return f"pass np.asarray(x, dtype={str(tensor.dtype)!r}); cast=True takes lists and numbers too"


def _check_range(tensor: _Tensor, bounds: tuple[float, float], array: Array) -> None:
    """Check low ≤ x < high for every value; NaN lies in no range."""
    low, high = bounds
    outside = ~((array >= low) & (array < high))
    if outside.any():
        index = tuple(int(axis) for axis in np.argwhere(outside)[0])
        why = f"{int(outside.sum())} of {array.size} values are outside of the range [{low}, {high}): "
        why += f"{tensor.name}{list(index)} is {array[index]}"
        raise DataDoesNotFit(tensor.name, why, "check_values=False lets the model try")
