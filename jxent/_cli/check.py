"""The verb `check`: loss and gradient beside float64 and beside plain JAX, in ulp."""

import argparse
from typing import Any

from jxent._cli import display, gradcheck
from jxent._cli.common import CommandError, add_verb, describe_setting, need_packages

SCIENTIFIC_FROM = 1e4


def add_check(verbs: Any) -> None:
    """Add the verb's parser."""
    add_verb(
        verbs,
        "check",
        run_check,
        "compare loss and gradient with float64 and with jax.grad, in ulp",
    )


def run_check(options: argparse.Namespace) -> int:
    """Check the gradients and show every difference."""
    need_packages("rich")
    console = display.open_console()
    display.show_setting(console, describe_setting())
    check = gradcheck.check_gradients()
    show_gradient_check(console, check)
    return exit_code(check)


def exit_code(check: gradcheck.GradientCheck) -> int:
    """Return 0, or raise CommandError if a quantity missed its bound."""
    if check.passed:
        return 0
    raise CommandError("the gradient check missed its bound: see the rows marked NO")


def show_gradient_check(console: display.Console, check: gradcheck.GradientCheck) -> None:
    """Print the largest differences, and how many confident rows plain JAX makes 0."""
    console.print(
        "\n[bold]Gradient check[/bold]: "
        f"{gradcheck.ROWS} rows of {gradcheck.CLASSES} float32 logits of each kind; "
        "largest differences in ulp"
    )
    numbers = ("jxent −\nfloat64", "plain −\nfloat64", "jxent −\nplain", "bound", "ok")
    table = display.make_table("rows", "quantity", numbers=numbers)
    for d in check.differences:
        table.add_row(
            d.rows,
            d.quantity,
            _format_ulp(d.jxent_from_float64),
            _format_ulp(d.plain_from_float64),
            _format_ulp(d.jxent_from_plain),
            d.bound,
            "yes" if d.within else "[bold red]NO[/bold red]",
        )
    console.print(table)
    if not check.promised:
        console.print("the bound is promised on CPU; here it is only shown")
    console.print("plain: logsumexp(z) − z_y under jax.grad; gap: the largest logit − the next")
    console.print(
        f"In confident rows the label leads by {gradcheck.CONFIDENT_GAP:.0f}: the plain loss is "
        f"exactly 0 in {check.plain_false_zeros} of {gradcheck.ROWS}"
    )


def _format_ulp(value: float) -> str:
    return f"{value:.1e}" if value >= SCIENTIFIC_FROM else f"{value:.1f}"
