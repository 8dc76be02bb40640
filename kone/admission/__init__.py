"""Policy on writes: a fixed, documented chain of plugins, one file each."""
