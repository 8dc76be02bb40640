"""The asyncio vocabulary of kone: tasks, clocks, queues, systemd. Knows nothing of Kubernetes."""
