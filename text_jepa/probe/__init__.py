"""Measuring encoders: tasks, predictors, controls and intervals."""
