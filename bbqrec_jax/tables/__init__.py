"""What `python -m bbqrec_jax.table` is made of: systems, experiments, their runs and tables."""
