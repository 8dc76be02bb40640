"""API priority and fairness (KEP-1040): which requests are served now, which wait their turn, which are refused."""
