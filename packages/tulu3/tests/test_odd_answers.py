"""What models write, and the verdict that each deserves."""

import pytest

from tulu3 import Gsm8kVerifier, StrictMathVerifier
from tulu3.verifiers.answers import candidates

RIGHT = [  # answer, label: the same
    # fractions and decimals
    (r"\dfrac{1}{2}", r"\frac{1}{2}"),
    (r"\tfrac12", r"\frac{1}{2}"),
    (r"\frac1{2}", "1/2"),
    ("1/2", r"\frac12"),
    ("0.5", r"\frac{1}{2}"),
    (".5", r"\frac{1}{2}"),
    ("½", "0.5"),
    (r"-\frac{1}{2}", "-0.5"),
    (r"\frac{-1}{2}", r"-\frac12"),
    (r"\cfrac{3}{4}", "0.75"),
    (r"\frac{2}{4}", r"\frac{1}{2}"),
    ("3.0", "3"),
    ("3.", "3"),
    (r"\frac{1,000}{3}", r"\frac{1000}{3}"),
    # mixed numbers
    (r"1\frac{1}{2}", r"\frac{3}{2}"),
    ("1 1/2", r"\frac32"),
    (r"-2\frac{1}{4}", "-2.25"),
    ("1.5", r"1\frac12"),
    # thousands
    ("1,234", "1234"),
    ("1{,}234", "1234"),
    (r"1\,234", "1234"),
    (r"1,\!234", "1234"),
    ("1 234", "1234"),
    ("12,345,678.5", "12345678.5"),
    ("1\u202f234", "1234"),
    ("1234", "1,234"),
    (r"1\;234\;567", "1234567"),
    # units, percent, degrees, money
    (r"12\text{ cm}", "12"),
    (r"12 \mathrm{cm}^2", "12"),
    (r"12\text{ cm}^2", r"12\text{ square cm}"),
    ("12 inches", "12"),
    (r"12\ \text{square inches}", "12"),
    (r"50\%", "50"),
    ("50%", r"50\%"),
    (r"90^\circ", "90"),
    (r"90^{\circ}", "90"),
    ("90°", r"90^\circ"),
    (r"90\text{ degrees}", "90"),
    (r"\$5", "5"),
    (r"5\text{ dollars}", "5"),
    ("$5.00", "5"),
    (r"3\sqrt{2}\text{ units}", r"3\sqrt2"),
    (r"\frac{3}{4}\text{ miles}", "0.75"),
    (r"10\text{ meters}", r"10\text{ meter}"),
    # minus and other signs
    ("−5", "-5"),
    ("－5", "-5"),
    ("−½", "-0.5"),
    ("-(-5)", "5"),
    ("--5", "5"),
    ("+5", "5"),
    ("2×3", "6"),
    ("6÷4", "1.5"),
    ("3π", r"3\pi"),
    ("√3", r"\sqrt{3}"),
    ("2√3", r"2\sqrt3"),
    ("∞", r"\infty"),
    ("x²", "x^2"),
    ("2 pi", r"2\pi"),
    ("sqrt(3)/2", r"\frac{\sqrt3}{2}"),
    # what is the same mathematics
    (r"2\sqrt{3}", r"\sqrt{12}"),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"),
    ("x^2+2x+1", "(x+1)^2"),
    ("yx", "xy"),
    (r"\sin^2 x+\cos^2 x", "1"),
    ("2^{10}", "1024"),
    ("2^10", "1024"),
    (r"1.2\times10^3", "1200"),
    ("1.2e3", "1200"),
    ("10^{-3}", "0.001"),
    (r"\binom{5}{2}", "10"),
    ("5!", "120"),
    (r"\log_{2}8", "3"),
    (r"\sqrt[3]{27}", "3"),
    (r"|{-3}|", "3"),
    (r"\ln e", "1"),
    ("e^{i\\pi}", "-1"),
    (r"\frac{1}{1-x}", r"-\frac{1}{x-1}"),
    (r"\left(\frac12\right)^{2}", "0.25"),
    (r"\tan\frac{\pi}{4}", "1"),
    # equations
    ("x=5", "5"),
    ("5", "x = 5"),
    ("y = 2x+3", "2x+3"),
    ("y=2x+3", "2x-y+3=0"),
    (r"x\in[0,1)", "[0,1)"),
    ("f(x)=5", "f(x)=5"),
    # pairs, lists, sets, intervals, matrices
    ("(1, 2)", "(1,2)"),
    (r"\left(\frac12,3\right)", "(0.5,3)"),
    (r"\{2,1\}", r"\{1,2\}"),
    ("1, 2", "1,2"),
    (r"1\text{ and }2", "1,2"),
    ("1 and 2", "1,2"),
    ("(0,1]", r"\left(0,1\right]"),
    (r"(-\infty, 3)", r"(-\infty,3)"),
    (r"1\pm\sqrt{2}", r"1 \pm \sqrt2"),
    (r"\begin{pmatrix} 1/2 \\ 3 \end{pmatrix}", r"\begin{pmatrix}\frac12\\3\end{pmatrix}"),
    ("(3, 4, 12)", "(3,4,12)"),
    # words
    (r"\text{Tuesday}", "Tuesday"),
    (r"\textbf{(B)}", r"\text{(B)}"),
    (r"\text{(B)}", "B"),
    (r"\mathrm{yes}", r"\text{yes}"),
    (r"\boxed{7}", "7"),
    ("$7$", "7"),
    ("2516_8", "2516_{8}"),
    ("7.", "7"),
    # constants in upright letters, an amount inside of \text, relations in two spellings, inverse functions
    (r"3+4\mathrm{i}", "3+4i"),
    (r"2\mathrm{e}", "2e"),
    (r"\text{5 apples}", "5"),
    (r"5\text{ books}", "5"),
    (r"5\text{ months}", "5"),
    (r"300\text{ K}", "300"),
    (r"5\text{ m/s}", "5"),
    (r"x \geq 5", r"x\ge 5"),
    ("x≤5", r"x \leqslant 5"),
    (r"x\neq 2", "x≠2"),
    (r"\sin^{-1} x", r"\arcsin x"),
    (r"\sin(x)y", r"y\sin x"),
    (r"1\!,\!234", "1234"),
    (r"1~234\,567", "1234567"),
    (r"\log_2 8", "3"),
    (r"1\ 1/2", "1.5"),
    (r"5\text{ million}", r"5\text{ million}"),
]

