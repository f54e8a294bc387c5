"""Spellings of right answers are right, and what only resembles one is wrong: one table a kind, both ways."""

import pytest
from grading.math_verdicts import grade_math

from lm_power.grading.math_answers import extract_answer, last_box
from lm_power.grading.math_grader import MathGrader

# Per kind: (gold answer, right answers, wrong answers), all as they stand in a box.
BOXED = {
    "percent": [
        ("12.5", [r"12.5\%", "12.5%", r"12.5 \text{ percent}", "12.5 percent"], [r"0.125\%", r"1.25\%"]),
        (r"12.5\%", ["12.5", "0.125", r"\frac18", r"12.5\%", r"\frac{25}{2}\%"], ["1.25", "125"]),
        ("25", [r"25.0\%", r"25\%"], [r"2.5\%", "0.25"]),
        (r"33\frac13", [r"33\frac13\%", r"33\frac{1}{3} \%", r"\frac{100}{3}\%"], [r"33\%"]),
        (r"33\frac13\%", [r"\frac13", r"\frac{100}{3}"], ["33"]),
        ("0.125", [r"12.5\%"], ["12.5", r"0.0125\%"]),
        ("10, 20", [r"10\%, 20\%"], [r"10\%, 30\%"]),
    ],
    "equations": [
        ("5", ["x=5", "f(2)=5", "4+1=5", "x=4+1=5", "AB=5", "5=x", "x_1 = 5", r"\text{Area} = 5", r"\angle A = 5"],
         ["3x+2=5", "x^2+y^2=5", "2x=5", "x+y=5", r"\sqrt{x}=5", "xy=5", r"\frac{x}{2}=5", "x(x+1)=5", "-x=5",
          "3x+2=5=5"]),
        ("25", ["r^2+16=25 \\Rightarrow 25"], ["x^2+y^2=25", r"x^2 + y^2 = 25"]),
        ("(1,2)", ["(x,y)=(1,2)", "x=1, y=2", "x,y=1,2"], ["(x,y)=(2,1)", "(x+y,2)=(1,2)"]),
        ("1,-2", ["n=1, n=-2", r"x=1 \text{ or } x=-2", "x=1 or -2"], ["2x=1, x=-2", "x=1"]),
        ("x^2", ["f(x)=x^2", "y=x^2", "f^{-1}(x)=x^2", "P(x) = x^2"], ["y^2=x^2", "2y=x^2"]),
        ("x=5", ["5", "x=5"], ["y=5"]),
        (r"\frac35", [r"\sin A=\frac35", r"P(A \cap B) = \frac{3}{5}"], [r"5x = \frac35"]),
    ],
    "bases": [
        ("52_8", ["(52)_8", r"52_{\text{eight}}", r"52 \text{ base } 8", r"52_\text{eight}", r"52_{(8)}", "52 base 8",
                  r"\left(52\right)_{8}", r"52 \text{ in base eight}", r"\text{52}_8", "52₈", "x = 52_8", "52"],
         ["(52)_7", r"52_{\text{seven}}", r"52 \text{ base } 9", "(53)_8", "52_{10}", "42"]),
        (r"1011_{\text{two}}", ["1011_2", r"1011 \text{ base } 2", "1011"], ["1101_2", "1011_3", "11"]),
        ("2A_{16}", [r"2\text{A}_{16}", "(2A)_{16}", "2a_{16}"], ["2B_{16}", "2A_{12}", "42"]),
    ],
    "spellings": [
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",
         [r"\begin{pmatrix} 1 \\[4pt] 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ [1ex] 2 \end{pmatrix}",
          r"\begin{bmatrix} 1 \\* 2 \end{bmatrix}", r"\begin{pmatrix} 1 \cr 2 \end{pmatrix}",
          r"\left(\begin{smallmatrix} 1 \\ 2 \end{smallmatrix}\right)", r"\begin{psmallmatrix}1\\2\end{psmallmatrix}"],
         [r"\begin{pmatrix} 1 \\[4pt] 3 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \end{pmatrix}"]),
        (r"\frac52", ["2 1/2", r"2\ 1/2", "2½", r"2\,\tfrac12", "x = 2 1/2"], ["2/2", "2-1/2", "21/2", "2 1/3"]),
        (r"-\frac52", ["-2 1/2", "-2½"], ["2 1/2", "-2/2"]),
        (r"\emptyset", [r"\varnothing", "∅", r"\{\}", r"\text{the empty set}"], [r"\{0\}", "0"]),
        (r"\sqrt2", ["√2", "√(2)", r"√{2}", r"\boldsymbol{\sqrt{2}}"], ["√3", "2"]),
        (r"2\sqrt{13}", ["2√13", "2 √13"], ["2√1", "13√2"]),
        (r"3\pi", ["3π", r"\boldsymbol{3\pi}", r"\bm{3\pi}"], ["3"]),
        ("5", [r"\boldsymbol{5}", r"\bm{5}", r"\mathbf{5}", r"{\bf 5}", r"\textcolor{red}{5}", r"\displaystyle 5",
               r"\text{5 apples}"],
         [r"\boldsymbol{6}", r"\textcolor{red}{6}"]),
        (r"\frac16", [r"0.1\overline{6}", "⅙"], ["0.16"]),
        ("x^2+1", ["x²+1", r"\mathbf{x^2+1}"], ["x³+1"]),
        ("[1,2)", ["1 ≤ x < 2"], ["1 < x ≤ 2"]),
    ],
    "arguments": [
        (r"\frac{\pi}{2}", [r"\frac\pi2", r"\frac\pi{2}", r"\frac \pi 2", r"\dfrac\pi2", r"\frac{\pi}2", r"\pi\frac12"],
         [r"\frac\pi3", r"\frac2\pi", r"\frac\pi{12}"]),
        (r"-\frac{\pi}{6}", [r"-\frac\pi6", r"-\tfrac\pi 6"], [r"\frac\pi6", r"-\frac6\pi"]),
        (r"\left( 3, \frac{\pi}{2} \right)", [r"\left(3,\frac\pi2\right)"],
         [r"\left(3,\frac\pi3\right)", r"(\frac\pi2,3)"]),
        (r"\frac{2}{\pi}", [r"\frac2\pi", r"\frac{2}\pi", r"\frac 2\pi"], [r"\frac\pi2"]),
        (r"\frac{\sqrt{6}}{2}", [r"\sqrt\frac32", r"\sqrt\frac{3}{2}", r"\sqrt \tfrac32", r"\frac\sqrt62",
                                 r"\frac{\sqrt6}2"],
         [r"\sqrt\frac23", r"\frac32", r"\frac\sqrt63"]),
        (r"\frac{\sqrt{2}}{2}", [r"\frac1\sqrt2", r"\frac{1}\sqrt2", r"\frac1{\sqrt2}"],
         [r"\frac2\sqrt2", r"\frac1\sqrt3"]),
        (r"\sqrt{\pi}", [r"\sqrt\pi", r"\pi^\frac12", r"\sqrt{\pi}"], [r"\pi", r"\pi^\frac13"]),
        (r"\sqrt{x}", [r"x^\frac12", r"x^\frac{1}{2}", r"x^ \frac 12", r"\sqrt x"], [r"x^\frac13", r"\frac{x}{2}"]),
        (r"\sqrt[3]{2}", [r"2^\frac13", r"\sqrt[3]2", r"\sqrt[3] 2"], [r"2^\frac23", r"\sqrt2"]),
        (r"\sqrt[3]{\pi}", [r"\sqrt[3]\pi"], [r"\sqrt\pi"]),
        ("10", [r"\binom52", r"\binom{5}2", r"\dbinom52"], [r"\binom62", r"\frac52"]),
        ("0.00001", ["10^-5", "10^{-5}"], ["10^5", "10^-6", "10-6"]),
        (r"\frac{1}{12}", [r"\frac1{12}", r"\frac{1}{12}"], [r"\frac{11}2"]),
    ],
    "labels": [
        ("12", [r"\textbf{(B)}\ 12", r"\text{(B) } 12", "(B) 12", "B) 12", r"\text{(B) 12}",
                r"\textbf{(B) } 12 \text{ cm}",
                r"\text{Option B: } 12", r"12 \text{ (B)}"],
         [r"\textbf{(B)}\ 13", r"\textbf{(B)}", r"\textbf{(B)}\ -12"]),
        (r"\text{(B)}", [r"\textbf{(B)}\ 12", "(B) 12", r"\text{B}"], [r"\textbf{(C)}\ 12", "12"]),
        (r"\frac12", [r"\textbf{(A)}\ \frac{1}{2}"], [r"\textbf{(A)}\ \frac{1}{3}"]),
    ],
    "words": [
        ("5", [r"5 \text{ apples}", r"5 \text{ square units}", r"5\text{ m}^2", r"5\text{ km}/\text{h}"],
         [r"5 \text{ apples and } 6 \text{ oranges}", r"5 \text{ men or } 6 \text{ women}", "5 apples and 6 oranges",
          r"\text{5 apples and 6 oranges}", r"5 \text{ apples}, 6 \text{ oranges}", r"5 \text{ feet } 6 \text{ inches}",
          r"5 \text{ to } \text{6}", r"5 \text{ or maybe } \frac{6}{1}", r"\text{either } 5 \text{ or } 6"]),
        ("5, 6", [r"5 \text{ apples and } 6 \text{ oranges}", r"5 \text{ or } 6"],
         [r"5 \text{ apples and } 7 \text{ oranges}"]),
        ("5", ["5 dollars", "5 apples", "5 miles per hour", "5 km/h", "5 m/s", "5 cm", "5 cm^2", "5 square units",
               "5 in", "5^{th}", r"5^{\text{th}}", r"5^\text{th}", r"5\text{th}", "5th", "5th floor", "5 times",
               r"5 \text{ inches squared}", r"5 \text{ quarters}", r"5 \text{ times}", "5 ways to choose",
               "x = 5 integers", r"5\text{ m}", "5 inches^2"],
         [r"5 \text{ squared}", "5 squared", r"5\text{ cubed}", r"5 \text{ factorial}", r"5 \text{ or more}",
          "5 or more", r"5 \text{ units or less}", r"5 \text{ and a half}", "5 and a half", r"5 \text{ halves}",
          r"5\text{ tenths}", r"5\text{ pi}", r"5\text{x}", r"5\text{i}", r"5 \text{ hours and thirty minutes}",
          "5 xy", "5 abc", "5^{n}", r"5 \text{ degrees below zero}", r"5 \text{ more than } x", "5 mod 3",
          "5 times 6", "5 choose 2", "5 abcd", "5 theta", "6 dollars", "6^{th}", "5 feet 6 inches",
          "5 dollars and 6 cents"]),
        ("3.50", ["3.50 dollars", r"\$3.50", r"3.5 \text{ dollars}"], ["35 dollars", "3.05 dollars"]),
        (r"\frac34", [r"\frac{3}{4} inches", r"\frac34 mile", "3/4 cups", "0.75 miles"], [r"\frac{4}{3} inches"]),
        ("18+2\\pi", [r"18+2\pi square units", r"18 + 2\pi\text{ cm}"], ["20 square units", r"18+\pi cm"]),
        ("5, 6", ["5 apples and 6 oranges", "5 cm, 6 cm"], ["5 apples and 7 oranges"]),
        ("5!", [r"5!"], ["5", r"5 \text{ units}"]),
        ("0.3", ["0.3", "0.3 miles"], [r"0.3\text{ repeating}", "0.3 repeating"]),
        (r"5 \text{ squared}", [r"5\text{ squared}", r"5.0 \text{ squared}"],
         ["5", r"5 \text{ cubed}", r"6\text{ squared}"]),
        (r"5 \text{ feet } 6 \text{ inches}", [r"5\text{ feet }6\text{ inches}", r"5 \text{ feet } 6",
                                               "5 feet 6 inches"],
         ["5", "11"]),
    ],
    "scales": [
        ("1250000", [r"1.25 \text{ million}", "1.25 million", "1,250,000", r"\$1.25 \text{ million}",
                     "1.25 million dollars", r"1\frac14 \text{ million}", r"1\frac{1}{4}\text{ million people}",
                     r"1250 \text{ thousand}"],
         [r"1.25", r"1.25 \text{ thousand}", r"1.25 \text{ billion}", "125 million", r"1.25 \text{ millionths}"]),
        (r"1.25 \text{ million}", [r"1.25 \text{ million}", "1250000", "1,250,000"],
         ["1.25", r"1.25 \text{ thousand}"]),
        ("36", [r"3 \text{ dozen}", "3 dozen eggs", "36 eggs"], ["3", r"36 \text{ dozen}", r"3\text{ hundred}"]),
        ("500000", [r"5 \text{ hundred thousand}", "500 thousand", r"\frac12\text{ million}"], [r"5 \text{ hundred}"]),
        ("5", ["5"],
         [r"5 \text{ million}", r"5\text{ thousand}", "5 hundred", r"5 \text{ dozen}", r"5 \text{ hundredths}",
          r"1/5 \text{ million}", r"x\text{ million}"]),
    ],
    "times of day": [
        (r"7 \text{ PM}", [r"7\text{ p.m.}", "7 PM", "7:00 PM", r"7\!:\!00 \text{ P.M.}", "7 pm", "7"],
         [r"7 \text{ AM}", "7 a.m.", "8 PM", "7:30 PM", "19"]),
        ("7", [r"7 \text{ AM}", "7:00 pm"], ["8 AM", "7:30 AM"]),
        (r"12:30 \text{ p.m.}", ["12:30 PM", r"12:30\text{ pm}", "12:30"], ["12:30 AM", "12:45 PM", "12.5"]),
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", BOXED)
def test_boxed_answers(kind):
    disagreements = [
        (gold, answer, f"should be {verdict}")
        for gold, right, wrong in BOXED[kind]
        for answers, verdict in ((right, True), (wrong, False))
        for answer in answers
        if grade_math(rf"So $\boxed{{{answer}}}$.", gold, 30) is not verdict
    ]
    assert disagreements == []


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("The answer is 5 dollars.", "5"),
        ("The answer is $60$ miles per hour.", "60"),
        ("The answer is 1.25 million dollars.", "1250000"),
        ("Answer: 7 p.m.", r"7 \text{ PM}"),
    ],
)
def test_units_in_an_announcement(text, gold):
    assert grade_math(text, gold, 30)
    assert not grade_math(text, "3", 30)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Final Answer: The final answer is $4$. I hope it is correct.", "4"),
        ("The final answer is 12. Wait, that is wrong. The final answer is 13.", "13"),
        ("The answer is 4, since the answer is not 5.", "4"),
        ("**Final Answer:** The answer is **4**.", "4"),
        ("Answer: The answer is: 4", "4"),
        ("The final answer is: **Answer: 4**", "4"),
        ("### Final Answer\n\n$4$", "4"),
        ("**Answer:**\n4", "4"),
        ("The answer is:\n\\[\n4\n\\]", "4"),
        ("The final answer is therefore $4$.", "4"),
        ("The answer to the problem is 4.", "4"),
        ("The answer is 4.\nThis answer is correct.", "4"),
        ("The answer is $1.5$.", "1.5"),
        (r"$n=\boxed{1}$ and $n=\boxed{-2}$", "1, -2"),
        (r"$x=\boxed{2}$ or $x=\boxed{3}$", "2, 3"),
        (r"$x_1=\boxed{1}$, $x_2=\boxed{-2}$", "1, -2"),
        (r"$\boxed{2}$ (or possibly $\boxed{3}$)", "2, 3"),
        (r"$x=\boxed{2} \text{ or } x=\boxed{3}$", "2, 3"),
        ("$a=\\boxed{3}$, $b=\\boxed{4}$\nSo $a+b=\\boxed{7}$.", "7"),
        ("$x=\\boxed{2}$. Wait, rather $x=\\boxed{3}$.", "3"),
    ],
)
def test_what_a_text_says(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    "next_problem",
    [
        "\n\nProblem: What is $3+4$? It is $\\boxed{7}$.",
        "\n\n**Question 2.** What is $3+4$? The answer is 7.",
        "\n\nHuman: What is $3+4$? It is $\\boxed{7}$.",
        "\nQ: What is $3+4$?\nA: \\boxed{7}",
        " Can you solve the following math problem? Add. Please put your final answer within \\boxed{{}}. \\boxed{7}",
        "<|im_start|>user\nWhat is $3+4$? $\\boxed{7}$",
    ],
)
@pytest.mark.parametrize("own", [r"So it is $\boxed{4}$.", r"First $\boxed{3}$; no: $\boxed{4}$.", "The answer is 4."])
def test_a_base_model_that_poses_itself_another_problem(own, next_problem):
    assert extract_answer(own + next_problem) == "4"
    assert extract_answer("Nothing yet." + next_problem) in ("7", None)


