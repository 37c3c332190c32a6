"""The printed derivation: its text, that every step of it is true, and the textbook's formula."""

from __future__ import annotations

import random
import re
from fractions import Fraction
from typing import Any
from xml.etree import ElementTree

import pytest
from rewrite_cases import BN, EPS, Leaves, mean, total

import minigrad as mg
from examples.batchnorm_by_hand import training_closed_form
from minigrad import Tensor, nn, study
from minigrad.study import formula as F
from minigrad.study.formula import Formula, number

SHAPE = (4, 3, 2, 2)  # m = 16


def batch_norm(leaves: dict[str, Any] | None = None) -> dict[str, Tensor]:
    """BN by its formula, with a name for each value; `P` is one that the gradient will meet."""
    L = Leaves()
    if leaves is None:
        leaves = {"x": L(*SHAPE), "g": L(*SHAPE), "gamma": L.channels(3), "beta": L.channels(3)}
    x, g, gamma, beta = (leaves[name] for name in ("x", "g", "gamma", "beta"))
    mu = mean(x, BN)
    c = x - mu
    v = mean(c * c, BN)
    rho = mg.rsqrt(v + EPS)
    xhat = c * rho
    y = xhat * gamma + beta
    P = total(g * c, BN)
    return {
        "gamma": gamma, "rho": rho, "xhat": xhat, "c": c, "mu": mu, "v": v, "g": g, "x": x,
        "beta": beta, "P": P, "y": y,
    }  # fmt: skip


def derived(named: dict[str, Tensor]) -> study.Derivation:
    return study.derive(
        named["y"], [named["beta"], named["gamma"], named["x"]], names=named, sizes={"m": 16}
    )


GOLDEN = """\
forward
  mu = sum(x)/m
  c = x - mu
  v = sum(c*c)/m
  rho = rsqrt(v + 1e-05)
  xhat = c*rho
  y = xhat*gamma + beta

named by the reader
  P = sum(g*c)

chain rule: 4 full-size reductions, 3 dependent sweeps
  dbeta = sum(g)
  dgamma = sum(g*xhat)
  d_xhat = g*gamma
  d_rho = sum(d_xhat*c)
  d_v = -0.5*d_rho*rho*rho*rho
  d_c = d_xhat*rho + d_v/m*c + d_v/m*c
  d_mu = sum(-d_c)
  dx = d_c + d_mu/m

rewriting
  dgamma = sum(g*xhat)
     1  invariant factor  sum(rho*c*g)  ->  rho*sum(c*g)
     2  same value        sum(c*g)  ->  P
      = rho*P
  d_xhat = g*gamma
      = gamma*g
  d_rho = sum(d_xhat*c)
     3  invariant factor  sum(c*d_xhat)  ->  gamma*sum(c*g)
     4  same value        sum(c*g)  ->  P
      = gamma*P
  d_v = -0.5*d_rho*rho*rho*rho
      = -rho^3*d_rho/2
  d_c = d_xhat*rho + d_v/m*c + d_v/m*c
     5  like terms        rho*d_xhat - rho^3*c*d_rho/(2*m) + (-rho^3*c*d_rho/(2*m))  ->  rho*d_xhat - rho^3*c*d_rho/m
      = rho*d_xhat - rho^3*c*d_rho/m
  d_mu = sum(-d_c)
     6  linearity         sum(-rho*d_xhat + rho^3*c*d_rho/m)  ->  sum(-rho*d_xhat) + sum(rho^3*c*d_rho/m)
     7  invariant factor  sum(-rho*d_xhat)  ->  -gamma*rho*sum(g)
     8  same value        sum(g)  ->  dbeta
     9  invariant factor  sum(rho^3*c*d_rho/m)  ->  rho^3*d_rho/m*sum(c)
    10  linearity         sum(c)  ->  sum(x) + sum(-mu)
    11  same value        sum(x)  ->  m*mu
    12  count             sum(-mu)  ->  -m*mu
    13  like terms        m*mu + (-m*mu)  ->  0
      = -gamma*rho*dbeta
  dx = d_c + d_mu/m
      = rho*d_xhat - rho^3*c*d_rho/m - gamma*rho*dbeta/m

closed form: 2 full-size reductions, 2 dependent sweeps
  dbeta = sum(g)
  dgamma = rho*sum(c*g)
  dx = gamma*rho*(g - dbeta/m - xhat*dgamma/m)

as computed: dx = A*g + B*c + C
  A = gamma*rho ;  B = -gamma*rho^2*dgamma/m ;  C = -gamma*rho*dbeta/m
"""  # noqa: E501


