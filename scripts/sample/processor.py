"""The processor configuration of the bundled sample."""

import json
from pathlib import Path

from scripts.sample.model import PATCH, POOL

MAX_SOFT_TOKENS = 70  # the minimum of the image processor; a square picture fills 64


def write_processor_config(folder: Path) -> None:
    """Write processor_config.json, in the layout of `Gemma4Processor.save_pretrained`."""
    pixels = {"patch_size": PATCH, "max_soft_tokens": MAX_SOFT_TOKENS, "pooling_kernel_size": POOL}
    config = {
        "processor_class": "Gemma4Processor",
        "image_seq_length": MAX_SOFT_TOKENS,
        "image_processor": {"image_processor_type": "Gemma4ImageProcessor", "do_normalize": False, **pixels},
        "video_processor": {"video_processor_type": "Gemma4VideoProcessor", "do_normalize": False, **pixels},
        "feature_extractor": {"feature_extractor_type": "Gemma4AudioFeatureExtractor"},
    }
    (folder / "processor_config.json").write_text(json.dumps(config, indent=2) + "\n")
