"""Tags of runs and of registered versions that one module writes and another reads."""

# The fingerprint of the data set.
DATA_TAG = "mimic3d.data"
# The code that a run began with.
VERSION_TAG = "mimic3d.version"
COMMIT_TAG = "mimic3d.commit"
# The start of a run (`config.start`), and the checkpoint of stage 1 from which its stage 2 began.
START_TAG = "mimic3d.start"
START_DIGEST_TAG = "mimic3d.start.sha256"
STAGE1_TAG = "mimic3d.stage1_checkpoint"
STAGE1_DIGEST_TAG = "mimic3d.stage1_checkpoint.sha256"
# The sweep that a run belongs to, and the number of its trial.
SWEEP_TAG = "mimic3d.sweep"
TRIAL_TAG = "mimic3d.trial"
# Of a registered version.
RECIPE_TAG = "mimic3d.recipe"
RESOLUTION_TAG = "mimic3d.resolution"
