"""Put LoRAs on a pipeline's transformers for one job, and take them off again.

peft injects the layers beside the weights. They are never fused, so that every module and every
weight of the shared transformer is the same object after the layers are removed.

Promises: either all tensors of a file match the model in name and shape, or the job is refused with
the counts and no layer stays. Each expert has its own scales. From a file, only its tensors and the
values of its alpha reach the libraries.
How: diffusers' converters turn the key layouts of Wan's own code and of its trainers (keys that
begin with ``diffusion_model.`` and ``lora_unet_``) into diffusers' own. We then compare names,
shapes and values with the model, because the library only logs mismatches. A file's peft
configuration is not passed on: some of its options would change the base weights.
Not covered: DoRA, LoKr, LoHa and similar methods; layers that are not matrices.
"""

import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from wan_worker.errors import Unsupported
from wan_worker.faults import is_memory_or_gpu_fault
from wan_worker.pipelines import offload
from wan_worker.request.parse import Notice
from wan_worker.weights import safetensors_file
from wan_worker.weights.lora_files import LoraFile, check_header

if TYPE_CHECKING:
    import torch

    State = dict[str, "torch.Tensor"]

METADATA: Final = "lora_adapter_metadata"
"""Key in a file's header under which diffusers stores the adapter's configuration."""

EXPERTS: Final = {"transformer": ("high", "both"), "transformer_2": ("low", "both")}
"""For each expert, the stages of a LoRA that apply to it."""

_KEY: Final = re.compile(r"transformer\.(?P<module>.+)\.lora_(?P<part>A\.weight|B\.weight|B\.bias)")
_BLOCK: Final = re.compile(r"\bblocks[._]([0-9]+)|_blocks_([0-9]+)")


@dataclass(frozen=True)
class Fit:
    """How a LoRA fits its model."""

    matched: int
    """Number of tensors of the converted file that match one expert; always all of them."""
    notices: tuple[Notice, ...] = ()


@contextmanager
def applied(pipeline: Any, files: tuple[LoraFile, ...]) -> Iterator[tuple[Fit, ...]]:
    """Put these LoRAs on the pipeline, and remove them when the block ends, even by an error.

    Raises:
        Unsupported: a file does not fit the model.
    """
    if not files:
        yield ()
        return
    import torch

    experts = {
        role: getattr(pipeline, role)
        for role in EXPERTS
        if getattr(pipeline, role, None) is not None
    }
    # Collected before the first injection: afterwards a wrapper has the module's name.
    linears = {
        role: {n: m for n, m in expert.named_modules() if isinstance(m, torch.nn.Linear)}
        for role, expert in experts.items()
    }
    try:
        fits = []
        for index, file in enumerate(files):
            stage = file.lora.stage
            roles = [r for r in experts if len(experts) == 1 or stage in EXPERTS[r]]
            layers, notices = _read(pipeline, file, experts[roles[0]])
            for role in roles:
                _inject(pipeline, role, f"job{index}", layers, linears[role], file)
            fits.append(Fit(len(layers), notices))
        for expert in experts.values():
            present = getattr(expert, "peft_config", {})
            scales = {
                name: file.lora.scale
                for index, file in enumerate(files)
                if (name := f"job{index}") in present
            }
            if scales:
                expert.set_adapters(list(scales), list(scales.values()))
        yield tuple(fits)
    finally:
        for expert in experts.values():
            offload.unhook(expert)  # otherwise removing the layers would add its hooks again
        pipeline.unload_lora_weights()


