"""Sensitivity-regularized fine-tuning itself: knows tensors and their names, no tracker, no data set, no Ray."""