def test_the_derivation_of_batch_normalization():
    text = derived(batch_norm()).text()
    before, _, rules = text.partition("\nrules used\n")
    assert before == GOLDEN
    assert [line.split("  ")[1].strip() for line in rules.splitlines()] == [
        "like terms", "same value", "linearity", "count", "invariant factor",
    ]  # fmt: skip


def test_its_numbers():
    d = derived(batch_norm())
    assert d.reductions == (4, 2)
    assert d.sweeps == (3, 2)
    rule, before, after, value = d.steps[0]
    assert (rule, str(before), str(after)) == ("invariant factor", "sum(rho*c*g)", "rho*sum(c*g)")
    assert value == "dgamma"


def evaluate(f: Formula, named: dict[str, Tensor]) -> Any:
    """A formula on tensors. A sum is over a full-size array, so sum(k) is m*k."""
    parts = [evaluate(p, named) for p in f.parts]
    match f.kind:
        case "name":
            return 16.0 if f.text == "m" else named[f.text]
        case "number":
            return float(f.text)
        case "neg":
            return -parts[0]
        case "+":
            return parts[0] + parts[1]
        case "-":
            return parts[0] - parts[1]
        case "*":
            return parts[0] * parts[1]
        case "/":
            return parts[0] / parts[1]
        case "^":
            return parts[0] ** parts[1]
        case "sum":
            return total(mg.broadcast_to(parts[0], SHAPE), BN)
    return getattr(mg, f.text)(*parts)


def values(named: dict[str, Tensor], d: study.Derivation) -> dict[str, Tensor]:
    """Every value of a derivation, from what is written in its chain rule."""
    found = dict(named)
    for name, v in d.values.items():
        found.setdefault(name, evaluate(v.written, found))
    return found


def assert_equal(a: Any, b: Any, what: object) -> None:
    with mg.rewrites(False):
        worst = mg.max(mg.abs(a - b) + 0.0 * named_zero()).item()
    assert worst < 1e-9, what


def named_zero() -> Tensor:
    return mg.zeros(SHAPE, dtype="float64")


def test_both_sides_of_every_step_are_equal():
    named = batch_norm()
    d = derived(named)
    with mg.rewrites(False):
        known = values(named, d)
        for s in d.steps:
            left, right = (evaluate(side, known) for side in (s.before, s.after))
            assert_equal(left, right, s)
        for name, v in d.values.items():
            assert_equal(known[name], evaluate(v.simplified, known), name)


def test_the_closed_form_is_the_textbooks():
    named = batch_norm()
    d = derived(named)
    assert str(d.closed["dx"]) == "gamma*rho*(g - dbeta/m - xhat*dgamma/m)"
    with mg.rewrites(False):
        known = values(named, d)
        formula = evaluate(d.closed["dx"], known)
        (automatic,) = mg.gradients(named["y"], [named["x"]], named["g"])
        assert_equal(formula, automatic, "closed form")
        expression, coefficients = d.as_computed["dx"]
        letters = {letter: evaluate(f, known) for letter, f in coefficients.items()}
        assert_equal(evaluate(expression, known | letters), automatic, "as computed")


def test_the_closed_form_is_the_one_derived_by_hand():
    """dx = gamma rho / m (m g - sum(g) - xhat sum(g xhat)), as printed in textbooks since 2015."""
    named = batch_norm()
    d = derived(named)
    x, gamma, g = named["x"], named["gamma"], named["g"]
    by_hand = training_closed_form(x, gamma.reshape(3), g, EPS)
    with mg.rewrites(False):
        known = values(named, d)
        for name, right in by_hand._asdict().items():
            formula = evaluate(d.closed[name], known)
            assert_equal(formula, right if name == "dx" else right.reshape((1, 3, 1, 1)), name)


