"""An invoice and its totals. All amounts are whole cents."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    description: str
    quantity: int
    unit_price_cents: int


@dataclass(frozen=True)
class Invoice:
    lines: tuple[Line, ...]
    discount_percent: int = 0
    tax_percent: int = 20


def percent_of(amount_cents: int, percent: int) -> int:
    """`percent` of an amount, rounded half up to a whole cent."""
    return (amount_cents * percent + 50) // 100


def subtotal(invoice: Invoice) -> int:
    """The sum of all lines, before discount and tax."""
    return sum(line.quantity * line.unit_price_cents for line in invoice.lines)


def total(invoice: Invoice) -> int:
    """What the customer pays: the discount comes off first, then tax is added."""
    net = subtotal(invoice) - percent_of(subtotal(invoice), invoice.discount_percent)
    return net + percent_of(net, invoice.tax_percent)
