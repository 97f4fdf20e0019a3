from tally.invoice import Invoice, Line, percent_of, subtotal, total

COFFEE = Line("coffee", quantity=3, unit_price_cents=250)
CAKE = Line("cake", quantity=1, unit_price_cents=399)


def test_subtotal_counts_quantities() -> None:
    assert subtotal(Invoice(lines=(COFFEE, CAKE))) == 1149


def test_percentages_round_half_up() -> None:
    assert percent_of(1149, 10) == 115
    assert percent_of(250, 5) == 13


def test_no_cent_of_a_large_amount_is_lost() -> None:
    assert percent_of(9_007_199_254_740_993, 100) == 9_007_199_254_740_993


def test_total_takes_the_discount_off_before_tax() -> None:
    assert total(Invoice(lines=(COFFEE, CAKE), discount_percent=10)) == 1241


def test_an_empty_invoice_costs_nothing() -> None:
    assert total(Invoice(lines=())) == 0
