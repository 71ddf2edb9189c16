"""Text that nobody vouches for, in Markdown, LaTeX, script data and file names."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_cna.report.escape import code, fence, latex, markdown, plain, script_json, slug, writable
from lm_eval_cna.report.latex import latex_table
from lm_eval_cna.report.tables import Entry, Table

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "' autofocus onfocus='alert(1)",
    "{{ 7 * 7 }}{% raw %}{# x #}",
    "<!-- --!> -->",
    "]]><![CDATA[",
    "a|b\n# head\n---",
    "[x](javascript:alert(1)) ![y](http://example.org/p.png)",
    "```\n~~~\n`",
    r"\input{/etc/passwd} \\ [2cm] & % $x$ ^_~#",
    "\u2028\u2029\u202e\x00\x1b[31m",
    "&lt;b&gt; &amp;",
)


def has_latex() -> bool:
    if not (shutil.which("pdflatex") and shutil.which("kpsewhich")):
        return False
    return subprocess.run(["kpsewhich", "booktabs.sty", "textcomp.sty"], capture_output=True).returncode == 0


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_is_text(text: str) -> None:
    shown = markdown(text)
    assert "\n" not in shown and not re.search(r"(?<!\\)[`*_{}\[\]#~$!]", re.sub(r"&#\d+;", "", shown))
    assert not set("<>|") & set(shown) and "&" not in re.sub(r"&#\d+;", "", shown)


@pytest.mark.parametrize("text", HOSTILE)
def test_code_ends_where_it_ends(text: str) -> None:
    assert code(text).count("`") == 2 and "\n" not in code(text)
    lines = fence(text).splitlines()
    assert len(lines) == 3 and lines[0] == lines[2] and lines[0] not in lines[1]


@given(st.text())
def test_script_data_ends_no_element_and_is_the_same_again(text: str) -> None:
    shown = script_json([text])
    assert not set("<>&\u2028\u2029") & set(shown)
    assert json.loads(shown) == [text]


def test_script_data_refuses_what_is_no_json() -> None:
    with pytest.raises(ValueError, match="JSON"):
        script_json(float("nan"))


@given(st.text())
def test_latex_has_no_command_of_the_text_s_own(text: str) -> None:
    shown = latex(text)
    known = r"\\(?:textbackslash|textasciicircum|textasciitilde|textless|textgreater|textbar|textquotedbl"
    known += r"|textasciigrave|textquotesingle)\{\}|\\[{}$&#_%]|\{[\[\]*]\}|\$-\$"
    assert not set("\\{}$&#_%^~<>|[]*\n\r") & set(re.sub(known, "", shown))


@pytest.mark.parametrize("text", HOSTILE)
def test_a_latex_table_keeps_its_shape(text: str) -> None:
    row = (Entry(text), Entry(text), Entry("1"))
    made = latex_table(Table("x", text, ("a", text, "b"), (row, row)))
    body = made[made.index("\\midrule") : made.index("\\bottomrule")]
    rows = [line for line in body.splitlines()[1:] if line]
    assert len(rows) == 2 and all(line.endswith(r" \\") for line in rows)
    assert all(len(re.findall(r"(?<!\\)&", line)) == 2 for line in rows)
    assert made.count("\\begin{") == made.count("\\end{") == 2 and "\\input" not in made


@pytest.mark.skipif(not has_latex(), reason="no pdflatex with booktabs on this machine")
def test_latex_is_accepted_by_latex(tmp_path: Path) -> None:
    rows = tuple((Entry(text), Entry(text)) for text in HOSTILE)
    table = latex_table(Table("x", "All of them", ("a", "b"), rows))
    head = r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{booktabs,textcomp}\begin{document}"
    (tmp_path / "t.tex").write_text(f"{head}\n{table}\n\\end{{document}}\n")
    done = subprocess.run(
        ["pdflatex", "-halt-on-error", "-no-shell-escape", "t.tex"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:]


def test_plain_is_one_line() -> None:
    assert plain("a\n\tb\u202ec\x00d\ud800") == "a b c d"


def test_writable_replaces_what_utf_8_has_no_place_for() -> None:
    assert writable("a\ud800b") == "a?b"


def test_slugs_are_file_names_and_unlike_each_other() -> None:
    taken: set[str] = set()
    made = [slug(name, taken) for name in ("a b", "a/b", "A b", "../..", "", "qwen-1.5b", "qwen-1.7b", "x" * 500)]
    assert made == ["a-b", "a-b-2", "A-b-3", "unnamed", "unnamed-2", "qwen-1.5b", "qwen-1.7b", "x" * 80]
