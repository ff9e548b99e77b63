"""Benchmarks of streamloader and its peers. One file per question; all contenders are measured in the same run."""
