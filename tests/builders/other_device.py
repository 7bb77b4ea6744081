"""A device of the tests' own, on which host and device can be told apart without a GPU.

Its tensors say that they are on "meta" and hold real values in main memory, so that a whole
pipeline runs on it and gives real latents. It behaves as CUDA does where it matters here: tensors
of the host may not enter a computation on it, but for single numbers; and whatever makes the host
wait for the device is noted: reading a value, finding how many are not zero, checking a solution,
copying in either direction (torch waits for each copy from or to memory that is not pinned).
"""

import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense.default: "reads a value",
    aten.nonzero.default: "counts what is not zero",
    aten._linalg_check_errors.default: "checks a solution",
    aten.equal.default: "compares",
}
"""Operations that wait wherever one of their arguments is on the device."""

COPIES = (aten._to_copy.default, aten.copy_.default)


class OnDevice(torch.Tensor):
    """A tensor on the device."""

    values: torch.Tensor

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> "OnDevice":
        made = torch.Tensor._make_wrapper_subclass(
            cls, values.shape, values.stride(), values.storage_offset(), dtype=values.dtype,
            device="meta",
        )  # fmt: skip
        made.values = values
        return made

    def data_ptr(self) -> int:
        return self.values.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} outside of the device's mode")


class Device(TorchDispatchMode):
    """While it is entered, "meta" is the device; ``waits`` says where the host waited for it."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self._tensor = torch.tensor

    def __enter__(self) -> "Device":
        def tensor(data: Any, *, device: Any = None, **kwargs: Any) -> torch.Tensor:
            made = self._tensor(data, **kwargs)
            return made if device is None else made.to(device)

        torch.tensor = tensor  # which would make a tensor without values there, unseen by the mode
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        torch.tensor = self._tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors: list[torch.Tensor] = []
        host_args, host_kwargs = _each((args, kwargs), lambda one: _values(one, tensors))
        here = any(isinstance(one, OnDevice) for one in tensors)
        target = kwargs.get("device")
        to_device = here if target is None else torch.device(target).type == "meta"
        if target is not None:
            host_kwargs["device"] = torch.device("cpu")
        if func in COPIES:
            ends = {isinstance(one, OnDevice) for one in tensors} | {to_device}
            if func is aten.copy_.default:
                to_device = isinstance(args[0], OnDevice)
            if len(ends) == 2 and not kwargs.get("non_blocking"):
                self._note("copies to the device" if to_device else "copies to the host")
        elif here:
            if func in WAITS:
                self._note(WAITS[func])
            strays = [o for o in tensors if not isinstance(o, OnDevice) and o.ndim > 0]
            if strays:
                raise RuntimeError(f"{func}: tensors of host and device meet")
        made = func(*host_args, **host_kwargs)
        if here and func._schema.is_mutable:
            return args[0]  # in place
        return _each(made, OnDevice) if to_device else made

    def _note(self, what: str) -> None:
        frames = [f for f in traceback.extract_stack() if "torch/" not in f.filename]
        place = frames[-3] if len(frames) > 2 else frames[-1]
        self.waits[f"{what}: {place.filename.rsplit('/', 1)[-1]}:{place.lineno} {place.line}"] += 1


def _each(one: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """The same with every tensor changed. torch's own tree_map takes ten times as long."""
    if isinstance(one, torch.Tensor):
        return change(one)
    if isinstance(one, dict):
        return {name: _each(part, change) for name, part in one.items()}
    if isinstance(one, list | tuple):
        return type(one)([_each(part, change) for part in one])
    return one


def _values(one: torch.Tensor, seen: list[torch.Tensor]) -> torch.Tensor:
    seen.append(one)
    return one.values if isinstance(one, OnDevice) else one


def move(module: torch.nn.Module) -> None:
    """Put a module's weights on the device, in place."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = torch.nn.Parameter(OnDevice(weight.data), False)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = OnDevice(buffer)
