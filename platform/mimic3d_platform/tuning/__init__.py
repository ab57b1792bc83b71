"""Sweeps: a file of values to try becomes trials on Ray Tune, and a report.

`sweep` reads the file, `space` what is varied; `search` says which trial is next, `trials` what one runs,
`execution` runs them, `records` keeps them; `resources` counts before; `report` and `plots` tell after;
`study` goes through it all.
"""