def test_the_text_does_not_depend_on_what_was_built_before():
    first = derived(batch_norm()).text()
    alive = batch_norm()  # the same and parts of it, computed or not, and still there
    mg.evaluate(alive["xhat"], alive["P"])
    dx = mg.gradients(alive["y"], alive["x"], alive["g"])
    again = derived(alive)
    assert derived(batch_norm()).text() == again.text() == first
    mg.evaluate(dx)
    for order in (["x", "g", "beta", "gamma"], ["gamma", "beta", "x", "g"]):
        made = dict.fromkeys(order)  # leaves with other ids than usual
        L = Leaves(7)
        for name in order:
            made[name] = L.channels(3) if name in ("gamma", "beta") else L(*SHAPE)
        assert derived(batch_norm(made)).text() == first


def test_names_are_the_callers_by_default():
    L = Leaves()
    x, weight, bias = L(*SHAPE), L.channels(3), L.channels(3)
    centred = x - mean(x, BN)
    inv = mg.rsqrt(mean(centred * centred, BN) + EPS)
    x_hat = centred * inv
    out = x_hat * weight + bias
    d = study.derive(out, [x, weight, bias])
    assert str(d.closed["dx"]).startswith("weight*inv*(g - ")
    assert {"centred", "inv", "x_hat", "out"} <= d.values.keys()


def test_values_that_were_computed_are_looked_behind():
    named = batch_norm()
    mg.evaluate(named["y"], named["mu"])
    assert derived(named).reductions == (4, 2)


def test_an_output_that_forgot_its_graph_is_an_error():
    x = mg.tensor([[1.0, 2.0]])
    y = x * 2.0
    mg.evaluate(y)
    with pytest.raises(ValueError, match="derive: expected an output with the graph it comes from"):
        study.derive(y, x)


def test_layers_can_be_derived():
    L = Leaves()
    x, weight, bias = L(2, 6, 2, 2), L(6), L(6)
    for y, reductions in (
        (nn.batch_norm(x, None, None, weight, bias, training=True), (4, 2)),
        (nn.group_norm(x, 2, weight, bias), (4, 2)),
        (nn.layer_norm(x, (6, 2, 2)), (2, 2)),
    ):
        d = study.derive(y, [x] if reductions[0] == 2 else [x, weight, bias])
        assert d.reductions == reductions
        assert "closed form" in d.text()
        assert d.latex()


def test_latex_and_html_have_every_step(tmp_path):
    d = derived(batch_norm())
    latex = d.latex()
    assert latex.count("\\begin{align*}") == latex.count("\\end{align*}") == 6
    assert latex.count("\\to") == len(d.steps)
    assert r"\gamma \rho \left(g - \frac{\mathrm{d}\beta}{m}" in latex
    path = tmp_path / "derivation.html"
    d.html(path)
    page = path.read_text(encoding="utf-8")
    assert page.count("&rarr;") == len(d.steps)
    for tag in ("math", "mrow", "mfrac", "table", "tr"):
        assert len(re.findall(f"<{tag}[ >]", page)) == page.count(f"</{tag}>")


def test_the_latex_can_be_typeset():
    """By matplotlib's own reader of LaTeX's mathematics, cell by cell."""
    mathtext = pytest.importorskip("matplotlib.mathtext")
    reader = mathtext.MathTextParser("path")
    L = Leaves()
    x, weight_of_y, b1 = L(4, 5), L(5), L(5)
    y = nn.layer_norm(x, 5, weight_of_y, b1)
    for d in (derived(batch_norm()), study.derive(y, [x, weight_of_y, b1])):
        rows = [line for line in d.latex().splitlines() if line.startswith("  ")]
        cells = [cell.strip() for row in rows for cell in row.removesuffix(" \\\\").split("&")]
        assert len(cells) > 30
        for cell in filter(None, cells):
            reader.parse(f"${cell}$")  # raises where it cannot
        assert all(cell.count("{") == cell.count("}") for cell in cells)


a, b, c, m, x = map(F.name, "abcmx")


