"""How are a transformer's weights kept in eight bits?

Weight-only: the weights are stored narrow. Each layer widens its own, when it runs, to the type
that the model computes in. Both kinds narrow the same layers: the linear ones of the blocks. By
diffusers' own list of sensitive layers, norms, embeddings, the time and text projections and
``proj_out`` stay wide.
- fp8: diffusers' layerwise casting. Four significant bits, whatever a row's range is.
- int8: 255 even steps over each output channel's range. It is nearer to the exact weights, because
  Wan's rows have no outliers that would stretch their range far.

Why int8 is our own layer and not torchao's (0.18.0 was tried, with torch 2.13): torchao gives the
same numbers in every placement. But once it is installed, every ``import diffusers`` loads it. That
costs each worker 0.7 s and five lines of warnings (two of its libraries don't load), even without
an int8 job. Also, peft refuses a LoRA with biases on its tensors. Without torch.compile its product
is the same as ours: widen, then multiply.

Promises: modules that are not narrowed stay the same objects. A narrowed transformer moves, passes
through a GPU and takes LoRAs like a wide one.
Not covered: integer products (activations stay wide), text encoder and VAE (a small share, and far
more sensitive), weights that are stored narrow on disk.
"""

from functools import cache
from typing import Any, Final

from wan_worker.settings import WeightType

BLOCKS: Final = ("blocks", "vace_blocks")
"""Names of the transformers' lists of blocks."""

ROWS: Final = 64
"""Output channels that are narrowed together."""


def narrow(transformer: Any, kind: WeightType) -> None:
    """Change the weights of a transformer's blocks to a narrower type, in place."""
    match kind:
        case "fp8":
            import torch

            transformer.enable_layerwise_casting(
                storage_dtype=torch.float8_e4m3fn, compute_dtype=transformer.dtype
            )
        case "int8":
            _narrow_to_int8(transformer)


def stored_bytes(module: Any) -> int:
    """Bytes of a module's weights in their stored type."""
    return sum(weight.nbytes for weight in module.parameters())


def _narrow_to_int8(transformer: Any) -> None:
    import torch

    linears = [
        (name, module)
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear) and name.split(".")[0] in BLOCKS
    ]
    # Each wide layer is freed before the next: all wide and narrow ones together take too much.
    while linears:
        name, linear = linears.pop()
        transformer.set_submodule(name, _int8_linear()(linear))


@cache
def _int8_linear() -> Any:
    """The layer's class. It is made on first use, because torch is imported only for jobs."""
    import torch

    class Int8Linear(torch.nn.Linear):  # a subclass, so that LoRAs find it
        """A linear layer with int8 weights [out, in] and a scale for each output channel."""

        def __init__(self, linear: torch.nn.Linear) -> None:
            torch.nn.Module.__init__(self)
            self.in_features, self.out_features = linear.in_features, linear.out_features
            exact = linear.weight.detach()
            # The scale is rounded to its stored type before use, so its rounding adds no error.
            widest = exact.abs().amax(dim=1, keepdim=True).float()
            scale = (widest / 127).clamp(min=torch.finfo(torch.float32).tiny).to(exact.dtype)
            steps = torch.empty(exact.shape, dtype=torch.int8, device=exact.device)
            # A few rows at a time: all rows in fp32 don't fit the caches, which is 5 times slower.
            for first in range(0, self.out_features, ROWS):
                rows = slice(first, first + ROWS)
                piece = exact[rows].float() / scale[rows].float()
                steps[rows] = piece.round_().clamp_(-127, 127)
            # Parameters, not buffers, because group offload leaves a block's buffers on the GPU.
            self.weight = torch.nn.Parameter(steps, requires_grad=False)
            self.scale = torch.nn.Parameter(scale, requires_grad=False)
            self.bias = linear.bias
            self.train(linear.training)

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            # One product, rounded once, in the input's type: every such type holds int8 exactly.
            weight = self.weight * self.scale.to(input.dtype)
            return torch.nn.functional.linear(input, weight, self.bias)

    return Int8Linear
