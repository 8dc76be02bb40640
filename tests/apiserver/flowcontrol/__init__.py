"""Flow control, mirrored."""
