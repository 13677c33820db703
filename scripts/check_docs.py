"""What the pages that a user reads are like: lengths of their sentences, and the code that is not run.

python scripts/check_docs.py
python scripts/check_docs.py --write-index   # the notebook's list of what was measured on each day
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from pages import NOTEBOOK, PAGES, blocks, name, notebook_index, prose, words


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--write-index", action="store_true", help="write docs/notebook/index.md's list, and stop"
    )
    if parser.parse_args().write_index:
        return write_index()
    print(f"{'page':45} {'words':>6} {'sentences':>9} {'median':>6} {'longest':>7}")
    for page in PAGES:
        lengths = [words(sentence) for sentence in prose(page)] or [0]
        print(
            f"{name(page):45} {sum(lengths):6} {len(lengths):9} {median(lengths):6g} {max(lengths):7}"
        )
    print("\nPython that the tests do not run:")
    for page in PAGES:
        for block in blocks(page):
            if block.reason:
                print(f"  {name(page)}: {block.reason}")


def write_index() -> None:
    index = NOTEBOOK / "index.md"
    kept, mark, _ = index.read_text().partition("--write-index -->\n")
    index.write_text(kept + mark + notebook_index())


if __name__ == "__main__":
    main()
