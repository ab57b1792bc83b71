"""Sweeps: a file of values to try becomes trials on Ray Tune, and a report.

`sweep` reads the file, `space` what is varied, `objectives` by what it is judged; `stage1` is what trials
start from; `search` says which trial is next, `trials` what one runs, `execution` runs them, `records` keeps
them, `journal` tells MLflow; `resources` counts before; `report` and `plots` tell after; `study` goes through
it all.
"""