@pytest.mark.parametrize(
    "problem", ["\n\nProblem: $2+2$\n\n", "\n\n**Question:** What is $2+2$?\n", "\nTask 1. Add.\n"]
)
@pytest.mark.parametrize(
    "no_answer",
    [
        "The answer is easy to check by hand.",
        "The answer is determined by the sum.",
        "The answer to this depends on the sum, and the answer is obviously large.",
        "The answer: let us look for it.",
        "I shall put it in \\boxed{answer}.",
        "The last line is to be '\\boxed{}', e.g. '\\boxed{5}'.",
        "The form is $\\boxed{\\text{your answer}}$ or $\\boxed{\\ldots}$.",
        "<think>\nMaybe the answer is 5? No.\n</think>",
        "<think>\nPerhaps \\boxed{5}.\n</think>",
        "Perhaps \\boxed{5}.\n</think>",
    ],
)
def test_a_problem_that_is_restated_before_any_answer(no_answer, problem):
    """Guards against cutting off the answer where no answer has been given yet."""
    assert extract_answer(f"{no_answer}{problem}It is $\\boxed{{4}}$.") == "4"
    assert extract_answer(f"{no_answer}{problem}The answer is 4.") in ("4", None)  # None: an unfilled box stands before
    assert last_box(f"{no_answer}{problem}It is $\\boxed{{4}}$.") == "4"


