"""Training on the serving model and kernels. Empty so far: ARCHITECTURE.md says what goes here."""
