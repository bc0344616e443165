"""Why NF4 diverges less than hlwq at 4 bits on SmolLM2: both codecs with and without rotation, role by role.

    python scripts/studies/explain_nf4.py smollm2 --text addresses.txt      # made as peers/compare.py describes

Three tables: the divergence of each codec on all weights; the divergence when only one role is quantized, with the
error of that role's outputs, E||(W' - W) x||^2 / E||W x||^2, over inputs from other windows of the text; and the
divergence of hlwq when its scale search weights each input channel by a second moment computed from the model's own
weights.

Not rotating is rotating twice: the codec gets H w, whose rotation is w, and H is applied to what it decodes.
"""

import argparse
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from hlwq_cli.checkpoint.io import open_source
from hlwq_cli.checkpoint.plan import load_recipe, make_plan
from hlwq_cli.codec import lloyd_max
from hlwq_cli.measure.text import load_text
from hlwq_cli.measure.windows import make_windows
from hlwq_cli.runtime.loading import load_model, load_processor
from hlwq_kernels import hadamard
from scripts.peers import peer_codecs
from scripts.peers.compare import Weights, mean_and_error, measure, run_reference, text_weights

BLOCK = 64
ROLES = {
    "q, k": ("q_proj", "k_proj"), "v": ("v_proj",), "o": ("o_proj",), "gate, up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}  # fmt: skip
RoundTrip = Callable[[torch.Tensor, str], torch.Tensor]


def rotate(weight: torch.Tensor) -> torch.Tensor:
    """Rotate blocks of 64 along the rows by the orthonormal Hadamard matrix."""
    return (hadamard(weight.reshape(weight.shape[0], -1, BLOCK)) / BLOCK**0.5).reshape(weight.shape)


def decoded(codec: peer_codecs.RoundTrip, rotated: bool, weight: torch.Tensor, name: str) -> torch.Tensor:
    """Return the round trip of a weight, or of its rotation."""
    return rotate(codec(rotate(weight), name)[0]) if rotated else codec(weight, name)[0]


def role_of(name: str) -> str:
    return next(role for role, parts in ROLES.items() if any(part in name for part in parts))


def second_moments(model: Any, names: list[str], windows: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return E[x x^T] of the inputs of every layer."""
    found: dict[str, torch.Tensor] = {}

    def hook(name: str, module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        x = inputs[0].flatten(0, -2)
        found[name] = found.get(name, torch.zeros(())) + x.T @ x / (len(x) * len(windows))

    hooks = [model.get_submodule(n).register_forward_pre_hook(partial(hook, n)) for n in names]
    with torch.inference_mode():
        for ids in windows:
            model(input_ids=ids[None], use_cache=False)
    for handle in hooks:
        handle.remove()
    return found


def own_moments(model: Any, name: str) -> torch.Tensor:
    """Predict E[x_i^2] of a layer's inputs from its neighbours' weights alone; inputs of a norm count as white."""
    layer = model.model.layers[int(name.split(".")[2])]
    attention, mlp = layer.input_layernorm.weight.square(), layer.post_attention_layernorm.weight.square()
    role = role_of(name)
    if role in ("q, k", "v"):
        return attention
    if role == "gate, up":
        return mlp
    if role == "o":
        heads = (layer.self_attn.v_proj.weight.square() @ attention).view(-1, layer.self_attn.head_dim)
        return heads.repeat_interleave(layer.self_attn.num_key_value_groups, 0).flatten()
    z = torch.randn(4096, 1, generator=torch.Generator().manual_seed(0))
    gate = torch.nn.functional.silu(z * (layer.mlp.gate_proj.weight.square() @ mlp).sqrt()).square().mean(0)
    return gate * (layer.mlp.up_proj.weight.square() @ mlp)


def weighted_search(moments: Callable[[str], torch.Tensor], bits: int, weight: torch.Tensor, name: str) -> torch.Tensor:
    """Quantize as hlwq does (scales not rounded), with the scale of least error weighted by input channel."""
    centroids = torch.tensor(lloyd_max(bits))
    edges = (centroids[1:] + centroids[:-1]) / 2
    blocks = weight.view(weight.shape[0], -1, BLOCK)
    z, importance = hadamard(blocks) / BLOCK**0.5, moments(name).view(-1, BLOCK)
    rms = blocks.square().mean(-1, keepdim=True).sqrt()
    best, least = blocks, torch.full(rms.shape, torch.inf)
    for step in range(-16, 13):
        scale = rms * 2 ** (step / 32)
        coded = hadamard(centroids[torch.bucketize(z / scale.clamp(min=1e-30), edges)] * scale) / BLOCK**0.5
        error = ((coded - blocks).square() * importance).sum(-1, keepdim=True)
        best, least = torch.where(error < least, coded, best), torch.minimum(error, least)
    return best.reshape(weight.shape)


class Lab:
    """A model, its reference, and the divergence after some of its weights are quantized."""

    def __init__(self, path: str, text: str, windows: int) -> None:
        self.model = load_model(path, device="cpu", dtype="float32")
        every = make_windows(load_text(text), load_processor(path), "paper", 512)
        self.windows = dataclasses.replace(every, ids=every.ids[:windows])
        source = open_source(path)
        self.names = [n.removesuffix(".weight") for n in text_weights(source)]
        self.schemes = {b: {c.name: c.scheme for c in make_plan(source, load_recipe(bits=b)).coded} for b in (4, 5)}
        self.weights = Weights(self.model, self.names)
        self.moments = second_moments(self.model, self.names, every.ids[-windows:])
        self.reference = run_reference(self.model, self.windows)

    def code(self, roundtrip: RoundTrip) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return {name: roundtrip(self.weights.exact(name), name) for name in self.names}

    def divergence(self, coded: dict[str, torch.Tensor], roles: tuple[str, ...] = tuple(ROLES)) -> str:
        for name in self.names:
            if role_of(name) in roles:
                self.model.get_submodule(name).weight.data.copy_(coded[name])
        found = mean_and_error(measure(self.model, self.windows, self.reference).kld)
        self.weights.restore()
        return found

    def output_error(self, coded: dict[str, torch.Tensor], role: str) -> float:
        error = energy = 0.0
        for name in (n for n in self.names if role_of(n) == role):
            exact, moment = self.weights.exact(name), self.moments[name]
            difference = coded[name] - exact
            error += float(((difference @ moment) * difference).sum())
            energy += float(((exact @ moment) * exact).sum())
        return error / energy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="safetensors folder of SmolLM2")
    parser.add_argument("--text", required=True)
    parser.add_argument("--windows", type=int, default=8)
    args = parser.parse_args()
    disable_progress_bar()
    lab = Lab(args.model, args.text, args.windows)
    ours, nf4 = partial(peer_codecs.hlwq, lab.schemes[4]), partial(peer_codecs.nf4, True)
    codings = {
        "hlwq 4": partial(decoded, ours, False), "hlwq 4, not rotated": partial(decoded, ours, True),
        "NF4": partial(decoded, nf4, False), "NF4, rotated": partial(decoded, nf4, True),
    }  # fmt: skip
    print("| coding | all | " + " | ".join(f"{role}: KLD, output error" for role in ROLES) + " |")
    print("|" + "---|" * (2 + len(ROLES)))
    for label, roundtrip in codings.items():
        coded = lab.code(roundtrip)
        cells = [f"{lab.divergence(coded, (r,))}, {lab.output_error(coded, r):.2e}" for r in ROLES]
        print(f"| {label} | {lab.divergence(coded)} | {' | '.join(cells)} |", flush=True)
    print("\n| scale search | 4 bits | 5 bits |\n|---|---|---|")
    own = partial(own_moments, lab.model)
    print_searches(lab, "not weighted", lambda name: torch.ones_like(own(name)))
    print_searches(lab, "weighted by the model's own weights", own)
    print_searches(lab, "the same, but gate and up not weighted", lambda n: own(n) ** (role_of(n) != "gate, up"))


def print_searches(lab: Lab, label: str, moments: Callable[[str], torch.Tensor]) -> None:
    cells = [lab.divergence(lab.code(partial(weighted_search, moments, bits))) for bits in (4, 5)]
    print(f"| {label} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