@pytest.mark.parametrize(
    "answer", ["4", "$x^2$", "$\\frac12$", "60 miles per hour", "Evelyn", "an ellipse", "(C)", "x", "4 square units"]
)
def test_an_announced_value_ends_the_reading(answer):
    text = f"The answer is {answer}.\n\nProblem: What is $3+4$? "
    assert extract_answer(text + "The answer is 7.") == extract_answer(f"The answer is {answer}.")
    assert extract_answer(text + "\\boxed{7}") == extract_answer(f"The answer is {answer}.")
    assert last_box(text + "\\boxed{7}") == "7"  # where only boxes count


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>It may be \\boxed{5}.</think>\nSo \\boxed{4}.", "4"),
        ("It may be \\boxed{5}.</think>\nThe answer is 4.", "4"),
        ("So \\boxed{4}.\n\nQuestion 2: What is 3+4?\n<think>Easy.</think>\n\\boxed{7}", "4"),
        ("So \\boxed{4}.<think>Or \\boxed{5}?", "4"),
        ("<thinking>One \\boxed{5}</thinking>No: \\boxed{4}<thinking>or \\boxed{6}</thinking>.", "4"),
        ("<think>It may be \\boxed{5}, or", None),
        ("<think>It is \\boxed{5}.</think>", None),
    ],
)
def test_thoughts_are_not_read(text, answer):
    assert (extract_answer(text), last_box(text)) == (answer, answer if "is 4." not in text else None)


