"""Visible-infrared examples on disk: reading, checking and splitting them."""

from diffv2ir.data.examples import DataError, Example, check_examples, read_examples, read_parts, split_validation

__all__ = ["DataError", "Example", "check_examples", "read_examples", "read_parts", "split_validation"]
