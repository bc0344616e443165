"""Compute how many experts per layer fit on GPUs of several sizes, from bytes; nothing is measured.

    python scripts/studies/card_sizes.py [--config tests/data/gemma4-26b.json] [--bits 5] [--cards 8 12 16 24]

No weights are needed. The configuration's model is built on the meta device and quantized as `hlwq quantize` plans it.
Its bytes are counted by the code behind `--gpu-memory`. A card of N GB is assumed to have N * 10^9 bytes free.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from hlwq_cli.checkpoint import Plan, Source, load_recipe, make_plan
from hlwq_cli.checkpoint.io import TensorInfo
from hlwq_cli.checkpoint.run import quantization_config
from hlwq_cli.errors import UsageError
from hlwq_cli.runtime.loading import HLWQConfig, module_names, replace_modules
from hlwq_cli.runtime.offload import TOKENS, MemoryEstimate, experts_per_token
from hlwq_cli.sizes import format_size
from scripts.bench.synthetic_model import ROOT, shapes


def planned(config: dict[str, Any], bits: int) -> Plan:
    """Return the plan for a checkpoint with a configuration's names and shapes."""
    tensors = {
        n: TensorInfo(n, "BF16", s, "model.safetensors", 0, 2 * torch.Size(s).numel())
        for n, s in shapes(config).items()
    }
    return make_plan(Source("configuration", None, config, tensors, (), Path("nowhere")), load_recipe(bits=bits))


def coded_model(config: dict[str, Any], plan: Plan) -> Any:
    """Return the quantized model on the meta device, with offloaded experts."""
    import transformers

    settings = transformers.AutoConfig.for_model(**config)
    with torch.device("meta"):
        model = getattr(transformers, config["architectures"][0])(settings).to(torch.bfloat16)
    written = [(n, tuple(s)) for planned in plan.coded for n, _, s in planned.stored_tensors]
    stored = {n: s for n, s in written if n.rpartition(".")[2].startswith("codes")}
    replace_modules(
        model, module_names(model, stored), HLWQConfig(**quantization_config(plan)).quant_format, offloaded=True
    )
    return model


def needs_of(config: dict[str, Any], bits: int) -> tuple[MemoryEstimate, int]:
    """Return what the quantized model needs on a GPU, and the experts per token."""
    model = coded_model(config, planned(config, bits))
    top_k = experts_per_token(model.config)
    return MemoryEstimate.of(model, top_k), top_k


def table(needs: MemoryEstimate, top_k: int, cards: list[float]) -> str:
    lines = ["| GPU memory | experts of each layer on the GPU | fetched per token, uniform routing |", "|---|---|---|"]
    for card in cards:
        try:
            slots = needs.slots(int(card * 10**9))
        except UsageError as error:
            lines.append(f"| {card:g} GB | none: {error.hint} | |")
            continue
        fetched = top_k * (1 - slots / needs.experts) * needs.slot
        lines.append(f"| {card:g} GB | {slots} of {needs.experts} | {format_size(fetched)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "tests" / "data" / "gemma4-26b.json")
    parser.add_argument("--bits", type=int, default=5)
    parser.add_argument("--cards", type=float, nargs="+", default=[8, 8.6, 12, 16, 24])
    args = parser.parse_args()
    needs, top_k = needs_of(json.loads(args.config.read_text()), args.bits)
    size = format_size
    print(
        f"{size(needs.weights)} of weights other than experts, {size(needs.cache)} of KV cache and "
        f"{size(needs.workspace)} of workspace for {TOKENS:,} tokens, {size(needs.scratch)} of scratch slots; "
        f"{size(needs.slot)} for one slot in every layer, {size(needs.slot * needs.experts)} of offloaded experts.\n"
    )
    print(table(needs, top_k, args.cards))


if __name__ == "__main__":
    main()
