"""Data sets in one form, class profiles, splits and transforms."""
