"""Watches what happens and decides what to change: which model an attempt gets, how many agents there are."""
