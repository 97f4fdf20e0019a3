"""Tally adds up invoices, in whole cents."""