def _read(pipeline: Any, file: LoraFile, expert: Any) -> tuple["State", tuple[Notice, ...]]:
    """A file's layers under diffusers' names, on the CPU, already multiplied by their alpha."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    where = f"{file.lora.field}/source"
    header = check_header(file.path, where)
    _check_names(header, len(expert.blocks), where)
    try:
        raw = load_file(file.path)
    except (OSError, SafetensorError, ValueError) as problem:
        raise Unsupported("Can't be read as safetensors", field=where) from problem
    _check_alphas(raw, where)
    raw = {_renamed(name): tensor for name, tensor in raw.items()}
    try:
        layers: State = pipeline.lora_state_dict(dict(raw), use_safetensors=True)
    except (KeyError, ValueError, TypeError, IndexError, AttributeError, NameError, ArithmeticError,
            RuntimeError) as problem:  # fmt: skip
        if is_memory_or_gpu_fault(problem):
            raise
        raise Unsupported(
            "Its layers have no layout that is known for Wan (diffusers, peft, Wan's own names, "
            "musubi-tuner)",
            field=where,
        ) from problem
    layers = _fold_alphas(layers)
    scales = _configured_scales(header.metadata, layers, where)
    layers = {
        name: tensor.float() * scales[name] if name in scales else tensor
        for name, tensor in layers.items()
    }
    return layers, _left_out(raw, layers, file)


def _renamed(name: str) -> str:
    """A peft or older diffusers name in diffusers' current form; other names unchanged."""
    name = name.removeprefix("base_model.model.").replace(".default.weight", ".weight")
    if re.match(r"(blocks|vace_blocks|condition_embedder|proj_out)\.", name):
        wans_own = re.search(r"\.(self_attn|cross_attn|ffn\.[02])\.", name)
        name = ("diffusion_model." if wans_own else "transformer.") + name
    if name.startswith("transformer."):
        name = re.sub(r"\.lora[._]down\.", ".lora_A.", name)
        name = re.sub(r"\.lora[._]up\.", ".lora_B.", name)
    return name


def _check_names(header: safetensors_file.Header, blocks: int, where: str) -> None:
    """Refuse names that mislead the converters.

    They drop DoRA's scales, and they count up to the highest block number in any name.
    """
    for name in header.tensors:
        if "dora_scale" in name:
            raise Unsupported("Is a DoRA, which is not supported", field=where)
        for found in _BLOCK.finditer(name):
            number = found[1] or found[2]
            if len(number) > 4 or int(number) >= blocks:
                raise Unsupported(
                    f"Was made for a model with more blocks; this one has {blocks}", field=where
                )


def _check_alphas(raw: "State", where: str) -> None:
    """Refuse bad alphas: the converters halve one until it is small, without end if negative."""
    for name, tensor in raw.items():
        valid = not name.endswith(".alpha") or (
            tensor.numel() == 1 and math.isfinite(tensor.item()) and tensor.item() > 0
        )
        if not valid or 0 in tensor.shape:
            raise Unsupported("Holds an alpha that is no positive number", field=where)


def _fold_alphas(layers: "State") -> "State":
    """Multiply the alphas into the layers, where a trainer stored them beside diffusers' names."""
    folded = {name: t for name, t in layers.items() if not name.endswith(".alpha")}
    for name in layers.keys() - folded.keys():
        up = name.removesuffix(".alpha") + ".lora_B.weight"
        if up not in folded:
            return layers  # the alpha counts as a tensor that does not match
        folded[up] = folded[up].float() * (layers[name].item() / layers[up].shape[-1])
    return folded


def _configured_scales(
    metadata: Mapping[str, str], layers: "State", where: str
) -> dict[str, float]:
    """alpha / rank for each up matrix, if the file has a configuration."""
    if METADATA not in metadata:
        return {}
    try:
        config = json.loads(metadata[METADATA])
        config = {name.removeprefix("transformer."): value for name, value in config.items()}
        if config.get("use_dora"):
            raise Unsupported("Is a DoRA, which is not supported", field=where)
        scales = {}
        for name, tensor in layers.items():
            found = _KEY.fullmatch(name)
            if found is None or found["part"] != "B.weight":
                continue
            alpha, rank = config.get("lora_alpha", tensor.shape[-1]), tensor.shape[-1]
            for pattern, value in (config.get("alpha_pattern") or {}).items():
                plain = pattern.removeprefix("^")
                if found["module"] == plain or found["module"].endswith(f".{plain}"):
                    alpha = value
            scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
            if not 0 < scale < math.inf:
                raise ValueError("not a positive number")
            scales[name] = scale
    except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError):
        raise Unsupported(
            "Its configuration in the file's header is damaged", field=where
        ) from None
    return scales


