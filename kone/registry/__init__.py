"""What the API is: one module per API group, each kind one screen."""
