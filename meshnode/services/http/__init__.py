"""HTTP services: requests are read strictly, and the target is told which node calls."""