def _left_out(raw: "State", layers: "State", file: LoraFile) -> tuple[Notice, ...]:
    """A notice if the converters dropped whole-weight differences (in some distilled LoRAs)."""
    kept_ids = {id(tensor) for tensor in layers.values()}
    left_out = [
        name
        for name, tensor in raw.items()
        if name.endswith((".diff", ".diff_b")) and id(tensor) not in kept_ids and bool(tensor.any())
    ]
    if not left_out:
        return ()
    return (
        Notice(
            "LORA_PARTLY_APPLIED",
            f"{file.lora.field}: {len(left_out)} of its {len(raw)} tensors replace whole weights, "
            "which low-rank layers can't; they were left out.",
        ),
    )


def _inject(
    pipeline: Any,
    role: str,
    name: str,
    layers: "State",
    linears: Mapping[str, Any],
    file: LoraFile,
) -> None:
    """Compare the layers with one expert, then load them into it.

    Raises:
        Unsupported: a tensor does not match the expert in name or shape.
    """
    where = f"{file.lora.field}/source"
    matched = [key for key in layers if _fits(key, layers, linears)]
    if len(matched) < len(layers) or not matched:
        raise Unsupported(
            f"Does not fit this model: {len(matched)} of its {len(layers)} tensors match in name "
            "and shape; was it made for another model, or is it no plain LoRA?",
            field=where,
        )
    if not all(bool(tensor.isfinite().all()) for tensor in layers.values()):
        raise Unsupported("Holds numbers that are not finite", field=where)
    state = _complete(layers, linears, getattr(pipeline, role).dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # a second LoRA is fine
        pipeline.load_lora_weights(
            state, adapter_name=name, load_into_transformer_2=role == "transformer_2"
        )
    # The library only warns, and a wrapped layer without weights would go unnoticed.
    modules = {key.partition(".lora_")[0].removeprefix("transformer.") for key in layers}
    expert = getattr(pipeline, role)
    loaded = [m for m in modules if name in getattr(expert.get_submodule(m), "lora_A", {})]
    if len(loaded) < len(modules):
        raise Unsupported(
            f"Could be put on {len(loaded)} of {len(modules)} layers only", field=where
        )
    _keep_wide(expert, name, state)


def _fits(key: str, layers: "State", linears: Mapping[str, Any]) -> bool:
    found = _KEY.fullmatch(key)
    linear = linears.get(found["module"]) if found else None
    if found is None or linear is None:
        return False
    stem = f"transformer.{found['module']}.lora_"
    down, up = layers.get(f"{stem}A.weight"), layers.get(f"{stem}B.weight")
    if down is None or up is None:
        return False
    rank, shape = down.shape[0], tuple(layers[key].shape)
    pair = (tuple(down.shape), tuple(up.shape))
    if pair != ((rank, linear.in_features), (linear.out_features, rank)):
        return False
    return found["part"] != "B.bias" or shape == (linear.out_features,)


def _keep_wide(expert: Any, name: str, state: "State") -> None:
    """Restore the type of layers that the library has cast to the stored type of fp8 weights.

    No product is computed in fp8, and the cast loses the layers' precision.
    """
    import torch

    for key, tensor in state.items():
        found = _KEY.fullmatch(key)
        if found is None:  # can't happen: all keys were compared before
            continue
        letter, _, leaf = found["part"].partition(".")
        layer = getattr(expert.get_submodule(found["module"]), f"lora_{letter}")[name]
        loaded = getattr(layer, leaf)
        if loaded.dtype != tensor.dtype:
            weight = torch.nn.Parameter(tensor.to(loaded.device), requires_grad=False)
            setattr(layer, leaf, weight)


def _complete(layers: "State", linears: Mapping[str, Any], computes_in: "torch.dtype") -> "State":
    """The layers in the type that each module computes in; if any has a bias, all get one.

    Many files are in fp16, which is too small for the activations. A missing bias would stay empty.
    """
    import torch

    biased = any(key.endswith(".bias") for key in layers)
    state = {}
    for key, tensor in layers.items():
        module = linears[key.partition(".lora_")[0].removeprefix("transformer.")]
        # A narrow weight (quantize) is widened for its product; the LoRA's layers stay wide.
        stored = module.weight.dtype
        dtype = stored if stored in (torch.float32, torch.bfloat16) else computes_in
        state[key] = tensor.to(dtype)
        bias = key.removesuffix("weight") + "bias"
        if biased and key.endswith("lora_B.weight") and bias not in layers:
            state[bias] = torch.zeros(module.out_features, dtype=dtype)
    return state
