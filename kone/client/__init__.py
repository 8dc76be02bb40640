"""What every loop is given: a client, informers and an event recorder."""