WRONG = [  # answer, label: not the same
    ("5", "-5"),
    ("−5", "5"),
    (r"\frac{1}{2}", "2"),
    ("0.333", r"\frac13"),
    ("12", "1.2"),
    ("1,2", "12"),
    ("12 34", "1234"),
    ("(1,234)", "1234"),
    ("1.234", "1234"),
    ("0,5", "0.5"),
    ("1 1/2", r"\frac{11}{2}"),
    (r"1\frac{1}{2}", r"\frac12"),
    ("0.5%", "50%"),
    (r"12\text{ cm}", r"12\text{ m}"),
    (r"12\text{ cm}", r"12\text{ cm}^2"),
    ("12 inches", "12 feet"),
    ("12m", "12"),
    ("3x", "3"),
    ("(2,1)", "(1,2)"),
    ("[0,1]", "(0,1)"),
    ("[0,1)", "(0,1]"),
    (r"\{1,1\}", r"\{1\}"),
    ("(1,2,3)", "(1,2)"),
    ("1,2", "2,1"),
    ("(1,2)", r"\{1,2\}"),
    (r"\begin{pmatrix}1\\3\end{pmatrix}", r"\begin{pmatrix}3\\1\end{pmatrix}"),
    (r"1\pm\sqrt2", r"1+\sqrt2"),
    (r"-\infty", r"\infty"),
    (r"\text{no}", "on"),
    ("live", "evil"),
    (r"\text{yes}", r"\text{no}"),
    ("Monday", "Tuesday"),
    ("x^2", "2x"),
    (r"\sqrt{x^2}", "x"),
    ("2516_8", "2516"),
    ("x=5", "y=6"),
    ("x=5", "x=6"),
    ("2x=5", "5"),
    (r"\sqrt{3}", "3"),
    ("", "5"),
    ("{", "5"),
    (r"\frac{1}{0}", "1"),
    ("5+", "5"),
    ("9^{9^{9^{9}}}", "1"),
    ("10000!", "1"),
    ("99999999999999999999^{999}", "3"),
    ("(" * 300, "1"),
    (r"\frac" * 50, "1"),
    ("x" * 100_000, "1"),
    ("9" * 5000, "1"),
    (r"\begin{pmatrix}\end{pmatrix}", "1"),
    ("\\", "1"),
    ("__import__('os')", "1"),
    ("5\x00", "6"),
    ("^2", "2"),
    ("\N{ARABIC-INDIC DIGIT FIVE}", "6"),
    ("{" * 200 + "5" + "}" * 200, "6"),
    ("5 or 6", "5"),
    (r"5\text{ or }6", "6"),
    ("≈5", "5"),
    ("x<5", "5"),
    (r"\frac{x}{x}-1+y", "0"),
    # what follows a number is an amount, an alternative, a bound or a factor, and no unit
    (r"5\text{ million}", "5"),
    ("5", r"5\text{ million}"),
    (r"5\text{ dozen}", "5"),
    (r"5\text{ or 6}", "5"),
    (r"5\text{ and 6}", "5"),
    (r"5\text{, 6}", "5"),
    (r"5\text{ or more}", "5"),
    (r"5\text{k}", "5"),
    (r"5\text{M}", "5"),
    (r"5\text{ squared}", "5"),
    (r"5\text{ tenths}", "5"),
    (r"101\text{ base three}", "101"),
    (r"5\mathrm{pi}", "5"),
    (r"5\text{ to 7}", "5"),
    (r"5\text{ divided by 2}", "5"),
    (r"3+4\mathrm{i}", "3+4"),
    (r"2\mathrm{e}", "2"),
    (r"2\text{x}", "2"),
    ("5 pounds", "5 dollars"),
    ("5 degrees", "5 percent"),
    # spaces separate; a leading zero or a long first group is no group of thousands
    (r"5\quad 6", "56"),
    (r"5\ 6", "56"),
    (r"5\,6", "56"),
    ("5~6", "56"),
    (r"1\quad 234", "1234"),
    (r"1\ 1/2", r"\frac{11}{2}"),
    ("1~1/2", "11/2"),
    ("0,500", "500"),
    ("0{,}500", "500"),
    ("0 500", "500"),
    ("1234 567", "1234567"),
    ("3,100 200", "3100200"),
    # other variables, functions, derivatives, determinants
    ("y=5", "x=5"),
    ("x=2x+1", "y=2x+1"),
    (r"\sin^{-1} x", r"\frac{1}{\sin x}"),
    (r"\sin(x)y", r"\sin(xy)"),
    (r"\frac{dy}{dx}", r"\frac{y}{x}"),
    ("dy/dx", "y/x"),
    (r"\begin{vmatrix}1\\2\end{vmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    ("on", "no"),
    ("x>=2", "2"),
]


@pytest.mark.parametrize(("answer", "label"), RIGHT)
def test_the_same_answer_is_accepted_whichever_side_writes_it_oddly(symbolic, answer, label):
    assert symbolic(f"Some thoughts, then $\\boxed{{{answer}}}$.", label) == 1
    assert symbolic.equivalent(label, answer)


@pytest.mark.parametrize(("answer", "label"), WRONG)
def test_another_answer_is_refused(symbolic, answer, label):
    assert symbolic(f"Some thoughts, then $\\boxed{{{answer}}}$.", label) == 0


OUTPUTS = [
    (r"First \boxed{3}. No: \boxed{4}", "4", 1),
    (r"First \boxed{3}. No: \boxed{4}", "3", 0),
    (r"\boxed{\frac{1}{2}} is nested", "0.5", 1),
    (r"\boxed{\text{a set } \{1\}}", r"\text{a set }\{1\}", 1),
    (r"cut off: \boxed{42", "42", 0),
    (r"\boxed{41}, then cut off: \boxed{42", "42", 0),
    (r"\boxed{41}, then cut off: \boxed{42", "41", 0),
    (r"\boxed{41} $42$ and \boxed{\frac{4", "42", 0),
    (r"$\boxed 42$", "42", 1),
    (r"\fbox{42}", "42", 1),
    (r"\boxed{}", "42", 0),
    (r"\boxed{42}}", "42", 1),
    ("Final Answer: The final answer is $42$. I hope it is correct.", "42", 1),
    ("Final Answer: The final answer is x = 42. I hope it is correct.", "42", 1),
    ("Final Answer: The final answer is an even number, $42$", "42", 0),
    (
        "Final Answer: The final answer is 42 dollars. I hope it is correct.\n\nFinal Answer: The final answer is 7.",
        "42",
        1,
    ),
    (
        "Final Answer: The final answer is 42 dollars. I hope it is correct.\n\nFinal Answer: The final answer is 7.",
        "7",
        0,
    ),
    ("Final Answer: The final answer is x = 1 or x = 42. I hope it is correct.", "42", 0),
    ("Final Answer: The final answer is $x=1, x=42$. I hope it is correct.", "42", 0),
    ("Final Answer: The final answer is x >= 42. I hope it is correct.", "42", 0),
    (r"Final Answer: The final answer is $x \geq 42$. I hope it is correct.", "42", 0),
    ("Final Answer: The final answer is x != 42. I hope it is correct.", "42", 0),
    (r"Final Answer: The final answer is $42\text{ million}$. I hope it is correct.", "42", 0),
    ("It costs $3$, in all $x = 42$.", "42", 1),
    (r"It is \(42\).", "42", 1),
    (r"Hence \[ x = \frac{84}{2} \]", "42", 1),
    ("Hence $$42$$", "42", 1),
    (r"It costs \$3 and $42$", "42", 1),
    ("42", "42", 1),
    ("42.", "42", 1),
    ("The answer is 42", "42", 0),
    ("", "42", 0),
    ("$", "42", 0),
]


@pytest.mark.parametrize(("output", "label", "verdict"), OUTPUTS)
def test_where_in_an_output_the_answer_stands(symbolic, output, label, verdict):
    assert symbolic(output, label) == verdict
    assert symbolic(f"\n {output} \n", f" {label}\n") == verdict


@pytest.mark.parametrize(("output", "label", "verdict"), OUTPUTS)
def test_strictly_only_the_closing_line_counts(output, label, verdict):
    strict = StrictMathVerifier(symbolic=False)
    assert strict(output, label) == (verdict if "Final Answer:" in output else 0)


def test_a_label_may_be_a_number_or_boxed(symbolic):
    assert symbolic(r"\boxed{0.5}", 0.5) == 1
    assert symbolic(r"\boxed{0.5}", r"\boxed{\frac{1}{2}}") == 1
    assert candidates(r"\boxed{1} Final Answer: The final answer is 2.") == ["1", "2"]


SUMS = [  # output, label, by text, by value
    ("so 72.", "72", 1, 1),
    ("so 72.0", "72", 0, 1),
    ("3 boxes, 1,234 eggs", "1234", 1, 1),
    ("$1,234,567.50!", "1234567.50", 1, 1),
    ("1{,}234", "1234", 1, 1),
    (r"1\,234", "1234", 1, 1),
    ("1\u202f234", "1234", 1, 1),
    ("it is −5", "-5", 1, 1),
    ("it is −5", "5", 0, 0),
    ("it is -5", "5", 0, 0),
    ("it is –5", "5", 0, 0),  # with an en dash
    ("it is –5", "-5", 1, 1),
    ("it is \u20115", "-5", 1, 1),
    ("it loses -$5", "5", 0, 0),
    (r"it loses -\$5", "-5", 1, 1),
    ("+5", "5", 0, 1),
    (".5", "0.5", 0, 1),
    ("half", "5", 0, 0),
    ("", "5", 0, 0),
    ("5 of 6", "5", 0, 0),
    ("#### 72", "#### 72", 1, 1),
    ("72", "1,072", 0, 0),
    ("1072", "1,072", 1, 1),
    (r"\boxed{72}", "72", 1, 1),
    ("72%", "72", 1, 1),
    ("9" * 9000, "9", 0, 0),
    ("5 \u0665", "5", 0, 1),
    ("1,2,3", "123", 1, 1),
    ("12 345", "345", 1, 1),
    ("yes", "YES", 1, 1),
    (72, 72, None, None),
]


@pytest.mark.parametrize(("output", "label", "by_text", "by_value"), SUMS)
def test_the_last_number_counts(output, label, by_text, by_value):
    for verifier, verdict in ((Gsm8kVerifier(), by_text), (Gsm8kVerifier(numeric=True), by_value)):
        if verdict is None:
            with pytest.raises(TypeError, match="prediction must be text, got int"):
                verifier(output, label)
        else:
            assert verifier(output, label) == verdict
            assert verifier(f"\n {output}\t", f" {label} ") == verdict


def test_a_whole_number_in_a_column_with_gaps_is_a_float():
    assert Gsm8kVerifier()("so 72", 72.0) == 1
    assert Gsm8kVerifier()("so 72.5", 72.5) == 1
    assert Gsm8kVerifier()("so 72.0", 72.0) == 0
