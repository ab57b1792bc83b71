"""Measurements that `make bench-…`, `make gpu-battery` and `make pretrained` run."""
