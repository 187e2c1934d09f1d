"""Tables as text."""

from moeapps.core.text_tables import latex_table, latex_text, markdown_table


def test_markdown_has_a_rule_below_its_header_and_escapes_bars():
    assert markdown_table(["model", "score"], [["a|b", "0.5"]]).split("\n") == [
        "| model | score |",
        "| --- | --- |",
        r"| a\|b | 0.5 |",
    ]


def test_numbers_of_markdown_are_aligned_to_the_right():
    assert markdown_table(["model", "score", "n"], [], numbers=True).endswith("| --- | ---: | ---: |")


def test_latex_escapes_what_means_something_else_there():
    assert latex_text(r"50 % of a_b & {c} \ ~ ^ # $ ±") == (
        r"50 \% of a\_b \& \{c\} \textbackslash{} \textasciitilde{} \textasciicircum{} \# \$ $\pm$"
    )


def test_latex_has_the_header_between_rules_and_comments_above():
    table = latex_table(["a_b", "n"], [["x", r"\textbf{1}"]], ["three seeds"])
    assert table.startswith("% three seeds\n% needs \\usepackage{booktabs}\n\\begin{tabular}{lr}\n\\toprule\n")
    assert "a\\_b & n \\\\\n\\midrule\nx & \\textbf{1} \\\\\n\\bottomrule\n\\end{tabular}\n" in table
