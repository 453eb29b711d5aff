"""One module per stage, each with train(config, workdir)."""
