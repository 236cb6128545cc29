"""Visible-infrared examples on disk: reading, checking and splitting them."""

from diffv2ir.data.examples import DataError, Example, check_examples, read_examples, split_validation

__all__ = ["DataError", "Example", "check_examples", "read_examples", "split_validation"]
