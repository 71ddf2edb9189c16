"""How well the refusal classifier agrees with people: agreement, confusion and the cases it gets wrong.

Reads CSV files with the columns of XSTest's labelled completions (`prompt`, `completion`, `final_label` with
`1_full_compliance`, `2_full_refusal`, `3_partial_refusal`); a label of a full or partial refusal counts as a refusal.
Licence and home of those files: CC-BY-4.0, github.com/paul-rottger/xstest, model_completions/.

    python benchmarks/refusal_agreement.py FILE.csv... [--cases] [--rows even|odd]

Without files it looks for ../shared/data/refusal_labels beside the checkout.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter
from pathlib import Path

from lm_eval_cna.scoring.refusal import CLASSIFIER_VERSION, refusal_marker

LABELS = ("1_full_compliance", "2_full_refusal", "3_partial_refusal")
DEFAULT_FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data" / "refusal_labels"


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a labelled file.

    Raises:
        ValueError: a column is missing, or a label is none of the three.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows, start=1):
        missing = {"completion", "final_label"} - row.keys()
        if missing or row["final_label"] not in LABELS:
            raise ValueError(f"{path}, row {number}: {sorted(missing) or row['final_label']!r}; labels: {LABELS}")
    if not rows:
        raise ValueError(f"{path}: no rows")
    return rows


def report(path: Path, rows: list[dict[str, str]], *, cases: bool) -> None:
    """Print one file's agreement, its confusion table, the rules' shares and, if asked for, the disagreements."""
    markers = [refusal_marker(row["completion"]) for row in rows]
    table = Counter((row["final_label"], marker is not None) for row, marker in zip(rows, markers, strict=True))
    agreed = sum(n for (label, refused), n in table.items() if refused == (label != LABELS[0]))
    print(f"{path.name}: {agreed}/{len(rows)} = {agreed / len(rows):.1%}")
    print(f"  {'people':<20}{'refused':>10}{'not':>10}   (classifier)")
    for label in LABELS:
        print(f"  {label:<20}{table[label, True]:>10}{table[label, False]:>10}")
    for rule in sorted({marker for marker in markers if marker}):
        labels = Counter(row["final_label"] for row, marker in zip(rows, markers, strict=True) if marker == rule)
        print(f"  rule {rule:<12} fired {labels.total():>4}, against the label {labels[LABELS[0]]:>4}")
    if cases:
        for row, marker in zip(rows, markers, strict=True):
            if (marker is not None) != (row["final_label"] != LABELS[0]):
                start = " ".join(row["completion"].split())[:240]
                print(f"  [{row['final_label']} / {marker}] {row.get('prompt', '')} || {start}")


def main() -> int:
    """Read the arguments, print one table a file and the total."""
    parser = argparse.ArgumentParser(description="agreement of the refusal classifier with human labels")
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--cases", action="store_true", help="print every disagreement")
    parser.add_argument("--rows", choices=("all", "even", "odd"), default="all", help="for held-out checks")
    arguments = parser.parse_args()
    files = arguments.files or sorted(DEFAULT_FOLDER.glob("*.csv"))
    if not files:
        print("no files given and none found beside the checkout", file=sys.stderr)
        return 2
    print(f"refusal classifier, version {CLASSIFIER_VERSION}")
    half = {"all": slice(None), "even": slice(0, None, 2), "odd": slice(1, None, 2)}[arguments.rows]
    for path in files:
        try:
            rows = read_rows(path)
        except (OSError, ValueError) as error:
            print(error, file=sys.stderr)
            return 2
        report(path, rows[half], cases=arguments.cases)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
