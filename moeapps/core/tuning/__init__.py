"""Fine-tuning of a part of a network: the experts that a task uses, or low-rank experts on a frozen network."""
