"""Seeing change: the current state and a window of events per resource; every list, watch and informer reads it."""
