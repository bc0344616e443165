"""Compare the memory of a coded checkpoint, loaded on the CPU, with that of the decoded weights in bfloat16.

    python scripts/checks/loaded_memory.py [--folder FOLDER]

Makes a model of random weights in the shape of SmolLM2-135M, codes it to 5 bits and exports it, in FOLDER (1 GB,
removed afterwards; default: the system's temporary folder). A process each loads one of them in bfloat16, reads 16
tokens and prints, in MB: bytes of parameters and buffers, and the growth of its resident memory, anonymous and of
mapped files.
Linux only.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

MEASURE = """
import json, sys
import torch, transformers
from hlwq_cli.codec import Scheme, decode, encode

def resident():
    lines = open("/proc/self/status").read().splitlines()
    return {l.split(":")[0]: int(l.split()[1]) * 1024 for l in lines if l.startswith(("RssAnon", "RssFile"))}

ids = torch.arange(16)[None]
small = transformers.LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
                                 num_attention_heads=2)
model = transformers.LlamaForCausalLM(small).to(torch.bfloat16)
model(ids)  # what torch, transformers and numba import and allocate once
decode(encode(torch.randn(64, 64), Scheme(5, 64, "log8", False))[0])
before = resident()
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
with torch.no_grad():
    model(ids)
after = resident()
found = {"tensors": sum(t.nbytes for t in (*model.parameters(), *model.buffers()))}
print(json.dumps(found | {key: after[key] - before[key] for key in before}))
"""


def make(folder: Path) -> None:
    """Write the source, the coded checkpoint and the decoded one."""
    import torch
    import transformers as t

    from hlwq_cli.checkpoint import export, load_recipe, quantize

    config = t.LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    t.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "source")
    quantize(str(folder / "source"), folder / "coded", load_recipe(effort="fast"))
    export(folder / "coded", folder / "bf16", "bf16")


def main() -> None:
    """Make the checkpoints and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    with tempfile.TemporaryDirectory(dir=parser.parse_args().folder) as name:
        folder = Path(name)
        make(folder)
        for kind in ("coded", "bf16"):
            command = [sys.executable, "-c", MEASURE, str(folder / kind)]
            result = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(result.stdout.splitlines()[-1])
            print(f"{kind:6}", *(f"{key} {value / 1e6:.0f} MB" for key, value in found.items()))


if __name__ == "__main__":
    main()
