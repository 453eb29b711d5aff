"""What the benchmarks are made of; the commands are the files one folder up."""