@pytest.mark.parametrize("text", ["<think>" * 25_000, "</think>" * 25_000, "e.g. \\boxed{5} " * 10_000])
def test_long_thoughts_are_left_out_in_linear_time(text):
    extract_answer(text)


@pytest.mark.parametrize("text", ["\n" * 200_000, "answer:" + "\n" * 190_000, "answer to " * 20_000, "#" * 200_000])
def test_long_texts_are_searched_in_linear_time(text):
    """A search that was quadratic took minutes here; the test only has to end."""
    extract_answer(text)


STUB = """
import json, sys, time
print('{"ready": true}', flush=True)
for line in sys.stdin:
    job = json.loads(line)
    while job["answer"] == "1+1": time.sleep(0.01)
    print('{"correct": true}', flush=True)
"""


def test_an_answer_that_took_too_long_says_nothing_about_another_pair(tmp_path):
    """Grades depended on the order of documents: a gold equal to such an answer was wrong without being asked."""
    worker = tmp_path / "worker.py"
    worker.write_text(STUB)
    grader = MathGrader(worker)
    assert not grader.equal("1+1", "5", 0.2)
    assert grader.failures == {"starved": 1}  # it had no CPU time: the machine's fault, as far as one can tell
    assert grader.equal("2+0", "1+1", 0.2)
    worker.write_text(STUB.replace("1+1", "never"))
    grader.close()
    assert grader.equal("1+1", "5", 0.2)  # so it is asked again
    grader.close()
