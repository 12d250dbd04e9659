"""Weights of production layers under our names, where theirs differ. Llama's need nothing: they load as they are."""

import torch
from torch import Tensor, nn


def from_torch(module: nn.MultiheadAttention) -> dict[str, Tensor]:
    """`nn.MultiheadAttention`: Q, K and V stacked in one matrix, or apart where kdim or vdim differ."""
    if module.in_proj_weight is not None:
        matrices = module.in_proj_weight.chunk(3)
    else:
        matrices = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    state = {f"{x}_proj.weight": matrix for x, matrix in zip("qkv", matrices, strict=True)}
    state["o_proj.weight"] = module.out_proj.weight
    if module.in_proj_bias is not None:
        state |= {f"{x}_proj.bias": bias for x, bias in zip("qkv", module.in_proj_bias.chunk(3), strict=True)}
        state["o_proj.bias"] = module.out_proj.bias
    return state


def from_gptj(module: nn.Module) -> dict[str, Tensor]:
    """GPT-J: another name for the output projection, which its dropouts do not touch."""
    return {name.replace("out_proj", "o_proj"): tensor for name, tensor in module.named_parameters()}


def from_bloom(module: nn.Module) -> dict[str, Tensor]:
    """BLOOM: one matrix, head by head, each with its query, key and value rows."""
    H, D = module.num_heads, module.head_dim
    weight = module.query_key_value.weight.view(H, 3, D, H * D)
    bias = module.query_key_value.bias.view(H, 3, D)
    state = {f"{x}_proj.weight": weight[:, i].reshape(H * D, H * D) for i, x in enumerate("qkv")}
    state |= {f"{x}_proj.bias": bias[:, i].reshape(H * D) for i, x in enumerate("qkv")}
    return state | {"o_proj.weight": module.dense.weight, "o_proj.bias": module.dense.bias}


def from_mpt(module: nn.Module) -> dict[str, Tensor]:
    """MPT: Q, K and V stacked, each with its heads in order."""
    state = {f"{x}_proj.weight": w for x, w in zip("qkv", module.Wqkv.weight.chunk(3), strict=True)}
    return state | {"o_proj.weight": module.out_proj.weight}


def from_falcon(module: nn.Module) -> dict[str, Tensor]:
    """Falcon with multi-query attention: one matrix, all query heads, then the key, then the value."""
    D = module.head_dim
    sizes = [module.num_heads * D, D, D]
    fused = module.query_key_value
    state = {f"{x}_proj.weight": w for x, w in zip("qkv", fused.weight.split(sizes), strict=True)}
    state["o_proj.weight"] = module.dense.weight
    if fused.bias is not None:
        state |= {f"{x}_proj.bias": b for x, b in zip("qkv", fused.bias.split(sizes), strict=True)}
        state["o_proj.bias"] = module.dense.bias
    return state


def from_longformer(module: nn.Module) -> dict[str, Tensor]:
    """Longformer's self-attention and the dense layer after it: other names. The LayerNorm after that is not ours."""
    state = {}
    for name, tensor in module.self.named_parameters():
        projection, kind = name.rsplit(".", 1)
        word, _, of_global = projection.partition("_")  # query or query_global
        state[f"{word[0]}{'_global' if of_global else ''}_proj.{kind}"] = tensor
    return state | {f"o_proj.{name}": tensor for name, tensor in module.output.dense.named_parameters()}


def from_bigbird(module: nn.ModuleDict) -> dict[str, Tensor]:
    """BigBird: the attention, and the matrix after it, which transformers keeps in another class."""
    layers = {x: getattr(module["attention"], name) for x, name in zip("qkv", ("query", "key", "value"), strict=True)}
    layers["o"] = module["dense"]
    return {f"{x}_proj.{name}": p for x, layer in layers.items() for name, p in layer.named_parameters()}


def gradients_of(outputs: list[Tensor], inputs: list[Tensor], theirs: nn.Module, convert) -> dict[str, Tensor]:
    """Their gradients under our names: inputs ("input 0", …), and weights, converted as they are."""
    parameters = list(theirs.parameters())
    upstream = [upstream_of(output, i) for i, output in enumerate(outputs)]
    found = torch.autograd.grad(outputs, [*inputs, *parameters], upstream, retain_graph=True)
    named = {f"input {i}": gradient for i, gradient in enumerate(found[: len(inputs)])}
    saved = [parameter.data for parameter in parameters]
    for parameter, gradient in zip(parameters, found[len(inputs) :], strict=True):
        parameter.data = gradient
    named |= {name: tensor.detach().clone() for name, tensor in convert(theirs).items()}
    for parameter, data in zip(parameters, saved, strict=True):
        parameter.data = data
    return named


def upstream_of(output: Tensor, seed: int) -> Tensor:
    """A fixed random gradient of an output."""
    generator = torch.Generator().manual_seed(70 + seed)
    return torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output)