@pytest.mark.parametrize(
    ("formula", "text", "latex"),
    [
        (a - (b - c), "a - (b - c)", r"a - \left(b - c\right)"),
        (a + -b, "a - b", "a - b"),
        (Formula("+", "", (a, -b)), "a + (-b)", r"a + \left(-b\right)"),
        (a + (b - c), "a + (b - c)", r"a + \left(b - c\right)"),
        (-a * b / (number(2) * m), "-a*b/(2*m)", r"-\frac{a b}{2 m}"),
        (a * (b / c), "a*b/c", r"\frac{a b}{c}"),
        (x ** number(Fraction(3, 2)) * number(2), "x^(3/2)*2", r"{x}^{\frac{3}{2}} \cdot 2"),
        (x ** number(-1), "x^(-1)", "{x}^{-1}"),
        (number(-1.5) * x, "-1.5*x", "-1.5 x"),
        (F.total(-a) - (-b), "sum(-a) - (-b)", r"\sum \left(-a\right) - \left(-b\right)"),
        (F.total(a) * b, "sum(a)*b", r"\left(\sum a\right) b"),
        ((a * b) ** number(2), "(a*b)^2", r"{\left(a b\right)}^{2}"),
        (F.total(a * F.name("xhat"), "0,2"), "sum[0,2](a*xhat)", r"\sum_{0,2} a \hat{x}"),
        (F.call("sqrt", a + number(1e-5)), "sqrt(a + 1e-05)", r"\sqrt{a + 1 \cdot 10^{-5}}"),
        (F.call("not_x", a, b), "not_x(a, b)", r"\operatorname{not\_x}\left(a, b\right)"),
        (F.name("d_rho") * F.name("my_mean"), "d_rho*my_mean", r"\bar{\rho} \mathrm{my\_mean}"),
    ],
)  # fmt: skip
def test_notations(formula, text, latex):
    assert str(formula) == text
    assert formula.latex() == latex
    page = re.sub("&[a-z]+;", "", formula.mathml())
    assert ElementTree.fromstring(page).tag == "math"


def test_factors_that_are_numbers_are_told_apart():
    assert "<mn>1</mn><mo>&sdot;</mo><mn>1.5</mn>" in (number(1) * number(1.5)).mathml()


def random_formula(rng: random.Random, depth: int) -> Formula:
    """A tree of any operators, not only those that the operators of formulas would build."""
    if depth == 0:
        return rng.choice([a, b, c, number(2), number(3)])
    kind = rng.choice(["neg", "+", "-", "*", "/", "^", "sum"])
    parts = [random_formula(rng, rng.randrange(depth)) for _ in range(2)]
    if kind == "^":
        return parts[0] ** number(rng.choice([-1, 2]))
    return Formula(kind, "", tuple(parts[: 1 if kind in ("neg", "sum") else 2]))


def exact(f: Formula, values: dict[str, Fraction]) -> Fraction:
    parts = [exact(p, values) for p in f.parts]
    match f.kind:
        case "name" | "number":
            return values[f.text] if f.kind == "name" else Fraction(f.text)
        case "neg" | "sum":
            return -parts[0] if f.kind == "neg" else 7 * parts[0]
        case "+":
            return parts[0] + parts[1]
        case "-":
            return parts[0] - parts[1]
        case "*":
            return parts[0] * parts[1]
        case "/":
            return parts[0] / parts[1]
    return parts[0] ** parts[1]


@pytest.mark.parametrize("seed", range(300))
def test_text_has_the_brackets_that_it_needs(seed):
    """Read as Python, a formula's text has the value of its tree."""
    f = random_formula(random.Random(seed), 4)
    values = {"a": Fraction(5, 3), "b": Fraction(-7, 2), "c": Fraction(11, 13)}
    python = re.sub(r"\b(\d)\b", r"Fraction(\1)", str(f)).replace("^", "**")
    scope = {"Fraction": Fraction, "sum": lambda k: 7 * k}
    try:
        value = exact(f, values)
    except ZeroDivisionError:
        return
    assert eval(python, scope, dict(values)) == value, str(f)
