"""Where: upstream's scheduling framework, one file a plugin."""
