"""How are a transformer's weights kept in eight bits?

Weight-only: they are kept narrow and widened, one layer at a time, to the type that the model
computes in. Both kinds narrow the same layers, the linear ones of the blocks, by diffusers' own
list of what is too delicate: norms, embeddings, the time and text projections and ``proj_out``
stay wide.
- fp8: diffusers' layerwise casting. Four significant bits, whatever a row's range is.
- int8: 255 even steps over each output channel's range. Nearer to the exact weights: Wan's rows
  have no outliers that would stretch their range far.

Why int8 is our own layer and not torchao's (0.18.0 was tried, with torch 2.13): it gives the same
numbers through every placement, but every ``import diffusers`` loads it once it is installed, which
costs each worker 0.7 s and five lines of warnings (two of its libraries don't load) whether or not
a job asks for int8; peft refuses a LoRA with biases on its tensors; and without torch.compile its
product is the same as ours: widen, then multiply.

Promises: what is not narrowed is untouched, to the object; a narrowed transformer moves, passes
through a GPU and takes LoRAs as a wide one does.
Not covered: integer products (activations stay wide), text encoder and VAE (they are a minor share
and far more delicate), weights that are stored narrow.
"""

from functools import cache
from typing import Any, Final

from wan_worker.settings import WeightType

BLOCKS: Final = ("blocks", "vace_blocks")
"""The transformers' lists of blocks."""

ROWS: Final = 64
"""Output channels that are narrowed at a time."""


def narrow(transformer: Any, kind: WeightType) -> None:
    """Keep the weights of a transformer's blocks in a narrower type, in place."""
    match kind:
        case "fp8":
            import torch

            transformer.enable_layerwise_casting(
                storage_dtype=torch.float8_e4m3fn, compute_dtype=transformer.dtype
            )
        case "int8":
            _narrow_to_int8(transformer)


def stored_bytes(module: Any) -> int:
    """Bytes that a module's weights take where they are kept."""
    return sum(weight.nbytes for weight in module.parameters())


def _narrow_to_int8(transformer: Any) -> None:
    import torch

    linears = [
        (name, module)
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear) and name.split(".")[0] in BLOCKS
    ]
    # One at a time, each freed before the next: both together would be more than the wide ones.
    while linears:
        name, linear = linears.pop()
        transformer.set_submodule(name, _int8_linear()(linear))


@cache
def _int8_linear() -> Any:
    """The layer's class; made once, as torch is not imported before there is work."""
    import torch

    class Int8Linear(torch.nn.Linear):  # a subclass, so that LoRAs find it
        """A linear layer with int8 weights [out, in] and a scale for each output channel."""

        def __init__(self, linear: torch.nn.Linear) -> None:
            torch.nn.Module.__init__(self)
            self.in_features, self.out_features = linear.in_features, linear.out_features
            exact = linear.weight.detach()
            # Rounded to the type that it is kept in before it is used: so its rounding is no error.
            widest = exact.abs().amax(dim=1, keepdim=True).float()
            scale = (widest / 127).clamp(min=torch.finfo(torch.float32).tiny).to(exact.dtype)
            steps = torch.empty(exact.shape, dtype=torch.int8, device=exact.device)
            # Some rows at a time: in fp32 the whole would leave the caches, five times as slow.
            for first in range(0, self.out_features, ROWS):
                rows = slice(first, first + ROWS)
                piece = exact[rows].float() / scale[rows].float()
                steps[rows] = piece.round_().clamp_(-127, 127)
            # Parameters, not buffers: group offload would leave a block's buffers on the GPU.
            self.weight = torch.nn.Parameter(steps, requires_grad=False)
            self.scale = torch.nn.Parameter(scale, requires_grad=False)
            self.bias = linear.bias
            self.train(linear.training)

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            # One product in the type of the input, rounded once: int8 is exact in any of them.
            weight = self.weight * self.scale.to(input.dtype)
            return torch.nn.functional.linear(input, weight, self.bias)

    return Int8Linear
