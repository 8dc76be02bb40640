"""kone's tests: they mirror kone/ and read as specification."""
