"""A pretraining run: its arguments, its trainer and what it leaves behind."""
