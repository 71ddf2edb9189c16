r"""Tables as LaTeX files for `\input`, in booktabs style."""

from __future__ import annotations

from collections.abc import Iterable

from lm_eval_cna.report.escape import latex
from lm_eval_cna.report.tables import Table


def latex_table(table: Table) -> str:
    r"""A `table` environment; it needs `\usepackage{booktabs,textcomp}` and T1 fonts.

    Names in scripts that pdfLaTeX does not know take LuaLaTeX.
    """
    columns = "l" * table.words + "r" * (len(table.head) - table.words)
    lines = [
        "% Needs \\usepackage{booktabs,textcomp} and \\usepackage[T1]{fontenc}.",
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{latex(table.caption)}}}",
        f"\\begin{{tabular}}{{{columns}}}",
        "\\toprule",
        _row(table.head),
        "\\midrule",
        *(_row(entry.text for entry in row) for row in table.rows),
        "\\bottomrule",
        "\\end{tabular}",
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _row(texts: Iterable[str]) -> str:
    return " & ".join(latex(text) for text in texts) + r" \\"
