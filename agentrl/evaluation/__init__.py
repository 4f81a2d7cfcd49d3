"""Success rates with intervals, comparisons and reports."""
