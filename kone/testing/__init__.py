"""A kone cluster inside your own test process."""
